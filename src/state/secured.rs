//! What TLS a route really gets, from its labels and from what the edge has; which names want certificates; and by which authorities
//! clients of a host may prove themselves.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::authority;
use super::claim::{Claim, subject};
use super::{State, Told};
use crate::certificate::pairs::FilesFound;
use crate::certificate::wanted::Wish;
use crate::certificate::{Mode, Source};
use crate::config::{self, Config, DefaultCertificate, DnsProvider};
use crate::diagnostic::{Diagnostic, brief};
use crate::label::Value;
use crate::route::HostPattern;

/// Who wishes for the certificate of the host at which everybody signs in.
const SIGN_IN: &str = "sign-in";

/// Settles what the labels leave open: after this each route has a mode and a source.
pub(super) fn settle(claims: &mut [Claim<'_>], config: &Config, findings: &mut Vec<Diagnostic>) {
    let listens = !config.https.listen.is_empty();
    for claim in claims {
        locate(claim, config, findings);
        let tls = &mut claim.route.tls;
        let source = tls.source.unwrap_or_else(|| usual_source(config));
        // What everybody's browser trusts can be redirected to; a warning page cannot, unless it was asked for.
        let usual = if source == Source::SelfSigned && tls.source.is_none() { Mode::Both } else { Mode::Redirect };
        let mode = tls.mode.unwrap_or(usual);
        let wanted = tls.mode.is_some_and(|mode| mode != Mode::Off) || tls.source.is_some();
        tls.source = Some(source);
        tls.mode = Some(mode);
        findings.extend(unobtainable(claim, source, config).filter(|_| listens));
        let no_names = claim.matching.alternatives.iter().flat_map(|matcher| &matcher.hosts).all(|host| *host == HostPattern::Any);
        let asks = claim.route.tls.client_ca.is_some();
        if mode == Mode::Off && asks {
            let why = "clients cannot prove who they are without TLS, which `tls: off` switches off".to_owned();
            findings.push(at(claim, "client-ca", Diagnostic::error("client-ca-in-clear", why.clone()).help("remove one of the two")));
            claim.route.access.closed.get_or_insert(why);
        } else if !listens && (matches!(mode, Mode::Only | Mode::Passthrough) || asks) {
            let why = "the route wants HTTPS, and this edge does not listen for it".to_owned();
            let finding =
                Diagnostic::error("no-https", format!("{why}: the route is closed")).help("set `https.listen` in the configuration");
            findings.push(at(claim, "tls", finding));
            claim.route.access.closed.get_or_insert(why);
        } else if !listens && mode == Mode::Redirect {
            claim.route.tls.mode = Some(Mode::Both);
            if wanted {
                let finding = Diagnostic::warning("no-https", "this edge does not listen for HTTPS: the route is served over plain HTTP")
                    .help("set `https.listen` in the configuration, or terminate TLS in front of Skep");
                findings.push(at(claim, "tls", finding));
            }
        } else if wanted && no_names && matches!(source, Source::Acme | Source::Internal) {
            let finding = Diagnostic::warning("no-names", "the route matches any host, so there is no name to obtain a certificate for")
                .help("name the hosts by `host`; until then clients are shown the edge's default certificate");
            findings.push(at(claim, "cert", finding));
        }
    }
}

/// What is wrong with getting the certificates of a claim from its source.
fn unobtainable(claim: &Claim<'_>, source: Source, config: &Config) -> Option<Diagnostic> {
    if source != Source::Acme || !matches!(claim.route.tls.mode, Some(Mode::Redirect | Mode::Only | Mode::Both)) {
        return None;
    }
    if !config.acme.configured() {
        let finding = Diagnostic::warning("no-acme", "certificates are to be obtained by ACME, but no authority may be asked so far");
        return Some(at(claim, "cert", finding.help("set `acme.agree-tos = true` once you have read the terms of `acme.issuers`")));
    }
    let wildcard = claim.matching.alternatives.iter().flat_map(|matcher| &matcher.hosts).find_map(|host| match host {
        HostPattern::Wildcard(rest) => Some(rest),
        HostPattern::Any | HostPattern::Exact(_) => None,
    })?;
    (config.dns.provider == DnsProvider::Off).then(|| {
        let message = format!("the certificate of `*.{wildcard}` can be obtained by a DNS record only, and there is no DNS provider");
        at(claim, "host", Diagnostic::warning("wildcard-without-dns", message).help("name one in `[dns]`, or name the hosts one by one"))
    })
}

/// Where the file of the authorities lies; a route whose label names none that it may have is closed.
fn locate(claim: &mut Claim<'_>, config: &Config, findings: &mut Vec<Diagnostic>) {
    let Some(value) = claim.spec.get("client-ca") else { return };
    match authority::path(claim.service, config, value) {
        Ok(path) => claim.route.tls.client_ca = Some(path),
        Err(finding) => {
            claim.route.tls.client_ca = None;
            claim.route.access.closed.get_or_insert_with(|| format!("`{}` names no file that it may", brief(&value.label)));
            findings.push(finding.of(subject(claim.service)));
        }
    }
}

/// The finding, at the label that it is about or else at the one that says what the route matches.
fn at(claim: &Claim<'_>, key: &str, finding: Diagnostic) -> Diagnostic {
    let finding = match claim.spec.get(key).or_else(|| claim.label()) {
        Some(value) => finding.at(value.place()),
        None => finding,
    };
    finding.of(subject(claim.service))
}

/// Where certificates come from that no label speaks of.
fn usual_source(config: &Config) -> Source {
    match config.certificates.default {
        DefaultCertificate::Acme => Source::Acme,
        DefaultCertificate::Internal => Source::Internal,
        DefaultCertificate::Auto if config.acme.configured() => Source::Acme,
        DefaultCertificate::Auto | DefaultCertificate::SelfSigned => Source::SelfSigned,
    }
}

impl State {
    /// The state with what is to be said of the certificates that the user gives, and of the names that want one of them in vain.
    #[must_use]
    pub fn with_files(mut self, found: &FilesFound) -> State {
        self.diagnostics.extend(found.findings.iter().cloned());
        let covered = |host: &HostPattern| {
            let mut names = found.records.values().flat_map(|record| &record.names).map(String::as_str);
            match host {
                HostPattern::Any => true,
                HostPattern::Wildcard(rest) => names.any(|name| name.strip_prefix("*.") == Some(rest)),
                HostPattern::Exact(host) => {
                    let above = host.split_once('.').map(|(_, above)| above);
                    names.any(|name| name == host || (above.is_some() && name.strip_prefix("*.") == above))
                }
            }
        };
        for (subject, host, value) in &self.by_file {
            if !covered(host) {
                let name = match host {
                    HostPattern::Any => continue,
                    HostPattern::Wildcard(rest) => format!("*.{rest}"),
                    HostPattern::Exact(name) => name.clone(),
                };
                let finding =
                    Diagnostic::error("no-certificate-file", format!("no file has a certificate for `{name}`: clients get a warning"));
                let help = match &self.config.certificates.directory {
                    Some(directory) => format!("put the certificate and its key into {}", directory.display()),
                    None => "set `certificates.directory` to the directory with your certificates".to_owned(),
                };
                self.diagnostics.push(finding.at(value.place()).of(subject.clone()).help(help));
            }
        }
        super::tidy(&mut self.diagnostics);
        self
    }
}

/// A host whose certificate the user gives, with the service and the label that say so.
pub(super) type ByFile = (String, HostPattern, Value);

/// All of them.
pub(super) fn by_file(claims: &[Claim<'_>], config: &Config) -> Vec<ByFile> {
    let mut found = Vec::new();
    let wanted = |claim: &&Claim<'_>| {
        let tls = &claim.route.tls;
        tls.source == Some(Source::File)
            && matches!(tls.mode, Some(Mode::Redirect | Mode::Only | Mode::Both))
            && !config.https.listen.is_empty()
    };
    for claim in claims.iter().filter(wanted) {
        let Some(value) = claim.spec.get("cert") else { continue };
        for host in claim.matching.alternatives.iter().flat_map(|matcher| &matcher.hosts) {
            found.push((subject(claim.service), host.clone(), value.clone()));
        }
    }
    found
}

/// Hosts that ask their clients for certificates: by exact name, and by what follows `*.`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientAuthorities {
    exact: HashMap<String, Arc<Path>>,
    wildcard: HashMap<String, Arc<Path>>,
}

