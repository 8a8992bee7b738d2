//! The edge's own addresses on hosts where people sign in.

/// Everything below it is the edge's own, on those hosts.
pub const PATH: &str = "/.skep/";

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    SignIn,
    SignOut,
    /// Where a one-time code of the host at which everybody signs in is handed in.
    Enter,
    /// The keys by which services check signed tokens.
    Keys,
}

impl Entrance {
    /// By the path behind [`PATH`].
    pub fn of(rest: &str) -> Option<Entrance> {
        Some(match rest {
            "sign-in" => Entrance::SignIn,
            "sign-out" => Entrance::SignOut,
            "enter" => Entrance::Enter,
            "jwks.json" => Entrance::Keys,
            _ => return None,
        })
    }
}

/// Where to sign in on a host, to go back to `path` and `query` afterwards.
pub fn sign_in(path: &str, query: &str) -> String {
    let mark = if query.is_empty() { "" } else { "?" };
    let to: String = form_urlencoded::byte_serialize(format!("{path}{mark}{query}").as_bytes()).collect();
    format!("{PATH}sign-in?to={to}")
}

/// The same for somebody who is signed in and wants to be somebody else.
pub fn sign_in_as_other(path: &str, query: &str) -> String {
    format!("{}&{OTHER}=1", sign_in(path, query))
}

/// The parameter that says so.
pub const OTHER: &str = "other";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_is_one_parameter() {
        assert_eq!(sign_in("/a b", "x=1&y=ä"), "/.skep/sign-in?to=%2Fa+b%3Fx%3D1%26y%3D%C3%A4");
        let (_, query) = sign_in("/a", "to=/evil&x#y").split_once('?').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("a query");
        let pairs: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
        assert_eq!(pairs, [("to".into(), "/a?to=/evil&x#y".into())]);
    }
}
