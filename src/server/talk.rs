//! A connection through the upgrade socket: bounded messages, descriptors beside them, and nobody but this user and root.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use crate::handover::{MAX_BYTES, MAX_LISTENERS, decode, encode, may_talk};

/// A message that is on its way is there within this time.
pub const PROMPT: Duration = Duration::from_secs(10);

/// One side of a conversation.
pub struct Talk {
    stream: UnixStream,
    /// What was read and not yet used.
    buffer: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    peer: Option<u32>,
}

impl Talk {
    /// Connects to whoever serves at `path`.
    ///
    /// # Errors
    /// Nobody does (`NotFound`, `ConnectionRefused`), or a stranger.
    pub async fn connect(path: &Path) -> io::Result<Talk> {
        let connected = tokio::time::timeout(PROMPT, UnixStream::connect(path)).await;
        Talk::with(connected.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))?)
    }

    /// Talks through `stream`.
    ///
    /// # Errors
    /// The other side is neither this user nor root.
    pub fn with(stream: UnixStream) -> io::Result<Talk> {
        let peer = stream.peer_cred()?;
        if !may_talk(peer.uid(), rustix::process::geteuid().as_raw()) {
            return Err(io::Error::new(ErrorKind::PermissionDenied, format!("the other side runs as user {}", peer.uid())));
        }
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
        Ok(Talk { stream, buffer: Vec::new(), descriptors: Vec::new(), peer: pid })
    }

    /// The process on the other side as this one's namespace numbers it; 0 or none for one of another container.
    pub fn peer(&self) -> Option<u32> {
        self.peer
    }

    /// Sends `message`, and `descriptors` with it.
    ///
    /// # Errors
    /// The other side is gone or does not read.
    pub async fn say(&mut self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let line = encode(message);
        let send = async {
            let sent = match descriptors {
                [] => 0,
                some => self.stream.async_io(Interest::WRITABLE, || send(&self.stream, &line, some)).await?,
            };
            self.stream.write_all(&line[sent..]).await
        };
        tokio::time::timeout(PROMPT, send).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
    }

    /// The next message, when it is whole within `limit`.
    ///
    /// # Errors
    /// The other side is gone, silent, or talks something else.
    pub async fn hear<T: DeserializeOwned>(&mut self, limit: Duration) -> io::Result<T> {
        let line = tokio::time::timeout(limit, self.line()).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))?;
        decode(&line).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
    }

    /// The descriptors that came with what was heard.
    pub fn descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }

    async fn line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                return Ok(self.buffer.drain(..=end).collect());
            }
            if self.buffer.len() >= MAX_BYTES {
                return Err(io::Error::new(ErrorKind::InvalidData, "the message is too long"));
            }
            let (buffer, descriptors) = (&mut self.buffer, &mut self.descriptors);
            let stream = &self.stream;
            if stream.async_io(Interest::READABLE, || receive(stream, buffer, descriptors)).await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn send(stream: &UnixStream, line: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(descriptors.len()))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !beside.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(ErrorKind::InvalidInput, "too many descriptors"));
    }
    Ok(sendmsg(stream, &[IoSlice::new(line)], &mut beside, SendFlags::NOSIGNAL)?)
}

fn receive(stream: &UnixStream, buffer: &mut Vec<u8>, descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_LISTENERS + 1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut piece = [0; 4096];
    let count = recvmsg(stream, &mut [IoSliceMut::new(&mut piece)], &mut beside, RecvFlags::CMSG_CLOEXEC)?.bytes;
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            // Those past the bound are closed here: a stranger cannot make us hold many.
            descriptors.extend(some.take(MAX_LISTENERS.saturating_add(1).saturating_sub(descriptors.len())));
        }
    }
    buffer.extend_from_slice(&piece[..count]);
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    use super::*;
    use crate::handover::{Answer, Ask};

    fn pair() -> (Talk, Talk) {
        let (one, other) = UnixStream::pair().unwrap();
        (Talk::with(one).unwrap(), Talk::with(other).unwrap())
    }

    #[tokio::test]
    async fn listening_sockets_come_with_the_answer() {
        let (mut elder, mut successor) = pair();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let said = Answer::Listeners { listeners: vec![address], pid: 1 };
        elder.say(&said, &[listener.as_fd()]).await.unwrap();
        drop(listener);
        assert_eq!(successor.hear::<Answer>(PROMPT).await.unwrap(), said);
        let taken: Vec<TcpListener> = successor.descriptors().into_iter().map(TcpListener::from).collect();
        assert_eq!(taken.iter().map(|listener| listener.local_addr().unwrap()).collect::<Vec<_>>(), [address]);
        assert!(tokio::net::TcpStream::connect(address).await.is_ok());
    }

    #[tokio::test]
    async fn what_is_not_a_message_ends_the_talk() {
        for (bytes, kind) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], ErrorKind::InvalidData),
            (b"skep/1 {\"who", ErrorKind::UnexpectedEof),
            (&[b'x'; MAX_BYTES + 1], ErrorKind::InvalidData),
        ] {
            let (near, mut far) = UnixStream::pair().unwrap();
            let mut talk = Talk::with(near).unwrap();
            let sending = tokio::spawn(async move { far.write_all(bytes).await });
            assert_eq!(talk.hear::<Ask>(PROMPT).await.unwrap_err().kind(), kind);
            _ = sending.await;
        }
        let (_silent, mut talk) = pair();
        assert_eq!(talk.hear::<Ask>(Duration::from_millis(20)).await.unwrap_err().kind(), ErrorKind::TimedOut);
    }
}
