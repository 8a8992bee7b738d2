//! Brings notices to those who are to hear them: over HTTP and by mail, within bounds of time, size, number and tries. Each receiver has a
//! queue of its own, so that one that does not answer keeps nobody else waiting. What could not be delivered is logged, counted, and told
//! to that receiver with the next notice.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use lettre::message::header::ContentType;
use lettre::message::{Mailbox, Message};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::config::notify::{Level, Notify, Server, masked};

use super::notice::Notice;
use super::payload::{self, Phase};
use super::{Job, Run, Task};

/// How patient a courier is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For one try, from the connection to the end of the answer.
    pub one_try: Duration,
    /// Before the second try and the third; there are no more.
    pub pauses: [Duration; 2],
    /// At most so long is waited where a receiver says when to come again.
    pub longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        let seconds = Duration::from_secs;
        Patience { one_try: seconds(15), pauses: [seconds(5), seconds(30)], longest_pause: seconds(120) }
    }
}

/// Things that wait for one receiver; more are lost, and it is told so.
const QUEUE: usize = 100;
/// Bytes of an answer that are read.
const LARGEST: usize = 64 * 1024;
/// Bytes of a file with a URL or a password.
const LARGEST_SECRET: u64 = 16 * 1024;
const IDLE: Duration = Duration::from_secs(30);
const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("skep/", env!("CARGO_PKG_VERSION")));

type Posting = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Where notices and pings are handed in. Dropped, it still delivers what it has; [`Courier::flush`] waits for that.
pub struct Courier {
    receivers: Vec<Lane>,
    pings: Vec<Lane>,
    shared: Arc<Shared>,
}

/// The way to one receiver.
struct Lane {
    name: String,
    queue: mpsc::Sender<Letter>,
    /// Notices that did not arrive since the last one that did.
    lost: Arc<AtomicU64>,
}

enum Letter {
    Notice(Arc<Notice>),
    Ping { phase: Phase, volume: String, target: String, body: String },
}

struct Shared {
    node: String,
    patience: Patience,
    ca: Option<PathBuf>,
    /// Made at first use: most who run this tell nobody.
    client: OnceLock<Posting>,
    /// Things handed in that are neither delivered nor lost.
    pending: watch::Sender<usize>,
    delivered: AtomicU64,
    lost: AtomicU64,
}

/// Who a lane leads to.
enum Receiver {
    Generic(String),
    Slack(String),
    Ntfy(String),
    Ping(String),
    Mail(Box<Post>),
}

/// How mails go out.
struct Post {
    server: String,
    password: Option<PathBuf>,
    from: Result<Mailbox, String>,
    to: Vec<String>,
}

/// Notices and pings since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub delivered: u64,
    pub lost: u64,
}

/// Why something was not delivered, without what must not be seen.
struct Refusal {
    why: String,
    /// Another try may help, after this time if the receiver said so.
    again: bool,
    after: Option<Duration>,
}

impl Refusal {
    fn lasting(why: impl Into<String>) -> Refusal {
        Refusal { why: why.into(), again: false, after: None }
    }

    fn passing(why: impl Into<String>) -> Refusal {
        Refusal { why: why.into(), again: true, after: None }
    }
}

impl Courier {
    /// To be called within a runtime, whose tasks do the work. `node` stands for `{node}` in the URLs of pings.
    pub fn new(notify: &Notify, node: &str) -> Courier {
        Courier::with(notify, node, Patience::default())
    }

    /// The same with its own bounds of time.
    pub fn with(notify: &Notify, node: &str, patience: Patience) -> Courier {
        let shared = Arc::new(Shared {
            node: node.to_owned(),
            patience,
            ca: notify.ca.clone(),
            client: OnceLock::new(),
            pending: watch::Sender::new(0),
            delivered: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        });
        let urls = |urls: &[String], receiver: fn(String) -> Receiver| urls.iter().cloned().map(receiver).collect::<Vec<_>>();
        let mut receivers = urls(&notify.webhooks, Receiver::Generic);
        receivers.extend(urls(&notify.slack, Receiver::Slack));
        receivers.extend(urls(&notify.ntfy, Receiver::Ntfy));
        receivers.extend(notify.smtp.as_ref().filter(|_| !notify.mail_to.is_empty()).map(|server| {
            let (from, to) = (notify.sender(), notify.mail_to.clone());
            Receiver::Mail(Box::new(Post { server: server.clone(), password: notify.smtp_password_file.clone(), from, to }))
        }));
        let lanes = |receivers: Vec<Receiver>| receivers.into_iter().map(|receiver| Lane::open(receiver, &shared)).collect();
        Courier { receivers: lanes(receivers), pings: lanes(urls(&notify.ping, Receiver::Ping)), shared: shared.clone() }
    }

