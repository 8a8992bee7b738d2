//! Which content coding an answer gets: what the client accepts (RFC 9110, 12.5.3) and what of an answer may be coded at all.
//! Only decisions and header edits; the coding itself is `proxy::compress`.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};

/// Shorter answers do not become shorter.
const LEAST: u64 = 1024;

/// A content coding, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Encoding {
    Zstd,
    Br,
    Gzip,
}

impl Encoding {
    const ALL: [Encoding; 3] = [Encoding::Zstd, Encoding::Br, Encoding::Gzip];

    /// As `Content-Encoding` has it.
    pub fn name(self) -> &'static str {
        match self {
            Encoding::Zstd => "zstd",
            Encoding::Br => "br",
            Encoding::Gzip => "gzip",
        }
    }
}

/// What becomes of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// `None`: the body stays as it is.
    pub encoding: Option<Encoding>,
    /// Whether pieces must go out as they come: nobody knows how long the body gets, or it is a stream of events.
    pub flush: bool,
    /// Headers to set, or to remove.
    pub edits: Vec<(HeaderName, Option<HeaderValue>)>,
}

/// The coding that the client likes best; of those that it likes equally, ours. `None`: as it is.
pub fn accepted(request: &HeaderMap) -> Option<Encoding> {
    let weights: Vec<(&str, u16)> = request
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(weighted)
        .collect();
    let weight = |name: &str| {
        let named = weights.iter().find(|(coding, _)| coding.eq_ignore_ascii_case(name) || (name == "gzip" && *coding == "x-gzip"));
        named.or_else(|| weights.iter().find(|(coding, _)| *coding == "*")).map(|(_, weight)| *weight)
    };
    // `identity` counts only where it is named: without a word on it, it is what is sent when nothing else is liked.
    let identity = weights.iter().find(|(coding, _)| coding.eq_ignore_ascii_case("identity")).map_or(0, |(_, weight)| *weight);
    let liked = Encoding::ALL.into_iter().filter_map(|encoding| Some((weight(encoding.name())?, encoding)));
    let best = liked.filter(|(weight, _)| *weight > 0).max_by_key(|(weight, encoding)| (*weight, std::cmp::Reverse(*encoding)))?;
    (best.0 >= identity).then_some(best.1)
}

/// `br;q=0.5`: the coding and its weight in thousandths. A weight that cannot be read drops the coding.
fn weighted(entry: &str) -> Option<(&str, u16)> {
    let mut parts = entry.split(';').map(str::trim);
    let coding = parts.next().filter(|coding| !coding.is_empty())?;
    let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    let thousandths = match weight {
        None => 1000,
        Some(text) => {
            let number = text.parse::<f32>().ok().filter(|number| (0.0..=1.0).contains(number))?;
            (number * 1000.0).round() as u16
        }
    };
    Some((coding, thousandths))
}

/// What becomes of this answer to this request; `None`: it has nothing to do with coding, not even for caches.
pub fn plan(method: &Method, version: Version, request: &HeaderMap, status: StatusCode, response: &HeaderMap) -> Option<Plan> {
    if status == StatusCode::NOT_MODIFIED {
        return Some(not_modified(request, response));
    }
    if !is_codable(method, status, response) {
        return None;
    }
    let mut plan = Plan { edits: vary(response).into_iter().collect(), ..Plan::default() };
    // HTTP/1.0 has no chunks, and the length is not known before the end.
    let Some(encoding) = accepted(request).filter(|_| version != Version::HTTP_10) else { return Some(plan) };
    plan.encoding = Some(encoding);
    let events = response.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    plan.flush = events || !response.contains_key(header::CONTENT_LENGTH);
    plan.edits.push((header::CONTENT_ENCODING, Some(HeaderValue::from_static(encoding.name()))));
    plan.edits.extend(weak(response));
    // The upstream counts ranges, lengths and digests in bytes that this client never sees.
    let counted =
        [header::CONTENT_LENGTH, header::ACCEPT_RANGES, HeaderName::from_static("content-md5"), HeaderName::from_static("digest")];
    plan.edits.extend(counted.into_iter().filter(|name| response.contains_key(name)).map(|name| (name, None)));
    Some(plan)
}

/// A cache compares what it kept with this: it must be the tag that the coded answer had.
fn not_modified(request: &HeaderMap, response: &HeaderMap) -> Plan {
    let coded = accepted(request).is_some();
    let edits = vary(response).into_iter().chain(weak(response).filter(|_| coded));
    Plan { edits: edits.collect(), ..Plan::default() }
}