impl ClientAuthorities {
    /// The file of the authorities for `name`, if it has any.
    pub(super) fn find(&self, name: &str) -> Option<&Arc<Path>> {
        if self.exact.is_empty() && self.wildcard.is_empty() {
            return None;
        }
        self.exact.get(name).or_else(|| self.wildcard.get(name.split_once('.')?.1))
    }

    /// All of them, each once.
    pub fn all(&self) -> BTreeSet<Arc<Path>> {
        self.exact.values().chain(self.wildcard.values()).cloned().collect()
    }
}

/// The authorities of all hosts. A handshake comes before any path, so a host has one: the oldest route's. Others are closed.
pub(super) fn authorities(claims: &mut [Claim<'_>], findings: &mut Vec<Diagnostic>) -> ClientAuthorities {
    let mut authorities = ClientAuthorities::default();
    for claim in claims {
        let Some(authority) = claim.route.tls.client_ca.clone() else { continue };
        for host in claim.matching.alternatives.iter().flat_map(|matcher| matcher.hosts.clone()) {
            let (map, name) = match host {
                HostPattern::Exact(name) => (&mut authorities.exact, name),
                HostPattern::Wildcard(rest) => (&mut authorities.wildcard, rest),
                HostPattern::Any => {
                    let why = "a certificate of clients can be asked for named hosts only".to_owned();
                    findings.push(at(
                        claim,
                        "client-ca",
                        Diagnostic::error("client-ca-any-host", why.clone()).help("name the hosts by `host`"),
                    ));
                    claim.route.access.closed.get_or_insert(why);
                    continue;
                }
            };
            let there = map.entry(name.clone()).or_insert_with(|| authority.clone());
            if *there != authority {
                let why = format!("`{name}` asks its clients for a certificate of `{}` already", brief(&there.display().to_string()));
                let finding = Diagnostic::error("client-ca-twice", format!("{why}: this route is closed"));
                findings.push(at(
                    claim,
                    "client-ca",
                    finding.help("use one file for all routes of a host; it may hold several authorities"),
                ));
                claim.route.access.closed.get_or_insert(why);
            }
        }
    }
    authorities
}

/// The names that want certificates, each for the oldest route that has it.
pub(super) fn wishes<'a>(rows: impl Iterator<Item = (&'a Told, &'a HostPattern)>, config: &Config) -> Vec<Wish> {
    if config.https.listen.is_empty() {
        return Vec::new();
    }
    let mut names: BTreeMap<String, (Arc<str>, Source)> = BTreeMap::new();
    let mut rows: Vec<_> = rows.collect();
    // Stable: the order of the claims, oldest first, within.
    rows.sort_by_key(|(told, _)| told.created);
    for (told, host) in rows {
        let tls = &told.route.tls;
        let name = match host {
            HostPattern::Exact(name) => name.clone(),
            HostPattern::Wildcard(rest) => format!("*.{rest}"),
            HostPattern::Any => continue,
        };
        if matches!(tls.mode, Some(Mode::Redirect | Mode::Only | Mode::Both)) && tls.source != Some(Source::File) {
            names.entry(name).or_insert_with(|| (told.route.service.clone(), tls.source.unwrap_or(Source::SelfSigned)));
        }
    }
    if let Some(host) = config.auth.host.as_ref().filter(|_| config::auth::is_configured(config)) {
        names.entry(host.clone()).or_insert_with(|| (Arc::from(SIGN_IN), usual_source(config)));
    }
    let mut wishes: BTreeMap<(Arc<str>, Source), BTreeSet<String>> = BTreeMap::new();
    for (name, (service, source)) in names {
        wishes.entry((service, source)).or_default().insert(name);
    }
    wishes.into_iter().map(|((service, source), names)| Wish { service: service.to_string(), source, names }).collect()
}
