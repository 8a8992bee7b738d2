//! Dials a backend that wants a PROXY header in front of each connection.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::connectors::L4Connect;
use pingora_core::protocols::l4::socket::SocketAddr as PeerAddr;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorType, OrErr, Result};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::preamble;
use crate::upstream::ProxyVersion;

/// Connects and writes what is announced.
#[derive(Debug)]
struct Announcing {
    header: Vec<u8>,
    limit: Duration,
}

#[async_trait]
impl L4Connect for Announcing {
    async fn connect(&self, address: &PeerAddr) -> Result<Stream> {
        let Some(address) = address.as_inet() else {
            return Error::e_explain(ErrorType::InternalError, "a PROXY header is for TCP");
        };
        let dialled = tokio::time::timeout(self.limit, async {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(&self.header).await?;
            Ok::<_, std::io::Error>(stream)
        });
        match dialled.await {
            Ok(stream) => Ok(stream.or_err_with(ErrorType::ConnectError, || format!("connecting to {address}"))?.into()),
            Err(_) => Error::e_explain(ErrorType::ConnectTimedout, format!("connecting to {address}")),
        }
    }
}

/// Lets `peer` be dialled with a header that names the client `source`. The connection then belongs to this client: its requests
/// alone find it in the pool.
pub(super) fn announce(peer: &mut HttpPeer, version: ProxyVersion, source: SocketAddr, destination: SocketAddr, limit: Duration) {
    let header = preamble::write(version, source, destination);
    let mut hasher = DefaultHasher::new();
    // Whom the task was vouched for by is in there.
    peer.group_key.hash(&mut hasher);
    header.hash(&mut hasher);
    peer.group_key = hasher.finish();
    peer.options.custom_l4 = Some(Arc::new(Announcing { header, limit }));
}