/// May another client get this answer coded?
fn is_codable(method: &Method, status: StatusCode, response: &HeaderMap) -> bool {
    let bodiless = status.is_informational() || [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT].contains(&status);
    let part = status == StatusCode::PARTIAL_CONTENT || response.contains_key(header::CONTENT_RANGE);
    let coded = response.get_all(header::CONTENT_ENCODING).iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    let fixed = response.get_all(header::CACHE_CONTROL).iter().filter_map(|line| line.to_str().ok());
    let fixed = fixed.flat_map(|line| line.split(',')).any(|word| word.trim().eq_ignore_ascii_case("no-transform"));
    let length = response.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let kind = response.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    // RFC 9110, 9.3.6: what follows a good answer to CONNECT is a tunnel.
    method != Method::CONNECT
        && !(bodiless || part || coded || fixed)
        && !response.contains_key(header::TRAILER)
        && length.is_none_or(|length| length >= LEAST)
        && kind.is_some_and(is_text)
}

/// Content types that become shorter; most others are compressed already.
fn is_text(kind: &str) -> bool {
    const APPLICATION: [&str; 18] = [
        "javascript",
        "json",
        "xml",
        "ecmascript",
        "graphql",
        "wasm",
        "x-javascript",
        "x-ndjson",
        "ndjson",
        "x-sh",
        "rtf",
        "sql",
        "yaml",
        "x-yaml",
        "toml",
        "vnd.ms-fontobject",
        "manifest",
        "x-web-app-manifest",
    ];
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let Some((main, sub)) = kind.split_once('/') else { return false };
    match main {
        "text" => true,
        "application" => APPLICATION.contains(&sub) || ["+json", "+xml", "+yaml"].iter().any(|suffix| sub.ends_with(suffix)),
        "image" => ["svg+xml", "bmp", "x-icon", "vnd.microsoft.icon"].contains(&sub),
        "font" => ["ttf", "otf", "sfnt"].contains(&sub),
        _ => false,
    }
}

/// `Vary` with `Accept-Encoding` in it, unless it says so already.
fn vary(response: &HeaderMap) -> Option<(HeaderName, Option<HeaderValue>)> {
    let lines: Vec<&str> = response.get_all(header::VARY).iter().filter_map(|line| line.to_str().ok()).collect();
    let named = lines.iter().flat_map(|line| line.split(',')).map(str::trim);
    if named.into_iter().any(|name| name == "*" || name.eq_ignore_ascii_case("accept-encoding")) {
        return None;
    }
    let all: Vec<&str> = lines.into_iter().chain(["Accept-Encoding"]).filter(|line| !line.trim().is_empty()).collect();
    let value = HeaderValue::from_str(&all.join(", ")).unwrap_or(HeaderValue::from_static("Accept-Encoding"));
    Some((header::VARY, Some(value)))
}

