//! Where a directory says that an entry may be: an LDAP URL (RFC 4516), of which no more is believed than a server that the settings
//! name, and a place in it.

use percent_encoding::percent_decode_str;

use crate::config::dn::Dn;
use crate::config::ldap::Server;

/// A place in another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referral {
    pub server: Server,
    /// Empty: where it was searched first.
    pub base: String,
}

impl Referral {
    /// `None`: it is none that can be followed. Filter and scope stay those of the search.
    pub fn parse(url: &str) -> Option<Referral> {
        let (scheme, rest) = url.split_once("://")?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let server = format!("{}://{host}", scheme.to_ascii_lowercase()).parse().ok()?;
        let base = percent_decode_str(path.split('?').next().unwrap_or_default()).decode_utf8().ok()?.into_owned();
        Dn::parse(&base).map(|_| Referral { server, base })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_referral_is_a_server_and_a_place() {
        for (url, server, base) in [
            ("ldap://b.example/ou=people,dc=x", "ldap://b.example:389", "ou=people,dc=x"),
            ("LDAPS://B.example:3636/o=An%20Example%5C2c%20Inc?uid?sub?(uid=*)", "ldaps://b.example:3636", r"o=An Example\2c Inc"),
            ("ldap://[2001:db8::7]", "ldap://[2001:db8::7]:389", ""),
        ] {
            let read = Referral::parse(url).unwrap_or_else(|| panic!("{url}"));
            assert_eq!((read.server.to_string().as_str(), read.base.as_str()), (server, base), "{url}");
        }
        for url in ["", "ldap:///dc=x", "http://b/dc=x", "ldap://me@b/dc=x", "ldap://b/nowhere", "ldap://b/%ff", "b"] {
            assert_eq!(Referral::parse(url), None, "{url}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(url in "\\PC*|ldap://[a:/%?=0-9\\]\\[@]{0,20}") {
            let _ = Referral::parse(&url);
        }
    }
}
