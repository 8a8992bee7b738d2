//! Requests that nobody honest sends. Whatever comes, an upstream sees one clean request or none; whoever attacks is stopped,
//! leaves no memory behind, and others are served meanwhile without a single failure.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::*;
use crate::siege::{self, *};

/// What a request may come to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Comes {
    /// The upstream sees it once.
    Once,
    /// The upstream sees nothing.
    Never,
    /// A request and an honest other one behind it.
    Both,
}
use Comes::{Both, Never, Once};

/// The requests in what an upstream saw, read as strictly as can be; an error says what no upstream should have to read.
fn requests(mut bytes: &[u8]) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").ok_or("a head without an end")?;
        let head = std::str::from_utf8(&bytes[..end]).map_err(|_| "a head that is not text")?;
        bytes = &bytes[end + 4..];
        let mut lines = head.split("\r\n");
        let first = lines.next().unwrap_or("");
        if first.split(' ').count() != 3 || !first.ends_with(" HTTP/1.1") || first.contains(|c: char| c.is_control()) {
            return Err(format!("request line {first:?}"));
        }
        let (mut lengths, mut codings, mut hosts) = (Vec::new(), Vec::new(), 0);
        for line in lines {
            let (name, value) = line.split_once(':').ok_or(format!("no field: {line:?}"))?;
            let token = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~!#$%&'*+^`|".contains(&byte));
            if !token || value.contains(|c: char| c.is_control() && c != '\t') {
                return Err(format!("field {line:?}"));
            }
            match name.to_ascii_lowercase().as_str() {
                "content-length" => lengths.push(value.trim().to_owned()),
                "transfer-encoding" => codings.push(value.trim().to_ascii_lowercase()),
                "host" => hosts += 1,
                _ => {}
            }
        }
        if hosts != 1 || lengths.len() + codings.len() > 1 || codings.iter().any(|coding| coding != "chunked") {
            return Err(format!("framing or host: {head:?}"));
        }
        found.push(first.to_owned());
        match (lengths.first(), codings.first()) {
            (Some(length), _) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
                bytes = &bytes[bytes.len().min(length.parse().map_err(|_| "length")?)..];
            }
            (Some(length), _) => return Err(format!("length {length:?}")),
            (None, Some(_)) => bytes = after_chunks(bytes)?,
            (None, None) => {}
        }
    }
    Ok(found)
}

/// What follows a chunked body; nothing where it is not whole.
fn after_chunks(mut bytes: &[u8]) -> Result<&[u8], String> {
    loop {
        let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") else { return Ok(&[]) };
        let line = String::from_utf8_lossy(&bytes[..end]).into_owned();
        if line.is_empty() || !line.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!("chunk {line:?}"));
        }
        let size = usize::from_str_radix(&line, 16).map_err(|_| "a chunk's size")?;
        bytes = &bytes[end + 2..];
        if size == 0 {
            // No trailers go on, so the body ends with its empty line.
            return bytes.strip_prefix(b"\r\n").ok_or("trailers".to_owned());
        }
        let Some(rest) = bytes.get(size..) else { return Ok(&[]) };
        bytes = match rest.strip_prefix(b"\r\n") {
            Some(rest) => rest,
            None if rest.is_empty() => return Ok(&[]),
            None => return Err("a chunk without an end".to_owned()),
        };
    }
}

fn post(headers: &str, body: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: web.test\r\n{headers}\r\n{body}").into_bytes()
}

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: web.test\r\n\r\n";

