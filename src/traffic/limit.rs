//! The grammars of the limits, compression, error pages and mirrors that later features enforce.
//! They are checked already now, so that a mistake shows when it is written and not when the feature arrives.

use crate::diagnostic::{Diagnostic, brief};
use crate::label::{Value, boolean};

/// How many requests a caller may make.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub per_second: f64,
    /// How many may come at once.
    pub burst: u32,
    pub by: By,
}

/// Who counts as one caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    #[default]
    Ip,
    /// All callers together.
    Route,
}

/// What is answered in place of an upstream's error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorPage {
    /// 4, 5 or both: the first digit of the statuses.
    pub classes: Vec<u8>,
    /// A service's name or a file's path.
    pub source: String,
}

/// The keys of this file, typed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    pub rate: Option<Rate>,
    /// Requests in flight.
    pub inflight: Option<u32>,
    /// Bytes of a request's body.
    pub body: Option<u64>,
    pub compress: bool,
    pub error_page: Option<ErrorPage>,
    /// The service that gets a copy of each request.
    pub mirror: Option<String>,
}

/// Sets what `key` says; the caller reports that it has no effect yet.
pub(super) fn read(limits: &mut Limits, key: &str, value: &Value) -> Result<(), Diagnostic> {
    match key {
        "rate-limit" => limits.rate = Some(rate(value)?),
        "max-inflight" => limits.inflight = Some(inflight(value)?),
        "max-body" => limits.body = Some(bytes(value)?),
        "compress" => limits.compress = boolean(value)?,
        "error-page" => limits.error_page = Some(error_page(value)?),
        _ => limits.mirror = Some(service(value)?),
    }
    Ok(())
}

/// `100/s burst 200 by ip`.
fn rate(value: &Value) -> Result<Rate, Diagnostic> {
    let example = "write it like `100/s`, `60/m burst 20` or `100/s burst 200 by route`";
    let bad = |at: &Value, message: String| Diagnostic::error("bad-rate-limit", message).at(at.place()).help(example);
    let words = value.list();
    let Some((first, rest)) = words.split_first() else { return Err(bad(value, "the limit is empty".to_owned())) };
    let parsed = first.text.split_once('/').and_then(|(count, unit)| {
        let seconds = match unit {
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        count.parse::<u32>().ok().filter(|count| *count > 0).map(|count| (count, seconds))
    });
    let Some((count, seconds)) = parsed else { return Err(bad(first, format!("`{}` is not a rate", brief(&first.text)))) };
    let mut rate = Rate { per_second: f64::from(count) / seconds, burst: count, by: By::default() };
    for pair in rest.chunks(2) {
        match (pair[0].text.as_str(), pair.get(1).map(|word| word.text.as_str())) {
            ("burst", Some(number)) if number.parse::<u32>().is_ok_and(|burst| burst > 0) => rate.burst = number.parse().unwrap_or(count),
            ("by", Some("ip")) => rate.by = By::Ip,
            ("by", Some("route")) => rate.by = By::Route,
            (word @ ("burst" | "by"), Some(_)) => {
                return Err(bad(&pair[1], format!("`{}` cannot stand behind `{word}`", brief(&pair[1].text))));
            }
            (word @ ("burst" | "by"), None) => return Err(bad(&pair[0], format!("something is missing behind `{word}`"))),
            (word, _) => return Err(bad(&pair[0], format!("`{}` means nothing here", brief(word)))),
        }
    }
    Ok(rate)
}

fn inflight(value: &Value) -> Result<u32, Diagnostic> {
    value.text.parse().ok().filter(|count| *count > 0).ok_or_else(|| {
        Diagnostic::error("bad-max-inflight", format!("`{}` is not a number of requests", brief(&value.text)))
            .at(value.place())
            .help("write a whole number above 0, like `100`")
    })
}

/// `10MB`, `512KiB`, `1048576`.
fn bytes(value: &Value) -> Result<u64, Diagnostic> {
    let digits = value.text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = value.text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "kb" => Some(1_000),
        "mb" => Some(1_000_000),
        "gb" => Some(1_000_000_000),
        "k" | "kib" => Some(1 << 10),
        "m" | "mib" => Some(1 << 20),
        "g" | "gib" => Some(1 << 30),
        _ => None,
    };
    let size = factor.and_then(|factor| number.parse::<u64>().ok()?.checked_mul(factor));
    size.ok_or_else(|| {
        Diagnostic::error("bad-size", format!("`{}` is not a size", brief(&value.text)))
            .at(value.place())
            .help("write it like `10MB`, `512KiB` or `1048576`")
    })
}

