//! Every setting: its name, what it is about, and how a given value becomes a field of [`Config`].
//! The file, the environment and the reference are all read off this one table.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::given::Given;
use super::{
    AccessLogFormat, Challenge, Config, DefaultCertificate, DnsProvider, Profile, ProxyProtocol, Scheme, ServerTiming, TraceTrust,
    TsigAlgorithm, auth, backup, dns, issuer, ldap, notify, target,
};
use crate::diagnostic::{Diagnostic, brief, nearest};
use crate::label::{SismicsAuth, Value, bytes as label_bytes, duration as label_duration};

type Read<T> = Result<T, Diagnostic>;

/// One setting.
pub struct Setting {
    /// `section.key`
    pub name: &'static str,
    pub(super) set: fn(&mut Config, &Given) -> Read<()>,
}

impl Setting {
    const fn new(name: &'static str, set: fn(&mut Config, &Given) -> Read<()>) -> Setting {
        Setting { name, set }
    }

    /// `SKEP_SECTION_KEY`
    pub fn variable(&self) -> String {
        format!("SKEP_{}", self.name.to_ascii_uppercase().replace(['.', '-'], "_"))
    }

    /// The part before the dot.
    pub fn section(&self) -> &'static str {
        self.name.split('.').next().unwrap_or(self.name)
    }
}

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}
const MINUTE: Duration = ms(60_000);
const HOUR: Duration = ms(3_600_000);
const DAY: Duration = ms(86_400_000);
const YEAR: Duration = ms(365 * 86_400_000);

const FORMATS: &[(&str, AccessLogFormat)] =
    &[("json", AccessLogFormat::Json), ("common", AccessLogFormat::Common), ("off", AccessLogFormat::Off)];
const PROXY_PROTOCOLS: &[(&str, ProxyProtocol)] =
    &[("off", ProxyProtocol::Off), ("on", ProxyProtocol::On), ("optional", ProxyProtocol::Optional)];
const PROFILES: &[(&str, Profile)] = &[("intermediate", Profile::Intermediate), ("modern", Profile::Modern)];
const MEANINGS: &[(&str, SismicsAuth)] = &[("both", SismicsAuth::Both), ("route", SismicsAuth::Route), ("owner", SismicsAuth::Owner)];

const TIMINGS: &[(&str, ServerTiming)] = &[("off", ServerTiming::Off), ("on", ServerTiming::On), ("on-request", ServerTiming::OnRequest)];
const TRUST: &[(&str, TraceTrust)] =
    &[("trusted-proxies", TraceTrust::TrustedProxies), ("all", TraceTrust::All), ("none", TraceTrust::None)];
const DEFAULT_CERTIFICATES: &[(&str, DefaultCertificate)] = &[
    ("auto", DefaultCertificate::Auto),
    ("acme", DefaultCertificate::Acme),
    ("internal", DefaultCertificate::Internal),
    ("self", DefaultCertificate::SelfSigned),
];

const SCHEMES: &[(&str, Scheme)] =
    &[("groups", Scheme::Groups), ("memberof", Scheme::MemberOf), ("active-directory", Scheme::ActiveDirectory)];
const CHALLENGES: &[(&str, Challenge)] =
    &[("http-01", Challenge::Http01), ("tls-alpn-01", Challenge::TlsAlpn01), ("dns-01", Challenge::Dns01)];
const DNS_PROVIDERS: &[(&str, DnsProvider)] = &[
    ("off", DnsProvider::Off),
    ("rfc2136", DnsProvider::Rfc2136),
    ("cloudflare", DnsProvider::Cloudflare),
    ("ovh", DnsProvider::Ovh),
    ("exec", DnsProvider::Exec),
];
const TSIG_ALGORITHMS: &[(&str, Option<TsigAlgorithm>)] = &[
    ("off", None),
    ("hmac-sha256", Some(TsigAlgorithm::Sha256)),
    ("hmac-sha384", Some(TsigAlgorithm::Sha384)),
    ("hmac-sha512", Some(TsigAlgorithm::Sha512)),
];

