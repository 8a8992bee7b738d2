//! Heads of HTTP/1.1 messages as bytes, for the lean path: read by httparse, kept as they came, written with few changes.
//! Only requests of one clear shape are taken here; everything else is left to pingora, which knows all of HTTP.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};
use httparse::{ParserConfig, Status};

use super::HeadSize;

/// Header fields that are read at all; more are left to pingora, which answers for them.
const MOST_FIELDS: usize = 128;
/// Header fields of an answer; as many as pingora takes, since nobody else can read this one.
const MOST_ANSWER_FIELDS: usize = 256;
/// Fields behind a body.
const MOST_TRAILERS: usize = 64;
/// What frames or routes a message, or says how its body is to be read, cannot come behind it.
const OF_THE_HEAD: [HeaderName; 11] = [
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::CONTENT_RANGE,
    header::TRAILER,
    header::TE,
    header::HOST,
    header::SET_COOKIE,
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
];
/// What opens an HTTP/2 connection (RFC 9113, 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One header field: its name, and where name and value stand in the head.
#[derive(Clone, Debug)]
struct Field {
    name: HeaderName,
    written: Range<usize>,
    value: Range<usize>,
    /// It belongs to one connection only.
    hop: bool,
}

/// The header fields of one message, in their order and spelling.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    raw: Bytes,
    fields: Vec<Field>,
}

/// Fields that belong to one connection only (RFC 9110, 7.6.1), without those that `Connection` names.
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    *name == header::CONNECTION
        || *name == header::UPGRADE
        || *name == header::PROXY_AUTHENTICATE
        || *name == header::PROXY_AUTHORIZATION
        || matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

/// What httparse found, by place in the buffer at `base`; `None` where a name is no name.
fn fields(base: usize, parsed: &[httparse::Header<'_>]) -> Option<Vec<Field>> {
    let mut fields = Vec::with_capacity(parsed.len());
    for field in parsed {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        let hop = is_hop_by_hop(&name);
        fields.push(Field { name, written: within(base, field.name.as_bytes()), value: within(base, field.value), hop });
    }
    Some(fields)
}

impl Fields {
    /// The values of one field, in their order.
    pub fn all<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |field| field.name == *name).map(|field| &self.raw[field.value.clone()])
    }

    pub fn contains(&self, name: &HeaderName) -> bool {
        self.fields.iter().any(|field| field.name == *name)
    }

    /// The fields as a map that shares the head's bytes.
    pub fn map(&self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.fields.len());
        for field in &self.fields {
            // httparse lets the same bytes pass as `HeaderValue` does; a value beyond that would only be missing from conditions.
            if let Ok(value) = HeaderValue::from_maybe_shared(self.raw.slice(field.value.clone())) {
                map.append(field.name.clone(), value);
            }
        }
        map
    }

    /// Those fields that `keep` keeps, without those that belong to this connection only.
    pub fn map_of(&self, room: usize, keep: impl Fn(&HeaderName) -> bool) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.fields.len() + room);
        for field in self.fields.iter().filter(|field| !field.hop && keep(&field.name)) {
            if let Ok(value) = HeaderValue::from_maybe_shared(self.raw.slice(field.value.clone())) {
                map.append(field.name.clone(), value);
            }
        }
        map
    }

    /// Appends the fields that `keep` keeps to `out`, each as a line, without those that belong to this connection only.
    pub fn write(&self, out: &mut Vec<u8>, keep: impl Fn(&HeaderName) -> bool) {
        out.reserve(self.raw.len());
        for field in self.fields.iter().filter(|field| !field.hop && keep(&field.name)) {
            line(out, &self.raw[field.written.clone()], &self.raw[field.value.clone()]);
        }
    }

    /// What `Connection` names beside its own words: as much this connection's alone.
    pub fn named_by_connection(&self) -> Vec<HeaderName> {
        let own = |token: &&[u8]| !["close", "keep-alive", "upgrade"].iter().any(|word| token.eq_ignore_ascii_case(word.as_bytes()));
        let tokens = self.all(&header::CONNECTION).flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
        tokens
            .filter(own)
            .filter_map(|token| HeaderName::from_bytes(token).ok())
            // Framing is ours, whoever calls it his own.
            .filter(|name| *name != header::CONTENT_LENGTH && *name != header::TRANSFER_ENCODING)
            .collect()
    }
}

