//! What names of certificates mean: which name covers which, under which registered domain they are, and which ones no authority can certify.

use std::net::IpAddr;

/// Suffixes that are nobody's on the internet: no public authority certifies names below them (CA/Browser Forum's baseline requirements, 4.2.2;
/// RFC 6761, RFC 6762, RFC 8375, and ICANN's reservation of `internal`).
const PRIVATE: [&str; 12] =
    ["local", "internal", "test", "example", "localhost", "invalid", "onion", "home.arpa", "lan", "corp", "home", "intranet"];
/// Of them, those that no authority at all can look up.
const NOWHERE: [&str; 3] = ["localhost", "invalid", "onion"];

/// Why a name cannot be had, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    pub message: String,
    pub help: &'static str,
}

const INTERNAL: &str = "write `cert: internal` to certify it by this edge's own authority, or `cert: self`";

/// Does a certificate for `have` serve `name`? A wildcard stands for exactly one label (RFC 9525, 6.3), and covers itself.
pub fn covers(have: &str, name: &str) -> bool {
    have == name || wildcard(name).is_some_and(|wild| wild == have)
}

/// The wildcard that covers `name`; none covers wildcards, addresses and single labels.
pub fn wildcard(name: &str) -> Option<String> {
    let (label, parent) = name.split_once('.')?;
    (label != "*" && !parent.is_empty() && name.parse::<IpAddr>().is_err()).then(|| format!("*.{parent}"))
}

pub fn is_wildcard(name: &str) -> bool {
    name.starts_with("*.")
}

/// The name that was registered to have `name`, by the public suffix list: what authorities count by. `name` itself where there is none.
pub fn registered(name: &str) -> &str {
    let host = name.strip_prefix("*.").unwrap_or(name);
    if host.parse::<IpAddr>().is_ok() { host } else { psl::domain_str(host).unwrap_or(host) }
}

/// Why an authority cannot certify `name`; `public`: one that only certifies what is on the internet.
pub fn refusal(name: &str, public: bool) -> Option<Unfit> {
    let refuse = |message: String, help| Some(Unfit { message, help });
    if let Ok(address) = name.trim_matches(['[', ']']).parse::<IpAddr>() {
        let message = format!("public authorities certify names, and `{address}` is an address");
        return if public { refuse(message, "write a host name, or `cert: internal` or `cert: self`") } else { None };
    }
    let host = name.strip_prefix("*.").unwrap_or(name);
    if !well_formed(host) {
        return refuse(
            format!("`{name}` is no host name that a certificate can hold"),
            "write a name like `app.example.com` or `*.example.com`",
        );
    }
    let below = |suffix: &&str| host == *suffix || host.strip_suffix(*suffix).is_some_and(|rest| rest.ends_with('.'));
    if let Some(suffix) = NOWHERE.iter().find(|suffix| below(suffix)) {
        return refuse(format!("no authority can look up `{name}`: `{suffix}` is reserved"), INTERNAL);
    }
    if public { unregistered(name, host, PRIVATE.iter().find(|suffix| below(suffix))) } else { None }
}

fn unregistered(name: &str, host: &str, private: Option<&&str>) -> Option<Unfit> {
    let refuse = |message: String, help| Some(Unfit { message, help });
    if let Some(suffix) = private {
        return refuse(format!("no public authority certifies `{name}`: `{suffix}` is for private use"), INTERNAL);
    }
    if !name.contains('.') {
        return refuse(format!("no public authority certifies `{name}`: it has a single label"), INTERNAL);
    }
    if host.contains('_') {
        return refuse(format!("no public authority certifies `{name}`: it has an underscore"), "name the host without one");
    }
    match psl::suffix(host.as_bytes()) {
        Some(suffix) if !suffix.is_known() => {
            refuse(format!("no public authority certifies `{name}`: its top-level domain is unknown"), INTERNAL)
        }
        Some(suffix) if suffix.as_bytes().len() == host.len() && suffix.typ() == Some(psl::Type::Icann) => refuse(
            format!("no authority certifies `{name}`: it is a public suffix, under which others register names"),
            "write names below it",
        ),
        _ => None,
    }
}

/// Labels and lengths as of RFC 1035, 2.3.4; underscores too, which some private names have.
fn well_formed(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.len() <= 253 && host.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_wildcard_stands_for_one_label() {
        for (have, name, yes) in [
            ("a.example.com", "a.example.com", true),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "*.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "a.b.example.com", false),
            ("*.example.com", "*.b.example.com", false),
            ("a.example.com", "*.example.com", false),
            ("*.0.0.1", "127.0.0.1", false),
            ("*.", "localhost", false),
        ] {
            assert_eq!(covers(have, name), yes, "{have} {name}");
        }
    }

    #[test]
    fn names_are_counted_where_they_are_registered() {
        for (name, domain) in [
            ("a.b.example.com", "example.com"),
            ("*.example.co.uk", "example.co.uk"),
            ("xn--bcher-kva.example.de", "example.de"),
            ("me.github.io", "me.github.io"),
            ("localhost", "localhost"),
            ("192.0.2.1", "192.0.2.1"),
        ] {
            assert_eq!(registered(name), domain, "{name}");
        }
    }

    #[test]
    fn what_no_authority_certifies() {
        let long = format!("{}.example.com", "a".repeat(64));
        for (name, public, private) in [
            ("app.example.com", "", ""),
            ("xn--bcher-kva.example.com", "", ""),
            ("me.github.io", "", ""),
            ("github.io", "", ""),
            ("*.example.com", "", ""),
            ("app.test", "`test` is for private use", ""),
            ("nas.local", "`local` is for private use", ""),
            ("db.internal", "`internal` is for private use", ""),
            ("router.home.arpa", "`home.arpa` is for private use", ""),
            ("intranet", "`intranet` is for private use", ""),
            ("wiki", "a single label", ""),
            ("app.nosuchtld", "top-level domain is unknown", ""),
            ("a_b.example.com", "underscore", ""),
            ("co.uk", "public suffix", ""),
            ("*.com", "public suffix", ""),
            ("192.0.2.1", "is an address", ""),
            ("2001:db8::1", "is an address", ""),
            ("localhost", "is reserved", "is reserved"),
            ("app.localhost", "is reserved", "is reserved"),
            ("hidden.onion", "is reserved", "is reserved"),
            ("*", "no host name", "no host name"),
            ("*.*.example.com", "no host name", "no host name"),
            ("a.*.example.com", "no host name", "no host name"),
            ("App.example.com", "no host name", "no host name"),
            ("-a.example.com", "no host name", "no host name"),
            ("a..example.com", "no host name", "no host name"),
            ("", "no host name", "no host name"),
            (&long, "no host name", "no host name"),
        ] {
            for (is_public, expected) in [(true, public), (false, private)] {
                match refusal(name, is_public) {
                    Some(found) => assert!(!expected.is_empty() && found.message.contains(expected), "{name}: {found:?}"),
                    None => assert_eq!(expected, "", "{name}"),
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(name in ".{0,80}", other in "[a-z*.:0-9]{0,20}") {
            let _ = (refusal(&name, true), refusal(&other, false), registered(&name), registered(&other), covers(&name, &other));
            prop_assert!(covers(&name, &name));
        }
    }
}
