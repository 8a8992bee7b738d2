//! The section `[dns]`: who publishes the TXT records by which DNS-01 proves names (RFC 8555, 8.4), and what each provider needs for it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::given::Given;
use crate::diagnostic::{Diagnostic, brief};

/// The port of DNS servers that are given without one.
pub const PORT: u16 = 53;

/// Who publishes records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsProvider {
    /// Nobody: DNS-01 and so wildcards cannot be had.
    #[default]
    Off,
    /// A DNS server that takes dynamic updates: BIND, Knot, PowerDNS, ...
    Rfc2136,
    Cloudflare,
    Ovh,
    /// A program of the user's.
    Exec,
}

/// How updates are signed (RFC 8945, 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TsigAlgorithm {
    Sha256,
    Sha384,
    Sha512,
}

/// Settings of DNS-01. Secrets are named by their files only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    pub provider: DnsProvider,
    /// rfc2136: the primary server, `host`, `host:port` or `[v6]:port`.
    pub server: Option<String>,
    /// rfc2136: the key's name; `None`: the key file says it.
    pub tsig_name: Option<String>,
    /// rfc2136: `None`: the key file says it, else hmac-sha256.
    pub tsig_algorithm: Option<TsigAlgorithm>,
    /// rfc2136: the key in base64, or the `key "name" { ... };` that `tsig-keygen` prints.
    pub tsig_key_file: Option<PathBuf>,
    pub cloudflare_token_file: Option<PathBuf>,
    /// The URL up to and with the version, without a slash at its end.
    pub cloudflare_api: String,
    /// `ovh-eu`, `ovh-ca`, `ovh-us` or a URL up to and with the version.
    pub ovh_endpoint: String,
    pub ovh_application_key: Option<String>,
    pub ovh_application_secret_file: Option<PathBuf>,
    pub ovh_consumer_key_file: Option<PathBuf>,
    /// exec: the program and its first arguments.
    pub command: Vec<String>,
    /// exec: how long one run may take.
    pub command_timeout: Duration,
    /// Whom to ask for zones and name servers; empty: as `/etc/resolv.conf` says.
    pub resolver: Vec<SocketAddr>,
    /// Who must answer with a record before it counts as published; empty: all authoritative servers of its zone.
    pub nameservers: Vec<SocketAddr>,
    /// How long to wait for that; zero: not at all.
    pub propagation_timeout: Duration,
    /// Seconds that resolvers may keep a record.
    pub ttl: u32,
}

impl Default for Dns {
    fn default() -> Self {
        Dns {
            provider: DnsProvider::Off,
            server: None,
            tsig_name: None,
            tsig_algorithm: None,
            tsig_key_file: None,
            cloudflare_token_file: None,
            cloudflare_api: "https://api.cloudflare.com/client/v4".to_owned(),
            ovh_endpoint: "ovh-eu".to_owned(),
            ovh_application_key: None,
            ovh_application_secret_file: None,
            ovh_consumer_key_file: None,
            command: Vec::new(),
            command_timeout: Duration::from_secs(60),
            resolver: Vec::new(),
            nameservers: Vec::new(),
            propagation_timeout: Duration::from_secs(120),
            ttl: 120,
        }
    }
}

/// What the chosen provider needs and has not got.
pub fn missing(dns: &Dns) -> Vec<Diagnostic> {
    let mut findings = Vec::new();
    let mut needs = |there: bool, key: &str, example: &str, provider: &str| {
        findings.extend((!there).then(|| {
            Diagnostic::error("dns-incomplete", format!("dns.provider is {provider}, but dns.{key} is not set"))
                .help(format!("write {key} = {example} in [dns]"))
        }));
    };
    match dns.provider {
        DnsProvider::Off => {}
        DnsProvider::Rfc2136 => {
            needs(dns.server.is_some(), "server", "\"ns1.example.com\"", "rfc2136");
            needs(
                dns.tsig_key_file.is_some(),
                "tsig-key-file",
                "\"/etc/skep/tsig.key\", a file as `tsig-keygen skep` prints it",
                "rfc2136",
            );
        }
        DnsProvider::Cloudflare => {
            needs(dns.cloudflare_token_file.is_some(), "cloudflare-token-file", "\"/run/secrets/cloudflare\"", "cloudflare");
        }
        DnsProvider::Ovh => {
            needs(dns.ovh_application_key.is_some(), "ovh-application-key", "\"...\"", "ovh");
            needs(dns.ovh_application_secret_file.is_some(), "ovh-application-secret-file", "\"/run/secrets/ovh-application\"", "ovh");
            needs(dns.ovh_consumer_key_file.is_some(), "ovh-consumer-key-file", "\"/run/secrets/ovh-consumer\"", "ovh");
        }
        DnsProvider::Exec => needs(!dns.command.is_empty(), "command", "[\"/etc/skep/dns-01\"]", "exec"),
    }
    findings
}

