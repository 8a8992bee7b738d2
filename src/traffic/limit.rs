//! The grammars of what bounds a route: how often, how many at once, how long a body.
//! What they say is enforced by `proxy::limit`, which holds the counters; here is only what a value means.

use std::time::Duration;

use http::HeaderName;

use super::circuit::{self, Breaker};
use super::mirror::{self, Mirror};
use super::page::{self, ErrorPage};
use crate::config::Defaults;
use crate::diagnostic::{Diagnostic, brief};
use crate::label::{Value, boolean, duration};

/// Faster than this is no limit: nanoseconds are what the counters count in.
const FASTEST: u32 = 1_000_000;
/// As many as there can be connections.
const MOST_INFLIGHT: u32 = 1_000_000;
/// Requests that may wait for a place, at most; each holds a connection.
const LONGEST_QUEUE: u32 = 100_000;
/// A client that waits longer has given up.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long a request waits for a place where the label does not say.
const WAIT: Duration = Duration::from_secs(1);

/// How many requests a caller may make.
#[derive(Clone, Debug, PartialEq)]
pub struct Rate {
    pub per_second: f64,
    /// How many may come at once.
    pub burst: u32,
    pub by: By,
}

/// Who counts as one caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// An IPv4 address, or an IPv6 network of 64 bits: that is what one customer gets.
    #[default]
    Ip,
    /// All callers together.
    Route,
    /// Whoever sends the same value; by address where the header is missing.
    Header(HeaderName),
}

/// How many requests may be at work, and how many more may wait for a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inflight {
    pub most: u32,
    pub queue: u32,
    pub wait: Duration,
}

/// The keys of this file and its neighbours, typed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    pub rate: Option<Rate>,
    pub inflight: Option<Inflight>,
    /// Bytes of a request's body.
    pub body: Option<u64>,
    pub circuit: Option<Breaker>,
    pub compress: bool,
    pub error_page: Option<ErrorPage>,
    pub mirror: Option<Mirror>,
}

impl Limits {
    /// What a route has whose labels say nothing.
    pub fn by_default(defaults: &Defaults) -> Limits {
        Limits { body: defaults.max_body, ..Limits::default() }
    }

    /// Nothing of a request has to be looked at or counted.
    pub fn is_empty(&self) -> bool {
        *self == Limits::default()
    }

    /// In words, as the labels have them; for people.
    pub fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        words.extend(self.rate.as_ref().map(|rate| format!("rate-limit {rate}")));
        words.extend(self.inflight.map(|inflight| format!("max-inflight {inflight}")));
        words.extend(self.body.map(|bytes| format!("max-body {bytes}")));
        words.extend(self.circuit.map(|breaker| format!("circuit {breaker}")));
        words.extend(self.compress.then(|| "compress".to_owned()));
        words.extend(self.mirror.as_ref().map(|mirror| format!("mirror {mirror}")));
        words.extend(self.error_page.as_ref().map(|page| format!("error-page {page}")));
        words
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rounded = |rate: f64| (rate - rate.round()).abs() < 1e-9;
        let (count, unit) = match self.per_second {
            rate if rounded(rate) => (rate, "s"),
            rate if rounded(rate * 60.0) => (rate * 60.0, "m"),
            rate => (rate * 3600.0, "h"),
        };
        write!(to, "{}/{unit} burst {} by ", count.round(), self.burst)?;
        match &self.by {
            By::Ip => to.write_str("ip"),
            By::Route => to.write_str("route"),
            By::Header(name) => write!(to, "header:{name}"),
        }
    }
}

impl std::fmt::Display for Inflight {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "{} queue {} wait {:?}", self.most, self.queue, self.wait)
    }
}

