//! The stack file that changes every second: services come and go, a lasting one moves from address to address. Always in the
//! order of a careful rollout: the new one serves before it is named, the old one is unnamed before it drains.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::upstreams::Upstream;

/// The service that is always there, at changing addresses.
pub const LASTING: &str = "lasting.test";
/// Services that come and go beside it.
const PASSING: usize = 6;
/// Seconds until a change of the file is surely in force, and what was sent to the old place was surely sent on.
const SETTLED: u64 = 3;

/// Which hosts may be asked now.
#[derive(Default)]
pub struct Hosts(Mutex<Vec<String>>);

impl Hosts {
    /// The lasting host or one of the others.
    pub fn any(&self, seed: usize) -> String {
        let hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.get(seed % (hosts.len() + 1)).cloned().unwrap_or_else(|| LASTING.to_owned())
    }
}

struct Service {
    host: String,
    upstream: Upstream,
    /// The second in which it was named in the file.
    since: u64,
}

/// The file and the upstreams behind it.
pub struct Stack {
    path: PathBuf,
    lasting: Upstream,
    services: VecDeque<Service>,
    /// Out of the file, with the second from which they may drain.
    leaving: Vec<(u64, Upstream)>,
    named: u64,
}

impl Stack {
    /// Writes the first file.
    ///
    /// # Errors
    /// When no upstream can listen or the file cannot be written.
    pub async fn start(path: PathBuf) -> io::Result<Stack> {
        let stack = Stack { path, lasting: Upstream::start().await?, services: VecDeque::new(), leaving: Vec::new(), named: 0 };
        stack.write()?;
        Ok(stack)
    }

    /// One second's change.
    ///
    /// # Errors
    /// As [`Stack::start`].
    pub async fn step(&mut self, now: u64, hosts: &Hosts) -> io::Result<()> {
        match now % 3 {
            0 => {
                let old = std::mem::replace(&mut self.lasting, Upstream::start().await?);
                self.leaving.push((now + SETTLED, old));
            }
            1 => {
                let host = format!("passing-{}.test", self.named);
                self.named += 1;
                self.services.push_back(Service { host, upstream: Upstream::start().await?, since: now });
            }
            // Nobody has asked for it since it was the oldest: see below.
            _ if self.services.len() > PASSING => {
                self.leaving.extend(self.services.pop_front().map(|old| (now + SETTLED, old.upstream)));
            }
            // Something else changes then.
            _ => {}
        }
        self.write()?;
        let aging = self.services.len().saturating_sub(PASSING - 1);
        let settled = self.services.iter().skip(aging).filter(|service| service.since + SETTLED <= now);
        *hosts.0.lock().unwrap_or_else(PoisonError::into_inner) = settled.map(|service| service.host.clone()).collect();
        let (due, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.leaving).into_iter().partition(|(when, _)| *when <= now);
        self.leaving = waiting;
        due.into_iter().for_each(|(_, upstream)| upstream.drain());
        Ok(())
    }

    /// In one go, so that nobody reads half of it.
    fn write(&self) -> io::Result<()> {
        let mut text = String::from("services:\n");
        let all = self.services.iter().map(|service| (service.host.as_str(), &service.upstream));
        for (host, upstream) in all.chain([(LASTING, &self.lasting)]) {
            let name = host.trim_end_matches(".test");
            // Writing into a String cannot fail.
            _ = write!(text, "  {name}:\n    labels:\n      skep.host: {host}\n      skep.address: \"{}\"\n", upstream.address);
        }
        let fresh = self.path.with_extension("new");
        std::fs::write(&fresh, text)?;
        std::fs::rename(fresh, &self.path)
    }
}