/// Addresses of DNS servers; the port may be left out.
pub(super) fn servers(given: &Given) -> Result<Vec<SocketAddr>, Diagnostic> {
    let read = |text: &str| text.parse().ok().or_else(|| Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, PORT)));
    let texts = given.texts().unwrap_or_else(|| vec!["?"]);
    if matches!(texts[..], ["" | "off" | "none" | "-"]) {
        return Ok(Vec::new());
    }
    let bad = |text: &str| {
        Diagnostic::error("bad-address", format!("`{}` is not the address of a DNS server", brief(text)))
            .help("write [\"9.9.9.9\"] or [\"127.0.0.1:5353\"]")
    };
    texts.into_iter().map(|text| read(text).ok_or_else(|| bad(text))).collect()
}

/// The base of an API: https, and http for an address of this machine only, as secrets go there.
pub(super) fn api(text: &str) -> Result<String, Diagnostic> {
    let bad = |why: &str| Diagnostic::error("bad-api", format!("`{}` {why}", brief(text))).help("write \"https://api.example.com/v1\"");
    let uri: http::Uri = text.parse().map_err(|_| bad("is not a URL"))?;
    let Some(authority) = uri.authority() else { return Err(bad("is not a URL")) };
    if authority.as_str().contains('@') || uri.query().is_some() {
        return Err(bad("must not hold a user, a password or a query"));
    }
    let here = authority.host() == "localhost"
        || authority.host().trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match uri.scheme_str() {
        Some("https") => Ok(text.trim_end_matches('/').to_owned()),
        Some("http") if here => Ok(text.trim_end_matches('/').to_owned()),
        _ => Err(bad("is not https")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(dns: Dns) -> Vec<String> {
        missing(&dns).into_iter().map(|finding| finding.message).collect()
    }

    #[test]
    fn what_the_chosen_provider_lacks_is_said() {
        let of = |provider| Dns { provider, ..Dns::default() };
        assert_eq!(codes(of(DnsProvider::Off)), [""; 0]);
        for (provider, keys) in [
            (DnsProvider::Rfc2136, &["server", "tsig-key-file"][..]),
            (DnsProvider::Cloudflare, &["cloudflare-token-file"]),
            (DnsProvider::Ovh, &["ovh-application-key", "ovh-application-secret-file", "ovh-consumer-key-file"]),
            (DnsProvider::Exec, &["command"]),
        ] {
            let found = codes(of(provider));
            assert_eq!(found.len(), keys.len(), "{found:?}");
            for (message, key) in found.iter().zip(keys) {
                assert!(message.ends_with(&format!("but dns.{key} is not set")), "{message}");
            }
        }
    }

    #[test]
    fn an_incomplete_section_is_no_configuration() {
        let (config, findings) = crate::config::parse("skep.toml", "[dns]\nprovider = \"cloudflare\"", &[]);
        assert!(config.is_none());
        assert_eq!(findings.iter().map(|finding| finding.code.as_str()).collect::<Vec<_>>(), ["dns-incomplete"]);
        let text = "[dns]\nprovider = \"exec\"\ncommand = [\"/etc/skep/dns-01\", \"--quick\"]\npropagation-timeout = \"0s\"";
        let dns = crate::config::parse("skep.toml", text, &[]).0.unwrap().dns;
        assert_eq!((dns.command.len(), dns.propagation_timeout), (2, Duration::ZERO));
    }

    #[test]
    fn servers_are_addresses_with_or_without_a_port() {
        let read = |text: &str| servers(&Given::Text(text.into())).map_err(|finding| finding.code);
        assert_eq!(read("9.9.9.9"), Ok(vec!["9.9.9.9:53".parse().unwrap()]));
        assert_eq!(read("[::1]:5353"), Ok(vec!["[::1]:5353".parse().unwrap()]));
        assert_eq!(read("::1"), Ok(vec!["[::1]:53".parse().unwrap()]));
        assert_eq!(read("off"), Ok(vec![]));
        assert_eq!(read("dns.example.com"), Err("bad-address".into()));
        assert_eq!(servers(&Given::Flag(true)).map_err(|finding| finding.code), Err("bad-address".into()));
    }

    #[test]
    fn tokens_are_sent_in_clear_to_this_machine_only() {
        assert_eq!(api("https://api.example.com/v1/").unwrap(), "https://api.example.com/v1");
        for fine in ["http://127.0.0.1:80", "http://localhost/x", "http://[::1]:8080/client/v4"] {
            assert_eq!(api(fine).unwrap(), fine);
        }
        for bad in ["http://api.example.com", "api.example.com", "https://user:pw@api.example.com", "https://a/?x=1", "", "/v1"] {
            assert!(api(bad).is_err(), "{bad}");
        }
    }
}
