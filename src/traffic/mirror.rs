//! The grammar of `mirror`: whom copies of requests go to, and of how many requests there are copies.

use crate::diagnostic::{Diagnostic, brief};
use crate::label::Value;

/// A service that gets copies of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    pub service: String,
    /// Of a hundred requests, so many are copied.
    pub percent: u8,
}

impl Mirror {
    /// Is the request with this `seed` copied?
    pub fn takes(&self, seed: u64) -> bool {
        seed % 100 < u64::from(self.percent)
    }
}

impl std::fmt::Display for Mirror {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.percent {
            100 => to.write_str(&self.service),
            percent => write!(to, "{} {percent}%", self.service),
        }
    }
}

/// `shop_next`, `shop_next 10%`.
pub(super) fn read(value: &Value) -> Result<Mirror, Diagnostic> {
    const EXAMPLE: &str = "write one service's name, like `shop_next`, and perhaps a share, like `shop_next 10%`";
    let bad = |at: &Value, message: String| Diagnostic::error("bad-mirror", message).at(at.place()).help(EXAMPLE);
    let words = value.list();
    let percent = |word: &Value| word.text.strip_suffix('%').and_then(|number| number.parse::<u8>().ok()).filter(|share| *share <= 100);
    match words.as_slice() {
        [] => Err(bad(value, "no service is named".to_owned())),
        [name] => Ok(Mirror { service: service(name, "bad-mirror", EXAMPLE)?, percent: 100 }),
        [name, share] => match percent(share) {
            Some(percent) => Ok(Mirror { service: service(name, "bad-mirror", EXAMPLE)?, percent }),
            None => Err(bad(share, format!("`{}` is not a share of 0% to 100%", brief(&share.text)))),
        },
        [_, _, more, ..] => Err(bad(more, format!("`{}` means nothing here", brief(&more.text)))),
    }
}

/// A service's name.
pub(super) fn service(value: &Value, code: &str, example: &str) -> Result<String, Diagnostic> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match value.text.char_indices().find(|&(_, c)| !allowed(c)) {
        None => Ok(value.text.clone()),
        Some((at, odd)) => {
            let message = format!("`{}` cannot stand in a service's name", odd.escape_debug());
            Err(Diagnostic::error(code, message).at(value.span(at..at + odd.len_utf8())).help(example))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_typed() {
        for (text, service, percent) in [("shop_web", "shop_web", 100), ("shop.next 10%", "shop.next", 10), ("a 0%", "a", 0)] {
            let read = read(&Value::new("skep.mirror", text).expect("not blank"));
            assert_eq!(read, Ok(Mirror { service: service.to_owned(), percent }), "{text}");
        }
        for text in ["a/b", "a b", "a 101%", "a %", "a 10% b", ","] {
            let finding = read(&Value::new("skep.mirror", text).expect("not blank")).expect_err(text);
            assert_eq!(finding.code, "bad-mirror", "{text}");
        }
    }

    #[test]
    fn a_share_is_that_share() {
        let copied = |percent| (0..1000).filter(|seed| Mirror { service: String::new(), percent }.takes(*seed)).count();
        assert_eq!([copied(0), copied(10), copied(100)], [0, 100, 1000]);
    }
}