/// All settings, in the order of `config/skep.toml`, which says what each is about.
pub const SETTINGS: &[Setting] = &[
    Setting::new("http.listen", |c, g| put(&mut c.http.listen, addresses(g))),
    Setting::new("http.proxy-protocol", |c, g| put(&mut c.http.proxy_protocol, word(g, PROXY_PROTOCOLS))),
    Setting::new("https.listen", |c, g| put(&mut c.https.listen, addresses(g))),
    Setting::new("https.proxy-protocol", |c, g| put(&mut c.https.proxy_protocol, word(g, PROXY_PROTOCOLS))),
    Setting::new("https.profile", |c, g| put(&mut c.https.profile, word(g, PROFILES))),
    Setting::new("https.handshake-timeout", |c, g| put(&mut c.https.handshake_timeout, duration(g, ms(100)..=HOUR))),
    Setting::new("https.max-handshakes", |c, g| put(&mut c.https.max_handshakes, number(g, 1..=100_000))),
    Setting::new("https.public-port", |c, g| put(&mut c.https.public_port, optional_port(g))),
    Setting::new("tcp.ports", |c, g| put(&mut c.tcp.ports, port_ranges(g))),
    Setting::new("tcp.listen", |c, g| put(&mut c.tcp.listen, interface(g))),
    Setting::new("admin.listen", |c, g| put(&mut c.admin.listen, optional_address(g))),
    Setting::new("docker.enabled", |c, g| put(&mut c.docker.enabled, flag(g))),
    Setting::new("docker.endpoint", |c, g| put(&mut c.docker.endpoint, endpoint(g))),
    Setting::new("docker.tls", |c, g| put(&mut c.docker.tls, optional_path(g))),
    Setting::new("docker.networks", |c, g| put(&mut c.docker.networks, names(g))),
    Setting::new("docker.poll-busy", |c, g| put(&mut c.docker.poll_busy, duration(g, ms(50)..=MINUTE))),
    Setting::new("docker.poll-rest", |c, g| put(&mut c.docker.poll_rest, duration(g, ms(250)..=HOUR))),
    Setting::new("docker.resync", |c, g| put(&mut c.docker.resync, duration(g, ms(1000)..=DAY))),
    Setting::new("docker.debounce", |c, g| put(&mut c.docker.debounce, duration(g, Duration::ZERO..=ms(10_000)))),
    Setting::new("proxy.trusted-proxies", |c, g| put(&mut c.proxy.trusted_proxies, networks(g))),
    Setting::new("proxy.h2c", |c, g| put(&mut c.proxy.h2c, flag(g))),
    Setting::new("proxy.drain", |c, g| put(&mut c.proxy.drain, duration(g, Duration::ZERO..=DAY))),
    Setting::new("proxy.keep-alive", |c, g| put(&mut c.proxy.keep_alive, duration(g, ms(1000)..=DAY))),
    Setting::new("proxy.header-timeout", |c, g| put(&mut c.proxy.header_timeout, duration(g, ms(100)..=HOUR))),
    Setting::new("proxy.body-timeout", |c, g| put(&mut c.proxy.body_timeout, duration(g, ms(100)..=DAY))),
    Setting::new("proxy.write-timeout", |c, g| put(&mut c.proxy.write_timeout, duration(g, ms(100)..=DAY))),
    Setting::new("proxy.max-header-bytes", |c, g| put(&mut c.proxy.max_header_bytes, number(g, 1024..=1024 * 1024))),
    Setting::new("proxy.max-headers", |c, g| put(&mut c.proxy.max_headers, number(g, 8..=256))),
    Setting::new("proxy.max-uri-bytes", |c, g| put(&mut c.proxy.max_uri_bytes, number(g, 256..=1024 * 1024))),
    Setting::new("proxy.max-connections", |c, g| put(&mut c.proxy.max_connections, number(g, 1..=1_000_000))),
    Setting::new("proxy.half-close", |c, g| put(&mut c.proxy.half_close, duration(g, Duration::ZERO..=DAY))),
    Setting::new("proxy.workers", |c, g| put(&mut c.proxy.workers, number(g, 0..=1024))),
    Setting::new("proxy.server-timing", |c, g| put(&mut c.proxy.server_timing, word(g, TIMINGS))),
    Setting::new("proxy.max-connections-per-client", |c, g| put(&mut c.proxy.max_connections_per_client, number(g, 1..=1_000_000))),
    Setting::new("proxy.max-requests-per-connection", |c, g| put(&mut c.proxy.max_requests_per_connection, optional_number(g))),
    Setting::new("proxy.max-streams", |c, g| put(&mut c.proxy.max_streams, number(g, 1..=1000).map(|count| count as u32))),
    Setting::new("proxy.error-pages", |c, g| put(&mut c.proxy.error_pages, optional_path(g))),
    Setting::new("defaults.timeout-connect", |c, g| put(&mut c.defaults.timeout_connect, duration(g, ms(10)..=HOUR))),
    Setting::new("defaults.timeout-response", |c, g| put(&mut c.defaults.timeout_response, duration(g, ms(10)..=DAY))),
    Setting::new("defaults.timeout-idle", |c, g| put(&mut c.defaults.timeout_idle, duration(g, ms(10)..=DAY))),
    Setting::new("defaults.timeout-request", |c, g| put(&mut c.defaults.timeout_request, optional_duration(g))),
    Setting::new("defaults.retries", |c, g| put(&mut c.defaults.retries, number(g, 0..=10).map(|count| count as u32))),
    Setting::new("defaults.max-body", |c, g| put(&mut c.defaults.max_body, optional_size(g))),
    Setting::new("access-log.format", |c, g| put(&mut c.access_log.format, word(g, FORMATS))),
    Setting::new("access-log.path", |c, g| put(&mut c.access_log.path, optional_path(g))),
    Setting::new("log.filter", |c, g| put(&mut c.log.filter, text(g, "info"))),
    Setting::new("log.slow-request", |c, g| put(&mut c.log.slow_request, optional_duration(g))),
    Setting::new("otlp.endpoint", |c, g| put(&mut c.otlp.endpoint, collector(g))),
    Setting::new("otlp.sample", |c, g| put(&mut c.otlp.sample, share(g))),
    Setting::new("otlp.service-name", |c, g| put(&mut c.otlp.service_name, text(g, "skep"))),
    Setting::new("otlp.headers-file", |c, g| put(&mut c.otlp.headers_file, optional_path(g))),
    Setting::new("otlp.trust", |c, g| put(&mut c.otlp.trust, word(g, TRUST))),
    Setting::new("labels.sismics_auth", |c, g| put(&mut c.labels.sismics_auth, word(g, MEANINGS))),
    Setting::new("auth.users", |c, g| put(&mut c.auth.users, optional_path(g))),
    Setting::new("auth.host", |c, g| put(&mut c.auth.host, auth::host(g))),
    Setting::new("auth.session-idle", |c, g| put(&mut c.auth.session_idle, duration(g, MINUTE..=YEAR))),
    Setting::new("auth.session-lifetime", |c, g| put(&mut c.auth.session_lifetime, duration(g, MINUTE..=YEAR))),
    Setting::new("auth.recheck", |c, g| put(&mut c.auth.recheck, duration(g, ms(1000)..=DAY))),
    Setting::new("auth.basic-cache", |c, g| put(&mut c.auth.basic_cache, duration(g, Duration::ZERO..=ms(300_000)))),
    Setting::new("auth.key-rotation", |c, g| put(&mut c.auth.key_rotation, duration(g, HOUR..=YEAR))),
    Setting::new("auth.user-header", |c, g| put(&mut c.auth.user_header, auth::header(g))),
    Setting::new("auth.groups-header", |c, g| put(&mut c.auth.groups_header, auth::header(g))),
    Setting::new("auth.email-header", |c, g| put(&mut c.auth.email_header, auth::header(g))),
    Setting::new("auth.name-header", |c, g| put(&mut c.auth.name_header, auth::header(g))),
    Setting::new("auth.token-header", |c, g| put(&mut c.auth.token_header, auth::header(g))),
    Setting::new("auth.authorizers", |c, g| put(&mut c.auth.authorizers, auth::authorizers(g))),
    Setting::new("ldap.servers", |c, g| put(&mut c.ldap.servers, ldap::servers(g))),
    Setting::new("ldap.starttls", |c, g| put(&mut c.ldap.starttls, flag(g))),
    Setting::new("ldap.ca", |c, g| put(&mut c.ldap.ca, optional_path(g))),
    Setting::new("ldap.bind-dn", |c, g| put(&mut c.ldap.bind_dn, ldap::bind_name(g))),
    Setting::new("ldap.bind-password-file", |c, g| put(&mut c.ldap.bind_password_file, optional_path(g))),
    Setting::new("ldap.scheme", |c, g| put(&mut c.ldap.scheme, word(g, SCHEMES))),
    Setting::new("ldap.user-base", |c, g| put(&mut c.ldap.user_base, ldap::base(g))),
    Setting::new("ldap.user-filter", |c, g| put(&mut c.ldap.user_filter, ldap::filter(g, &["{user}"], "(uid={user})"))),
    Setting::new("ldap.bind-template", |c, g| put(&mut c.ldap.bind_template, ldap::bind_template(g))),
    Setting::new("ldap.group-base", |c, g| put(&mut c.ldap.group_base, ldap::base(g))),
    Setting::new("ldap.group-filter", |c, g| put(&mut c.ldap.group_filter, ldap::filter(g, &["{dn}", "{user}"], "(member={dn})"))),
    Setting::new("ldap.nested-groups", |c, g| put(&mut c.ldap.nested_groups, flag(g))),
    Setting::new("ldap.user-attribute", |c, g| put(&mut c.ldap.user_attribute, ldap::attribute(g, "uid"))),
    Setting::new("ldap.name-attribute", |c, g| put(&mut c.ldap.name_attribute, ldap::attribute(g, "displayName"))),
    Setting::new("ldap.email-attribute", |c, g| put(&mut c.ldap.email_attribute, ldap::attribute(g, "mail"))),
    Setting::new("ldap.group-attribute", |c, g| put(&mut c.ldap.group_attribute, ldap::attribute(g, "cn"))),
    Setting::new("ldap.connect-timeout", |c, g| put(&mut c.ldap.connect_timeout, duration(g, ms(10)..=MINUTE))),
    Setting::new("ldap.request-timeout", |c, g| put(&mut c.ldap.request_timeout, duration(g, ms(10)..=MINUTE))),
    Setting::new("ldap.pool-size", |c, g| put(&mut c.ldap.pool_size, number(g, 1..=64))),
    Setting::new("ldap.page-size", |c, g| put(&mut c.ldap.page_size, number(g, 1..=10_000))),
    Setting::new("ldap.referrals", |c, g| put(&mut c.ldap.referrals, ldap::servers(g))),
    Setting::new("backup.targets", |c, g| put(&mut c.backup.targets, target::targets(g))),
    Setting::new("backup.require-key-export", |c, g| put(&mut c.backup.require_key_export, flag(g))),
    Setting::new("backup.passphrase-file", |c, g| put(&mut c.backup.passphrase_file, backup::path(g))),
    Setting::new("backup.schedule", |c, g| put(&mut c.backup.schedule, backup::schedule(g))),
    Setting::new("backup.time-zone", |c, g| put(&mut c.backup.time_zone, backup::time_zone(g))),
    Setting::new("backup.jitter", |c, g| put(&mut c.backup.jitter, duration(g, Duration::ZERO..=DAY))),
    Setting::new("backup.window", |c, g| put(&mut c.backup.window, backup::window(g))),
    Setting::new("backup.keep", |c, g| put(&mut c.backup.keep, backup::keep(g))),
    Setting::new("backup.exclude", |c, g| put(&mut c.backup.exclude, backup::excludes(g))),
    Setting::new("backup.mode", |c, g| put(&mut c.backup.mode, word(g, backup::MODES).map(str::to_owned))),
    Setting::new("backup.pause-limit", |c, g| put(&mut c.backup.pause_limit, duration(g, ms(1000)..=HOUR))),
    Setting::new("backup.timeout", |c, g| put(&mut c.backup.timeout, duration(g, MINUTE..=DAY * 7))),
    Setting::new("backup.retries", |c, g| put(&mut c.backup.retries, number(g, 0..=20).map(|count| count as u32))),
    Setting::new("backup.retry-pause", |c, g| put(&mut c.backup.retry_pause, duration(g, ms(1000)..=DAY))),
    Setting::new("backup.parallel", |c, g| put(&mut c.backup.parallel, number(g, 1..=64))),
    Setting::new("backup.parallel-per-target", |c, g| put(&mut c.backup.parallel_per_target, number(g, 1..=64))),
    Setting::new("backup.nice", |c, g| put(&mut c.backup.nice, number(g, 0..=19).map(|nice| nice as u8))),
    Setting::new("backup.io-idle", |c, g| put(&mut c.backup.io_idle, flag(g))),
    Setting::new("backup.upload-limit", |c, g| put(&mut c.backup.upload_limit, optional_size(g))),
    Setting::new("backup.compression", |c, g| put(&mut c.backup.compression, backup::compression(g))),
    Setting::new("backup.lock-wait", |c, g| put(&mut c.backup.lock_wait, duration(g, Duration::ZERO..=DAY))),
    Setting::new("backup.check-repository", |c, g| put(&mut c.backup.check_repository, every(g))),
    Setting::new("backup.check-archives", |c, g| put(&mut c.backup.check_archives, every(g))),
    Setting::new("backup.verify-data", |c, g| put(&mut c.backup.verify_data, every(g))),
    Setting::new("backup.verify-slices", |c, g| put(&mut c.backup.verify_slices, number(g, 1..=1000).map(|count| count as u32))),
    Setting::new("backup.drill", |c, g| put(&mut c.backup.drill, every(g))),
    Setting::new("backup.scratch", |c, g| put(&mut c.backup.scratch, backup::path(g))),
    Setting::new("backup.overdue", |c, g| put(&mut c.backup.overdue, duration(g, MINUTE..=YEAR))),
    Setting::new("backup.shrink", |c, g| put(&mut c.backup.shrink, number(g, 1..=100).map(|percent| percent as u8))),
    Setting::new("backup.min-free", |c, g| put(&mut c.backup.min_free, optional_size(g).map(Option::unwrap_or_default))),
    Setting::new("backup.volumes", |c, g| put(&mut c.backup.volumes, backup::path(g))),
    Setting::new("backup.ssh-key", |c, g| put(&mut c.backup.ssh_key, backup::path(g))),
    Setting::new("backup.ssh-known-hosts", |c, g| put(&mut c.backup.ssh_known_hosts, backup::path(g))),
    Setting::new("backup.borg", |c, g| put(&mut c.backup.borg, backup::program(g))),
    Setting::new("notify.webhooks", |c, g| put(&mut c.notify.webhooks, notify::list(g))),
    Setting::new("notify.slack", |c, g| put(&mut c.notify.slack, notify::list(g))),
    Setting::new("notify.ntfy", |c, g| put(&mut c.notify.ntfy, notify::list(g))),
    Setting::new("notify.smtp", |c, g| put(&mut c.notify.smtp, optional_text(g, "smtps://user@mail.example.com"))),
    Setting::new("notify.smtp-password-file", |c, g| put(&mut c.notify.smtp_password_file, optional_path(g))),
    Setting::new("notify.mail-from", |c, g| put(&mut c.notify.mail_from, optional_text(g, "Skep <skep@example.com>"))),
    Setting::new("notify.mail-to", |c, g| put(&mut c.notify.mail_to, notify::list(g))),
    Setting::new("notify.level", |c, g| put(&mut c.notify.level, word(g, notify::LEVELS))),
    Setting::new("notify.repeat", |c, g| put(&mut c.notify.repeat, duration(g, MINUTE..=YEAR))),
    Setting::new("notify.ping", |c, g| put(&mut c.notify.ping, notify::list(g))),
    Setting::new("notify.ca", |c, g| put(&mut c.notify.ca, optional_path(g))),
    Setting::new("acme.email", |c, g| put(&mut c.acme.email, issuer::email(g))),
    Setting::new("acme.agree-tos", |c, g| put(&mut c.acme.agree_tos, flag(g))),
    Setting::new("acme.issuers", |c, g| put(&mut c.acme.issuers, names(g))),
    Setting::new("acme.challenge", |c, g| put(&mut c.acme.challenge, word(g, CHALLENGES))),
    Setting::new("acme.probe", |c, g| put(&mut c.acme.probe, flag(g))),
    Setting::new("acme.probe-port", |c, g| put(&mut c.acme.probe_port, number(g, 1..=65_535).map(|port| port as u16))),
    Setting::new("dns.provider", |c, g| put(&mut c.dns.provider, word(g, DNS_PROVIDERS))),
    Setting::new("dns.server", |c, g| put(&mut c.dns.server, optional_text(g, "ns1.example.com"))),
    Setting::new("dns.tsig-name", |c, g| put(&mut c.dns.tsig_name, optional_text(g, "skep"))),
    Setting::new("dns.tsig-algorithm", |c, g| put(&mut c.dns.tsig_algorithm, word(g, TSIG_ALGORITHMS))),
    Setting::new("dns.tsig-key-file", |c, g| put(&mut c.dns.tsig_key_file, optional_path(g))),
    Setting::new("dns.cloudflare-token-file", |c, g| put(&mut c.dns.cloudflare_token_file, optional_path(g))),
    Setting::new("dns.cloudflare-api", |c, g| {
        put(&mut c.dns.cloudflare_api, text(g, "https://api.cloudflare.com/client/v4").and_then(|url| dns::api(&url)))
    }),
    Setting::new("dns.ovh-endpoint", |c, g| put(&mut c.dns.ovh_endpoint, ovh_endpoint(g))),
    Setting::new("dns.ovh-application-key", |c, g| put(&mut c.dns.ovh_application_key, optional_text(g, "7kbG7Bk7S9Nt7ZSV"))),
    Setting::new("dns.ovh-application-secret-file", |c, g| put(&mut c.dns.ovh_application_secret_file, optional_path(g))),
    Setting::new("dns.ovh-consumer-key-file", |c, g| put(&mut c.dns.ovh_consumer_key_file, optional_path(g))),
    Setting::new("dns.command", |c, g| put(&mut c.dns.command, if is_off(g) { Ok(Vec::new()) } else { names(g) })),
    Setting::new("dns.command-timeout", |c, g| put(&mut c.dns.command_timeout, duration(g, ms(100)..=HOUR))),
    Setting::new("dns.resolver", |c, g| put(&mut c.dns.resolver, dns::servers(g))),
    Setting::new("dns.nameservers", |c, g| put(&mut c.dns.nameservers, dns::servers(g))),
    Setting::new("dns.propagation-timeout", |c, g| put(&mut c.dns.propagation_timeout, duration(g, Duration::ZERO..=HOUR))),
    Setting::new("dns.ttl", |c, g| put(&mut c.dns.ttl, number(g, 1..=86_400).map(|seconds| seconds as u32))),
    Setting::new("certificates.directory", |c, g| put(&mut c.certificates.directory, optional_path(g))),
    Setting::new("certificates.authorities", |c, g| put(&mut c.certificates.authorities, optional_path(g))),
    Setting::new("certificates.default", |c, g| put(&mut c.certificates.default, word(g, DEFAULT_CERTIFICATES))),
    Setting::new("certificates.keep-unwanted", |c, g| put(&mut c.certificates.keep_unwanted, duration(g, Duration::ZERO..=YEAR))),
    Setting::new("state.directory", |c, g| put(&mut c.state.directory, optional_path(g))),
    Setting::new("upgrade.socket", |c, g| put(&mut c.upgrade.socket, optional_path(g))),
];