/// Sets what `key` says.
pub(super) fn read(limits: &mut Limits, key: &str, value: &Value) -> Result<(), Diagnostic> {
    match key {
        "rate-limit" => limits.rate = Some(rate(value)?),
        "max-inflight" => limits.inflight = Some(inflight(value)?),
        "max-body" => limits.body = body(value)?,
        "circuit" => limits.circuit = circuit::read(value)?,
        "compress" => limits.compress = boolean(value)?,
        "error-page" => limits.error_page = Some(page::read(value)?),
        _ => limits.mirror = Some(mirror::read(value)?),
    }
    Ok(())
}

/// `100/s burst 200 by ip`.
fn rate(value: &Value) -> Result<Rate, Diagnostic> {
    let example = "write it like `100/s`, `60/m burst 20`, `100/s burst 200 by route` or `100/s by header:X-Api-Key`";
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
        count.parse::<u32>().ok().filter(|count| (1..=FASTEST).contains(count)).map(|count| (count, seconds))
    });
    let Some((count, seconds)) = parsed else { return Err(bad(first, format!("`{}` is not a rate", brief(&first.text)))) };
    let mut rate = Rate { per_second: f64::from(count) / seconds, burst: count, by: By::default() };
    for pair in rest.chunks(2) {
        let odd = |second: &Value, word: &str| bad(second, format!("`{}` cannot stand behind `{word}`", brief(&second.text)));
        match (pair[0].text.as_str(), pair.get(1)) {
            ("burst", Some(second)) => {
                let burst = second.text.parse().ok().filter(|burst| *burst > 0);
                rate.burst = burst.ok_or_else(|| odd(second, "burst"))?;
            }
            ("by", Some(second)) => rate.by = by(&second.text).ok_or_else(|| odd(second, "by"))?,
            (word @ ("burst" | "by"), None) => return Err(bad(&pair[0], format!("something is missing behind `{word}`"))),
            (word, _) => return Err(bad(&pair[0], format!("`{}` means nothing here", brief(word)))),
        }
    }
    Ok(rate)
}

fn by(text: &str) -> Option<By> {
    match text {
        "ip" => Some(By::Ip),
        "route" => Some(By::Route),
        other => other.strip_prefix("header:")?.parse().ok().map(By::Header),
    }
}

/// `100`, `100 queue 50 wait 500ms`.
fn inflight(value: &Value) -> Result<Inflight, Diagnostic> {
    let example = "write a whole number above 0, like `100`, then perhaps `queue 50` and `wait 500ms`";
    let bad = |at: &Value, message: String| Diagnostic::error("bad-max-inflight", message).at(at.place()).help(example);
    let words = value.list();
    let Some((first, rest)) = words.split_first() else { return Err(bad(value, "the limit is empty".to_owned())) };
    let most = first.text.parse::<u32>().ok().filter(|count| (1..=MOST_INFLIGHT).contains(count));
    let Some(most) = most else { return Err(bad(first, format!("`{}` is not a number of requests", brief(&first.text)))) };
    let mut inflight = Inflight { most, queue: most.min(LONGEST_QUEUE), wait: WAIT };
    for pair in rest.chunks(2) {
        match (pair[0].text.as_str(), pair.get(1)) {
            ("queue", Some(second)) => {
                let queue = second.text.parse().ok().filter(|queue| *queue <= LONGEST_QUEUE);
                inflight.queue = queue.ok_or_else(|| bad(second, format!("a queue has 0 to {LONGEST_QUEUE} places")))?;
            }
            ("wait", Some(second)) => {
                inflight.wait = duration(second)?;
                if inflight.wait > LONGEST_WAIT {
                    return Err(bad(second, format!("nobody waits longer than {LONGEST_WAIT:?}")));
                }
            }
            (word @ ("queue" | "wait"), None) => return Err(bad(&pair[0], format!("something is missing behind `{word}`"))),
            (word, _) => return Err(bad(&pair[0], format!("`{}` means nothing here", brief(word)))),
        }
    }
    Ok(inflight)
}

