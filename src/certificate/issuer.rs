//! What the plan knows of authorities and of patience: their order, their limits, and how long to wait for what.

use jiff::SignedDuration;

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
    /// What is known of the authority whose ACME directory is at `directory`.
    pub fn new(name: &str, directory: &str) -> Issuer {
        const PUBLIC: [&str; 9] = [
            "letsencrypt.org",
            "zerossl.com",
            "pki.goog",
            "buypass.com",
            "buypass.no",
            "ssl.com",
            "sectigo.com",
            "digicert.com",
            "actalis.com",
        ];
        let host = directory.split("://").last().unwrap_or_default().split(['/', ':', '?']).next().unwrap_or_default();
        let is_of = |domain: &&str| host == *domain || host.strip_suffix(*domain).is_some_and(|rest| rest.ends_with('.'));
        let staging = host.starts_with("acme-staging");
        let limits = if is_of(&"letsencrypt.org") && !staging { Limits::LETS_ENCRYPT } else { Limits::UNTOLD };
        Issuer { name: name.to_owned(), public: PUBLIC.iter().any(is_of), limits }
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
    /// The issuer of that name.
    pub fn issuer(&self, name: &str) -> Option<&Issuer> {
        self.issuers.iter().find(|issuer| issuer.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_known_by_their_directory() {
        for (directory, public, limited) in [
            ("https://acme-v02.api.letsencrypt.org/directory", true, true),
            ("https://acme-staging-v02.api.letsencrypt.org/directory", true, false),
            ("https://acme.zerossl.com/v2/DV90", true, false),
            ("https://dv.acme-v02.api.pki.goog/directory", true, false),
            ("https://localhost:14000/dir", false, false),
            ("https://ca.notletsencrypt.org/dir", false, false),
            ("https://ca.example.com/letsencrypt.org", false, false),
            ("", false, false),
        ] {
            let issuer = Issuer::new("name", directory);
            assert_eq!((issuer.public, issuer.limits.orders.is_some()), (public, limited), "{directory}");
        }
    }
}