/// A strong tag promises the same bytes, which coding breaks.
fn weak(response: &HeaderMap) -> Option<(HeaderName, Option<HeaderValue>)> {
    let tag = response.get(header::ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/"))?;
    HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat()).ok().map(|tag| (header::ETAG, Some(tag)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn best(accept: &str) -> Option<&'static str> {
        accepted(&headers(&[("accept-encoding", accept)])).map(Encoding::name)
    }

    #[test]
    fn the_client_gets_what_it_likes_best() {
        for (accept, wanted) in [
            ("gzip, deflate, br, zstd", Some("zstd")),
            ("gzip, deflate, br", Some("br")),
            ("gzip", Some("gzip")),
            ("x-gzip", Some("gzip")),
            ("GZIP", Some("gzip")),
            ("gzip;q=1.0, br;q=0.5", Some("gzip")),
            ("gzip; q=0.8 , br;Q=0.9", Some("br")),
            ("br;q=0, gzip;q=0.001", Some("gzip")),
            ("br;q=0", None),
            ("*", Some("zstd")),
            ("*;q=0.1, zstd;q=0", Some("br")),
            ("*;q=0", None),
            ("identity", None),
            ("identity;q=0.5, gzip;q=0.4", None),
            ("identity;q=0.5, gzip;q=0.5", Some("gzip")),
            ("identity;q=0, gzip", Some("gzip")),
            ("deflate", None),
            ("gzip;q=2", None),
            ("gzip;q=x", None),
            ("", None),
            (",;q=1,", None),
        ] {
            assert_eq!(best(accept), wanted, "{accept}");
        }
        assert_eq!(accepted(&HeaderMap::new()), None);
        let two = headers(&[("accept-encoding", "gzip;q=0.5"), ("accept-encoding", "br")]);
        assert_eq!(accepted(&two), Some(Encoding::Br));
    }

    fn planned(accept: &str, response: &[(&str, &str)]) -> Option<Plan> {
        let request = headers(&[("accept-encoding", accept)]);
        plan(&Method::GET, Version::HTTP_11, &request, StatusCode::OK, &headers(response))
    }

    fn edit<'a>(plan: &'a Plan, name: &str) -> Option<Option<&'a str>> {
        plan.edits.iter().find(|(edited, _)| edited == name).map(|(_, value)| value.as_ref().map(|value| value.to_str().unwrap()))
    }

    #[test]
    fn a_coded_answer_says_so_and_drops_what_was_counted_in_other_bytes() {
        let response = [
            ("content-type", "text/html; charset=utf-8"),
            ("content-length", "5000"),
            ("etag", "\"abc\""),
            ("accept-ranges", "bytes"),
            ("vary", "Origin"),
        ];
        let plan = planned("br", &response).expect("it can be coded");
        assert_eq!((plan.encoding, plan.flush), (Some(Encoding::Br), false));
        for (name, wanted) in [
            ("content-encoding", Some("br")),
            ("content-length", None),
            ("accept-ranges", None),
            ("etag", Some("W/\"abc\"")),
            ("vary", Some("Origin, Accept-Encoding")),
        ] {
            assert_eq!(edit(&plan, name), Some(wanted), "{name}");
        }
        let plain = planned("identity", &response).expect("caches must know");
        assert_eq!((plain.encoding, plain.edits.len(), edit(&plain, "vary")), (None, 1, Some(Some("Origin, Accept-Encoding"))));
    }

    #[test]
    fn what_must_stay_or_gains_nothing_stays() {
        let html = ("content-type", "text/html");
        for response in [
            &[("content-type", "image/png")][..],
            &[("content-type", "video/mp4")],
            &[("content-type", "application/zip")],
            &[("content-type", "application/grpc")],
            &[("content-type", "font/woff2")],
            &[],
            &[html, ("content-length", "1023")],
            &[html, ("content-encoding", "gzip")],
            &[html, ("cache-control", "public, No-Transform")],
            &[html, ("content-range", "bytes 0-1/2")],
            &[html, ("trailer", "X-Sum")],
        ] {
            assert_eq!(planned("gzip", response), None, "{response:?}");
        }
        for kind in ["text/css", "application/json", "application/ld+json", "image/svg+xml", "application/wasm", "font/ttf"] {
            assert!(planned("gzip", &[("content-type", kind)]).is_some_and(|plan| plan.encoding.is_some()), "{kind}");
        }
        let request = headers(&[("accept-encoding", "gzip")]);
        for status in [101, 204, 206] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(plan(&Method::GET, Version::HTTP_11, &request, status, &headers(&[html])), None, "{status}");
        }
        let old = plan(&Method::GET, Version::HTTP_10, &request, StatusCode::OK, &headers(&[html])).expect("caches must know");
        assert_eq!(old.encoding, None);
    }

    #[test]
    fn a_revalidation_has_the_tag_of_what_was_kept() {
        let response = headers(&[("etag", "\"a\"")]);
        let asked =
            |accept| plan(&Method::GET, Version::HTTP_11, &headers(&[("accept-encoding", accept)]), StatusCode::NOT_MODIFIED, &response);
        assert_eq!(edit(&asked("gzip").unwrap(), "etag"), Some(Some("W/\"a\"")));
        assert_eq!(edit(&asked("identity").unwrap(), "etag"), None);
        assert_eq!(edit(&asked("identity").unwrap(), "vary"), Some(Some("Accept-Encoding")));
    }

    #[test]
    fn streams_are_flushed() {
        assert!(planned("gzip", &[("content-type", "text/event-stream")]).unwrap().flush);
        assert!(planned("gzip", &[("content-type", "text/html")]).unwrap().flush);
        assert!(!planned("gzip", &[("content-type", "text/html"), ("content-length", "9999")]).unwrap().flush);
    }

    proptest! {
        #[test]
        fn any_header_is_read_and_nothing_refused_is_chosen(accept in "[a-z*;=q0-9., ]{0,40}|\\PC{0,20}") {
            let Ok(value) = HeaderValue::from_str(&accept) else { return Ok(()) };
            let request = HeaderMap::from_iter([(header::ACCEPT_ENCODING, value)]);
            if let Some(chosen) = accepted(&request) {
                let named = accept.to_ascii_lowercase();
                prop_assert!(named.contains(chosen.name()) || named.contains('*'));
                let refused = format!("{};q=0", chosen.name());
                prop_assert_ne!(named.split(',').next().unwrap_or_default().trim(), refused);
            }
        }
    }
}