    /// Hands a notice in for all receivers, and logs it: whoever reads the log hears of it too.
    pub fn send(&self, notice: &Notice) {
        let (kind, target, more) = (format!("{:?}", notice.kind), notice.target.as_deref().unwrap_or_default(), notice.more);
        let messages: Vec<String> = notice
            .about
            .iter()
            .take(3)
            .map(|about| format!("{}: {}", about.volume.as_deref().unwrap_or_default(), about.message))
            .collect();
        match notice.level {
            Level::Error => tracing::error!(kind, target, ?messages, more, "{}", notice.title),
            Level::Warning => tracing::warn!(kind, target, ?messages, more, "{}", notice.title),
            Level::Success => tracing::info!(kind, target, ?messages, more, "{}", notice.title),
        }
        let notice = Arc::new(notice.clone());
        for lane in &self.receivers {
            lane.hand_in(Letter::Notice(notice.clone()), &self.shared);
        }
    }

    /// Pings that a save begins.
    pub fn began(&self, job: &Job) {
        if job.task == Task::Save {
            self.ping(Phase::Start, job.volume.as_deref(), &job.target, &payload::ping_start(job));
        }
    }

    /// Pings how a save ended.
    pub fn ended(&self, run: &Run) {
        if run.task == Task::Save {
            self.ping(payload::phase(run.verdict), run.volume.as_deref(), &run.target, &payload::ping_body(run));
        }
    }

    fn ping(&self, phase: Phase, volume: Option<&str>, target: &str, body: &str) {
        for lane in &self.pings {
            let (volume, target) = (volume.unwrap_or_default().to_owned(), target.to_owned());
            lane.hand_in(Letter::Ping { phase, volume, target, body: body.to_owned() }, &self.shared);
        }
    }

    pub fn counts(&self) -> Counts {
        Counts { delivered: self.shared.delivered.load(Ordering::Relaxed), lost: self.shared.lost.load(Ordering::Relaxed) }
    }

    /// Waits until all that was handed in is delivered or lost, at most for `limit`; how many things still wait then is logged and given.
    pub async fn flush(&self, limit: Duration) -> usize {
        let mut pending = self.shared.pending.subscribe();
        // An error means that the sender is gone, and we hold it.
        let done = timeout(limit, pending.wait_for(|count| *count == 0)).await.is_ok();
        let left = if done { 0 } else { *self.shared.pending.borrow() };
        if left > 0 {
            tracing::error!(left, "notices are not delivered yet and are given up: Skep stops");
        }
        left
    }
}

impl Lane {
    fn open(receiver: Receiver, shared: &Arc<Shared>) -> Lane {
        let (queue, letters) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let name = receiver.name();
        tokio::spawn(deliver_all(letters, receiver, lost.clone(), shared.clone()));
        Lane { name, queue, lost }
    }

    fn hand_in(&self, letter: Letter, shared: &Shared) {
        shared.pending.send_modify(|count| *count += 1);
        if self.queue.try_send(letter).is_err() {
            shared.pending.send_modify(|count| *count -= 1);
            note_loss(&self.name, "too many wait for it already", &self.lost, shared);
        }
    }
}

fn note_loss(name: &str, why: &str, lost: &AtomicU64, shared: &Shared) {
    lost.fetch_add(1, Ordering::Relaxed);
    shared.lost.fetch_add(1, Ordering::Relaxed);
    tracing::error!(receiver = name, why, "a notice or a ping could not be delivered");
}