pub(super) fn put<T>(field: &mut T, value: Read<T>) -> Read<()> {
    *field = value?;
    Ok(())
}

fn wrong_type(given: &Given, wanted: &str, example: &str) -> Diagnostic {
    Diagnostic::error("bad-type", format!("this is {}, not {wanted}", given.kind())).help(format!("write {example}"))
}

pub(super) fn is_off(given: &Given) -> bool {
    given.text().is_some_and(|text| ["", "off", "none", "-"].contains(&text))
}

pub(super) fn text(given: &Given, example: &str) -> Read<String> {
    match given.text() {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        Some(_) => Err(Diagnostic::error("empty", "this is empty").help(format!("write \"{example}\", or leave the key out"))),
        None => Err(wrong_type(given, "text", &format!("\"{example}\""))),
    }
}

pub(super) fn names(given: &Given) -> Read<Vec<String>> {
    let texts = given.texts().ok_or_else(|| wrong_type(given, "a list of names", "[\"edge\"]"))?;
    Ok(texts.into_iter().filter(|text| !text.is_empty()).map(str::to_owned).collect())
}

fn address(text: &str) -> Read<SocketAddr> {
    text.parse().map_err(|_| {
        let example = match (text.parse::<IpAddr>(), text.trim_start_matches(':').parse::<u16>()) {
            (Ok(ip), _) => SocketAddr::new(ip, 80).to_string(),
            (Err(_), Ok(port)) => format!("[::]:{port}"),
            (Err(_), Err(_)) => "0.0.0.0:80".to_owned(),
        };
        Diagnostic::error("bad-address", format!("`{}` is not an address with a port", brief(text))).help(format!("write \"{example}\""))
    })
}

