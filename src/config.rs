//! The static configuration: `skep.toml` and the environment, text -> [`Config`] or findings with a caret.
//! Every key has a default that serves; a misspelled key is an error, because a setting that does nothing is worse than none.

pub mod auth;
pub mod backup;
pub mod cron;
pub mod dn;
pub mod dns;
pub mod docker;
pub mod filter;
mod given;
mod issuer;
pub mod keep;
pub mod ldap;
pub mod notify;
mod settings;
mod target;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::diagnostic::{Diagnostic, Severity, nearest};
use crate::label::SismicsAuth;

pub use self::auth::Auth;
pub use self::backup::Backup;
pub use self::dns::{Dns, DnsProvider, TsigAlgorithm};
use self::given::Given;
pub use self::issuer::{Acme, Challenge, Issuer};
pub use self::ldap::{Ldap, Scheme};
pub use self::notify::{Level, Notify};
pub use self::settings::{SETTINGS, Setting};

/// All settings. `config/skep.toml` lists every key with its default.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub http: Listener,
    pub https: Https,
    pub tcp: Tcp,
    pub admin: Admin,
    pub docker: Docker,
    pub proxy: Proxy,
    pub defaults: Defaults,
    pub access_log: AccessLog,
    pub log: Log,
    pub otlp: Otlp,
    pub labels: Labels,
    pub auth: Auth,
    pub ldap: Ldap,
    pub backup: Backup,
    pub notify: Notify,
    pub dns: Dns,
    pub certificates: Certificates,
    pub state: StateDirectory,
    pub upgrade: Upgrade,
    pub acme: Acme,
    /// By name: the known ones, and those of `[issuer.NAME]`.
    pub issuers: BTreeMap<String, Issuer>,
}

/// Addresses to listen on; empty: off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub listen: Vec<SocketAddr>,
    pub proxy_protocol: ProxyProtocol,
}

/// Addresses to listen on for HTTPS, and what is agreed on there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Https {
    pub listen: Vec<SocketAddr>,
    pub proxy_protocol: ProxyProtocol,
    pub profile: Profile,
    /// From the accept to the end of the TLS handshake.
    pub handshake_timeout: Duration,
    /// Handshakes at one time; more wait.
    pub max_handshakes: usize,
    /// Where clients reach the HTTPS listeners from outside; `None`: at the port of the first one.
    pub public_port: Option<u16>,
}

impl Https {
    /// The port that redirects to HTTPS name.
    pub fn port(&self) -> u16 {
        self.public_port.or(self.listen.first().map(SocketAddr::port)).unwrap_or(443)
    }
}

/// Which TLS versions are spoken, by the names of Mozilla's recommendations (wiki.mozilla.org/Security/Server_Side_TLS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// TLS 1.3 only.
    Modern,
    /// TLS 1.2 (with forward secrecy and authenticated encryption only) and 1.3.
    Intermediate,
}

/// Does a connection begin with a PROXY header (HAProxy's proxy-protocol.txt, versions 1 and 2) that names the client?
/// It is believed of `proxy.trusted-proxies` only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyProtocol {
    #[default]
    Off,
    /// Trusted proxies must send one.
    On,
    /// Trusted proxies may send one.
    Optional,
}

/// TCP routes: which ports of the edge labels may claim, and on which address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    pub ports: Vec<RangeInclusive<u16>>,
    pub listen: IpAddr,
}

