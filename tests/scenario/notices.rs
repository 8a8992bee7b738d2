//! Notices about backups: they arrive over HTTP and by mail, whatever the receivers do, and say nothing that they must not.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::routing::any;
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use jiff::Timestamp;
use serde_json::Value;
use tokio::net::TcpListener;

use skep::backup::courier::{Counts, Courier, Patience};
use skep::backup::inventory::Volume;
use skep::backup::notice::{About, Kind, Notice, Told, notices, trial};
use skep::backup::standing::{Facts, standing};
use skep::backup::{Job, Mode, OnError, Reason, Repository, Run, Runs, Settings, Stats, Subject, Task, Verdict};
use skep::config::backup::Target;
use skep::config::{Backup, Level, Notify};

use crate::harness::free_port;
use crate::pebble::{Process, listening, server_certificate};

const LONG: Duration = Duration::from_secs(60);

/// Quick, so that tests are.
const PATIENCE: Patience = Patience {
    one_try: Duration::from_secs(5),
    pauses: [Duration::from_millis(20), Duration::from_millis(40)],
    longest_pause: Duration::from_millis(200),
};

/// One answer: status, a header, and how long it takes.
type Answer = (u16, Option<(&'static str, &'static str)>, Duration);

/// Takes notices and answers as it is told to; then with 200.
struct Receiver {
    address: SocketAddr,
    got: Arc<Mutex<Vec<Got>>>,
}

#[derive(Clone, Debug)]
struct Got {
    path: String,
    headers: HeaderMap,
    body: String,
}

