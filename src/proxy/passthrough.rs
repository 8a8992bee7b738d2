//! Connections whose TLS is the service's own: the name in the ClientHello says whose, and all bytes go there, the ClientHello first.

use bytes::BytesMut;
use tokio::net::TcpStream;

use super::conduit::{Asked, Conduit};
use super::stream::PerConnection;
use crate::state::Route;
use crate::telemetry::Record;

/// Serves one connection to its end. `unread` is all that was read of it, the ClientHello from its first byte, and maybe more;
/// `sni` the name in it, by which [`crate::state::Passthrough::find`] gave `route`.
pub async fn serve(conduit: &Conduit, tcp: TcpStream, unread: BytesMut, sni: &str, route: &Route, about: &PerConnection) {
    conduit.carry(tcp, &unread, about, route, Asked { protocol: Record::TLS, place: sni }).await;
}