/// Metrics, health and the state for `skep routes`. Loopback by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    pub listen: Option<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Docker {
    pub enabled: bool,
    /// `unix:///var/run/docker.sock`, `tcp://host:2375`, `https://host:2376` (with `tls`).
    pub endpoint: String,
    /// Directory with ca.pem, cert.pem, key.pem (as DOCKER_CERT_PATH).
    pub tls: Option<PathBuf>,
    /// Names of networks that the edge can reach, when it cannot find out itself.
    pub networks: Vec<String>,
    /// Task polling while anything moves (250 ms) and at rest (5 s).
    pub poll_busy: Duration,
    pub poll_rest: Duration,
    pub resync: Duration,
    /// How long events are gathered after the first one.
    pub debounce: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Peers whose X-Forwarded-* and Forwarded are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Cleartext HTTP/2 by prior knowledge on the http listener.
    pub h2c: bool,
    /// How long a stop waits for requests in flight.
    pub drain: Duration,
    pub keep_alive: Duration,
    /// From the connection's (or the previous answer's) end to a whole request head.
    pub header_timeout: Duration,
    /// Longest silence of a request's body, where the route does not say otherwise by `timeout-idle`.
    pub body_timeout: Duration,
    /// Longest time that a client may take nothing of its answer, likewise.
    pub write_timeout: Duration,
    pub max_header_bytes: usize,
    /// Header fields of a request.
    pub max_headers: usize,
    /// Bytes of a request's target: path and query.
    pub max_uri_bytes: usize,
    pub max_connections: usize,
    /// How long a request goes on whose client will send nothing more: it may still read, or be gone.
    pub half_close: Duration,
    /// Threads that serve connections; 0: one a core.
    pub workers: usize,
    /// Connections of one client address, IPv6 by /64; trusted proxies are exempt.
    pub max_connections_per_client: usize,
    /// Requests after which an HTTP/1 connection is closed; `None`: any number.
    pub max_requests_per_connection: Option<u32>,
    /// Requests at once on one HTTP/2 connection.
    pub max_streams: u32,
    pub server_timing: ServerTiming,
    /// Labels of Docker services may name files below this directory as error pages; `None`: none.
    pub error_pages: Option<PathBuf>,
}

/// Whom answers tell, in `Server-Timing`, where their time went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerTiming {
    Off,
    /// Everybody.
    On,
    /// Clients in the networks of `trusted-proxies` that send `X-Server-Timing`.
    OnRequest,
}

/// What routes get when their labels do not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    pub timeout_connect: Duration,
    pub timeout_response: Duration,
    pub timeout_idle: Duration,
    pub timeout_request: Option<Duration>,
    pub retries: u32,
    /// Bytes of a request's body; `None`: no limit.
    pub max_body: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLogFormat {
    Json,
    Common,
    Off,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    pub format: AccessLogFormat,
    /// `None`: standard output.
    pub path: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A tracing filter: `info`, `skep=debug,info`.
    pub filter: String,
    /// Requests whose answer's head takes longer are told here; `None`: off.
    pub slow_request: Option<Duration>,
}

/// Whose `traceparent` is continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceTrust {
    TrustedProxies,
    All,
    None,
}

/// Spans of requests, sent to an OpenTelemetry collector.
#[derive(Clone, Debug, PartialEq)]
pub struct Otlp {
    /// The collector's whole URL for traces; `None`: requests are not traced and headers pass as they come.
    pub endpoint: Option<String>,
    /// Share of the traces that begin here, 0 to 1.
    pub sample: f64,
    pub service_name: String,
    /// File of `name: value` lines that are sent along, as a token: secret.
    pub headers_file: Option<PathBuf>,
    pub trust: TraceTrust,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    pub sismics_auth: SismicsAuth,
}

/// Certificates that Skep does not ask an authority for, and what holds for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificates {
    /// The user's own certificates and keys; `None`: there are none.
    pub directory: Option<PathBuf>,
    /// `client-ca` labels of Docker services may name files below this directory; `None`: none.
    pub authorities: Option<PathBuf>,
    pub default: DefaultCertificate,
    /// How long a certificate is kept that no label wants any more.
    pub keep_unwanted: Duration,
}

/// Where certificates come from for routes whose labels do not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DefaultCertificate {
    /// ACME where an account is configured, else self-signed.
    #[default]
    Auto,
    Acme,
    Internal,
    SelfSigned,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDirectory {
    /// Where the last good snapshot is kept; `None`: nowhere.
    pub directory: Option<PathBuf>,
}

impl Listener {
    fn on(address: SocketAddr) -> Listener {
        Listener { listen: vec![address], proxy_protocol: ProxyProtocol::Off }
    }
}

/// How a new binary takes over from a running one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upgrade {
    /// Where the running edge is asked; a relative path lies in the state directory. `None`: it is not.
    pub socket: Option<PathBuf>,
}

impl Config {
    /// All addresses at which clients are served.
    pub fn listen(&self) -> Vec<SocketAddr> {
        [&self.http.listen[..], &self.https.listen].concat()
    }