/// `4xx,5xx SERVICE` or `5xx /errors/page.html`; the classes may be left out.
fn error_page(value: &Value) -> Result<ErrorPage, Diagnostic> {
    let mut words = value.list();
    let example = "write it like `5xx /errors/busy.html` or `4xx,5xx shop_errors`";
    let Some(source) = words.pop().filter(|last| class(&last.text).is_none()) else {
        let finding = Diagnostic::error("bad-error-page", "a service or a file is missing behind the classes").at(value.place());
        return Err(finding.help(example));
    };
    let mut classes = Vec::new();
    for word in &words {
        match class(&word.text) {
            Some(class) => classes.push(class),
            None => {
                let finding = Diagnostic::error("bad-error-page", format!("`{}` is not a class of statuses", brief(&word.text)));
                return Err(finding.at(word.place()).help(example));
            }
        }
    }
    if classes.is_empty() {
        classes = vec![4, 5];
    }
    Ok(ErrorPage { classes, source: source.text })
}

fn class(word: &str) -> Option<u8> {
    match word.to_ascii_lowercase().as_str() {
        "4xx" => Some(4),
        "5xx" => Some(5),
        _ => None,
    }
}

fn service(value: &Value) -> Result<String, Diagnostic> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match value.text.char_indices().find(|&(_, c)| !allowed(c)) {
        None => Ok(value.text.clone()),
        Some((at, odd)) => {
            let message = format!("`{}` cannot stand in a service's name", odd.escape_debug());
            Err(Diagnostic::error("bad-mirror", message)
                .at(value.span(at..at + odd.len_utf8()))
                .help("write one service's name, like `shop_web`"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(key: &str, text: &str) -> Result<Limits, String> {
        let mut limits = Limits::default();
        let value = Value::new("skep.x", text).expect("not blank");
        read(&mut limits, key, &value).map(|()| limits).map_err(|finding| finding.code)
    }

    #[test]
    fn limits_are_typed() {
        let rate = |per_second, burst, by| Limits { rate: Some(Rate { per_second, burst, by }), ..Limits::default() };
        let page = |classes: &[u8], source: &str| Limits {
            error_page: Some(ErrorPage { classes: classes.to_vec(), source: source.to_owned() }),
            ..Limits::default()
        };
        for (key, text, wanted) in [
            ("rate-limit", "100/s", rate(100.0, 100, By::Ip)),
            ("rate-limit", "100/s burst 200 by ip", rate(100.0, 200, By::Ip)),
            ("rate-limit", "60/m by route", rate(1.0, 60, By::Route)),
            ("max-inflight", "10", Limits { inflight: Some(10), ..Limits::default() }),
            ("max-body", "10MB", Limits { body: Some(10_000_000), ..Limits::default() }),
            ("max-body", "512KiB", Limits { body: Some(512 << 10), ..Limits::default() }),
            ("max-body", "7", Limits { body: Some(7), ..Limits::default() }),
            ("compress", "on", Limits { compress: true, ..Limits::default() }),
            ("mirror", "shop_web", Limits { mirror: Some("shop_web".to_owned()), ..Limits::default() }),
            ("error-page", "5xx /errors/busy.html", page(&[5], "/errors/busy.html")),
            ("error-page", "4xx,5xx shop_errors", page(&[4, 5], "shop_errors")),
            ("error-page", "shop_errors", page(&[4, 5], "shop_errors")),
        ] {
            assert_eq!(typed(key, text), Ok(wanted), "{key}: {text}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (key, text, code) in [
            ("rate-limit", "100", "bad-rate-limit"),
            ("rate-limit", "100/d", "bad-rate-limit"),
            ("rate-limit", "0/s", "bad-rate-limit"),
            ("rate-limit", "100/s burst", "bad-rate-limit"),
            ("rate-limit", "100/s burst many", "bad-rate-limit"),
            ("rate-limit", "100/s per ip", "bad-rate-limit"),
            ("rate-limit", "100/s by cookie", "bad-rate-limit"),
            ("rate-limit", ",", "bad-rate-limit"),
            ("max-inflight", "0", "bad-max-inflight"),
            ("max-inflight", "99999999999", "bad-max-inflight"),
            ("max-body", "10 apples", "bad-size"),
            ("max-body", "99999999999GB", "bad-size"),
            ("compress", "zstd", "bad-boolean"),
            ("mirror", "a b", "bad-mirror"),
            ("error-page", "5xx", "bad-error-page"),
            ("error-page", "500 page", "bad-error-page"),
            ("error-page", ",", "bad-error-page"),
        ] {
            assert_eq!(typed(key, text), Err(code.to_owned()), "{key}: {text}");
        }
    }
}