async fn deliver_all(mut letters: mpsc::Receiver<Letter>, receiver: Receiver, lost: Arc<AtomicU64>, shared: Arc<Shared>) {
    while let Some(letter) = letters.recv().await {
        let before = lost.load(Ordering::Relaxed);
        match shared.deliver(&receiver, &letter, before).await {
            Ok(()) => {
                // Those lost meanwhile are for the next one to tell.
                lost.fetch_sub(before, Ordering::Relaxed);
                shared.delivered.fetch_add(1, Ordering::Relaxed);
            }
            Err(why) => note_loss(&receiver.name(), &why, &lost, &shared),
        }
        shared.pending.send_modify(|count| *count -= 1);
    }
}

impl Receiver {
    /// What the log may show of it.
    fn name(&self) -> String {
        match self {
            Receiver::Generic(url) | Receiver::Slack(url) | Receiver::Ntfy(url) | Receiver::Ping(url) => masked(url),
            Receiver::Mail(post) => masked(&post.server),
        }
    }
}

impl Shared {
    /// Tries up to three times.
    async fn deliver(&self, receiver: &Receiver, letter: &Letter, lost: u64) -> Result<(), String> {
        let mut pauses = self.patience.pauses.into_iter();
        loop {
            let limit = self.patience.one_try;
            let tried = timeout(limit, self.attempt(receiver, letter, lost)).await;
            let refusal = match tried.unwrap_or_else(|_| Err(Refusal::passing(format!("no answer within {limit:?}")))) {
                Ok(()) => return Ok(()),
                Err(refusal) => refusal,
            };
            let Some(pause) = pauses.next().filter(|_| refusal.again) else { return Err(refusal.why) };
            let pause = refusal.after.unwrap_or(pause).min(self.patience.longest_pause);
            tracing::debug!(receiver = receiver.name(), why = refusal.why, ?pause, "a notice is tried again");
            sleep(pause).await;
        }
    }

    async fn attempt(&self, receiver: &Receiver, letter: &Letter, lost: u64) -> Result<(), Refusal> {
        const JSON: &str = "application/json";
        const TEXT: &str = "text/plain; charset=utf-8";
        match (receiver, letter) {
            (Receiver::Generic(url), Letter::Notice(notice)) => {
                let body = payload::generic(notice, lost).to_string();
                self.post(&read_url(url).await?, JSON, HeaderMap::new(), body).await
            }
            (Receiver::Slack(url), Letter::Notice(notice)) => {
                let body = payload::slack(notice, lost).to_string();
                self.post(&read_url(url).await?, JSON, HeaderMap::new(), body).await
            }
            (Receiver::Ntfy(url), Letter::Notice(notice)) => {
                let told = payload::ntfy(notice, lost);
                let mut fields = HeaderMap::new();
                // The title is printable ASCII; should it not be, the notice goes out without.
                fields.extend(HeaderValue::from_str(&told.title).ok().map(|title| (HeaderName::from_static("title"), title)));
                fields.insert("priority", HeaderValue::from(u16::from(told.priority)));
                fields.insert("tags", HeaderValue::from_static(told.tags));
                self.post(&read_url(url).await?, TEXT, fields, told.body).await
            }
            (Receiver::Mail(post), Letter::Notice(notice)) => self.mail(post, &payload::mail(notice, lost)).await,
            (Receiver::Ping(url), Letter::Ping { phase, volume, target, body }) => {
                let url = payload::ping_url(&read_url(url).await?, *phase, &self.node, volume, target);
                self.post(&url, TEXT, HeaderMap::new(), body.clone()).await
            }
            _ => Ok(()), // notices go to receivers and pings to pings
        }
    }

    fn client(&self) -> Result<Posting, Refusal> {
        if let Some(client) = self.client.get() {
            return Ok(client.clone());
        }
        let made = client(self.ca.as_deref()).map_err(Refusal::passing)?;
        Ok(self.client.get_or_init(|| made).clone())
    }

    async fn post(&self, url: &str, kind: &'static str, fields: HeaderMap, body: String) -> Result<(), Refusal> {
        let client = self.client()?;
        let uri: Uri = url.parse().map_err(|_| Refusal::lasting("what is given as its URL is none"))?;
        let mut request =
            Request::post(uri.clone()).body(Full::new(Bytes::from(body))).map_err(|_| Refusal::lasting("its URL cannot be asked"))?;
        let own = request.headers_mut();
        own.extend(fields);
        own.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        own.insert(header::USER_AGENT, USER_AGENT);
        own.extend(credentials(&uri).map(|value| (header::AUTHORIZATION, value)));
        let answer = client.request(request).await.map_err(|error| Refusal::passing(causes(&error)))?;
        let (head, body) = answer.into_parts();
        // Read so that the connection can be used again; what it says is not needed.
        _ = Limited::new(body, LARGEST).collect().await;
        judged(head.status, &head.headers)
    }