impl Receiver {
    async fn start(answers: &[Answer]) -> Receiver {
        let (got, answers) = (Arc::<Mutex<Vec<Got>>>::default(), Mutex::new(VecDeque::from(answers.to_vec())));
        let (noted, answers) = (got.clone(), Arc::new(answers));
        let router = Router::new().fallback(any(move |request: Request| {
            let (noted, answers) = (noted.clone(), answers.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
                noted.lock().unwrap().push(Got { path: head.uri.to_string(), headers: head.headers, body });
                let (status, field, pause) = answers.lock().unwrap().pop_front().unwrap_or((200, None, Duration::ZERO));
                tokio::time::sleep(pause).await;
                let fields: HeaderMap = field.into_iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
                (StatusCode::from_u16(status).unwrap(), fields, "s3cret of the answer")
            }
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Receiver { address, got }
    }

    fn url(&self) -> String {
        format!("http://{}/hook/s3cret", self.address)
    }

    fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }
}

fn to(url: String) -> Notify {
    Notify { webhooks: vec![url], ..Notify::default() }
}

fn failure() -> Notice {
    let about = About { volume: Some("shop_data".into()), message: "the disk is full".into(), ..About::default() };
    let title = "Saving volume shop_data to offsite failed".to_owned();
    let about = vec![about];
    Notice { kind: Kind::Failed, level: Level::Error, target: Some("offsite".into()), title, about, ..trial("n1", Timestamp::now()) }
}

async fn flushed(courier: &Courier) -> Counts {
    assert_eq!(courier.flush(LONG).await, 0);
    courier.counts()
}

/// What is logged by this thread while the guard lives.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Said {
    fn listen() -> (Said, tracing::subscriber::DefaultGuard) {
        let said = Said::default();
        let writer = said.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone()).finish();
        (said, tracing::subscriber::set_default(subscriber))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

#[tokio::test]
async fn each_receiver_gets_its_form() {
    let receiver = Receiver::start(&[]).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("topic");
    let at = |path: &str| format!("http://{}{path}", receiver.address);
    std::fs::write(&file, at("/topic\n")).unwrap();
    let mut notify = to(format!("http://ops:pass%20word@{}/generic", receiver.address));
    notify.slack = vec![at("/slack")];
    notify.ntfy = vec![format!("file:{}", file.display())];
    let courier = Courier::with(&notify, "n1", PATIENCE);
    let mut notice = failure();
    notice.title = "Speichern von Bücher\r\nX-Evil: 1 fehlgeschlagen".to_owned();
    courier.send(&notice);
    assert_eq!(flushed(&courier).await, Counts { delivered: 3, lost: 0 });
    let got: BTreeMap<String, Got> = receiver.got().into_iter().map(|got| (got.path.clone(), got)).collect();
    assert_eq!(got.keys().collect::<Vec<_>>(), ["/generic", "/slack", "/topic"]);
    let generic: Value = serde_json::from_str(&got["/generic"].body).unwrap();
    assert_eq!((&generic["kind"], &generic["node"], &generic["about"][0]["volume"]), (&"failed".into(), &"n1".into(), &"shop_data".into()));
    assert_eq!(got["/generic"].headers[header::CONTENT_TYPE], "application/json");
    assert_eq!(got["/generic"].headers[header::AUTHORIZATION], "Basic b3BzOnBhc3Mgd29yZA==");
    let slack: Value = serde_json::from_str(&got["/slack"].body).unwrap();
    assert!(slack["attachments"][0]["text"].as_str().unwrap().contains("`the disk is full`"), "{slack}");
    let topic = &got["/topic"];
    assert!(topic.headers["title"].to_str().unwrap().starts_with("=?UTF-8?B?") && !topic.headers.contains_key("x-evil"), "{topic:?}");
    assert_eq!((&topic.headers["priority"], &topic.headers["tags"]), (&"4".parse().unwrap(), &"rotating_light".parse().unwrap()));
    assert!(topic.body.contains("shop_data: the disk is full"), "{}", topic.body);
    // What the file says then is what counts.
    std::fs::write(&file, at("/other")).unwrap();
    courier.send(&notice);
    flushed(&courier).await;
    assert!(receiver.got().iter().any(|got| got.path == "/other"));
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_what_lasts_is_not() {
    const NOW: Duration = Duration::ZERO;
    let fail = (500, None, NOW);
    let elsewhere = (302, Some(("location", "/elsewhere")), NOW);
    // answers, tries, whether it arrives
    let table: [(&[Answer], usize, bool); 8] = [
        (&[fail, fail], 3, true),
        (&[fail, fail, fail], 3, false),
        (&[(429, Some(("retry-after", "1000000")), NOW)], 2, true),
        (&[(503, Some(("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT")), NOW)], 2, true),
        (&[(400, None, NOW)], 1, false),
        (&[(404, None, NOW)], 1, false),
        (&[elsewhere], 1, false),
        (&[(204, None, NOW)], 1, true),
    ];
    for (answers, tries, arrives) in table {
        let receiver = Receiver::start(answers).await;
        let courier = Courier::with(&to(receiver.url()), "n1", PATIENCE);
        courier.send(&failure());
        let wanted = Counts { delivered: u64::from(arrives), lost: u64::from(!arrives) };
        assert_eq!(flushed(&courier).await, wanted, "{answers:?}");
        let paths: Vec<String> = receiver.got().into_iter().map(|got| got.path).collect();
        assert_eq!(paths, vec!["/hook/s3cret"; tries], "{answers:?}");
    }
}

#[tokio::test]
async fn a_receiver_that_does_not_answer_keeps_nobody_waiting_and_hears_later_what_it_missed() {
    let slow = Receiver::start(&[(200, None, LONG), (200, None, LONG), (200, None, LONG)]).await;
    let quick = Receiver::start(&[]).await;
    let notify = Notify { webhooks: vec![slow.url(), quick.url()], ..Notify::default() };
    let (said, _guard) = Said::listen();
    let began = Instant::now();
    let courier = Courier::with(&notify, "n1", Patience { one_try: Duration::from_millis(300), ..PATIENCE });
    courier.send(&failure());
    courier.send(&failure());
    assert_eq!(flushed(&courier).await, Counts { delivered: 3, lost: 1 });
    assert!(began.elapsed() < LONG / 2, "the time limit holds");
    let lost = |receiver: &Receiver| {
        let last = receiver.got().pop().unwrap();
        serde_json::from_str::<Value>(&last.body).unwrap()["lost"].clone()
    };
    assert_eq!((lost(&slow), lost(&quick)), (1.into(), 0.into()));
    courier.send(&failure());
    flushed(&courier).await;
    assert_eq!(lost(&slow), 0, "it is told once");
    let text = said.text();
    assert!(text.contains("ERROR") && text.contains("no answer within 300ms") && text.contains(&slow.address.to_string()), "{text}");
}

#[tokio::test]
async fn what_cannot_be_delivered_is_logged_without_secrets() {
    let nobody = free_port();
    let answers = [(403, None, Duration::ZERO); 9];
    let receiver = Receiver::start(&answers).await;
    let directory = tempfile::tempdir().unwrap();
    let odd = directory.path().join("odd");
    std::fs::write(&odd, "no url s3cret").unwrap();
    let gone = format!("http://user:s3cret@127.0.0.1:{nobody}/s3cret?token=s3cret");
    let notify = Notify {
        webhooks: vec![gone.clone(), receiver.url(), format!("file:{}", odd.display()), "file:/nowhere".to_owned()],
        slack: vec![format!("https://127.0.0.1:{}/s3cret", receiver.address.port())],
        ping: vec![gone],
        ..Notify::default()
    };
    let (said, _guard) = Said::listen();
    let courier = Courier::with(&notify, "n1", PATIENCE);
    courier.send(&failure());
    courier.ended(&run(Verdict::Good, Timestamp::now(), Reason::Scheduled));
    assert_eq!(flushed(&courier).await, Counts { delivered: 0, lost: 6 });
    let text = said.text();
    // hyper's own lines are not ours; the log's filter leaves them out.
    let ours: Vec<&str> = text.lines().filter(|line| line.contains("skep::")).collect();
    assert!(ours.iter().filter(|line| line.contains("could not be delivered")).count() == 6, "{text}");
    assert!(ours.iter().any(|line| line.contains("shop_data: the disk is full")), "the log hears of it too: {text}");
    assert!(!ours.join("\n").contains("s3cret"), "{}", ours.join("\n"));
}

#[tokio::test]
async fn the_queue_is_bounded_and_a_stop_does_not_wait_for_ever() {
    let slow = Receiver::start(&[(200, None, LONG); 9]).await;
    let courier = Courier::with(&to(slow.url()), "n1", Patience { one_try: LONG, ..PATIENCE });
    (0..150).for_each(|_| courier.send(&failure()));
    let lost = courier.counts().lost;
    assert!((49..=50).contains(&lost), "{lost}");
    let began = Instant::now();
    let left = courier.flush(Duration::from_millis(200)).await;
    assert_eq!(left as u64 + lost, 150);
    assert!(began.elapsed() < LONG / 2);
}

#[tokio::test]
async fn saves_ping_their_begin_and_their_end() {
    let receiver = Receiver::start(&[]).await;
    let base = format!("http://{}/key/{{node}}-{{volume}}?create=1", receiver.address);
    let courier = Courier::with(&Notify { ping: vec![base], ..Notify::default() }, "n1", PATIENCE);
    let now = Timestamp::now();
    let job = Job {
        task: Task::Save,
        volume: Some("shop_data".into()),
        target: "offsite".into(),
        repository: repository(),
        due: now,
        reason: Reason::Scheduled,
    };
    courier.began(&job);
    courier.ended(&run(Verdict::Warning, now, Reason::Scheduled));
    courier.began(&job);
    courier.ended(&run(Verdict::Failed, now, Reason::Scheduled));
    courier.began(&Job { task: Task::Drill, ..job });
    flushed(&courier).await;
    let got: Vec<(String, String)> = receiver.got().into_iter().map(|got| (got.path, got.body)).collect();
    let paths: Vec<&str> = got.iter().map(|(path, _)| path.as_str()).collect();
    let check = "/key/n1-shop_data";
    let wanted = [
        format!("{check}/start?create=1"),
        format!("{check}?create=1"),
        format!("{check}/start?create=1"),
        format!("{check}/fail?create=1"),
    ];
    assert_eq!(paths, wanted);
    assert_eq!(got[3].1, "shop_data to offsite: the disk is full");
}

fn repository() -> Repository {
    Repository { location: "/srv/b/n1".into(), name: "n1".into() }
}

fn run(verdict: Verdict, at: Timestamp, reason: Reason) -> Run {
    Run {
        id: at.to_string(),
        task: Task::Save,
        volume: Some("shop_data".into()),
        target: "offsite".into(),
        repository: repository(),
        archive: None,
        began: at,
        ended: at,
        verdict,
        message: if verdict == Verdict::Failed { "the disk is full".into() } else { String::new() },
        warnings: Vec::new(),
        more_warnings: 0,
        stats: Stats::default(),
        census: None,
        reason,
    }
}

fn subject() -> Subject {
    let settings = Settings {
        schedule: "0 2 * * *".into(),
        keep: skep::backup::Keep::default(),
        exclude: Vec::new(),
        mode: Mode::Hot,
        pre: None,
        post: None,
        timeout: LONG,
        on_error: OnError::Fail,
    };
    let volume = Volume { name: "shop_data".into(), ..Volume::default() };
    Subject { volume, node: "n1".into(), service: None, stack: None, owner: None, settings, containers: Vec::new() }
}

/// From runs to a receiver over a few days, with a restart before every look.
#[tokio::test]
async fn failed_and_missing_backups_are_told_once_again_after_a_day_and_when_they_are_good() {
    let receiver = Receiver::start(&[]).await;
    let notify = to(receiver.url());
    let target = Target { name: "offsite".into(), location: "/srv/b".into() };
    let config =
        Backup { targets: vec![target], check_repository: None, check_archives: None, verify_data: None, drill: None, ..Backup::default() };
    let begin: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
    let at = |hour: i64| begin.checked_add(jiff::SignedDuration::from_hours(hour)).unwrap();
    let mut runs = Runs::new();
    let mut told = "{}".to_owned();
    // hour, how a run ended just before it, what is told then
    let table: [(i64, Option<Verdict>, &[&str]); 10] = [
        (0, None, &[]),
        (14, Some(Verdict::Good), &[]),
        (38, Some(Verdict::Failed), &["failed"]),
        (39, None, &[]),
        (50, None, &["overdue"]),
        (51, None, &[]),
        (62, Some(Verdict::Failed), &[]),
        (74, None, &["overdue"]),
        (75, Some(Verdict::Good), &["recovered"]),
        (76, None, &[]),
    ];
    for (hour, ended, expected) in table {
        if let Some(verdict) = ended {
            let run = run(verdict, at(hour), Reason::Scheduled);
            let series = runs.remove(&run.key()).unwrap_or_default().with(run.clone());
            runs.insert(run.key(), series);
        }
        let before: Told = serde_json::from_str(&told).unwrap();
        let report = standing(&Facts {
            node: "n1",
            subjects: &[subject()],
            unprotected: &[],
            runs: &runs,
            jobs: &[],
            under_way: &[],
            held: &[],
            free: &BTreeMap::new(),
            seen: before.seen(),
            config: &config,
            now: at(hour),
        });
        let (news, after) = notices(&before, &report, at(hour), &notify);
        told = serde_json::to_string(&after).unwrap();
        let count = receiver.got().len();
        let courier = Courier::with(&notify, "n1", PATIENCE);
        news.iter().for_each(|notice| courier.send(notice));
        flushed(&courier).await;
        let kinds: Vec<Value> =
            receiver.got()[count..].iter().map(|got| serde_json::from_str::<Value>(&got.body).unwrap()["kind"].clone()).collect();
        assert_eq!(kinds, expected, "hour {hour}");
    }
}

/// A mail server; `None`, said loudly, where it cannot be had.
struct MailServer {
    directory: tempfile::TempDir,
    port: u16,
    _process: Process,
}

impl MailServer {
    async fn start(mode: &str) -> Option<MailServer> {
        // The one that Debian's package is for.
        let python = "/usr/bin/python3";
        let there = Command::new(python).args(["-c", "import aiosmtpd"]).stderr(Stdio::null()).status();
        if !there.is_ok_and(|status| status.success()) {
            eprintln!("NOT CHECKED: mails, because there is no python3-aiosmtpd");
            return None;
        }
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        server_certificate(directory.path());
        let port = free_port();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scenario/smtpd.py");
        let process = Command::new(python).arg(script).arg(directory.path()).args([&port.to_string(), mode]).spawn().unwrap();
        let process = Process(process);
        listening(SocketAddr::from(([127, 0, 0, 1], port))).await;
        std::fs::write(directory.path().join("password"), "mail-s3cret\n").unwrap();
        Some(MailServer { directory, port, _process: process })
    }

    fn notify(&self, server: &str) -> Notify {
        Notify {
            smtp: Some(server.replace("PORT", &self.port.to_string())),
            smtp_password_file: server.contains('@').then(|| self.directory.path().join("password")),
            mail_from: Some("Skep <skep@example.com>".into()),
            mail_to: vec!["ops@example.com".into(), "Grüße <others@example.com>".into()],
            ca: Some(self.directory.path().join("ca.pem")),
            ..Notify::default()
        }
    }

    fn read(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.directory.path().join(name)).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

const WITH_USER: &str = "smtp://ops@example.com@127.0.0.1:PORT";

#[tokio::test]
async fn mails_arrive_over_tls_with_a_password() {
    for (mode, server, tls) in [
        ("submission", WITH_USER, true),
        ("submissions", "smtps://ops%40example.com@localhost:PORT", true),
        ("relay", "smtp://127.0.0.1:PORT", true),
    ] {
        let Some(post) = MailServer::start(mode).await else { return };
        let courier = Courier::with(&post.notify(server), "n1", PATIENCE);
        let mut notice = failure();
        notice.title = "Saving of ü failed\r\nBcc: evil@example.com\r\n\r\nbody".to_owned();
        courier.send(&notice);
        assert_eq!(flushed(&courier).await, Counts { delivered: 1, lost: 0 }, "{mode}");
        let mails = post.read("mails");
        assert_eq!(mails.len(), 1, "{mode}");
        let text = mails[0]["text"].as_str().unwrap();
        assert_eq!((&mails[0]["from"], &mails[0]["tls"]), (&"skep@example.com".into(), &tls.into()), "{mode}");
        assert_eq!(mails[0]["to"], serde_json::json!(["ops@example.com", "others@example.com"]));
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let named = |name: &str| head.lines().filter(|line| line.to_ascii_lowercase().starts_with(name)).count();
        assert_eq!(
            [named("auto-submitted: auto-generated"), named("bcc:"), named("subject:"), named("message-id:"), named("date:")],
            [1, 0, 1, 1, 1],
            "{head}"
        );
        assert!(body.contains("shop_data: the disk is full"), "{body}");
    }
}

#[tokio::test]
async fn a_password_is_sent_to_nobody_who_has_not_proved_to_be_the_server() {
    // A server without TLS, and one whose authority nobody trusts.
    let Some(clear) = MailServer::start("clear").await else { return };
    let Some(other) = MailServer::start("submission").await else { return };
    let mut distrusted = other.notify(WITH_USER);
    distrusted.ca = None;
    for notify in [clear.notify(WITH_USER), distrusted] {
        let courier = Courier::with(&notify, "n1", PATIENCE);
        courier.send(&failure());
        assert_eq!(flushed(&courier).await, Counts { delivered: 0, lost: 1 });
    }
    assert_eq!((clear.read("credentials"), other.read("credentials")), (vec![], vec![]));
}

#[tokio::test]
async fn a_wrong_password_is_not_tried_again_and_not_logged() {
    let Some(post) = MailServer::start("submission").await else { return };
    std::fs::write(post.directory.path().join("password"), "wrong-s3cret").unwrap();
    let (said, _guard) = Said::listen();
    let courier = Courier::with(&post.notify(WITH_USER), "n1", PATIENCE);
    courier.send(&failure());
    assert_eq!(flushed(&courier).await, Counts { delivered: 0, lost: 1 });
    assert_eq!(post.read("credentials").len(), 1, "a few more and the account is locked");
    assert!(said.text().contains("could not be delivered") && !said.text().contains("s3cret"), "{}", said.text());
}
