//! Stack files on disk: read, their upstreams' names resolved, and watched for changes.
//! What a file means is decided by `provider::compose`; this file opens it, asks the resolver, and waits.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::compose::{self, MAX_BYTES};
use crate::diagnostic::Diagnostic;
use crate::snapshot::{Snapshot, merge};

/// How often files are looked at; a stat call each.
const LOOK: Duration = Duration::from_millis(500);
/// How often names are resolved again.
const RESOLVE: Duration = Duration::from_secs(30);
/// One look-up may take so long; a name that does not answer keeps its last addresses.
const LOOKUP: Duration = Duration::from_secs(3);

/// A stack: a file, or a text that came with the program.
#[derive(Clone, Debug)]
pub enum Stack {
    File(PathBuf),
    /// Its name, its text, and the variables that it refers to.
    Text(String, String, BTreeMap<String, String>),
}

/// When each file was changed last, and its size: what a change is told by.
pub type Stamps = Vec<Option<(SystemTime, u64)>>;

/// Reads every stack and resolves its names once. The stamps are of before the reading, so that no change falls between.
pub async fn read(stacks: &[Stack]) -> (Snapshot, Stamps) {
    let stamps = stamps(stacks).await;
    let (mut snapshot, _) = read_all(stacks).await;
    snapshot.names = resolve(&snapshot, &BTreeMap::new()).await;
    (snapshot, stamps)
}

/// Sends what the stacks say whenever it changes, until nobody listens. While one of the files cannot be read, all services
/// stay as they were and the findings say why.
pub async fn follow(stacks: Vec<Stack>, mut seen: Stamps, updates: watch::Sender<Arc<Snapshot>>) {
    let mut last = updates.borrow().as_ref().clone();
    let mut resolved = Instant::now();
    loop {
        tokio::select! {
            () = updates.closed() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let now = stamps(&stacks).await;
        if now == seen && resolved.elapsed() < RESOLVE {
            continue;
        }
        let mut next = last.clone();
        if now != seen {
            let (read, whole) = read_all(&stacks).await;
            next = if whole { read } else { Snapshot { findings: read.findings, ..next } };
        }
        next.names = resolve(&next, &last.names).await;
        (seen, resolved) = (now, Instant::now());
        if next != last {
            last = next;
            updates.send_replace(Arc::new(last.clone()));
        }
    }
}

/// All stacks as one snapshot, and whether every one of them could be read.
async fn read_all(stacks: &[Stack]) -> (Snapshot, bool) {
    let mut all = Snapshot::default();
    let mut whole = true;
    for stack in stacks {
        let (snapshot, findings) = read_one(stack).await;
        whole &= snapshot.is_some();
        all = merge(Some(&all), snapshot.as_ref());
        all.findings.extend(findings);
    }
    (all, whole)
}

async fn read_one(stack: &Stack) -> (Option<Snapshot>, Vec<Diagnostic>) {
    match stack {
        Stack::Text(name, text, variables) => compose::parse(name, text, &|name| variables.get(name).cloned()),
        Stack::File(path) => match text_of(path).await {
            Ok(text) => compose::parse(&path.to_string_lossy(), &text, &|name| std::env::var(name).ok()),
            Err(why) => (None, vec![Diagnostic::error("unreadable-file", why).of(path.display().to_string())]),
        },
    }
}

/// The text of a file of sane size.
///
/// # Errors
/// A sentence for the user.
pub async fn text_of(path: &Path) -> Result<String, String> {
    let size = tokio::fs::metadata(path).await.map_err(|error| format!("cannot read {}: {error}", path.display()))?.len();
    if size > MAX_BYTES as u64 {
        return Err(format!("{} has {size} bytes; a stack file has at most {MAX_BYTES}", path.display()));
    }
    tokio::fs::read_to_string(path).await.map_err(|error| format!("cannot read {}: {error}", path.display()))
}

async fn stamps(stacks: &[Stack]) -> Stamps {
    let mut times = Vec::new();
    for stack in stacks {
        times.push(match stack {
            Stack::File(path) => tokio::fs::metadata(path).await.ok().and_then(|data| Some((data.modified().ok()?, data.len()))),
            Stack::Text(..) => None,
        });
    }
    times
}

async fn resolve(snapshot: &Snapshot, before: &BTreeMap<String, Vec<IpAddr>>) -> BTreeMap<String, Vec<IpAddr>> {
    let mut names = BTreeMap::new();
    for name in compose::names(snapshot) {
        let found = match timeout(LOOKUP, tokio::net::lookup_host((name.as_str(), 0))).await {
            Ok(Ok(addresses)) => {
                let mut addresses: Vec<IpAddr> = addresses.map(|address| address.ip()).collect();
                addresses.sort_unstable();
                addresses.dedup();
                addresses
            }
            Ok(Err(_)) | Err(_) => before.get(&name).cloned().unwrap_or_default(),
        };
        names.insert(name, found);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "services:\n  one: {labels: {skep.host: a, skep.address: 'localhost:80'}}\n";
    const TWO: &str = "services:\n  one: {labels: {skep.host: a}}\n  two: {labels: {skep.host: b}}\n";

    #[tokio::test]
    async fn a_file_is_followed_and_a_broken_one_leaves_its_services() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("stack.yml");
        std::fs::write(&path, ONE).expect("written");
        let stacks = vec![Stack::File(path.clone())];
        let (first, stamps) = read(&stacks).await;
        assert_eq!(first.services.len(), 1);
        let (sender, mut receiver) = watch::channel(Arc::new(first));
        let task = tokio::spawn(follow(stacks, stamps, sender));
        for (text, services, codes) in
            [("services: [", 1, vec!["stack-syntax"]), (TWO, 2, vec![]), ("", 2, vec!["stack-no-services"]), ("services: {}", 0, vec![])]
        {
            std::fs::write(&path, text).expect("written");
            timeout(Duration::from_secs(10), receiver.changed()).await.expect("in time").expect("running");
            let snapshot = receiver.borrow_and_update().clone();
            let found: Vec<_> = snapshot.findings.iter().map(|finding| finding.code.as_str()).collect();
            assert_eq!((snapshot.services.len(), found), (services, codes), "{text}");
        }
        drop(receiver);
        timeout(Duration::from_secs(5), task).await.expect("it ends").expect("well");
    }

    #[tokio::test]
    async fn names_are_resolved_and_kept_while_the_resolver_fails() {
        let parsed = |text: &str| compose::parse("stack.yml", text, &|_| None).0.expect("a snapshot");
        let found = resolve(&parsed(ONE), &BTreeMap::new()).await;
        assert!(found["localhost"].iter().all(IpAddr::is_loopback) && !found["localhost"].is_empty());
        let unknown = parsed(&ONE.replace("localhost", "no-such-host.invalid"));
        assert!(resolve(&unknown, &BTreeMap::new()).await["no-such-host.invalid"].is_empty());
        let before = BTreeMap::from([("no-such-host.invalid".to_owned(), vec![IpAddr::from([10, 0, 0, 1])])]);
        assert_eq!(resolve(&unknown, &before).await, before);
    }
}