    /// The socket for upgrades; `None` when it is off, or would lie in a state directory that there is not.
    pub fn upgrade_socket(&self) -> Option<PathBuf> {
        let socket = self.upgrade.socket.as_ref()?;
        match &self.state.directory {
            Some(directory) => Some(directory.join(socket)),
            None => socket.is_absolute().then(|| socket.clone()),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            http: Listener::on(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 80))),
            https: Https {
                listen: vec![SocketAddr::from((Ipv6Addr::UNSPECIFIED, 443))],
                proxy_protocol: ProxyProtocol::Off,
                profile: Profile::Intermediate,
                handshake_timeout: Duration::from_secs(10),
                max_handshakes: 256,
                public_port: None,
            },
            tcp: Tcp { ports: Vec::new(), listen: IpAddr::V6(Ipv6Addr::UNSPECIFIED) },
            admin: Admin { listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9180))) },
            docker: Docker {
                enabled: true,
                endpoint: "unix:///var/run/docker.sock".to_owned(),
                tls: None,
                networks: Vec::new(),
                poll_busy: Duration::from_millis(250),
                poll_rest: Duration::from_secs(5),
                resync: Duration::from_secs(60),
                debounce: Duration::from_millis(10),
            },
            proxy: Proxy {
                trusted_proxies: Vec::new(),
                h2c: true,
                drain: Duration::from_secs(30),
                keep_alive: Duration::from_secs(60),
                header_timeout: Duration::from_secs(15),
                body_timeout: Duration::from_secs(30),
                write_timeout: Duration::from_secs(60),
                max_header_bytes: 64 * 1024,
                max_headers: 100,
                max_uri_bytes: 16 * 1024,
                max_connections: 20_000,
                half_close: Duration::from_secs(10),
                workers: 0,
                server_timing: ServerTiming::Off,
                max_connections_per_client: 1000,
                max_requests_per_connection: None,
                max_streams: 100,
                error_pages: None,
            },
            defaults: Defaults {
                timeout_connect: Duration::from_secs(2),
                timeout_response: Duration::from_secs(60),
                timeout_idle: Duration::from_secs(60),
                timeout_request: None,
                retries: 2,
                max_body: None,
            },
            access_log: AccessLog { format: AccessLogFormat::Json, path: None },
            log: Log { filter: "info".to_owned(), slow_request: None },
            otlp: Otlp {
                endpoint: None,
                sample: 1.0,
                service_name: "skep".to_owned(),
                headers_file: None,
                trust: TraceTrust::TrustedProxies,
            },
            labels: Labels { sismics_auth: SismicsAuth::Both },
            auth: Auth::default(),
            ldap: Ldap::default(),
            backup: Backup::default(),
            notify: Notify::default(),
            dns: Dns::default(),
            certificates: Certificates {
                directory: None,
                authorities: None,
                default: DefaultCertificate::Auto,
                keep_unwanted: Duration::from_secs(30 * 24 * 3600),
            },
            state: StateDirectory { directory: Some(PathBuf::from("/var/lib/skep")) },
            upgrade: Upgrade { socket: Some(PathBuf::from("upgrade.sock")) },
            acme: Acme::default(),
            issuers: Issuer::known().map(|issuer| (issuer.name.clone(), issuer)).collect(),
        }
    }
}

/// What Docker's own client reads; our settings outrank them.
const DOCKER_VARIABLES: [(&str, &str); 2] = [("DOCKER_HOST", "docker.endpoint"), ("DOCKER_CERT_PATH", "docker.tls")];

