//! Notices by mail: over TLS wherever a password is sent, and wherever the server can otherwise.

use std::path::PathBuf;
use std::time::Duration;

use lettre::message::header::{ContentType, Header, HeaderName, HeaderValue};
use lettre::message::{Mailbox, Message};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};

use crate::config::notify::Server;
use crate::outbound::causes;

use super::courier::{Refusal, certificates, secret};
use super::payload::Mail;

/// How mails go out.
pub(super) struct Post {
    pub server: String,
    pub password: Option<PathBuf>,
    pub from: Result<Mailbox, String>,
    pub to: Vec<String>,
    /// Certificates by which the server is trusted besides the machine's authorities.
    pub ca: Option<PathBuf>,
}

impl Post {
    /// One mail, with `limit` for each command.
    pub async fn send(&self, mail: &Mail, limit: Duration) -> Result<(), Refusal> {
        let server = Server::parse(&self.server).map_err(|why| Refusal::lasting(format!("notify.smtp {why}")))?;
        let from = self.from.clone().map_err(Refusal::lasting)?;
        let mut builder = Message::builder().from(from).subject(&mail.subject).header(AutoSubmitted).header(ContentType::TEXT_PLAIN);
        for to in &self.to {
            builder = builder.to(to.parse().map_err(|_| Refusal::lasting("one of notify.mail-to is no address"))?);
        }
        let message = builder.message_id(None).body(mail.body.clone()).map_err(|error| Refusal::lasting(error.to_string()))?;
        let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&server.host)
            .port(server.port)
            .timeout(Some(limit))
            .tls(self.tls(&server)?);
        if let Some(user) = server.user {
            let path = self.password.as_deref().ok_or_else(|| Refusal::lasting("there is no notify.smtp-password-file"))?;
            transport = transport.credentials(Credentials::new(user, secret(path).await?));
        }
        let sent = transport.build().send(message).await;
        sent.map(drop).map_err(|error| Refusal { again: !error.is_permanent() && !error.is_client(), why: causes(&error), after: None })
    }

    /// A user's password goes over a TLS that was verified, or not at all. Where nobody would object to clear text, a certificate that
    /// cannot be verified is still better than none (RFC 7435).
    fn tls(&self, server: &Server) -> Result<Tls, Refusal> {
        let bad = |error: lettre::transport::smtp::Error| Refusal::lasting(format!("TLS cannot be used: {}", causes(&error)));
        let mut parameters = TlsParameters::builder(server.host.clone());
        if let Some(path) = &self.ca {
            for certificate in certificates(path).map_err(Refusal::lasting)? {
                parameters = parameters.add_root_certificate(Certificate::from_der(certificate.to_vec()).map_err(bad)?);
            }
        }
        let strict = server.tls || server.user.is_some();
        let parameters = parameters.dangerous_accept_invalid_certs(!strict).build().map_err(bad)?;
        Ok(match (server.tls, strict) {
            (true, _) => Tls::Wrapper(parameters),
            (false, true) => Tls::Required(parameters),
            (false, false) => Tls::Opportunistic(parameters),
        })
    }
}

/// Keeps those who are away from answering a machine (RFC 3834, section 5).
#[derive(Clone, Copy)]
struct AutoSubmitted;

impl Header for AutoSubmitted {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<AutoSubmitted, Box<dyn std::error::Error + Send + Sync>> {
        Ok(AutoSubmitted)
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), "auto-generated".to_owned())
    }
}
