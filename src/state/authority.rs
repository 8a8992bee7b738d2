//! Files with certificate authorities that routes trust, towards their tasks or their clients: which ones the labels name, and what was found in them.
//! The files are read outside, by who publishes the state; a route whose file could not be read serves nothing.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::State;
use super::claim::{Claim, subject};
use crate::config::Config;
use crate::diagnostic::{Diagnostic, Place, brief};
use crate::label::Value;
use crate::snapshot::{Origin, Service};
use crate::upstream::Trust;

/// Certificates, each as DER; or in words why there are none.
pub type Certificates = Result<Arc<[Vec<u8>]>, String>;

/// One file.
#[derive(Clone, Debug, PartialEq)]
pub struct Authority {
    /// The file must really be below this directory, wherever links lead.
    pub within: Option<PathBuf>,
    /// The labels that name it.
    named: Vec<Naming>,
    /// `None`: nobody has looked yet.
    pub certificates: Option<Certificates>,
}

/// One label that names a file.
#[derive(Clone, Debug, PartialEq)]
struct Naming {
    subject: String,
    place: Place,
    /// What becomes of the route's requests where the file cannot be used.
    otherwise: &'static str,
}

/// All files, by path.
pub type Authorities = BTreeMap<Arc<Path>, Authority>;

/// The file that an `upstream-ca` or `client-ca` label means: one of a directory that the operator chose. A stack file's author may name any.
///
/// # Errors
/// A finding: the route must not serve.
pub(super) fn path(service: &Service, config: &Config, value: &Value) -> Result<Arc<Path>, Diagnostic> {
    let name = Path::new(&value.text);
    if service.origin == Origin::File && name.is_absolute() {
        return Ok(Arc::from(name));
    }
    let refused = |message: String| Diagnostic::error("authority-refused", message).at(value.place());
    let Some(directory) = &config.certificates.authorities else {
        return Err(refused(
            "labels can name authorities only where the configuration has a directory for them, so the route is closed".to_owned(),
        )
        .help("set `certificates.authorities` to the directory that holds such files"));
    };
    match (name.components().next(), name.components().count()) {
        (Some(Component::Normal(_)), 1) => Ok(Arc::from(directory.join(name))),
        _ => Err(refused(format!(
            "`{}` is not the name of a file in `certificates.authorities`, so the route is closed",
            brief(&value.text)
        ))
        .help(format!("write the name alone, e.g. `internal.pem` for {}", directory.join("internal.pem").display()))),
    }
}