/// Name, bytes, what may come of it; for `Once`, none is fine too where the edge is stricter than it must be.
fn shapes() -> Vec<(&'static str, Vec<u8>, Comes)> {
    let chunks = format!("0\r\n\r\n{SMUGGLED}");
    let line = |line: &str| format!("{line}\r\nHost: web.test\r\n\r\n").into_bytes();
    let head = |field: &[u8]| [b"GET / HTTP/1.1\r\nHost: web.test\r\n".as_slice(), field, b"\r\n\r\n"].concat();
    let mut shapes = vec![
        ("plain", head(b"X: y"), Once),
        ("CL.TE", post("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", &chunks), Never),
        ("TE.CL", post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", &format!("2c\r\n{SMUGGLED}\r\n0\r\n\r\n")), Never),
        ("CL.TE that asks to close", post("Content-Length: 6\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n", &chunks), Never),
        (
            "TE with a bare LF in front",
            post(&format!("Content-Length: {}\r\nX: y\nTransfer-Encoding: chunked\r\n", chunks.len()), &chunks),
            Never,
        ),
        ("a folded TE", post("Content-Length: 5\r\nX: y\r\n Transfer-Encoding: chunked\r\n", &chunks), Never),
        ("a folded first field", b"GET / HTTP/1.1\r\n Host: web.test\r\nHost: web.test\r\n\r\n".to_vec(), Never),
        ("space before the colon", post("Transfer-Encoding : chunked\r\n", &chunks), Never),
        ("tab before the colon", post("Transfer-Encoding\t: chunked\r\n", &chunks), Never),
        ("line end before the colon", post("Transfer-Encoding\r\n: chunked\r\n", &chunks), Never),
        ("no name", head(b": chunked"), Never),
        ("no colon", head(b"Transfer-Encoding chunked"), Never),
        (
            "TE in HTTP/1.0",
            b"POST / HTTP/1.0\r\nHost: web.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled".to_vec(),
            Never,
        ),
        ("NUL in a value", head(b"X: a\0b"), Never),
        ("NUL in a name", head(b"X\0: a"), Never),
        ("bare CR in a value", head(b"X: a\rTransfer-Encoding: chunked"), Never),
        ("bare CR ends a line", b"GET / HTTP/1.1\rHost: web.test\r\r".to_vec(), Never),
        ("two hosts", head(b"Host: other.test"), Never),
        ("a host with a comma", b"GET / HTTP/1.1\r\nHost: web.test, other.test\r\n\r\n".to_vec(), Never),
        ("a host with a user", b"GET / HTTP/1.1\r\nHost: x@web.test\r\n\r\n".to_vec(), Never),
        ("a host with a path", b"GET / HTTP/1.1\r\nHost: web.test/x\r\n\r\n".to_vec(), Never),
        ("no host", b"GET / HTTP/1.1\r\n\r\n".to_vec(), Never),
        ("two URLs", b"GET http://other.test/ HTTP/1.1\r\nHost: web.test\r\n\r\n".to_vec(), Never),
        ("HTTP/0.9", b"GET /\r\n".to_vec(), Never),
        ("HTTP/0.9 with a path", b"GET /smuggled\r\n\r\n".to_vec(), Never),
        ("HTTP/1.10", line("GET / HTTP/1.10"), Never),
        ("HTTP/3.1", line("GET / HTTP/3.1"), Never),
        ("http/1.1 in small letters", line("GET / http/1.1"), Never),
        ("a tab in the request line", line("GET\t/\tHTTP/1.1"), Never),
        ("a bare CR in the path", line("GET /\r/x HTTP/1.1"), Once),
        ("a fragment", line("GET /#x HTTP/1.1"), Once),
        ("CONNECT", b"CONNECT web.test:80 HTTP/1.1\r\nHost: web.test:80\r\n\r\n".to_vec(), Never),
        ("a method of signs", line("G(T / HTTP/1.1"), Never),
        ("connection names the length", post("Content-Length: 44\r\nConnection: Content-Length\r\n", SMUGGLED), Once),
        (
            "connection names the coding",
            post("Transfer-Encoding: chunked\r\nConnection: Transfer-Encoding\r\n", &format!("2c\r\n{SMUGGLED}\r\n0\r\n\r\n")),
            Once,
        ),
        ("connection names the host", head(b"Connection: close, Host"), Once),
        ("trailers", post("Transfer-Encoding: chunked\r\n", "2\r\nab\r\n0\r\nContent-Length: 50\r\nHost: evil\r\n\r\n"), Once),
        (
            "an upgrade that is refused",
            [head(b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"), SMUGGLED.into()].concat(),
            Once,
        ),
        ("a second request behind the first", [head(b"X: y"), SMUGGLED.replace("/smuggled", "/second").into()].concat(), Both),
        ("a preface of HTTP/2 inside", post("Content-Length: 0\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Once),
        ("a PROXY header from a stranger", [b"PROXY TCP4 1.2.3.4 1.2.3.5 1 2\r\n".to_vec(), head(b"X: y")].concat(), Never),
        (
            "a binary PROXY header from a stranger",
            [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x01\x02\x03\x04\x01\x02\x03\x04\0\x01\0\x02".to_vec(), head(b"X: y")].concat(),
            Never,
        ),
    ];
    for coding in [
        "xchunked",
        "chunked, identity",
        "identity, chunked",
        "identity",
        "chunked, chunked",
        "gzip, chunked",
        "chun ked",
        "\"chunked\"",
        "chunked;q=1",
        "",
    ] {
        shapes.push(("a coding that is not `chunked`", post(&format!("Transfer-Encoding: {coding}\r\n"), &chunks), Never));
        shapes.push((
            "a coding that is not `chunked`, and a length",
            post(&format!("Content-Length: 5\r\nTransfer-Encoding: {coding}\r\n"), &chunks),
            Never,
        ));
    }
    shapes.push(("a coding with a form feed", post("Transfer-Encoding: \x0bchunked\r\n", &chunks), Never));
    shapes.push(("two codings", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", &chunks), Never));
    for length in ["+5", "-5", "0x5", "5 5", "5, 6", "5,", ",5", "", "\u{ff15}", "5;", "5.0", "18446744073709551621", "1e1", "\t", "5\u{b}"]
    {
        shapes.push(("a length that is none", post(&format!("Content-Length: {length}\r\n"), &format!("hello{SMUGGLED}")), Never));
    }
    shapes.push(("two lengths", post("Content-Length: 5\r\nContent-Length: 6\r\n", &format!("hello{SMUGGLED}")), Never));
    shapes.push(("one length twice", post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"), Once));
    let bodies = [
        "FFFFFFFFFFFFFFFF1\r\n",
        "10000000000000005\r\nhello\r\n",
        "-5\r\nhello\r\n",
        "+5\r\nhello\r\n",
        "0x5\r\nhello\r\n",
        "5 \r\nhello\r\n",
        " 5\r\nhello\r\n",
        "5;a=\"\r\nhello\r\n",
        "5;\nhello\r\n",
        "5\nhello\r\n",
        "5\r\nhelloX\r\n",
        "5\r\nhello\n",
        "5\rhello\r\n",
        "\r\n5\r\nhello\r\n",
        "z\r\nhello\r\n",
    ];
    for body in bodies {
        shapes.push(("chunks that are malformed", post("Transfer-Encoding: chunked\r\n", &format!("{body}0\r\n\r\n{SMUGGLED}")), Once));
    }
    shapes.push(("chunk extensions", post("Transfer-Encoding: chunked\r\n", "5;a=b;c=\"d\"\r\nhello\r\n0;x\r\n\r\n"), Once));
    shapes
}

/// What the edge answers within a moment; it may keep the connection.
async fn says(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let mut chunk = [0_u8; 4096];
    while let Ok(Ok(count @ 1..)) = tokio::time::timeout(Duration::from_millis(150), stream.read(&mut chunk)).await {
        answer.extend_from_slice(&chunk[..count]);
    }
    // After a refusal the upstream may still be reading what went on before it.
    if !answer.ends_with(b"ok") {
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// Complains where the upstream saw what it must not.
fn complaint(recorder: &Recorder, comes: Comes) -> Option<String> {
    let seen = recorder.take();
    let all: Result<Vec<Vec<String>>, String> = seen.iter().map(|bytes| requests(bytes)).collect();
    let text = || seen.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect::<Vec<_>>();
    match all {
        Err(wrong) => Some(format!("{wrong}; upstream saw {:?}", text())),
        Ok(all) => {
            let all = all.concat();
            let smuggled = all.iter().any(|line| line.contains("smuggled"));
            let most = match comes {
                Never => 0,
                Once => 1,
                Both => 2,
            };
            let many = all.len() > most;
            (smuggled || many).then(|| format!("upstream saw {:?}", text()))
        }
    }
}

#[tokio::test]
async fn an_upstream_sees_one_clean_request_or_none() {
    let recorder = Recorder::start().await;
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &recorder.address.to_string())])).await;
    let mut complaints = Vec::new();
    for (name, bytes, comes) in shapes() {
        let answer = says(edge.http, &bytes).await;
        let answered = answer.lines().next().unwrap_or("nothing").to_owned();
        complaints
            .extend(complaint(&recorder, comes).map(|wrong| format!("{name}: {:?}: {answered}: {wrong}", String::from_utf8_lossy(&bytes))));
        if name == "plain" {
            assert!(answer.ends_with("ok"), "{answer}");
        }
    }
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}

/// Heads over HTTP/2 that would be another request, or two, over HTTP/1.
fn downgrades() -> Vec<(&'static str, Vec<u8>, Comes)> {
    type Field = (&'static [u8], &'static [u8]);
    const GET: [Field; 4] = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"web.test"), (b":path", b"/")];
    const POST: [Field; 4] = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"web.test"), (b":path", b"/")];
    let ends = |block: Vec<u8>| frame(HEADERS, END_STREAM | END_HEADERS, 1, &block);
    let with = |field: Field| ends(fields(&[GET.as_slice(), &[field]].concat()));
    let instead = |place: usize, value: &'static [u8]| {
        let mut all = GET;
        all[place].1 = value;
        ends(fields(&all))
    };
    let posts = |extra: &[Field], body: &[u8]| {
        [frame(HEADERS, END_HEADERS, 1, &fields(&[POST.as_slice(), extra].concat())), frame(DATA, END_STREAM, 1, body)].concat()
    };
    const TAIL: &[u8] = b"GET /smuggled HTTP/1.1\r\nHost: web.test\r\n\r\n";
    let mut shapes = vec![
        ("plain", with((b"x", b"y")), Once),
        ("a value with line ends", with((b"x", b"y\r\nTransfer-Encoding: chunked")), Never),
        ("a value with a whole request", with((b"x", b"y\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: web.test\r\n\r\n")), Never),
        ("a value with LF", with((b"x", b"y\nx: z")), Never),
        ("a value with CR", with((b"x", b"y\rx: z")), Never),
        ("a value with NUL", with((b"x", b"y\0")), Never),
        ("a name with a line end", with((b"x: y\r\nhost", b"evil")), Never),
        ("a name with a colon", with((b"x:y", b"z")), Never),
        ("a name with a blank", with((b"x y", b"z")), Never),
        ("a name in capitals", with((b"Transfer-Encoding", b"chunked")), Never),
        ("an empty name", with((b"", b"z")), Never),
        ("transfer-encoding", posts(&[(b"transfer-encoding", b"chunked")], b"0\r\n\r\nGET /smuggled"), Never),
        ("connection", with((b"connection", b"transfer-encoding")), Never),
        ("keep-alive", with((b"keep-alive", b"1")), Never),
        ("proxy-connection", with((b"proxy-connection", b"keep-alive")), Never),
        ("upgrade", with((b"upgrade", b"websocket")), Never),
        ("te that is not trailers", with((b"te", b"gzip")), Never),
        ("a second path", with((b":path", b"/smuggled")), Never),
        ("a pseudo-field behind the others", ends(fields(&[&[(b"x".as_slice(), b"y".as_slice())], GET.as_slice()].concat())), Never),
        ("an unknown pseudo-field", with((b":x", b"y")), Never),
        ("a status", with((b":status", b"200")), Never),
        ("no path", ends(fields(&GET[..3])), Never),
        ("no method", ends(fields(&GET[1..])), Never),
        ("another host", with((b"host", b"other.test")), Never),
        (
            "two hosts",
            ends(fields(&[GET.as_slice(), &[(b"host".as_slice(), b"web.test".as_slice()), (b"host", b"web.test")]].concat())),
            Never,
        ),
        ("a method with a line", instead(0, b"GET / HTTP/1.1\r\nx: y\r\n\r\nGET"), Never),
        ("a method with a blank", instead(0, b"GET /smuggled"), Never),
        ("an authority with a line", instead(2, b"web.test\r\nx: y"), Never),
        ("an authority with a user", instead(2, b"x@web.test"), Never),
        ("an authority with a path", instead(2, b"web.test/smuggled"), Never),
        ("a path with a line", instead(3, b"/ HTTP/1.1\r\nHost: web.test\r\n\r\nGET /smuggled"), Never),
        ("a path with a blank", instead(3, b"/ HTTP/1.1"), Never),
        ("a path without a slash", instead(3, b"smuggled"), Never),
        ("an empty path", instead(3, b""), Never),
        ("a path that is a URL", instead(3, b"http://other.test/"), Never),
        ("a length of nothing", posts(&[(b"content-length", b"0")], TAIL), Never),
        ("a length too short", posts(&[(b"content-length", b"5")], TAIL), Never),
        ("a length too long", posts(&[(b"content-length", b"500")], TAIL), Never),
        ("two lengths", posts(&[(b"content-length", b"5"), (b"content-length", b"43")], TAIL), Never),
        ("a length with a sign", posts(&[(b"content-length", b"+43")], TAIL), Never),
        (
            "trailers",
            [
                frame(HEADERS, END_HEADERS, 1, &fields(&POST)),
                frame(DATA, 0, 1, b"ab"),
                frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(&[(b"content-length", b"50"), (b"host", b"evil")])),
            ]
            .concat(),
            Once,
        ),
        (
            "trailers with a pseudo-field",
            [
                frame(HEADERS, END_HEADERS, 1, &fields(&POST)),
                frame(DATA, 0, 1, b"ab"),
                frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(&[(b":path", b"/smuggled")])),
            ]
            .concat(),
            Once,
        ),
    ];
    shapes.push(("a body of requests", posts(&[], TAIL), Once));
    shapes
}

#[tokio::test]
async fn what_http2_can_carry_and_http1_cannot_goes_nowhere() {
    let recorder = Recorder::start().await;
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &recorder.address.to_string())])).await;
    let mut complaints = Vec::new();
    for (name, bytes, comes) in downgrades() {
        let mut whole = preface();
        whole.extend_from_slice(&bytes);
        says(edge.http, &whole).await;
        // A body that contradicts its length is found out after its head went on; then no whole request went on.
        let seen = recorder.take();
        let texts: Vec<String> = seen.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect();
        let found: Result<Vec<Vec<String>>, String> = seen.iter().map(|bytes| requests(bytes)).collect();
        let heads = found.as_ref().map_or(0, |all| all.iter().flatten().count());
        let allowed = usize::from(comes == Once || name.starts_with("a length"));
        let smuggled = found.as_ref().is_ok_and(|all| all.iter().flatten().any(|line| line.contains("smuggled")));
        if found.is_err() || heads > allowed || smuggled || (name == "plain" && heads != 1) {
            complaints.push(format!("{name}: {found:?}; upstream saw {texts:?}"));
        }
    }
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}