/// A trailer section (RFC 9112, 7.1.2) as fields, without those that mean something else behind a body (RFC 9110, 6.5.1). Lines that
/// are no fields are left out.
pub fn trailers(section: &[u8]) -> HeaderMap {
    let mut headers = [httparse::EMPTY_HEADER; MOST_TRAILERS];
    let section = [section, b"\r\n"].concat();
    let mut map = HeaderMap::new();
    let Ok(Status::Complete((_, fields))) = httparse::parse_headers(&section, &mut headers) else { return map };
    for field in fields {
        let (name, value) = (HeaderName::from_bytes(field.name.as_bytes()), HeaderValue::from_bytes(field.value));
        if let (Ok(name), Ok(value)) = (name, value)
            && !is_hop_by_hop(&name)
            && !OF_THE_HEAD.contains(&name)
        {
            map.append(name, value);
        }
    }
    map
}

/// Appends one header line.
pub fn line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// A message that breaks the rules of its framing, and which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// A request that the lean path can serve: HTTP/1.1, origin form, one host, a body of known length or none, nothing to
/// upgrade to but WebSocket.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    /// Path and query as they came.
    pub target: Bytes,
    pub fields: Fields,
    /// Bytes of the body.
    pub body: u64,
    /// The client asked for the connection to end with this request.
    pub close: bool,
    /// It asks to switch to WebSocket (RFC 6455, 4.1).
    pub upgrade: bool,
    /// As the limits on heads count it.
    pub size: HeadSize,
}

impl Request {
    /// The head as it came, with `rest` behind it.
    pub fn give_back(&self, rest: &[u8]) -> BytesMut {
        let mut all = BytesMut::with_capacity(self.fields.raw.len() + rest.len());
        all.extend_from_slice(&self.fields.raw);
        all.extend_from_slice(rest);
        all
    }
}

/// What stands at the start of the bytes that a client sent.
#[derive(Debug)]
pub enum Arrived {
    /// Not all of a head.
    Part,
    /// The client speaks HTTP/2 from the start.
    Http2,
    /// For pingora: whatever is not plain, well-formed or not.
    Other,
    Plain(Box<Request>),
}

/// Looks at what arrived. Only a plain request's head is taken out of `buffer`.
pub fn request(buffer: &mut BytesMut) -> Arrived {
    if buffer.starts_with(PREFACE) {
        return Arrived::Http2;
    }
    if PREFACE.starts_with(buffer) {
        return Arrived::Part;
    }
    let mut headers = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut head = httparse::Request::new(&mut []);
    let length = match ParserConfig::default().parse_request_with_uninit_headers(&mut head, buffer, &mut headers) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Arrived::Part,
        Err(_) => return Arrived::Other,
    };
    let (Some(1), Some(method), Some(target)) = (head.version, head.method, head.path) else { return Arrived::Other };
    let (Ok(method), true) = (Method::from_bytes(method.as_bytes()), is_origin_form(target)) else { return Arrived::Other };
    let base = buffer.as_ptr() as usize;
    let target = within(base, target.as_bytes());
    let Some(fields) = fields(base, head.headers) else { return Arrived::Other };
    // A look ahead, so that what is not plain stays in the buffer whole.
    let fields = Fields { raw: Bytes::copy_from_slice(&buffer[..length]), fields };
    let Some(Shape { body, close, upgrade }) = plain_shape(&method, &fields) else { return Arrived::Other };
    // The request line's other words and the last line end are no part of it.
    let bytes = length.saturating_sub(method.as_str().len() + " HTTP/1.1\r\n\r\n ".len());
    let size = HeadSize { target: target.len(), fields: fields.fields.len(), bytes };
    buffer.advance(length);
    Arrived::Plain(Box::new(Request { method, target: fields.raw.slice(target), fields, body, close, upgrade, size }))
}

/// Where `part`, which is a piece of the buffer at `base`, stands in it.
fn within(base: usize, part: &[u8]) -> Range<usize> {
    let start = (part.as_ptr() as usize).saturating_sub(base);
    start..start + part.len()
}