fn addresses(given: &Given) -> Read<Vec<SocketAddr>> {
    if is_off(given) {
        return Ok(Vec::new());
    }
    given.texts().ok_or_else(|| wrong_type(given, "a list of addresses", "[\"0.0.0.0:80\"]"))?.into_iter().map(address).collect()
}

/// Ports and ranges of them: `5432`, `20000-20100`; numbers without quotes too.
fn port_ranges(given: &Given) -> Read<Vec<RangeInclusive<u16>>> {
    let written = |item: &Given| match item {
        Given::Text(text) => Some(text.trim().to_owned()),
        Given::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let texts: Option<Vec<String>> = match given {
        Given::List(items) => items.iter().map(written).collect(),
        Given::Number(_) => written(given).map(|text| vec![text]),
        _ if is_off(given) => Some(Vec::new()),
        _ => given.texts().map(|texts| texts.into_iter().map(str::to_owned).collect()),
    };
    let texts = texts.ok_or_else(|| wrong_type(given, "a list of ports", "[\"5432\", \"20000-20100\"]"))?;
    texts.iter().map(|text| port_range(text)).collect()
}

fn port_range(text: &str) -> Read<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => Err(Diagnostic::error("bad-port", format!("`{}` is neither a port nor a range of ports", brief(text)))
            .help("write \"5432\" or \"20000-20100\", from 1 to 65535")),
    }
}