#[tokio::test]
async fn heads_have_limits_and_the_answer_says_which() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())])).await;
    let many = |count: usize| "X: y\r\n".repeat(count);
    // path, fields, status
    let table = [
        ("/".to_owned(), many(90), 200),
        ("/".to_owned(), many(110), 431),
        ("/".to_owned(), many(300), 400),
        (format!("/{}", "x".repeat(16_000)), String::new(), 200),
        (format!("/{}", "x".repeat(17_000)), String::new(), 414),
        (format!("/?{}", "x".repeat(17_000)), String::new(), 414),
        ("/".to_owned(), format!("X: {}\r\n", "y".repeat(60_000)), 200),
        ("/".to_owned(), format!("X: {}\r\n", "y".repeat(70_000)), 431),
        ("/".to_owned(), format!("X: {}\r\n", "y".repeat(900_000)), 431),
    ];
    for (path, fields, status) in table {
        let answer =
            says(edge.http, format!("GET {path} HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n{fields}\r\n").as_bytes()).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{} {}: {}",
            path.len(),
            fields.len(),
            &answer[..answer.len().min(200)]
        );
    }
}

#[tokio::test]
async fn a_client_that_ends_its_side_gets_its_whole_answer() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())])).await;
    let requests = [
        ("GET /delay/700 HTTP/1.1\r\nHost: web.test\r\n\r\n", "late"),
        ("GET /events HTTP/1.1\r\nHost: web.test\r\n\r\n", "data: 2"),
        ("GET /delay/300 HTTP/1.0\r\nHost: web.test\r\n\r\n", "late"),
        ("POST /count HTTP/1.1\r\nHost: web.test\r\nContent-Length: 5\r\n\r\nhello", "5"),
    ];
    for (request, ends) in requests {
        let mut stream = TcpStream::connect(edge.http).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        // The connection ends with the answer, for nothing more can come.
        tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(ends), "{request}: {answer}");
    }
    let mut cut = TcpStream::connect(edge.http).await.unwrap();
    cut.write_all(b"POST /count HTTP/1.1\r\nHost: web.test\r\nContent-Length: 50\r\n\r\nhello").await.unwrap();
    cut.shutdown().await.unwrap();
    let mut answer = String::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), cut.read_to_string(&mut answer)).await.unwrap();
    assert!(!answer.contains(" 200 "), "half a body is no request: {answer}");
}

