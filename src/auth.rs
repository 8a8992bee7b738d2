//! Who may pass a route: what its labels ask for, who somebody is, and the one decision about both. Access rules fail closed.

pub mod account;
pub mod accounts;
pub mod authorizer;
pub mod both;
pub mod browser;
pub mod code;
pub mod connection;
pub mod cookie;
pub mod dialer;
pub mod directory;
pub mod edit;
pub mod entrance;
pub mod entrant;
pub mod entry;
pub mod failover;
pub mod file;
pub mod form;
pub mod gate;
pub mod gatekeeper;
pub mod hashing;
pub mod htpasswd;
pub mod identity;
pub mod keys;
mod label;
pub mod ldap;
pub mod page;
pub mod passage;
pub mod pool;
pub mod question;
pub mod reception;
pub mod referral;
pub mod register;
pub mod reply;
pub mod roster;
pub mod seal;
pub mod session;
pub mod standing;
pub mod style;
pub mod target;
pub mod throttle;
pub mod token;
pub mod tree;
pub mod users;
pub mod verified;
pub mod visitor;

use std::net::IpAddr;

pub use self::label::{Access, Groups, KEYS, Mode, parse};

/// May this request come in at all? Asked before anything else of the route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// 403: the address is not in `allow`.
    Forbidden,
    /// 503: the route is closed; why.
    Closed(String),
}

/// Decides by address and closed state.
pub fn admit(access: &Access, client: IpAddr) -> Verdict {
    if let Some(reason) = &access.closed {
        return Verdict::Closed(reason.clone());
    }
    // A dual-stack listener shows 10.0.0.1 as ::ffff:10.0.0.1, which is in no IPv4 network.
    let client = client.to_canonical();
    match access.allow.is_empty() || access.allow.iter().any(|net| net.contains(&client)) {
        true => Verdict::Pass,
        false => Verdict::Forbidden,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_admitted_by_network() {
        let networks = ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"];
        let access = Access { allow: networks.iter().map(|net| net.parse().expect("a network")).collect(), ..Access::default() };
        for (client, verdict) in [
            ("10.1.2.3", Verdict::Pass),
            ("::ffff:10.1.2.3", Verdict::Pass),
            ("192.0.2.7", Verdict::Pass),
            ("192.0.2.8", Verdict::Forbidden),
            ("2001:db8::1", Verdict::Pass),
            ("::1", Verdict::Forbidden),
        ] {
            assert_eq!(admit(&access, client.parse().expect("an address")), verdict, "{client}");
        }
        assert_eq!(admit(&Access::default(), IpAddr::from([192, 0, 2, 8])), Verdict::Pass);
    }

    #[test]
    fn a_closed_route_lets_nobody_in() {
        let access = Access { closed: Some("why".to_owned()), ..Access::default() };
        assert_eq!(admit(&access, IpAddr::from([127, 0, 0, 1])), Verdict::Closed("why".to_owned()));
    }
}