/// An address without a port; brackets as in addresses with one.
fn interface(given: &Given) -> Read<IpAddr> {
    let text = text(given, "[::]")?;
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&text);
    bare.parse().map_err(|_| {
        Diagnostic::error("bad-address", format!("`{}` is not an address", brief(&text)))
            .help("write \"[::]\" for every address, or one without a port, e.g. \"192.0.2.7\"; the ports come from labels")
    })
}

fn optional_address(given: &Given) -> Read<Option<SocketAddr>> {
    if is_off(given) {
        return Ok(None);
    }
    address(&text(given, "127.0.0.1:9180")?).map(Some)
}

pub(super) fn optional_path(given: &Given) -> Read<Option<PathBuf>> {
    if is_off(given) {
        return Ok(None);
    }
    text(given, "/path").map(|path| Some(PathBuf::from(path)))
}

pub(super) fn optional_text(given: &Given, example: &str) -> Read<Option<String>> {
    if is_off(given) {
        return Ok(None);
    }
    text(given, example).map(Some)
}

fn ovh_endpoint(given: &Given) -> Read<String> {
    let text = text(given, "ovh-eu")?;
    match text.as_str() {
        "ovh-eu" | "ovh-ca" | "ovh-us" => Ok(text),
        _ => dns::api(&text).map_err(|wrong| wrong.help("write \"ovh-eu\", \"ovh-ca\" or \"ovh-us\"")),
    }
}