#[tokio::test]
async fn a_client_that_is_gone_after_all_ends_the_request() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())])).await;
    let mut stream = TcpStream::connect(edge.http).await.unwrap();
    stream.write_all(b"GET /delay/60000 HTTP/1.1\r\nHost: web.test\r\n\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    reset(stream);
    let began = Instant::now();
    while !std::fs::read_to_string(edge.directory.path().join("access.log")).unwrap_or_default().contains("/delay") {
        assert!(began.elapsed() < Duration::from_secs(10), "the request goes on for nobody");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(edge.log_lines(1).await[0]["status"], 499);
}

/// Closes so that the other side sees a reset.
fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

#[tokio::test]
async fn a_body_that_stops_is_answered_408_and_a_label_may_allow_more() {
    let upstream = Upstream::start("web").await;
    let address = upstream.address.to_string();
    let services = services(&[
        ("web", &[("skep.host", "web.test"), ("skep.address", &address)]),
        ("slow", &[("skep.host", "slow.test"), ("skep.timeout-idle", "20s"), ("skep.address", &address)]),
    ]);
    let edge = Edge::with_config(&services, |config| config.proxy.body_timeout = Duration::from_millis(500)).await;
    let begin = |host: &str| format!("POST /count HTTP/1.1\r\nHost: {host}\r\nContent-Length: 10\r\n\r\nhello");
    let answer = raw(edge.http, begin("web.test").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.to_ascii_lowercase().contains("connection: close"), "{answer}");

    let mut stream = TcpStream::connect(edge.http).await.unwrap();
    stream.write_all(begin("slow.test").as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    stream.write_all(b"world").await.unwrap();
    let mut first = [0_u8; 12];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");

    // Over HTTP/2, where each piece begins the time again.
    let stream = TcpStream::connect(edge.http).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let upload = || http::Request::post("http://web.test/count").body(()).unwrap();
    let (stalled, mut held) = client.send_request(upload(), false).unwrap();
    held.send_data("x".into(), false).unwrap();
    let (steady, mut body) = client.send_request(upload(), false).unwrap();
    for _ in 0..6 {
        body.send_data("x".into(), false).unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    body.send_data("x".into(), true).unwrap();
    assert_eq!(steady.await.unwrap().status(), 200);
    assert_eq!(stalled.await.unwrap().status(), 408);
}

/// As many tasks of one kind at once; what went wrong in them.
async fn at_once<F: Future<Output = Result<(), &'static str>> + Send + 'static>(
    count: usize,
    attack: impl Fn() -> F,
) -> Result<(), String> {
    let tasks: Vec<_> = (0..count).map(|_| tokio::spawn(attack())).collect();
    for task in tasks {
        task.await.unwrap()?;
    }
    Ok(())
}

/// Waits for the edge to close; what it says is dropped.
async fn closed(stream: &mut TcpStream, limit: Duration) -> Result<(), &'static str> {
    let mut chunk = [0_u8; 4096];
    let end = async { while let Ok(1..) = stream.read(&mut chunk).await {} };
    tokio::time::timeout(limit, end).await.map_err(|_| "the edge never closed the connection")
}

const PATIENCE: Duration = Duration::from_secs(12);

async fn slow_head(address: SocketAddr) -> Result<(), &'static str> {
    let mut stream = TcpStream::connect(address).await.map_err(|_| "connect")?;
    let began = Instant::now();
    while stream.write_all(b"G").await.is_ok() {
        if began.elapsed() > PATIENCE {
            return Err("a head may take for ever");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn slow_body(address: SocketAddr) -> Result<(), &'static str> {
    let mut stream = TcpStream::connect(address).await.map_err(|_| "connect")?;
    stream.write_all(b"POST /count HTTP/1.1\r\nHost: web.test\r\nContent-Length: 1000\r\n\r\nx").await.map_err(|_| "write")?;
    closed(&mut stream, PATIENCE).await
}

async fn never_reads(address: SocketAddr, request: Vec<u8>) -> Result<(), &'static str> {
    let mut stream = TcpStream::connect(address).await.map_err(|_| "connect")?;
    stream.write_all(&request).await.map_err(|_| "write")?;
    // Once it was cut, what the kernels hold is all that can still be read.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut total = 0;
    let mut chunk = vec![0_u8; 1 << 16];
    let read = async {
        while let Ok(count @ 1..) = stream.read(&mut chunk).await {
            total += count;
        }
    };
    tokio::time::timeout(PATIENCE, read).await.map_err(|_| "a reader that does not read is kept")?;
    if total < 50_000_000 { Ok(()) } else { Err("it was served whole") }
}

async fn reset_after(address: SocketAddr, bytes: &'static [u8], read: bool) -> Result<(), &'static str> {
    for _ in 0..10 {
        let mut stream = TcpStream::connect(address).await.map_err(|_| "connect")?;
        stream.write_all(bytes).await.map_err(|_| "write")?;
        if read {
            let _ = stream.read(&mut [0_u8; 1000]).await;
        }
        reset(stream);
    }
    Ok(())
}

/// A header list of 64 MB in 16 KB: one large field in the dynamic table, named again and again (RFC 7541, 6.1).
fn hpack_bomb() -> Vec<u8> {
    let mut block = fields(&[(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"web.test"), (b":path", b"/")]);
    block.push(0x40);
    siege::text(&mut block, b"x");
    siege::text(&mut block, &[b'y'; 4000]);
    block.resize(16_000, 0x80 | 62);
    block
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attacks_end_leave_no_memory_and_hurt_nobody_else() {
    let upstream = Upstream::start("web").await;
    let settings = [
        ("SKEP_PROXY_HEADER_TIMEOUT", "1s"),
        ("SKEP_PROXY_BODY_TIMEOUT", "1s"),
        ("SKEP_PROXY_WRITE_TIMEOUT", "1s"),
        ("SKEP_PROXY_KEEP_ALIVE", "2s"),
        ("SKEP_PROXY_MAX_CONNECTIONS_PER_CLIENT", "20000"),
    ];
    let edge = Process::start(&stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())]), &settings, None);
    let http = edge.http;
    // Warm: what is allocated once.
    at_once(300, || async move { ask(http).await.map(|_| ()).map_err(|_| "warm-up") }).await.unwrap();
    at_once(500, || slow_body(http)).await.unwrap();
    let h2 = move |first: Vec<u8>, again: Vec<u8>| {
        move || {
            until_closed(
                http,
                [preface(), first.clone()].concat(),
                {
                    let again = again.clone();
                    move |_| again.clone()
                },
                PATIENCE,
            )
        }
    };
    let repeat = |frame: Vec<u8>| frame.repeat(500);
    let open = frame(
        HEADERS,
        END_HEADERS,
        1,
        &fields(&[(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"web.test"), (b":path", b"/count")]),
    );
    let mut report = Vec::new();
    macro_rules! siege {
        ($name:expr, $attack:expr) => {
            let before = edge.resident();
            let bystander = Bystander::start(http);
            let began = Instant::now();
            let outcome: Result<(), String> = $attack.await;
            let peak = edge.resident();
            let after = edge.settles(before, 12 * 1024).await;
            let (served, failures) = bystander.ends().await;
            eprintln!("{:<32} {:>6} ms, {before} -> {peak} -> {} KB, {served} served", $name, began.elapsed().as_millis(), edge.resident());
            report.extend(outcome.err().map(|wrong| format!("{}: {wrong}", $name)));
            report.extend(failures.first().map(|failure| format!("{}: a bystander was hurt: {failure}", $name)));
            report.extend(after.err().map(|after| format!("{}: {before} KB before, {after} KB after", $name)));
            if served == 0 {
                report.push(format!("{}: nobody was served", $name));
            }
        };
    }
    siege!("slow heads", at_once(500, || slow_head(http)));
    siege!("slow bodies", at_once(500, || slow_body(http)));
    siege!("resets within the head", at_once(50, || reset_after(http, b"GET / HTT", false)));
    siege!(
        "resets within the body",
        at_once(50, || reset_after(http, b"POST /count HTTP/1.1\r\nHost: web.test\r\nContent-Length: 99\r\n\r\nx", false))
    );
    siege!("resets within the answer", at_once(50, || reset_after(http, b"GET /bytes/10000000 HTTP/1.1\r\nHost: web.test\r\n\r\n", true)));
    siege!(
        "heads of 10 MB",
        at_once(100, || until_closed(
            http,
            b"GET / HTTP/1.1\r\nHost: web.test\r\n".to_vec(),
            |_| b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(1000),
            PATIENCE
        ))
    );
    siege!(
        "readers that do not read",
        at_once(20, || never_reads(http, b"GET /bytes/100000000 HTTP/1.1\r\nHost: web.test\r\n\r\n".to_vec()))
    );
    siege!(
        "HTTP/2: silence",
        at_once(100, || async move {
            let mut stream = TcpStream::connect(http).await.map_err(|_| "connect")?;
            stream.write_all(&preface()[..24]).await.map_err(|_| "write")?;
            closed(&mut stream, PATIENCE).await
        })
    );
    siege!(
        "HTTP/2: a head without an end",
        at_once(100, || async move {
            let mut stream = TcpStream::connect(http).await.map_err(|_| "connect")?;
            let block = fields(&[(b":method", b"GET")]);
            stream.write_all(&[preface(), get(1, "/delay/8000"), frame(HEADERS, 0, 3, &block)].concat()).await.map_err(|_| "write")?;
            closed(&mut stream, Duration::from_secs(5)).await
        })
    );
    siege!(
        "HTTP/2: rapid reset",
        at_once(20, move || until_closed(
            http,
            preface(),
            |round| {
                (0..100)
                    .flat_map(|number| {
                        let stream = (round * 100 + number) * 2 + 1;
                        [get(stream, "/delay/2000"), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
                    })
                    .collect()
            },
            PATIENCE
        ))
    );
    siege!(
        "HTTP/2: CONTINUATIONs",
        at_once(
            20,
            h2(frame(HEADERS, 0, 1, &[]), repeat(frame(CONTINUATION, 0, 1, &fields(&[(b"x", b"yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy")]))))
        )
    );
    siege!("HTTP/2: empty CONTINUATIONs", at_once(20, h2(frame(HEADERS, 0, 1, &[]), repeat(frame(CONTINUATION, 0, 1, &[])))));
    siege!("HTTP/2: PINGs", at_once(20, h2(vec![], repeat(frame(PING, 0, 0, &[7; 8])))));
    siege!("HTTP/2: SETTINGS", at_once(20, h2(vec![], repeat(frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])))));
    siege!("HTTP/2: empty DATA", at_once(20, h2(open.clone(), repeat(frame(DATA, 0, 1, &[])))));
    siege!("HTTP/2: WINDOW_UPDATEs", at_once(20, h2(vec![], repeat(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])))));
    siege!("HTTP/2: PRIORITYs", at_once(20, h2(vec![], repeat(frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])))));
    siege!("HTTP/2: unknown frames", at_once(20, h2(vec![], repeat(frame(0xEE, 0, 0, &[])))));
    siege!(
        "HTTP/2: a bomb of fields",
        at_once(20, || async move {
            let mut stream = TcpStream::connect(http).await.map_err(|_| "connect")?;
            let bombs = (0..50).flat_map(|number| frame(HEADERS, END_STREAM | END_HEADERS, number * 2 + 1, &hpack_bomb()));
            let _ = stream.write_all(&preface().into_iter().chain(bombs).collect::<Vec<u8>>()).await;
            closed(&mut stream, PATIENCE).await
        })
    );
    siege!(
        "HTTP/2: windows of nothing",
        at_once(10, || async move {
            let mut stream = TcpStream::connect(http).await.map_err(|_| "connect")?;
            let first = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])].concat();
            let gets = (0..100).flat_map(|number| get(number * 2 + 1, if number % 2 == 0 { "/bytes/10000000" } else { "/nothing" }));
            stream.write_all(&first.into_iter().chain(gets).collect::<Vec<u8>>()).await.map_err(|_| "write")?;
            closed(&mut stream, 3 * PATIENCE).await
        })
    );
    assert!(report.is_empty(), "{}\nlog:\n{}", report.join("\n"), edge.said());
}
