//! The grammar of `error-page`, and which answers a page may stand for: never those that a program reads.

use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap};

use super::mirror::service;
use crate::diagnostic::{Diagnostic, brief};
use crate::label::Value;

/// What is answered in place of an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorPage {
    /// 4, 5 or both: the first digit of the statuses.
    pub classes: Vec<u8>,
    pub source: PageSource,
}

/// Where pages come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PageSource {
    /// A file's path; `{status}` in it stands for the status.
    File(String),
    /// This service is asked for `/{status}.html`.
    Service(String),
}

impl ErrorPage {
    /// Does the page stand for answers of this status?
    pub fn covers(&self, status: StatusCode) -> bool {
        self.classes.iter().any(|class| u16::from(*class) == status.as_u16() / 100)
    }

    /// May the page stand for this answer of an upstream? What is not a page or plain text is an API's, whose clients read it.
    pub fn replaces(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        let kind = headers.get(CONTENT_TYPE).map(|value| value.as_bytes().to_ascii_lowercase());
        let is_page = kind.is_none_or(|kind| kind.starts_with(b"text/html") || kind.starts_with(b"text/plain"));
        self.covers(status) && is_page && !headers.contains_key("grpc-status")
    }
}

impl std::fmt::Display for ErrorPage {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let classes: Vec<String> = self.classes.iter().map(|class| format!("{class}xx")).collect();
        let (PageSource::File(source) | PageSource::Service(source)) = &self.source;
        write!(to, "{} {source}", classes.join(","))
    }
}

/// `4xx,5xx SERVICE` or `5xx /errors/page.html`; the classes may be left out.
pub(super) fn read(value: &Value) -> Result<ErrorPage, Diagnostic> {
    let mut words = value.list();
    let example = "write it like `5xx /errors/busy.html` or `4xx,5xx shop_errors`";
    let bad = |at: &Value, message: String| Diagnostic::error("bad-error-page", message).at(at.place()).help(example);
    let Some(source) = words.pop().filter(|last| class(&last.text).is_none()) else {
        return Err(bad(value, "a service or a file is missing behind the classes".to_owned()));
    };
    let mut classes = Vec::new();
    for word in &words {
        match class(&word.text) {
            Some(class) if classes.contains(&class) => {}
            Some(class) => classes.push(class),
            None => return Err(bad(word, format!("`{}` is not a class of statuses", brief(&word.text)))),
        }
    }
    if classes.is_empty() {
        classes = vec![4, 5];
    }
    if source.text.starts_with('/') {
        if source.text.split('/').any(|part| part == "..") {
            return Err(bad(&source, "a file's path goes down only".to_owned()));
        }
        return Ok(ErrorPage { classes, source: PageSource::File(source.text) });
    }
    Ok(ErrorPage { classes, source: PageSource::Service(service(&source, "bad-error-page", example)?) })
}

fn class(word: &str) -> Option<u8> {
    match word.to_ascii_lowercase().as_str() {
        "4xx" => Some(4),
        "5xx" => Some(5),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn typed(text: &str) -> Result<ErrorPage, String> {
        read(&Value::new("skep.error-page", text).expect("not blank")).map_err(|finding| finding.code)
    }

    #[test]
    fn pages_are_typed() {
        let file = |classes: &[u8], path: &str| ErrorPage { classes: classes.to_vec(), source: PageSource::File(path.to_owned()) };
        let service = |classes: &[u8], name: &str| ErrorPage { classes: classes.to_vec(), source: PageSource::Service(name.to_owned()) };
        for (text, wanted) in [
            ("5xx /errors/busy.html", file(&[5], "/errors/busy.html")),
            ("4xx,5xx shop_errors", service(&[4, 5], "shop_errors")),
            ("shop_errors", service(&[4, 5], "shop_errors")),
            ("5XX 5xx shop_errors", service(&[5], "shop_errors")),
        ] {
            assert_eq!(typed(text), Ok(wanted), "{text}");
        }
        for text in ["5xx", "500 page", ",", "5xx errors/busy.html", "5xx /errors/../../etc/shadow"] {
            assert_eq!(typed(text), Err("bad-error-page".to_owned()), "{text}");
        }
    }

    #[test]
    fn only_answers_for_people_are_replaced() {
        let page = typed("5xx shop_errors").expect("it is good");
        for (status, kind, replaced) in [
            (502, Some("text/html; charset=utf-8"), true),
            (500, Some("Text/Plain"), true),
            (500, None, true),
            (500, Some("application/json"), false),
            (500, Some("application/problem+json"), false),
            (500, Some("application/grpc"), false),
            (404, Some("text/html"), false),
            (200, Some("text/html"), false),
        ] {
            let headers: HeaderMap = kind.into_iter().map(|kind| (CONTENT_TYPE, HeaderValue::from_static(kind))).collect();
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(page.replaces(status, &headers), replaced, "{status} {kind:?}");
        }
    }
}