fn endpoint(given: &Given) -> Read<String> {
    const EXAMPLE: &str = "unix:///var/run/docker.sock";
    let text = text(given, EXAMPLE)?;
    if ["unix://", "tcp://", "http://", "https://"].iter().any(|scheme| text.starts_with(scheme)) {
        return Ok(text);
    }
    let example = if text.starts_with('/') { format!("unix://{text}") } else { EXAMPLE.to_owned() };
    Err(Diagnostic::error("bad-endpoint", format!("`{}` is not a Docker endpoint", brief(&text))).help(format!("write \"{example}\"")))
}

/// The URL for traces; without a path it is the one that OTLP/HTTP names.
fn collector(given: &Given) -> Read<Option<String>> {
    const EXAMPLE: &str = "http://otel-collector:4318";
    if is_off(given) {
        return Ok(None);
    }
    let text = text(given, EXAMPLE)?;
    let bad = || Diagnostic::error("bad-collector", format!("`{}` is not the URL of a collector", brief(&text)));
    let uri: http::Uri = text.parse().map_err(|_| bad().help(format!("write \"{EXAMPLE}\"")))?;
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(Diagnostic::error("secret-in-url", "a collector's URL must not hold a user or a password")
            .help("put an `authorization: ...` line into the file of otlp.headers-file"));
    }
    match (uri.scheme_str(), uri.host(), uri.path()) {
        (Some("http"), Some(_), "/") if uri.query().is_none() => Ok(Some(format!("{}/v1/traces", text.trim_end_matches('/')))),
        (Some("http"), Some(_), _) => Ok(Some(text)),
        (Some("https"), ..) => {
            Err(bad().help(format!("spans are sent over plain HTTP: run a collector beside the edge and write \"{EXAMPLE}\"")))
        }
        _ => Err(bad().help(format!("write \"{EXAMPLE}\""))),
    }
}

