//! What the plan knows of authorities and of patience: their order, their limits, and how long to wait for what.

use jiff::SignedDuration;

use crate::config::{self, Challenge, Config, DnsProvider};

/// Its staging directory has wider limits, which nobody reaches.
const LETS_ENCRYPT: &str = "acme-v02.api.letsencrypt.org";

/// Whom to ask for certificates, and how. All times are bounds that the plan keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// In the order in which they are asked; empty: nothing can be obtained by ACME.
    pub issuers: Vec<Issuer>,
    /// Names can be proved by DNS-01, and so wildcards be had.
    pub dns: bool,
    /// Names other than wildcards must be seen to reach us before an authority is asked. Not where all is proved by DNS-01.
    pub probe: bool,
    /// How long that is believed.
    pub probe_holds: SignedDuration,
    /// How long names that are asked for the first time hold up the others of their service.
    pub gather: SignedDuration,
    pub names_per_certificate: usize,
    /// How long a certificate is kept that no label wants.
    pub keep_unwanted: SignedDuration,
    /// After a first failure. It doubles with each one up to the longest that follow.
    pub first_pause: SignedDuration,
    /// Of names that an authority did not certify.
    pub longest_pause: SignedDuration,
    /// Of names that do not reach us: asking is free, and somebody who mends DNS is waiting.
    pub longest_probe_pause: SignedDuration,
    /// Of authorities that are down.
    pub longest_issuer_pause: SignedDuration,
}

/// One authority, as far as the plan is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// As in the configuration.
    pub name: String,
    /// It certifies only what is on the internet.
    pub public: bool,
    pub limits: Limits,
}

/// At most `most` within any span of `per`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub most: usize,
    pub per: SignedDuration,
}

/// What an authority lets an account do. `None`: nothing is known, and nothing is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub orders: Option<Limit>,
    /// Certificates by registered domain; renewals in the authority's own window are exempt.
    pub domain: Option<Limit>,
    /// Certificates for the same set of names.
    pub duplicates: Option<Limit>,
    /// Failed validations of a name.
    pub failures: Option<Limit>,
}

/// The longest span that anything is counted over.
pub const MEMORY: SignedDuration = SignedDuration::from_hours(7 * 24 + 1);

const fn limit(most: usize, hours: i64) -> Option<Limit> {
    // Clocks differ, and orders take their time: a minute of grace.
    Some(Limit { most, per: SignedDuration::from_secs(hours * 3600 + 60) })
}

impl Limits {
    /// <https://letsencrypt.org/docs/rate-limits/>, as spans instead of leaking buckets, which is stricter.
    pub const LETS_ENCRYPT: Limits =
        Limits { orders: limit(300, 3), domain: limit(50, 168), duplicates: limit(5, 168), failures: limit(5, 1) };
    /// Of an authority that tells none: only what keeps us from being a nuisance.
    pub const UNTOLD: Limits = Limits { orders: None, domain: None, duplicates: None, failures: limit(5, 1) };
}

impl Issuer {
    /// What is known of a configured authority.
    pub fn new(configured: &config::Issuer) -> Issuer {
        let host = configured.directory.split("://").last().unwrap_or_default().split(['/', ':', '?']).next().unwrap_or_default();
        let limits = if host == LETS_ENCRYPT { Limits::LETS_ENCRYPT } else { Limits::UNTOLD };
        Issuer { name: configured.name.clone(), public: configured.public, limits }
    }
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            issuers: Vec::new(),
            dns: false,
            probe: true,
            probe_holds: SignedDuration::from_mins(10),
            gather: SignedDuration::from_secs(2),
            names_per_certificate: 100,
            keep_unwanted: SignedDuration::from_hours(30 * 24),
            first_pause: SignedDuration::from_mins(1),
            longest_pause: SignedDuration::from_hours(6),
            longest_probe_pause: SignedDuration::from_mins(15),
            longest_issuer_pause: SignedDuration::from_hours(1),
        }
    }
}

impl Policy {
    /// As the configuration says. Nothing is obtained by ACME unless somebody agreed to terms.
    pub fn new(config: &Config) -> Policy {
        let named = config.acme.issuers.iter().filter(|_| config.acme.configured()).filter_map(|name| config.issuers.get(name));
        Policy {
            issuers: named.map(Issuer::new).collect(),
            dns: config.dns.provider != DnsProvider::Off,
            probe: config.acme.probe && config.acme.challenge != Challenge::Dns01,
            keep_unwanted: SignedDuration::try_from(config.certificates.keep_unwanted).unwrap_or(SignedDuration::MAX),
            ..Policy::default()
        }
    }

    /// The issuer of that name.
    pub fn issuer(&self, name: &str) -> Option<&Issuer> {
        self.issuers.iter().find(|issuer| issuer.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_known_by_the_directory() {
        for (directory, limited) in [
            ("https://acme-v02.api.letsencrypt.org/directory", true),
            ("https://acme-staging-v02.api.letsencrypt.org/directory", false),
            ("https://acme.zerossl.com/v2/DV90", false),
            ("https://localhost:14000/dir", false),
            ("https://ca.example.com/acme-v02.api.letsencrypt.org", false),
            ("", false),
        ] {
            let issuer = Issuer::new(&config::Issuer::new("name", directory));
            assert_eq!(issuer.limits.orders.is_some(), limited, "{directory}");
        }
    }

    #[test]
    fn nobody_is_asked_before_somebody_agreed() {
        let mut config = Config::default();
        assert_eq!(Policy::new(&config).issuers, []);
        config.acme.agree_tos = true;
        let policy = Policy::new(&config);
        assert_eq!((policy.issuers[0].name.as_str(), policy.probe, policy.dns), ("letsencrypt", true, false));
        config.acme.challenge = Challenge::Dns01;
        assert!(!Policy::new(&config).probe);
    }
}