/// Reads `text` (named `path` in findings), then overrides by `environment` (`SKEP_HTTP_LISTEN=...`, where empty means
/// not set). All mistakes are found at once; with an error among them there is no configuration.
pub fn parse(path: &str, text: &str, environment: &[(String, String)]) -> (Option<Config>, Vec<Diagnostic>) {
    let mut config = Config::default();
    let mut findings = Vec::new();
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).filter(|(_, value)| !value.trim().is_empty()).collect();
    let given = given::read(path, text, &mut findings);
    for (variable, setting) in DOCKER_VARIABLES {
        let ours = named(setting).is_some_and(|setting| environment.iter().any(|(name, _)| *name == setting.variable()));
        if !ours && given.iter().all(|(name, ..)| name != setting) {
            findings.extend(from_variable(&mut config, variable, setting, &environment).map(|wrong| Diagnostic {
                severity: Severity::Warning, // Docker's client may know endpoints that we do not, as `ssh://`
                help: Some(format!("it is left aside; if Docker is to be asked, set {setting} to an endpoint of the engine itself")),
                ..wrong
            }));
        }
    }
    for (name, given, place) in given {
        if let Some(rest) = name.strip_prefix("issuer").filter(|rest| rest.is_empty() || rest.starts_with('.')) {
            let set = issuer::set(&mut config.issuers, rest.trim_start_matches('.'), &given);
            findings.extend(set.err().map(|wrong| wrong.at(place).of(path)));
            continue;
        }
        match named(&name) {
            Some(setting) => findings.extend((setting.set)(&mut config, &given).err().map(|wrong| wrong.at(place).of(path))),
            None => findings.push(unknown(&name).at(place).of(path)),
        }
    }
    for (variable, value) in &environment {
        if let Some(rest) = variable.strip_prefix("SKEP_").filter(|rest| !rest.starts_with("TEST_") && *rest != "CONFIG") {
            match SETTINGS.iter().find(|setting| setting.variable() == *variable) {
                Some(setting) => findings.extend(from_variable(&mut config, variable, setting.name, &environment)),
                None => match rest.strip_prefix("ISSUER_").and_then(|rest| issuer::of_variable(&config.issuers, rest)) {
                    Some(name) => {
                        let set = issuer::set(&mut config.issuers, &name, &Given::Words((*value).to_owned()));
                        findings.extend(set.err().map(|wrong| wrong.of(format!("environment variable {variable}"))));
                    }
                    None => findings.push(unknown_variable(variable, rest)),
                },
            }
        }
    }
    findings.extend(contradictions(&config).into_iter().map(|finding| finding.of(path)));
    let usable = findings.iter().all(|finding| finding.severity < Severity::Error);
    (usable.then_some(config), findings)
}