/// A share in percent, as 0 to 1.
fn share(given: &Given) -> Read<f64> {
    let text = text(given, "10%")?;
    let percent = text.strip_suffix('%').and_then(|number| number.trim_end().parse::<f64>().ok());
    percent.filter(|percent| (0.0..=100.0).contains(percent)).map(|percent| percent / 100.0).ok_or_else(|| {
        Diagnostic::error("bad-share", format!("`{}` is not a share", brief(&text))).help("write \"10%\", from \"0%\" to \"100%\"")
    })
}

fn networks(given: &Given) -> Read<Vec<IpNet>> {
    let read = |text: &str| text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let bad = |text: &str| {
        Diagnostic::error("bad-network", format!("`{}` is not a network", brief(text)))
            .help("write an address, or a network as \"10.0.0.0/8\"")
    };
    let texts = given.texts().ok_or_else(|| wrong_type(given, "a list of networks", "[\"10.0.0.0/8\"]"))?;
    texts.into_iter().map(|text| read(text).map(|net| net.trunc()).ok_or_else(|| bad(text))).collect()
}

pub(super) fn flag(given: &Given) -> Read<bool> {
    let word = match given {
        Given::Flag(flag) => return Ok(*flag),
        Given::Words(words) => words.trim().to_ascii_lowercase(),
        _ => String::new(),
    };
    match word.as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(wrong_type(given, "true or false", "true or false, without quotes")),
    }
}

