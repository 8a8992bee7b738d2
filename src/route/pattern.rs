//! Host and path patterns: what can be indexed, as opposed to conditions, which are tried one by one.
//! Two patterns asked for together become one (or none), so that a table row has exactly one host and one path.

use std::fmt;

/// `app.example.com`, `*.example.com` (one label deep), or any host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    Any,
    /// The part behind `*.`.
    Wildcard(String),
    Exact(String),
}

/// A path in readable form (see [`super::path`]).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathPattern {
    /// Traefik's `PathPrefix`: a plain string prefix, `/a` fits `/ab` too.
    Start(String),
    /// On segment boundaries: `/a` fits `/a` and `/a/b`, not `/ab`.
    Prefix(String),
    Exact(String),
}

impl HostPattern {
    /// Does `host` (lower case, without port) belong to this pattern?
    pub fn fits(&self, host: &str) -> bool {
        match self {
            HostPattern::Any => true,
            HostPattern::Wildcard(suffix) => parent(host) == Some(suffix),
            HostPattern::Exact(name) => name == host,
        }
    }

    /// The hosts that belong to both patterns; `None`: there is no such host.
    pub fn both(&self, other: &HostPattern) -> Option<HostPattern> {
        match (self, other) {
            (HostPattern::Any, wanted) | (wanted, HostPattern::Any) => Some(wanted.clone()),
            (HostPattern::Exact(name), pattern) | (pattern, HostPattern::Exact(name)) => {
                pattern.fits(name).then(|| HostPattern::Exact(name.clone()))
            }
            (HostPattern::Wildcard(one), HostPattern::Wildcard(two)) => (one == two).then(|| self.clone()),
        }
    }

    /// Exact before wildcard before any.
    pub(super) fn precedence(&self) -> u8 {
        match self {
            HostPattern::Any => 0,
            HostPattern::Wildcard(_) => 1,
            HostPattern::Exact(_) => 2,
        }
    }
}

/// `example.com` of `app.example.com`: under which wildcard a host is found.
pub(super) fn parent(host: &str) -> Option<&str> {
    host.split_once('.').and_then(|(first, rest)| (!first.is_empty()).then_some(rest))
}

impl PathPattern {
    pub fn text(&self) -> &str {
        let (PathPattern::Start(text) | PathPattern::Prefix(text) | PathPattern::Exact(text)) = self;
        text
    }

    /// Does `path` (in readable form) belong to this pattern?
    pub fn fits(&self, path: &str) -> bool {
        path.strip_prefix(self.text()).is_some_and(|rest| match self {
            PathPattern::Start(_) => true,
            PathPattern::Prefix(text) => rest.is_empty() || rest.starts_with('/') || text == "/",
            PathPattern::Exact(_) => rest.is_empty(),
        })
    }

    /// The paths that belong to both patterns; `None`: there is no such path. The kinds are closed under this.
    pub fn both(&self, other: &PathPattern) -> Option<PathPattern> {
        if self.within(other) { Some(self.clone()) } else { other.within(self).then(|| other.clone()) }
    }

    /// Does every path of `self` belong to `other`?
    fn within(&self, other: &PathPattern) -> bool {
        match (self, other) {
            // `/a` as a string prefix is wider than `/a` on segments, unless all that follows is below it anyway.
            (PathPattern::Start(text), PathPattern::Prefix(outer)) => {
                text.strip_prefix(outer.as_str()).is_some_and(|rest| rest.starts_with('/') || outer == "/")
            }
            (PathPattern::Start(_) | PathPattern::Prefix(_), PathPattern::Exact(_)) => false,
            _ => other.fits(self.text()),
        }
    }

    /// For equal texts the narrower kind goes first: exact, then segments, then string prefix.
    pub(super) fn precedence(&self) -> u8 {
        match self {
            PathPattern::Start(_) => 0,
            PathPattern::Prefix(_) => 1,
            PathPattern::Exact(_) => 2,
        }
    }
}