/// A size, or `off` where the configuration's default shall not count.
fn body(value: &Value) -> Result<Option<u64>, Diagnostic> {
    if value.text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    crate::label::bytes(value).map(Some)
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
    fn limits_are_typed_and_said_again() {
        let rate = |per_second, burst, by| Limits { rate: Some(Rate { per_second, burst, by }), ..Limits::default() };
        let inflight = |most, queue, wait| {
            let wait = Duration::from_millis(wait);
            Limits { inflight: Some(Inflight { most, queue, wait }), ..Limits::default() }
        };
        let body = |bytes| Limits { body: Some(bytes), ..Limits::default() };
        let key = HeaderName::from_static("x-api-key");
        for (key, text, wanted, said) in [
            ("rate-limit", "100/s", rate(100.0, 100, By::Ip), "100/s burst 100 by ip"),
            ("rate-limit", "100/s burst 200 by ip", rate(100.0, 200, By::Ip), "100/s burst 200 by ip"),
            ("rate-limit", "60/m by route", rate(1.0, 60, By::Route), "1/s burst 60 by route"),
            ("rate-limit", "90/m by route", rate(1.5, 90, By::Route), "90/m burst 90 by route"),
            ("rate-limit", "2/h", rate(2.0 / 3600.0, 2, By::Ip), "2/h burst 2 by ip"),
            ("rate-limit", "100/s by header:X-Api-Key", rate(100.0, 100, By::Header(key)), "100/s burst 100 by header:x-api-key"),
            ("max-inflight", "10", inflight(10, 10, 1000), "10 queue 10 wait 1s"),
            ("max-inflight", "100 queue 50 wait 500ms", inflight(100, 50, 500), "100 queue 50 wait 500ms"),
            ("max-inflight", "1 queue 0", inflight(1, 0, 1000), "1 queue 0 wait 1s"),
            ("max-body", "10MB", body(10_000_000), "10000000"),
            ("max-body", "512KiB", body(512 << 10), "524288"),
            ("max-body", "7", body(7), "7"),
        ] {
            assert_eq!(typed(key, text).as_ref(), Ok(&wanted), "{key}: {text}");
            assert_eq!(wanted.words(), [format!("{key} {said}")]);
        }
        assert_eq!(typed("max-body", "off"), Ok(Limits::default()));
        assert_eq!(typed("compress", "on"), Ok(Limits { compress: true, ..Limits::default() }));
    }

    #[test]
    fn mistakes_are_named() {
        for (key, text, code) in [
            ("rate-limit", "100", "bad-rate-limit"),
            ("rate-limit", "100/d", "bad-rate-limit"),
            ("rate-limit", "0/s", "bad-rate-limit"),
            ("rate-limit", "1000001/s", "bad-rate-limit"),
            ("rate-limit", "100/s burst", "bad-rate-limit"),
            ("rate-limit", "100/s burst many", "bad-rate-limit"),
            ("rate-limit", "100/s burst 0", "bad-rate-limit"),
            ("rate-limit", "100/s per ip", "bad-rate-limit"),
            ("rate-limit", "100/s by cookie", "bad-rate-limit"),
            ("rate-limit", "100/s by header:", "bad-rate-limit"),
            ("rate-limit", "100/s by header:X(Y", "bad-rate-limit"),
            ("rate-limit", ",", "bad-rate-limit"),
            ("max-inflight", "0", "bad-max-inflight"),
            ("max-inflight", "1000001", "bad-max-inflight"),
            ("max-inflight", "1 queue", "bad-max-inflight"),
            ("max-inflight", "1 queue -1", "bad-max-inflight"),
            ("max-inflight", "1 wait 5", "bad-duration"),
            ("max-inflight", "1 wait 2h", "bad-max-inflight"),
            ("max-inflight", "1 for 5s", "bad-max-inflight"),
            ("max-body", "10 apples", "bad-size"),
            ("max-body", "99999999999GB", "bad-size"),
            ("compress", "zstd", "bad-boolean"),
        ] {
            assert_eq!(typed(key, text), Err(code.to_owned()), "{key}: {text}");
        }
    }
}