/// `/path?query` in visible ASCII without a fragment.
pub fn is_origin_form(target: &str) -> bool {
    target.starts_with('/') && target.bytes().all(|byte| matches!(byte, b'!'..=b'~') && !matches!(byte, b'#' | b'"' | b'<' | b'>'))
}

/// What the fields of a plain request say of its body and of the connection.
struct Shape {
    body: u64,
    close: bool,
    upgrade: bool,
}

/// The shape, where nothing of the framing or the connection is special.
fn plain_shape(method: &Method, fields: &Fields) -> Option<Shape> {
    let (mut hosts, mut body, mut close) = (0, None, false);
    // The field that names the protocol, and the word that announces it.
    let (mut upgrades, mut announced) = (0, false);
    for Field { name, value, .. } in &fields.fields {
        if *name == header::HOST {
            hosts += 1;
        } else if *name == header::CONTENT_LENGTH {
            if body.replace(decimal(&fields.raw[value.clone()])?).is_some() {
                return None;
            }
        } else if *name == header::CONNECTION {
            for token in fields.raw[value.clone()].split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                match token {
                    token if token.eq_ignore_ascii_case(b"close") => close = true,
                    token if token.eq_ignore_ascii_case(b"keep-alive") => {}
                    token if token.eq_ignore_ascii_case(b"upgrade") => announced = true,
                    _ => return None,
                }
            }
        } else if *name == header::UPGRADE {
            if !fields.raw[value.clone()].eq_ignore_ascii_case(b"websocket") {
                return None;
            }
            upgrades += 1;
        } else if [header::TRANSFER_ENCODING, header::EXPECT, header::TRAILER, header::TE].iter().any(|it| it == name) {
            return None;
        }
    }
    let upgrade = match (upgrades, announced) {
        (0, false) => false,
        (1, true) if *method == Method::GET && body.unwrap_or(0) == 0 && !close => true,
        _ => return None,
    };
    (hosts == 1 && *method != Method::CONNECT).then_some(Shape { body: body.unwrap_or(0), close, upgrade })
}

/// Digits and nothing else (RFC 9110, 8.6); `None` also where they do not fit.
pub fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The head of an upstream's answer.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: StatusCode,
    pub version: Version,
    pub fields: Fields,
}

/// How the end of an answer's body is known (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

/// Takes the head of an answer out of `buffer`; `None` while it is not all there.
///
/// # Errors
/// Bytes that are no head of HTTP/1.
pub fn response(buffer: &mut BytesMut) -> Result<Option<Response>, Malformed> {
    let mut headers = [const { MaybeUninit::uninit() }; MOST_ANSWER_FIELDS];
    let mut head = httparse::Response::new(&mut []);
    let length = match ParserConfig::default().parse_response_with_uninit_headers(&mut head, buffer, &mut headers) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(_) => return Err(Malformed("the answer is not HTTP/1")),
    };
    let status = head.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Malformed("the answer has no valid status"))?;
    let version = if head.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let base = buffer.as_ptr() as usize;
    let fields = fields(base, head.headers).ok_or(Malformed("the answer has a header that is no header"))?;
    Ok(Some(Response { status, version, fields: Fields { raw: buffer.split_to(length).freeze(), fields } }))
}