fn named(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

/// Sets `setting` from `variable`, if that is there.
fn from_variable(config: &mut Config, variable: &str, setting: &str, environment: &[(&str, &str)]) -> Option<Diagnostic> {
    let (_, value) = environment.iter().find(|(name, _)| *name == variable)?;
    let wrong = (named(setting)?.set)(config, &Given::Words((*value).to_owned())).err()?;
    Some(wrong.of(format!("environment variable {variable}")))
}

fn unknown(name: &str) -> Diagnostic {
    let Some((_, key)) = name.split_once('.') else { return unknown_section(name) };
    let finding = Diagnostic::error("unknown-setting", format!("`{name}` is not a setting"));
    let key_of = |setting: &Setting| setting.name.split_once('.').map(|(_, key)| key);
    let elsewhere = || SETTINGS.iter().find(|setting| key_of(setting) == Some(key)).map(|setting| setting.name);
    match nearest(name, SETTINGS.iter().map(|setting| setting.name)).or_else(elsewhere) {
        Some(near) => finding.help(format!("did you mean `{near}`?")),
        None => finding.help("config/skep.toml lists every setting"),
    }
}

fn unknown_section(name: &str) -> Diagnostic {
    let finding = Diagnostic::error("unknown-setting", format!("`{name}` is not a section"));
    match nearest(name, SETTINGS.iter().map(Setting::section)) {
        Some(section) if section == name => Diagnostic::error("bad-type", format!("`{name}` is a section, not a value"))
            .help(format!("write `[{name}]` on a line of its own and its keys below")),
        Some(near) => finding.help(format!("did you mean `[{near}]`?")),
        None => finding.help("config/skep.toml lists every setting"),
    }
}

/// A warning: it may be another program's, and it must not keep the edge from starting.
fn unknown_variable(variable: &str, rest: &str) -> Diagnostic {
    let finding = Diagnostic::warning("unknown-variable", format!("`{variable}` is not a setting")).of("environment");
    let names: Vec<String> = SETTINGS.iter().map(Setting::variable).collect();
    match nearest(rest, names.iter().filter_map(|name| name.strip_prefix("SKEP_"))) {
        Some(near) => finding.help(format!("did you mean `SKEP_{near}`?")),
        None => finding.help("settings are named SKEP_<SECTION>_<KEY>, as SKEP_HTTP_LISTEN"),
    }
}

/// Settings that are fine alone and not together.
fn contradictions(config: &Config) -> Vec<Diagnostic> {
    let mut findings = Vec::new();
    if config.docker.poll_busy > config.docker.poll_rest {
        findings.push(
            Diagnostic::error("poll-order", "docker.poll-busy is longer than docker.poll-rest")
                .help("poll faster while services move than at rest"),
        );
    }
    for (section, wanted) in [("http", config.http.proxy_protocol), ("https", config.https.proxy_protocol)] {
        if wanted != ProxyProtocol::Off && config.proxy.trusted_proxies.is_empty() {
            let message = format!("{section}.proxy-protocol is on, but proxy.trusted-proxies names nobody who may use it");
            findings.push(
                Diagnostic::error("proxy-protocol-of-nobody", message)
                    .help("list the addresses of the load balancer in front, e.g. trusted-proxies = [\"10.0.0.0/8\"]"),
            );
        }
    }
    findings.extend(auth::contradictions(config));
    findings.extend(ldap::contradictions(&config.ldap));
    findings.extend(dns::missing(&config.dns));
    findings.extend(issuer::contradictions(config));
    findings.extend(backup::contradictions(config));
    findings.extend(notify::contradictions(config));
    let all: Vec<&SocketAddr> = config.http.listen.iter().chain(&config.https.listen).chain(&config.admin.listen).collect();
    for (index, address) in all.iter().enumerate() {
        let Some(other) =
            all[..index].iter().find(|other| other.port() == address.port() && address.port() != 0 && overlap(other, address))
        else {
            continue;
        };
        let finding = match address == other {
            true => Diagnostic::error("address-twice", format!("{address} is listened on twice")),
            false => Diagnostic::error("address-twice", format!("{address} and {other} are one address in two places")),
        };
        findings.push(finding.help("give each listener its own port; [::] takes every address, IPv4 too, and 0.0.0.0 all of IPv4"));
    }
    findings
}

/// `5432`, `20000-20100`.
pub fn port_range(range: &RangeInclusive<u16>) -> String {
    match (range.start(), range.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    }
}

/// Would the kernel refuse the second of the two on one port?
fn overlap(one: &SocketAddr, other: &SocketAddr) -> bool {
    let covers = |wide: &SocketAddr, ip: &SocketAddr| wide.ip().is_unspecified() && (wide.is_ipv6() || ip.is_ipv4());
    one.ip() == other.ip() || covers(one, other) || covers(other, one)
}

/// Names of settings that differ and that a reload cannot change: sockets and the tasks that run on them.
pub fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let mut names = Vec::new();
    let mut note = |differs: bool, name| names.extend(differs.then_some(name));
    note(old.http.listen != new.http.listen, "http.listen");
    note(old.http.proxy_protocol != new.http.proxy_protocol, "http.proxy-protocol");
    note(old.https.listen != new.https.listen, "https.listen");
    note(old.https.proxy_protocol != new.https.proxy_protocol, "https.proxy-protocol");
    note(old.https.max_handshakes != new.https.max_handshakes, "https.max-handshakes");
    note(old.admin != new.admin, "admin.listen");
    note(old.docker != new.docker, "docker");
    note(old.access_log != new.access_log, "access-log");
    note(old.log != new.log, "log");
    let exporter = |otlp: &Otlp| (otlp.endpoint.clone(), otlp.service_name.clone(), otlp.headers_file.clone());
    note(exporter(&old.otlp) != exporter(&new.otlp), "otlp");
    note(old.auth.users != new.auth.users, "auth.users");
    note(old.auth.session_idle != new.auth.session_idle, "auth.session-idle");
    note(old.auth.session_lifetime != new.auth.session_lifetime, "auth.session-lifetime");
    note(old.auth.recheck != new.auth.recheck, "auth.recheck");
    note(old.auth.basic_cache != new.auth.basic_cache, "auth.basic-cache");
    note(old.auth.key_rotation != new.auth.key_rotation, "auth.key-rotation");
    note(old.ldap != new.ldap, "ldap");
    note(old.backup != new.backup, "backup");
    note(old.notify != new.notify, "notify");
    note(old.dns != new.dns, "dns");
    note(old.acme != new.acme, "acme");
    note(old.issuers != new.issuers, "issuer");
    note(old.certificates.directory != new.certificates.directory, "certificates.directory");
    note(old.state != new.state, "state.directory");
    note(old.upgrade != new.upgrade, "upgrade.socket");
    note(old.proxy.h2c != new.proxy.h2c, "proxy.h2c");
    note(old.proxy.keep_alive != new.proxy.keep_alive, "proxy.keep-alive");
    note(old.proxy.max_connections != new.proxy.max_connections, "proxy.max-connections");
    note(old.proxy.workers != new.proxy.workers, "proxy.workers");
    note(old.proxy.max_connections_per_client != new.proxy.max_connections_per_client, "proxy.max-connections-per-client");
    note(old.proxy.max_requests_per_connection != new.proxy.max_requests_per_connection, "proxy.max-requests-per-connection");
    note(old.proxy.max_streams != new.proxy.max_streams, "proxy.max-streams");
    note(old.proxy.max_header_bytes != new.proxy.max_header_bytes, "proxy.max-header-bytes");
    names
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::diagnostic::Place;

    const EXAMPLE: &str = include_str!("../config/skep.toml");

    fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_example_is_the_default_and_names_every_key() {
        let (config, findings) = parse("skep.toml", EXAMPLE, &[]);
        assert_eq!(findings, []);
        assert_eq!(config.unwrap(), Config::default());
        let mut ignored = Vec::new();
        let named: Vec<String> = given::read("skep.toml", EXAMPLE, &mut ignored).into_iter().map(|(name, _, _)| name).collect();
        for setting in SETTINGS {
            assert!(named.iter().any(|name| name == setting.name), "{} is missing in config/skep.toml", setting.name);
        }
    }

    #[test]
    fn every_mistake_is_found_and_pointed_at() {
        // text, code, what the caret stands under, what the help says
        let table = [
            ("[http]\nlisten = [\"0.0.0.0\"]", "bad-address", "[\"0.0.0.0\"]", "0.0.0.0:80"),
            ("[htp]\nlisten = []", "unknown-setting", "htp", "http"),
            ("[http]\nlisen = []", "unknown-setting", "lisen", "http.listen"),
            ("[proxy]\ndrain = 30", "bad-type", "30", "\"30s\""),
            ("[proxy]\ndrain = \"30 parsecs\"", "bad-duration", "\"30 parsecs\"", "30s"),
            ("[proxy]\nh2c = \"yes\"", "bad-type", "\"yes\"", "true"),
            ("[proxy]\ntrusted-proxies = [\"10.0.0.0/99\"]", "bad-network", "[\"10.0.0.0/99\"]", "10.0.0.0/8"),
            ("[proxy]\nmax-connections = 0", "out-of-range", "0", "1"),
            ("[access-log]\nformat = \"jsonn\"", "bad-word", "\"jsonn\"", "json"),
            ("[labels]\nsismics_auth = \"none\"", "bad-word", "\"none\"", "both"),
            ("[otlp]\nsample = 0.1", "bad-type", "0.1", "10%"),
            ("[otlp]\nsample = \"101%\"", "bad-share", "\"101%\"", "100%"),
            ("[http\nlisten = []", "syntax", "", ""),
            ("x = 1", "unknown-setting", "x", ""),
            ("http = \"0.0.0.0:80\"", "bad-type", "http", "[http]"),
            ("[[proxy]]\nh2c = true", "bad-type", "proxy", "[proxy]"),
            ("[proxy]\ntimeout-connect = \"1s\"", "unknown-setting", "timeout-connect", "defaults.timeout-connect"),
        ];
        for (text, code, under, help) in table {
            let (config, findings) = parse("skep.toml", text, &[]);
            assert!(config.is_none(), "{text}");
            let finding = findings.iter().find(|finding| finding.code == code).unwrap_or_else(|| panic!("{text}: {findings:?}"));
            let Some(Place::File { span, .. }) = &finding.place else { panic!("{text}: no place") };
            if !under.is_empty() {
                assert_eq!(&text[span.clone()], under, "{text}");
            }
            assert!(finding.help.as_deref().unwrap_or("").contains(help), "{text}: {finding:?}");
        }
    }

    #[test]
    fn all_mistakes_at_once_and_the_fine_keys_beside_them() {
        let (_, findings) = parse("skep.toml", "[http]\nlisten = 5\n[proxy]\ndrain = \"x\"\nkeep-alive = \"5s\"\n", &[]);
        assert_eq!(findings.len(), 2, "{findings:?}");
    }

    #[test]
    fn a_collector_is_a_url_and_gets_the_path_of_otlp() {
        let endpoint = |value: &str| {
            let (config, findings) = parse("skep.toml", &format!("[otlp]\nendpoint = \"{value}\"\nsample = \"12.5%\""), &[]);
            config.map(|config| (config.otlp.endpoint, config.otlp.sample)).ok_or_else(|| findings[0].code.clone())
        };
        // written, read
        let table = [
            ("off", Ok(None)),
            ("http://otel:4318", Ok(Some("http://otel:4318/v1/traces"))),
            ("http://otel:4318/", Ok(Some("http://otel:4318/v1/traces"))),
            ("http://otel/here?x=1", Ok(Some("http://otel/here?x=1"))),
            ("https://otel", Err("bad-collector")),
            ("otel:4318", Err("bad-collector")),
            ("/v1/traces", Err("bad-collector")),
            ("http://user:s3cret@otel", Err("secret-in-url")),
        ];
        for (written, read) in table {
            assert_eq!(endpoint(written), read.map(|read| (read.map(str::to_owned), 0.125)).map_err(str::to_owned), "{written}");
        }
    }

    #[test]
    fn ports_for_labels_are_numbers_and_ranges() {
        for (text, ports) in [
            ("[]", Some(vec![])),
            ("[\"5432\", \"20000-20100\"]", Some(vec![5432..=5432, 20000..=20100])),
            ("[5432]", Some(vec![5432..=5432])),
            ("5432", Some(vec![5432..=5432])),
            ("\"off\"", Some(vec![])),
            ("[0]", None),
            ("[\"20100-20000\"]", None),
            ("[\"5432:5433\"]", None),
            ("[70000]", None),
            ("true", None),
        ] {
            let (config, findings) = parse("skep.toml", &format!("[tcp]\nports = {text}\n"), &[]);
            assert_eq!(config.map(|config| config.tcp.ports), ports, "{text}: {findings:?}");
        }
        let (config, _) = parse("skep.toml", "[tcp]\nlisten = \"0.0.0.0\"\n", &environment(&[("SKEP_TCP_PORTS", "5432, 6000-6010")]));
        let tcp = config.unwrap().tcp;
        assert_eq!((tcp.listen, tcp.ports), (IpAddr::V4(Ipv4Addr::UNSPECIFIED), vec![5432..=5432, 6000..=6010]));
        assert!(parse("skep.toml", "[tcp]\nlisten = \"[::]:80\"\n", &[]).0.is_none());
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let given = environment(&[
            ("SKEP_HTTP_LISTEN", "127.0.0.1:8080, [::1]:8080"),
            ("SKEP_PROXY_H2C", "false"),
            ("SKEP_DEFAULTS_RETRIES", "5"),
            ("SKEP_ACCESS_LOG_FORMAT", "off"),
            ("SKEP_LABELS_SISMICS_AUTH", "owner"),
            ("SKEP_CONFIG", "/etc/skep.toml"),
            ("SKEP_TEST_DOCKER", "unix:///x"),
            ("DOCKER_HOST", "tcp://10.0.0.1:2375"),
            ("HOME", "/root"),
        ]);
        let (config, findings) = parse("skep.toml", "[http]\nlisten = [\"0.0.0.0:1\"]", &given);
        let config = config.unwrap();
        assert_eq!(findings, []);
        assert_eq!(config.http.listen, ["127.0.0.1:8080".parse().unwrap(), "[::1]:8080".parse().unwrap()]);
        assert_eq!((config.proxy.h2c, config.defaults.retries, config.access_log.format), (false, 5, AccessLogFormat::Off));
        assert_eq!((config.labels.sismics_auth, config.docker.endpoint.as_str()), (SismicsAuth::Owner, "tcp://10.0.0.1:2375"));
    }

    #[test]
    fn a_misspelt_variable_is_a_warning_with_the_right_name() {
        let (config, findings) = parse("skep.toml", "", &environment(&[("SKEP_HTP_LISTEN", "x")]));
        assert!(config.is_some());
        assert_eq!(findings[0].help.as_deref(), Some("did you mean `SKEP_HTTP_LISTEN`?"));
        let (config, findings) = parse("skep.toml", "", &environment(&[("SKEP_PROXY_DRAIN", "soon")]));
        assert!(config.is_none() && findings[0].subject.contains("SKEP_PROXY_DRAIN"));
    }

    /// A stack file writes `SKEP_HTTP_LISTEN: ${LISTEN:-}`: that must not switch the listener off.
    #[test]
    fn an_empty_variable_is_not_set() {
        let given = environment(&[("SKEP_HTTP_LISTEN", ""), ("SKEP_PROXY_DRAIN", " "), ("DOCKER_HOST", ""), ("DOCKER_CERT_PATH", "")]);
        assert_eq!(parse("skep.toml", "", &given), (Some(Config::default()), vec![]));
    }

    #[test]
    fn what_only_dockers_client_understands_does_not_keep_us_from_starting() {
        let ssh = ("DOCKER_HOST", "ssh://ops@server");
        let (config, findings) = parse("skep.toml", "", &environment(&[ssh]));
        assert_eq!(config.unwrap().docker, Config::default().docker);
        let told: Vec<_> = findings.iter().map(|finding| (finding.code.as_str(), finding.severity)).collect();
        assert_eq!(told, [("bad-endpoint", Severity::Warning)]);
        for (text, more) in
            [("[docker]\nendpoint = \"unix:///run/docker.sock\"", None), ("", Some(("SKEP_DOCKER_ENDPOINT", "unix:///run/docker.sock")))]
        {
            let given: Vec<_> = [ssh].into_iter().chain(more).collect();
            let (config, findings) = parse("skep.toml", text, &environment(&given));
            assert_eq!((config.unwrap().docker.endpoint.as_str(), findings), ("unix:///run/docker.sock", vec![]));
        }
    }

    #[test]
    fn one_address_for_two_listeners_is_a_mistake() {
        for (http, admin, wrong) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("[::]:1", "127.0.0.1:1", true),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("0.0.0.0:1", "[::]:1", true),
            ("0.0.0.0:1", "[::1]:1", false),
            ("127.0.0.1:1", "[::1]:1", false),
            ("[::]:1", "[::]:2", false),
            ("[::]:0", "127.0.0.1:0", false),
        ] {
            let (config, findings) = parse("skep.toml", &format!("[http]\nlisten = \"{http}\"\n[admin]\nlisten = \"{admin}\""), &[]);
            let told: Vec<_> = findings.iter().map(|finding| finding.code.as_str()).collect();
            assert_eq!((config.is_none(), told), (wrong, if wrong { vec!["address-twice"] } else { vec![] }), "{http} {admin}");
        }
        let (config, _) = parse("skep.toml", "[http]\nlisten = [\"0.0.0.0:80\", \"[::]:80\"]", &[]);
        assert!(config.is_none(), "[::] takes IPv4 too, so the second could not be bound");
    }

    #[test]
    fn the_upgrade_socket_lies_in_the_state_directory_unless_it_says_where() {
        // [state] directory, [upgrade] socket, the path
        for (directory, socket, path) in [
            ("/state", "upgrade.sock", Some("/state/upgrade.sock")),
            ("/state", "/run/skep.sock", Some("/run/skep.sock")),
            ("/state", "off", None),
            ("off", "/run/skep.sock", Some("/run/skep.sock")),
            ("off", "upgrade.sock", None),
        ] {
            let text = format!("[state]\ndirectory = \"{directory}\"\n[upgrade]\nsocket = \"{socket}\"");
            let (config, _) = parse("skep.toml", &text, &[]);
            assert_eq!(config.unwrap().upgrade_socket(), path.map(PathBuf::from), "{text}");
        }
    }

    #[test]
    fn a_reload_says_what_it_cannot_change() {
        let old = Config::default();
        let mut new = old.clone();
        new.http.listen.clear();
        new.defaults.retries = 9;
        assert_eq!(needs_restart(&old, &new), ["http.listen"]);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,200}") {
            let _ = parse("skep.toml", &text, &[]);
        }

        #[test]
        fn any_value_of_any_key_is_survived(index in 0..SETTINGS.len(), value in "[ -~]{0,40}") {
            let (section, key) = SETTINGS[index].name.rsplit_once('.').unwrap();
            let _ = parse("skep.toml", &format!("[{section}]\n{key} = {value}"), &[]);
            let _ = parse("skep.toml", "", &[(SETTINGS[index].variable(), value)]);
        }
    }
}