fn number(given: &Given, range: RangeInclusive<usize>) -> Read<usize> {
    let number = match given {
        Given::Number(number) => usize::try_from(*number).ok(),
        Given::Words(words) => words.trim().parse().ok(),
        _ => return Err(wrong_type(given, "a number", &range.end().to_string())),
    };
    number.filter(|number| range.contains(number)).ok_or_else(|| out_of_range(&range.start().to_string(), &range.end().to_string()))
}

fn optional_number(given: &Given) -> Read<Option<u32>> {
    if is_off(given) {
        return Ok(None);
    }
    number(given, 1..=1_000_000_000).map(|count| Some(count as u32))
}

fn optional_port(given: &Given) -> Read<Option<u16>> {
    if is_off(given) {
        return Ok(None);
    }
    number(given, 1..=65_535).map(|port| u16::try_from(port).ok())
}

fn out_of_range(least: &str, most: &str) -> Diagnostic {
    Diagnostic::error("out-of-range", "this is out of range").help(format!("write a value from {least} to {most}"))
}

fn duration(given: &Given, range: RangeInclusive<Duration>) -> Read<Duration> {
    if let Given::Number(seconds) = given {
        return Err(wrong_type(given, "a duration", &format!("\"{seconds}s\"")));
    }
    let text = text(given, "30s")?;
    let zero = ["0", "0s", "0ms"].contains(&text.as_str()).then_some(Duration::ZERO);
    let read = zero.or_else(|| Value::new("setting", &text).and_then(|value| label_duration(&value).ok()));
    match read {
        Some(read) if range.contains(&read) => Ok(read),
        Some(_) => Err(out_of_range(&format!("{:?}", range.start()), &format!("{:?}", range.end()))),
        None => Err(Diagnostic::error("bad-duration", format!("`{}` is not a duration", brief(&text)))
            .help("write a number with its unit: \"500ms\", \"30s\", \"2m\", \"1h\"")),
    }
}

fn optional_duration(given: &Given) -> Read<Option<Duration>> {
    if is_off(given) {
        return Ok(None);
    }
    duration(given, ms(10)..=DAY).map(Some)
}

/// How often something is done; off: never.
fn every(given: &Given) -> Read<Option<Duration>> {
    if is_off(given) {
        return Ok(None);
    }
    duration(given, HOUR..=YEAR).map(Some)
}

fn optional_size(given: &Given) -> Read<Option<u64>> {
    if is_off(given) {
        return Ok(None);
    }
    let text = text(given, "100MB")?;
    match Value::new("setting", &text).and_then(|value| label_bytes(&value).ok()).filter(|size| *size > 0) {
        Some(size) => Ok(Some(size)),
        None => {
            Err(Diagnostic::error("bad-size", format!("`{}` is not a size", brief(&text))).help("write \"100MB\", \"512KiB\" or \"off\""))
        }
    }
}

fn word<T: Copy>(given: &Given, words: &[(&str, T)]) -> Read<T> {
    let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
    let text = text(given, names[0])?;
    if let Some((_, value)) = words.iter().find(|(name, _)| *name == text) {
        return Ok(*value);
    }
    let finding = Diagnostic::error("bad-word", format!("`{}` means nothing here", brief(&text)));
    let all = names.join(", ");
    Err(match nearest(&text, names) {
        Some(near) => finding.help(format!("did you mean \"{near}\"? It is one of {all}")),
        None => finding.help(format!("write one of {all}")),
    })
}