/// The files that the claims' routes need.
pub(super) fn wanted(claims: &[Claim<'_>], config: &Config) -> Authorities {
    let mut wanted = Authorities::new();
    for claim in claims {
        let backends = claim.route.pool().into_iter().flat_map(|pool| &pool.groups).flat_map(|group| &group.backends);
        let path = backends.filter(|backend| backend.scheme.is_secure()).find_map(|backend| match &backend.trust {
            Trust::Authority(path) => Some(path),
            Trust::Machine | Trust::Unverified => None,
        });
        let upstream = path.zip(claim.spec.get("upstream-ca")).map(|(path, value)| (path, value, "are answered 502"));
        let clients = claim.route.tls.client_ca.as_ref().zip(claim.spec.get("client-ca"));
        let clients = clients.map(|(path, value)| (path, value, "are refused"));
        for (path, value, otherwise) in upstream.into_iter().chain(clients) {
            let within = config.certificates.authorities.clone().filter(|_| claim.service.origin != Origin::File);
            let entry = wanted.entry(path.clone()).or_insert_with(|| Authority { within: None, named: Vec::new(), certificates: None });
            entry.within = entry.within.take().or(within);
            entry.named.push(Naming { subject: subject(claim.service), place: value.place(), otherwise });
        }
    }
    wanted
}

impl State {
    /// The state with what `read` finds in the files that it needs, and findings about those that cannot be used.
    #[must_use]
    pub fn with_authorities(mut self, mut read: impl FnMut(&Path, Option<&Path>) -> Certificates) -> State {
        for (path, authority) in &mut self.authorities {
            let found = read(path, authority.within.as_deref());
            if let Err(why) = &found {
                for Naming { subject, place, otherwise } in &authority.named {
                    let message =
                        format!("the authorities in {} cannot be used, so the route's requests {otherwise}: {why}", path.display());
                    let finding = Diagnostic::error("authority-unreadable", message).at(place.clone()).of(subject.clone());
                    self.diagnostics.push(finding.help("put a PEM file with the CA's certificate there; it is read again when it changes"));
                }
            }
            authority.certificates = Some(found);
        }
        super::tidy(&mut self.diagnostics);
        self
    }

    /// The certificates of `path`.
    ///
    /// # Errors
    /// Why there are none: then nobody is trusted.
    pub fn authority(&self, path: &Path) -> Certificates {
        let found = self.authorities.get(path).and_then(|authority| authority.certificates.clone());
        found.unwrap_or_else(|| Err("the file was not read".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{codes, route, service};
    use super::*;
    use crate::snapshot::{Edge, Engine, Snapshot, Swarm};

    fn build(ca: &str, configured: bool) -> State {
        let mut config = Config::default();
        config.certificates.authorities = configured.then(|| PathBuf::from("/authorities"));
        let edge = Edge { container: Some("skep".into()), networks: vec!["edge".into()] };
        let engine = Engine { id: "e".into(), swarm: Swarm::Manager, edge, ..Engine::default() };
        let labels = [("skep.host", "a.de"), ("skep.scheme", "https"), ("skep.upstream-sni", "a.internal"), ("skep.upstream-ca", ca)];
        let services = vec![service("shop", 1, &labels)];
        State::build(Arc::new(config), Arc::new(Snapshot { engine, services, ..Snapshot::default() }))
    }

    #[test]
    fn a_file_that_cannot_be_read_is_a_finding_and_trusts_nobody() {
        let state = build("internal.pem", true);
        let path = Path::new("/authorities/internal.pem");
        assert!(state.authority(path).is_err(), "nobody has looked yet");
        assert_eq!(codes(&state, "shop"), [] as [&str; 0]);
        let missing = build("internal.pem", true).with_authorities(|_, _| Err("no such file".to_owned()));
        assert!(missing.authority(path).is_err());
        assert_eq!(codes(&missing, "shop"), ["authority-unreadable"]);
        let mut asked = Vec::new();
        let there = state.with_authorities(|path, within| {
            asked.push((path.to_owned(), within.map(Path::to_owned)));
            Ok(Arc::from([vec![1]]))
        });
        assert_eq!(asked, [(path.to_owned(), Some(PathBuf::from("/authorities")))]);
        assert_eq!(there.authority(path).map(|found| found.len()), Ok(1));
        assert_eq!(codes(&there, "shop"), [] as [&str; 0]);
    }

    #[test]
    fn labels_name_files_of_one_directory_or_the_route_closes() {
        for (ca, configured) in
            [("internal.pem", false), ("../x.pem", true), ("/etc/ssl/x.pem", true), ("a/b.pem", true), ("..", true), (".", true)]
        {
            let state = build(ca, configured);
            assert!(route(&state, "a.de/").is_some_and(|route| route.access.closed.is_some()), "{ca}");
            assert_eq!(codes(&state, "shop"), ["authority-refused"], "{ca}");
            assert!(state.authorities.is_empty());
        }
    }

    #[test]
    fn other_certificates_are_another_state() {
        let with = |byte: u8| build("internal.pem", true).with_authorities(move |_, _| Ok(Arc::from([vec![byte]])));
        let live = super::super::Live::new(with(1));
        assert_eq!(live.publish(with(1)), None);
        assert!(live.publish(with(2)).is_some());
        assert_eq!(live.load().authority(Path::new("/authorities/internal.pem")).map(|found| found[0][0]), Ok(2));
    }
}