impl Response {
    /// How the body ends, and whether the connection can carry another request after it.
    ///
    /// # Errors
    /// Lengths that contradict each other: such an answer could hide another one.
    pub fn framing(&self, method: &Method) -> Result<(Framing, bool), Malformed> {
        let tokens = || self.fields.all(&header::CONNECTION).flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
        let says = |word: &[u8]| tokens().any(|token| token.eq_ignore_ascii_case(word));
        let stays = if self.version == Version::HTTP_10 { says(b"keep-alive") } else { !says(b"close") };
        let bodiless = *method == Method::HEAD
            || self.status.is_informational()
            || matches!(self.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let mut lengths = self.fields.all(&header::CONTENT_LENGTH);
        let length = lengths.next().map(|text| decimal(text).ok_or(Malformed("Content-Length is no number"))).transpose()?;
        if let Some(length) = length
            && lengths.any(|text| decimal(text) != Some(length))
        {
            return Err(Malformed("two Content-Lengths that differ"));
        }
        if bodiless {
            return Ok((Framing::Length(0), stays));
        }
        if let Some(coding) = self.fields.all(&header::TRANSFER_ENCODING).last() {
            let last = coding.rsplit(|byte| *byte == b',').next().unwrap_or_default().trim_ascii();
            if self.version == Version::HTTP_10 || !last.eq_ignore_ascii_case(b"chunked") {
                return Err(Malformed("Transfer-Encoding does not end in chunked"));
            }
            return Ok((Framing::Chunked, stays && length.is_none()));
        }
        Ok(length.map_or((Framing::UntilClose, false), |length| (Framing::Length(length), stays)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn arrived(text: &str) -> (&'static str, usize) {
        let mut buffer = BytesMut::from(text);
        let what = match request(&mut buffer) {
            Arrived::Part => "part",
            Arrived::Http2 => "http2",
            Arrived::Other => "other",
            Arrived::Plain(_) => "plain",
        };
        (what, buffer.len())
    }

    fn plain(text: &str) -> Request {
        match request(&mut BytesMut::from(text)) {
            Arrived::Plain(request) => *request,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn trailers_are_fields_that_may_stand_there() {
        let table = [
            ("", ""),
            ("X-Sum: 1\r\nx-b: 2\r\n", "x-sum=1 x-b=2"),
            ("X-Sum: 1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\nHost: b\r\nConnection: close\r\n", "x-sum=1"),
            ("no field\r\n", ""),
        ];
        for (section, wanted) in table {
            let map = trailers(section.as_bytes());
            let told: Vec<_> = map.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
            assert_eq!(told.join(" "), wanted, "{section:?}");
        }
    }

    #[test]
    fn only_requests_of_one_clear_shape_are_plain() {
        let table = [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "plain"),
            ("GET /a?b=c HTTP/1.1\r\nhost: a\r\nConnection: keep-alive\r\n\r\n", "plain"),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", "plain"),
            ("GET / HTTP/1.1\r\nHost: a\r\n", "part"),
            ("G", "part"),
            ("", "part"),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http2"),
            ("PRI * HTTP/2.0\r\n\r\nS", "part"),
            ("GET / HTTP/1.0\r\nHost: a\r\n\r\n", "other"),
            ("GET / HTTP/1.1\r\n\r\n", "other"),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "other"),
            ("GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", "other"),
            ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "other"),
            ("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", "other"),
            ("GET /\u{e4} HTTP/1.1\r\nHost: a\r\n\r\n", "other"),
            ("GET /#a HTTP/1.1\r\nHost: a\r\n\r\n", "other"),
            ("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", "plain"),
            ("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n\r\n", "plain"),
            ("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n", "other"),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n\r\n", "other"),
            ("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n", "other"),
            ("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket, h2c\r\nConnection: upgrade\r\n\r\n", "other"),
            ("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", "other"),
            ("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade, close\r\n\r\n", "other"),
            ("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 1\r\n\r\n", "other"),
            ("POST / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", "other"),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "other"),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", "other"),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", "other"),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n", "other"),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\n", "other"),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\n", "other"),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", "other"),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", "other"),
            ("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n", "other"),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Secret\r\n\r\n", "other"),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", "other"),
            ("GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", "other"),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: \u{0}\r\n\r\n", "other"),
            ("hello\r\n\r\n", "other"),
        ];
        for (text, wanted) in table {
            let (what, left) = arrived(text);
            assert_eq!(what, wanted, "{text:?}");
            assert!(what == "plain" || left == text.len(), "{text:?}: what is not plain stays whole");
        }
    }

    #[test]
    fn a_plain_request_is_read_and_its_body_left() {
        let mut buffer =
            BytesMut::from("PUT /a?b HTTP/1.1\r\nHost: a.test\r\nX-One: 1\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc");
        let Arrived::Plain(request) = request(&mut buffer) else { panic!("plain") };
        assert_eq!((request.method, &request.target[..], request.body, request.close), (Method::PUT, &b"/a?b"[..], 3, true));
        assert_eq!(&buffer[..], b"abc");
        assert_eq!(request.fields.map()["x-one"], "1");
        let mut out = Vec::new();
        request.fields.write(&mut out, |name| *name != header::CONTENT_LENGTH);
        assert_eq!(out, b"Host: a.test\r\nX-One: 1\r\n");
    }

    #[test]
    fn line_ends_of_one_byte_are_written_as_two() {
        let request = plain("GET / HTTP/1.1\nHost: a\nX: 1\n\n");
        let mut out = Vec::new();
        request.fields.write(&mut out, |_| true);
        assert_eq!(out, b"Host: a\r\nX: 1\r\n");
    }

    #[test]
    fn the_end_of_an_answer_is_known_or_it_is_refused() {
        let table = [
            ("200 OK\r\nContent-Length: 5", Method::GET, Ok((Framing::Length(5), true))),
            ("200 OK\r\nContent-Length: 5\r\nContent-Length: 5", Method::GET, Ok((Framing::Length(5), true))),
            ("200 OK\r\nContent-Length: 5\r\nConnection: Close", Method::GET, Ok((Framing::Length(5), false))),
            ("200 OK\r\nContent-Length: 5", Method::HEAD, Ok((Framing::Length(0), true))),
            ("204 No Content", Method::GET, Ok((Framing::Length(0), true))),
            ("304 Not Modified\r\nContent-Length: 5", Method::GET, Ok((Framing::Length(0), true))),
            ("200 OK\r\nTransfer-Encoding: chunked", Method::GET, Ok((Framing::Chunked, true))),
            ("200 OK\r\nTransfer-Encoding: gzip, chunked", Method::GET, Ok((Framing::Chunked, true))),
            ("200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5", Method::GET, Ok((Framing::Chunked, false))),
            ("200 OK", Method::GET, Ok((Framing::UntilClose, false))),
            ("200 OK\r\nContent-Length: 5\r\nContent-Length: 6", Method::GET, Err(())),
            ("200 OK\r\nContent-Length: five", Method::GET, Err(())),
            ("200 OK\r\nTransfer-Encoding: gzip", Method::GET, Err(())),
            ("200 OK\r\nTransfer-Encoding: chunked, gzip", Method::GET, Err(())),
        ];
        for (text, method, wanted) in table {
            let mut buffer = BytesMut::from(format!("HTTP/1.1 {text}\r\n\r\nbody").as_str());
            let head = response(&mut buffer).unwrap().expect("whole");
            assert_eq!(head.framing(&method).map_err(|_| ()), wanted, "{text:?}");
            assert_eq!(&buffer[..], b"body");
        }
        let old = |text: &str| response(&mut BytesMut::from(text)).unwrap().unwrap().framing(&Method::GET);
        assert_eq!(old("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n"), Ok((Framing::Length(1), false)));
        assert_eq!(old("HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n"), Ok((Framing::Length(1), true)));
        assert!(old("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
        assert!(response(&mut BytesMut::from("SSH-2.0-OpenSSH\r\n\r\n")).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            _ = request(&mut buffer);
            _ = response(&mut BytesMut::from(&bytes[..]));
        }

        /// What is written for a plain request is one head again, with the same fields: nothing can be smuggled through a value.
        #[test]
        fn a_plain_head_stays_one_head(name in "[A-Za-z0-9-]{1,12}", value in "[ -~\\t\\r\\n\u{e4}]{0,40}") {
            let text = format!("GET / HTTP/1.1\r\nHost: a\r\nX-{name}: {value}\r\n\r\n");
            let mut buffer = BytesMut::from(text.as_str());
            if let Arrived::Plain(first) = request(&mut buffer) {
                let mut out = b"GET / HTTP/1.1\r\n".to_vec();
                first.fields.write(&mut out, |_| true);
                out.extend_from_slice(b"\r\n");
                let mut again = BytesMut::from(&out[..]);
                let Arrived::Plain(second) = request(&mut again) else { panic!("{out:?}") };
                prop_assert!(again.is_empty());
                prop_assert_eq!(first.fields.map(), second.fields.map());
            }
        }
    }
}