/// As a `host` label has it.
impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Any => f.write_str("*"),
            HostPattern::Wildcard(suffix) => write!(f, "*.{suffix}"),
            HostPattern::Exact(name) => f.write_str(name),
        }
    }
}

/// As a `path` label has it; the string prefix, which only a rule can say, as `/a*`.
impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathPattern::Start(text) => write!(f, "{text}*"),
            PathPattern::Prefix(text) => f.write_str(text),
            PathPattern::Exact(text) => write!(f, "={text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> PathPattern {
        match (text.strip_prefix('='), text.strip_suffix('*')) {
            (Some(exact), _) => PathPattern::Exact(exact.to_owned()),
            (_, Some(start)) => PathPattern::Start(start.to_owned()),
            _ => PathPattern::Prefix(text.to_owned()),
        }
    }

    fn host(text: &str) -> HostPattern {
        match text.strip_prefix("*.") {
            Some(suffix) => HostPattern::Wildcard(suffix.to_owned()),
            None if text == "*" => HostPattern::Any,
            None => HostPattern::Exact(text.to_owned()),
        }
    }

    #[test]
    fn paths_fit_by_their_kind() {
        for (pattern, fits, not) in [
            ("/", "/ /a /a/b", ""),
            ("/a", "/a /a/ /a/b", "/ /ab /b"),
            ("=/a", "/a", "/ /a/ /a/b /ab"),
            ("=/", "/", "/a"),
            ("/a*", "/a /a/ /ab /a/b", "/ /b"),
            ("/a/*", "/a/ /a/b", "/a /ab"),
        ] {
            fits.split_whitespace().for_each(|text| assert!(path(pattern).fits(text), "{pattern} {text}"));
            not.split_whitespace().for_each(|text| assert!(!path(pattern).fits(text), "{pattern} {text}"));
        }
    }

    #[test]
    fn two_paths_become_one() {
        for (one, two, both) in [
            ("/", "/a", "/a"),
            ("/a", "/a/b", "/a/b"),
            ("/a", "/b", ""),
            ("/a", "/ab", ""),
            ("/a", "=/a/b", "=/a/b"),
            ("/a", "=/ab", ""),
            ("=/a", "=/b", ""),
            ("/a", "/a*", "/a"),
            ("/a", "/a/*", "/a/*"),
            ("/a", "/ab*", ""),
            ("/ab", "/a*", "/ab"),
            ("/a*", "/ab*", "/ab*"),
            ("/a*", "=/ab", "=/ab"),
            ("/ab*", "=/a", ""),
            ("/", "/a*", "/a*"),
        ] {
            let expected = (!both.is_empty()).then(|| path(both));
            assert_eq!(path(one).both(&path(two)), expected, "{one} and {two}");
            assert_eq!(path(two).both(&path(one)), expected, "{two} and {one}");
        }
    }

    #[test]
    fn two_hosts_become_one() {
        for (one, two, both) in [
            ("*", "a.example.com", "a.example.com"),
            ("*", "*.example.com", "*.example.com"),
            ("*.example.com", "a.example.com", "a.example.com"),
            ("*.example.com", "a.b.example.com", ""),
            ("*.example.com", "example.com", ""),
            ("*.example.com", "*.b.example.com", ""),
            ("a.example.com", "b.example.com", ""),
        ] {
            let expected = (!both.is_empty()).then(|| host(both));
            assert_eq!(host(one).both(&host(two)), expected, "{one} and {two}");
            assert_eq!(host(two).both(&host(one)), expected, "{two} and {one}");
        }
    }

    #[test]
    fn patterns_print_as_written() {
        for text in ["*", "*.example.com", "a.example.com"] {
            assert_eq!(host(text).to_string(), text);
        }
        for text in ["/a", "=/a", "/a*"] {
            assert_eq!(path(text).to_string(), text);
        }
    }
}
