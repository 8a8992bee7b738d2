//! A client's side of HTTP/1 by hand, so that each byte is sent when the test wants it and each byte of an answer is looked at.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Why a request failed, in words.
pub type Fault = String;

/// One answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
    /// The edge said that the connection ends.
    pub closes: bool,
}

/// One connection to the edge.
pub struct Wire(pub BufReader<TcpStream>);

fn fault(doing: &str) -> impl Fn(std::io::Error) -> Fault {
    move |error| format!("{doing}: {error}")
}

impl Wire {
    pub async fn connect(edge: SocketAddr) -> Result<Wire, Fault> {
        let stream = TcpStream::connect(edge).await.map_err(fault("connecting"))?;
        stream.set_nodelay(true).map_err(fault("connecting"))?;
        Ok(Wire(BufReader::new(stream)))
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), Fault> {
        self.0.get_mut().write_all(bytes.as_ref()).await.map_err(fault("sending"))
    }

    /// Sends in `pieces` pieces with pauses between.
    pub async fn drip(&mut self, bytes: &[u8], pieces: usize, pause: Duration) -> Result<(), Fault> {
        for piece in bytes.chunks(bytes.len().div_ceil(pieces.max(1)).max(1)) {
            self.send(piece).await?;
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    async fn line(&mut self) -> Result<String, Fault> {
        let mut line = String::new();
        let count = self.0.read_line(&mut line).await.map_err(fault("reading a line"))?;
        match line.strip_suffix("\r\n") {
            Some(line) => Ok(line.to_owned()),
            None if count == 0 => Err("the connection ended where a line was due".to_owned()),
            None => Err(format!("a line without its end: {line:?}")),
        }
    }

    /// Reads a head: status and fields in lower case.
    pub async fn head(&mut self) -> Result<(u16, Vec<(String, String)>), Fault> {
        let first = self.line().await?;
        let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
        let status = status.ok_or_else(|| format!("not the start of an answer: {first:?}"))?;
        let mut fields = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok((status, fields));
            }
            let (name, value) = line.split_once(':').ok_or_else(|| format!("not a header field: {line:?}"))?;
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    async fn exactly(&mut self, count: usize) -> Result<Vec<u8>, Fault> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).await.map_err(fault("reading a body"))?;
        Ok(bytes)
    }

    /// Reads an answer to its end.
    pub async fn answer(&mut self, method: &str) -> Result<Answer, Fault> {
        let (status, fields) = self.head().await?;
        let field = |wanted: &str| fields.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        let closes = field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let mut body = Vec::new();
        if method == "HEAD" || matches!(status, 204 | 304) {
        } else if field("transfer-encoding").is_some() {
            loop {
                let line = self.line().await?;
                let size = usize::from_str_radix(&line, 16).map_err(|_| format!("not a chunk's size: {line:?}"))?;
                body.extend(self.exactly(size).await?);
                if !self.line().await?.is_empty() {
                    return Err("a chunk without its end".to_owned());
                }
                if size == 0 {
                    break;
                }
            }
        } else if let Some(length) = field("content-length") {
            body = self.exactly(length.parse().map_err(|_| format!("not a length: {length:?}"))?).await?;
        } else {
            self.0.read_to_end(&mut body).await.map_err(fault("reading to the end"))?;
            return Ok(Answer { status, body, closes: true });
        }
        Ok(Answer { status, body, closes })
    }

    /// An answer that must be just this one.
    pub async fn expect(&mut self, method: &str, status: u16, body: &[u8]) -> Result<bool, Fault> {
        let answer = self.answer(method).await?;
        if answer.status != status || answer.body != body {
            let text = String::from_utf8_lossy(&answer.body[..answer.body.len().min(120)]).into_owned();
            return Err(format!(
                "status {} and {} bytes instead of {status} and {}: {text:?}",
                answer.status,
                answer.body.len(),
                body.len()
            ));
        }
        Ok(!answer.closes)
    }

    /// The connection must be over.
    pub async fn expect_end(&mut self) -> Result<(), Fault> {
        match self.0.read(&mut [0; 64]).await {
            Ok(0) => Ok(()),
            Ok(count) => Err(format!("{count} bytes more than the answer")),
            Err(error) => Err(format!("the end: {error}")),
        }
    }
}
