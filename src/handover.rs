//! What a running edge and its successor say to each other, so that a new binary takes the listening sockets over and no
//! connection is refused: messages with their version and bounds, and who counts as a successor.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What both sides must speak. Fields that are added later are left aside by older ones; whatever else changes counts up.
pub const VERSION: u32 = 1;
/// A longer message is none of ours.
pub const MAX_BYTES: usize = 64 * 1024;
/// The kernel passes at most 253 descriptors at once; one is the socket that is talked through.
pub const MAX_LISTENERS: usize = 252;

/// What is asked of a running edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// By a starting edge: give me your listening sockets. Answered by [`Answer::Listeners`], followed by [`Ask::Ready`].
    Take {
        listen: Vec<SocketAddr>,
        /// Its network namespace, as `/proc/self/ns/net` names it.
        #[serde(default)]
        network: Option<String>,
    },
    /// The successor serves; answered by [`Answer::Released`].
    Ready { pid: u32 },
    /// By `skep upgrade`: start this binary (`None`: your own path) and hand over to it.
    Start { binary: Option<PathBuf> },
    /// Which process serves here?
    Who,
}

/// What a running edge answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The addresses as they were configured, in the order of the descriptors that come along.
    Listeners {
        listeners: Vec<SocketAddr>,
        pid: u32,
    },
    /// It accepts no more; what it still has is finished within this time.
    Released {
        drain_seconds: u64,
    },
    /// The new process serves.
    Upgraded {
        old: u32,
        new: u32,
        drain_seconds: u64,
    },
    /// Nothing changed, for this reason.
    Refused {
        reason: String,
    },
    Serving {
        pid: u32,
    },
}

/// Why a message cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("this is not a message of Skep")]
    Foreign,
    #[error("the other side speaks version {0} of the hand-over, this one speaks {VERSION}: stop the old one and start the new one")]
    Version(u32),
    #[error("the message makes no sense: {0}")]
    Broken(String),
}

/// One line: `skep/1 {...}`.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    // Our own types, whose maps have text for keys: there is nothing to fail.
    let text = serde_json::to_string(message).unwrap_or_default();
    format!("skep/{VERSION} {text}\n").into_bytes()
}

/// Reads one line, with or without its end.
///
/// # Errors
/// It is not ours, of another version, or not whole.
pub fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T, Unreadable> {
    let text = std::str::from_utf8(line).map_err(|_| Unreadable::Foreign)?;
    let (version, body) = text.strip_prefix("skep/").and_then(|rest| rest.split_once(' ')).ok_or(Unreadable::Foreign)?;
    match version.parse() {
        Ok(VERSION) => serde_json::from_str(body).map_err(|error| Unreadable::Broken(error.to_string())),
        Ok(other) => Err(Unreadable::Version(other)),
        Err(_) => Err(Unreadable::Foreign),
    }
}

/// Where an edge listens.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub listen: &'a [SocketAddr],
    pub network: Option<&'a str>,
}

impl Place<'_> {
    /// Why an edge here does not take the place of the one at `served`, and must not end it: it was started beside it, and shares
    /// no more than a directory. A port that the kernel chooses is no address that could be shared.
    pub fn is_not(&self, served: &Place<'_>) -> Option<&'static str> {
        if self.network.is_none() || self.network != served.network {
            return Some("it runs in another network namespace, where this one's sockets are not reached: use the host's network");
        }
        let shared = self.listen.iter().any(|address| address.port() != 0 && served.listen.contains(address));
        (!shared).then_some("it listens elsewhere, so that it does not take this one's place")
    }
}

/// Must a process stay for as long as what it started serves? Whoever started it would take its end for the service's end: a
/// container's engine (process 1), an init in a container, a supervisor, a shell. Only systemd is told of another main process, and
/// one that was itself started by a running edge has that one before it.
pub fn stays(pid: u32, tells_systemd: bool, follows_its_parent: bool) -> bool {
    pid == 1 || !tells_systemd && !follows_its_parent
}

/// Whom to talk to: this user, or root.
pub fn may_talk(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn what_is_said_is_understood() {
        for ask in [
            Ask::Take { listen: addresses(&["[::]:80", "127.0.0.1:9180"]), network: Some("net:[1]".to_owned()) },
            Ask::Ready { pid: 7 },
            Ask::Start { binary: Some("/usr/bin/skep new".into()) },
            Ask::Start { binary: None },
            Ask::Who,
        ] {
            let line = encode(&ask);
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert_eq!(decode::<Ask>(&line), Ok(ask));
        }
    }

    #[test]
    fn the_longest_list_fits() {
        let longest: SocketAddr = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap();
        let answer = Answer::Listeners { listeners: vec![longest; MAX_LISTENERS], pid: u32::MAX };
        assert!(encode(&answer).len() < MAX_BYTES);
    }

    #[test]
    fn what_is_not_for_us_is_told_apart() {
        assert_eq!(decode::<Ask>(b"skep/2 {\"other\":1}\n"), Err(Unreadable::Version(2)));
        for foreign in [&b""[..], b"GET / HTTP/1.1\r\n", b"skep/", b"skep/x {}", b"\xff\xfe"] {
            assert_eq!(decode::<Ask>(foreign), Err(Unreadable::Foreign));
        }
        assert!(matches!(decode::<Ask>(b"skep/1 {\"take\":"), Err(Unreadable::Broken(_))));
        assert_eq!(decode::<Ask>(b"skep/1 {\"ready\":{\"pid\":1,\"later\":true}}"), Ok(Ask::Ready { pid: 1 }));
    }

    #[test]
    fn a_successor_shares_network_and_address() {
        let listen = addresses(&["[::]:80", "127.0.0.1:0"]);
        let served = Place { listen: &listen, network: Some("net:[1]") };
        // addresses, network, does it follow
        for (wanted, network, follows) in [
            (&["[::]:80", "[::]:81"][..], Some("net:[1]"), true),
            (&["[::]:80"], Some("net:[2]"), false),
            (&["[::]:80"], None, false),
            (&["0.0.0.0:80"], Some("net:[1]"), false),
            (&["127.0.0.1:0"], Some("net:[1]"), false),
            (&["127.0.0.1:8080"], Some("net:[1]"), false),
        ] {
            let wanted = addresses(wanted);
            assert_eq!(Place { listen: &wanted, network }.is_not(&served).is_none(), follows, "{wanted:?} {network:?}");
        }
        let unknown = Place { listen: &listen, network: None };
        assert!(unknown.is_not(&unknown).is_some(), "what is not known is not the same");
    }

    #[test]
    fn the_first_process_stays_unless_systemd_knows_the_next() {
        // process, with NOTIFY_SOCKET, started by an edge, does it stay
        for (pid, systemd, started, stay) in
            [(1, false, false, true), (1, true, false, true), (7, false, false, true), (7, true, false, false), (7, false, true, false)]
        {
            assert_eq!(stays(pid, systemd, started), stay, "{pid} {systemd} {started}");
        }
    }

    #[test]
    fn strangers_are_not_talked_to() {
        for (peer, own, may) in [(0, 0, true), (1000, 1000, true), (0, 1000, true), (1000, 0, false), (1000, 1001, false)] {
            assert_eq!(may_talk(peer, own), may);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300), text in "skep/1 [{}\\[\\]\":,a-z0-9]{0,60}") {
            _ = decode::<Ask>(&bytes);
            _ = decode::<Answer>(&bytes);
            _ = decode::<Ask>(text.as_bytes());
            _ = decode::<Answer>(text.as_bytes());
        }
    }
}
