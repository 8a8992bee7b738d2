//! Brings notices to those who are to hear them: over HTTP and by mail, within bounds of time, size, number and tries. Each receiver has a
//! queue of its own, so that one that does not answer keeps nobody else waiting. What could not be delivered is logged, counted, and told
//! to that receiver with the next notice.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::config::notify::{Level, Notify, masked};

use super::notice::Notice;
use super::payload::{self, Phase};
use super::smtp::Post;
use super::webhook::Webhooks;
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
/// Bytes of a file with a URL or a password.
const LARGEST_SECRET: u64 = 16 * 1024;

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
    webhooks: Webhooks,
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

/// Notices and pings since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub delivered: u64,
    pub lost: u64,
}

/// Why something was not delivered, without what must not be seen.
pub(super) struct Refusal {
    pub why: String,
    /// Another try may help, after this time if the receiver said so.
    pub again: bool,
    pub after: Option<Duration>,
}

impl Refusal {
    pub fn lasting(why: impl Into<String>) -> Refusal {
        Refusal { why: why.into(), again: false, after: None }
    }

    pub fn passing(why: impl Into<String>) -> Refusal {
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
        let shared = Arc::new(Shared::new(notify, node, patience));
        let lanes = |receivers: Vec<Receiver>| receivers.into_iter().map(|receiver| Lane::open(receiver, &shared)).collect();
        let pings = notify.ping.iter().cloned().map(Receiver::Ping).collect();
        Courier { receivers: lanes(receivers(notify)), pings: lanes(pings), shared: shared.clone() }
    }

    /// Tries each receiver once with `notice`: its name as it may be seen, and why the notice did not arrive. Nobody is pinged, as that
    /// would say that something was saved.
    pub async fn tried(notify: &Notify, notice: &Notice) -> Vec<(String, Option<String>)> {
        let shared = Shared::new(notify, &notice.node, Patience::default());
        let letter = Letter::Notice(Arc::new(notice.clone()));
        let receivers = receivers(notify);
        let tried = receivers.iter().map(async |receiver| {
            let refusal = shared.within(receiver, &letter, 0).await.err();
            (receiver.name(), refusal.map(|refusal| refusal.why))
        });
        join_all(tried).await
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

/// All who hear of everything.
fn receivers(notify: &Notify) -> Vec<Receiver> {
    let urls = |urls: &[String], receiver: fn(String) -> Receiver| urls.iter().cloned().map(receiver).collect::<Vec<_>>();
    let mut receivers = urls(&notify.webhooks, Receiver::Generic);
    receivers.extend(urls(&notify.slack, Receiver::Slack));
    receivers.extend(urls(&notify.ntfy, Receiver::Ntfy));
    receivers.extend(notify.smtp.as_ref().filter(|_| !notify.mail_to.is_empty()).map(|server| {
        let (from, to, ca) = (notify.sender(), notify.mail_to.clone(), notify.ca.clone());
        Receiver::Mail(Box::new(Post { server: server.clone(), password: notify.smtp_password_file.clone(), from, to, ca }))
    }));
    receivers
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
    fn new(notify: &Notify, node: &str, patience: Patience) -> Shared {
        Shared {
            node: node.to_owned(),
            patience,
            webhooks: Webhooks::new(notify.ca.clone()),
            pending: watch::Sender::new(0),
            delivered: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    /// Tries up to three times.
    async fn deliver(&self, receiver: &Receiver, letter: &Letter, lost: u64) -> Result<(), String> {
        let mut pauses = self.patience.pauses.into_iter();
        loop {
            let refusal = match self.within(receiver, letter, lost).await {
                Ok(()) => return Ok(()),
                Err(refusal) => refusal,
            };
            let Some(pause) = pauses.next().filter(|_| refusal.again) else { return Err(refusal.why) };
            let pause = refusal.after.unwrap_or(pause).min(self.patience.longest_pause);
            tracing::debug!(receiver = receiver.name(), why = refusal.why, ?pause, "a notice is tried again");
            sleep(pause).await;
        }
    }

    /// One try with its limit.
    async fn within(&self, receiver: &Receiver, letter: &Letter, lost: u64) -> Result<(), Refusal> {
        let limit = self.patience.one_try;
        let tried = timeout(limit, self.attempt(receiver, letter, lost)).await;
        tried.unwrap_or_else(|_| Err(Refusal::passing(format!("no answer within {limit:?}"))))
    }

    async fn attempt(&self, receiver: &Receiver, letter: &Letter, lost: u64) -> Result<(), Refusal> {
        const JSON: &str = "application/json";
        const TEXT: &str = "text/plain; charset=utf-8";
        match (receiver, letter) {
            (Receiver::Generic(url), Letter::Notice(notice)) => {
                let body = payload::generic(notice, lost).to_string();
                self.webhooks.post(&read_url(url).await?, JSON, HeaderMap::new(), body).await
            }
            (Receiver::Slack(url), Letter::Notice(notice)) => {
                let body = payload::slack(notice, lost).to_string();
                self.webhooks.post(&read_url(url).await?, JSON, HeaderMap::new(), body).await
            }
            (Receiver::Ntfy(url), Letter::Notice(notice)) => {
                let told = payload::ntfy(notice, lost);
                let mut fields = HeaderMap::new();
                // The title is printable ASCII; should it not be, the notice goes out without.
                fields.extend(HeaderValue::from_str(&told.title).ok().map(|title| (HeaderName::from_static("title"), title)));
                fields.insert("priority", HeaderValue::from(u16::from(told.priority)));
                fields.insert("tags", HeaderValue::from_static(told.tags));
                self.webhooks.post(&read_url(url).await?, TEXT, fields, told.body).await
            }
            (Receiver::Mail(post), Letter::Notice(notice)) => post.send(&payload::mail(notice, lost), self.patience.one_try).await,
            (Receiver::Ping(url), Letter::Ping { phase, volume, target, body }) => {
                let url = payload::ping_url(&read_url(url).await?, *phase, &self.node, volume, target);
                self.webhooks.post(&url, TEXT, HeaderMap::new(), body.clone()).await
            }
            _ => Ok(()), // notices go to receivers and pings to pings
        }
    }
}

/// The URL, from its file if it lies in one.
async fn read_url(url: &str) -> Result<String, Refusal> {
    match url.strip_prefix("file:") {
        Some(path) => secret(Path::new(path)).await,
        None => Ok(url.to_owned()),
    }
}

/// The first line of a file.
pub(super) async fn secret(path: &Path) -> Result<String, Refusal> {
    use tokio::io::AsyncReadExt as _;
    let bad = |error: std::io::Error| Refusal::passing(format!("{} cannot be read: {error}", path.display()));
    let mut text = String::new();
    tokio::fs::File::open(path).await.map_err(bad)?.take(LARGEST_SECRET).read_to_string(&mut text).await.map_err(bad)?;
    match text.lines().next().map(str::trim).filter(|line| !line.is_empty()) {
        Some(line) => Ok(line.to_owned()),
        None => Err(Refusal::lasting(format!("there is nothing in {}", path.display()))),
    }
}

pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = found.map_err(|error| format!("the certificates in {} cannot be used: {error}", path.display()))?;
    if found.is_empty() { Err(format!("there is no certificate in {}", path.display())) } else { Ok(found) }
}