    async fn mail(&self, post: &Post, mail: &payload::Mail) -> Result<(), Refusal> {
        let server = Server::parse(&post.server).map_err(|why| Refusal::lasting(format!("notify.smtp {why}")))?;
        let from = post.from.clone().map_err(Refusal::lasting)?;
        let mut builder = Message::builder().from(from).subject(&mail.subject).header(AutoSubmitted).header(ContentType::TEXT_PLAIN);
        for to in &post.to {
            builder = builder.to(to.parse().map_err(|_| Refusal::lasting("one of notify.mail-to is no address"))?);
        }
        let message = builder.message_id(None).body(mail.body.clone()).map_err(|error| Refusal::lasting(error.to_string()))?;
        let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&server.host)
            .port(server.port)
            .timeout(Some(self.patience.one_try))
            .tls(self.tls(&server)?);
        if let Some(user) = server.user {
            let path = post.password.as_deref().ok_or_else(|| Refusal::lasting("there is no notify.smtp-password-file"))?;
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

impl lettre::message::header::Header for AutoSubmitted {
    fn name() -> lettre::message::header::HeaderName {
        lettre::message::header::HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<AutoSubmitted, Box<dyn std::error::Error + Send + Sync>> {
        Ok(AutoSubmitted)
    }

    fn display(&self) -> lettre::message::header::HeaderValue {
        lettre::message::header::HeaderValue::new(Self::name(), "auto-generated".to_owned())
    }
}

/// What an answer means for a notice. Redirects are not followed: a notice is for whom it is addressed to.
fn judged(status: StatusCode, fields: &HeaderMap) -> Result<(), Refusal> {
    if status.is_success() {
        return Ok(());
    }
    let said = || fields.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs);
    match status {
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            Err(Refusal { after: said(), ..Refusal::passing(format!("it answers {status}")) })
        }
        _ if status.is_server_error() => Err(Refusal { after: said(), ..Refusal::passing(format!("it answers {status}")) }),
        _ if status.is_redirection() => {
            Err(Refusal::lasting(format!("it answers {status}, and redirects are not followed: give the URL that it leads to")))
        }
        _ => Err(Refusal::lasting(format!("it answers {status}"))),
    }
}

/// The user and password of a URL, which are sent as a header.
fn credentials(uri: &Uri) -> Option<HeaderValue> {
    use base64::Engine as _;
    let (user, _) = uri.authority()?.as_str().rsplit_once('@')?;
    let plain = percent_encoding::percent_decode_str(user).collect::<Vec<u8>>();
    let mut value = HeaderValue::from_str(&format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(plain))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The URL, from its file if it lies in one.
async fn read_url(url: &str) -> Result<String, Refusal> {
    match url.strip_prefix("file:") {
        Some(path) => secret(Path::new(path)).await,
        None => Ok(url.to_owned()),
    }
}

/// The first line of a file.
async fn secret(path: &Path) -> Result<String, Refusal> {
    use tokio::io::AsyncReadExt as _;
    let bad = |error: std::io::Error| Refusal::passing(format!("{} cannot be read: {error}", path.display()));
    let mut text = String::new();
    tokio::fs::File::open(path).await.map_err(bad)?.take(LARGEST_SECRET).read_to_string(&mut text).await.map_err(bad)?;
    match text.lines().next().map(str::trim).filter(|line| !line.is_empty()) {
        Some(line) => Ok(line.to_owned()),
        None => Err(Refusal::lasting(format!("there is nothing in {}", path.display()))),
    }
}

/// An error with its causes. None of ours and of our libraries' holds a URL or a password.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = found.map_err(|error| format!("the certificates in {} cannot be used: {error}", path.display()))?;
    if found.is_empty() { Err(format!("there is no certificate in {}", path.display())) } else { Ok(found) }
}

fn client(ca: Option<&Path>) -> Result<Posting, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca {
        roots.add_parsable_certificates(certificates(path)?);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be used: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().wrap_connector(connector);
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(2)
        .build(connector))
}
