//! Places for repositories as `backup.targets` lists them: directories and ssh URLs, refused when borg, ssh or a shell could take them
//! for something else.

use super::backup::Target;
use super::given::Given;
use super::settings::{is_off, names};
use crate::diagnostic::{Diagnostic, brief};

type Read<T> = Result<T, Diagnostic>;

/// Where a list of texts says that repositories are to lie.
pub(super) fn targets(given: &Given) -> Read<Vec<Target>> {
    if is_off(given) {
        return Ok(Vec::new());
    }
    let mut targets: Vec<Target> = Vec::new();
    for text in names(given)? {
        let target = target(&text)?;
        if let Some(other) = targets.iter().find(|other| other.location == target.location) {
            let message = format!("`{}` and `{}` are one place", other.name, target.name);
            return Err(Diagnostic::error("target-twice", message).help("keep one of the two"));
        }
        if targets.iter().any(|other| other.name == target.name) {
            let message = format!("two targets are called `{}`", target.name);
            let help = format!("give each a name of its own, as \"{}-2={}\"", target.name, target.location);
            return Err(Diagnostic::error("target-twice", message).help(help));
        }
        targets.push(target);
    }
    Ok(targets)
}

/// Reads `/srv/backups`, `offsite=ssh://user@host:port/path`.
fn target(text: &str) -> Read<Target> {
    let (name, location) = match text.split_once('=').filter(|(name, _)| !name.contains(['/', ':'])) {
        Some((name, location)) => (Some(name.trim()), location.trim()),
        None => (None, text.trim()),
    };
    let bad = |why: String, help: &str| Diagnostic::error("bad-target", format!("`{}` {why}", brief(text))).help(help);
    const EXAMPLE: &str = "write a directory as \"/srv/backups\", or \"offsite=ssh://user@host:22/./backups\"";
    if location.len() > LONGEST_LOCATION || location.contains(|c: char| c.is_control() || c.is_whitespace() || "{}\"'`$\\".contains(c)) {
        return Err(bad("has a character in it that a place for backups cannot have".to_owned(), EXAMPLE));
    }
    let host = if location.starts_with("ssh://") {
        Some(remote(location).map_err(|(why, help)| bad(why, &help))?)
    } else if !location.starts_with('/') {
        let (why, help) = elsewhere(location, EXAMPLE);
        return Err(bad(why, &help));
    } else {
        None
    };
    let location = location.trim_end_matches('/');
    if location.is_empty() || location.split('/').any(|part| part == "..") {
        return Err(bad("is not a directory for backups alone".to_owned(), EXAMPLE));
    }
    let fine = |name: &str| {
        !name.is_empty()
            && name.len() <= 63
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
    };
    match name {
        Some(name) if fine(name) => Ok(Target { name: name.to_owned(), location: location.to_owned() }),
        Some(name) => {
            let help = format!("use letters, digits, `-`, `_` and `.`, as \"offsite={}\"", brief(location));
            Err(bad(format!("has a name that cannot be one: `{}`", brief(name)), &help))
        }
        None => {
            let last = location.rsplit('/').next().unwrap_or_default();
            let name: String =
                host.unwrap_or(last).chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect();
            let name: String = name.trim_start_matches(['-', '_', '.']).chars().take(63).collect();
            match fine(&name) {
                true => Ok(Target { name, location: location.to_owned() }),
                false => Err(bad("needs a name".to_owned(), &format!("write \"backups={}\"", brief(location)))),
            }
        }
    }
}

const LONGEST_LOCATION: usize = 512;

/// The host of an ssh URL that borg and ssh understand as it was meant.
fn remote(url: &str) -> Result<&str, (String, String)> {
    const EXAMPLE: &str = "write it like \"ssh://user@host:22/srv/backups\"; /./ before the path makes it begin at the user's home";
    let bad = |why: &str| (why.to_owned(), EXAMPLE.to_owned());
    let rest = url.strip_prefix("ssh://").unwrap_or(url);
    let (authority, path) = rest.split_once('/').ok_or_else(|| bad("has no path"))?;
    if path.trim_matches(['/', '.']).is_empty() {
        return Err(bad("has no path"));
    }
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if user.is_some_and(|user| user.contains(':')) {
        return Err((
            "has a password in it".to_owned(),
            "leave it out; ssh signs in with a key: ssh-key = \"/run/secrets/backup-key\"".to_owned(),
        ));
    }
    // What begins with a hyphen would be an option of ssh's.
    let word = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    if user.is_some_and(|user| !word(user)) {
        return Err(bad("has a user that ssh cannot have"));
    }
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => {
            (address, port.strip_prefix(':').or((!port.is_empty()).then_some("x")))
        }
        Some(_) => return Err(bad("has a host that cannot be one")),
        None => match host.split_once(':') {
            Some((name, port)) if word(name) => (name, Some(port)),
            None if word(host) => (host, None),
            _ => return Err(bad("has a host that cannot be one")),
        },
    };
    match port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0)) {
        true => Ok(name),
        false => Err(bad("has a port that cannot be one")),
    }
}

/// What somebody may have meant by a location that is neither a directory nor an ssh URL.
fn elsewhere(location: &str, example: &str) -> (String, String) {
    if let Some(path) = location.strip_prefix("file://") {
        return ("is not a place that is known".to_owned(), format!("write \"{}\"", brief(path)));
    }
    if let Some((scheme, _)) = location.split_once("://") {
        return (format!("is on `{}`, where backups are not kept", brief(scheme)), example.to_owned());
    }
    match location.split_once(':').filter(|(host, path)| !host.is_empty() && !path.is_empty() && !host.contains('/')) {
        Some((host, path)) => {
            let path = if path.starts_with('/') { path.to_owned() } else { format!("/./{path}") };
            ("is not a place that is known".to_owned(), format!("write \"ssh://{}{}\"", brief(host), brief(&path)))
        }
        None => ("is a relative path".to_owned(), format!("write it from the root: \"/{}\"", brief(location.trim_start_matches("./")))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// No location that is accepted can be an option, a placeholder of borg's, or several words.
        #[test]
        fn an_accepted_target_is_harmless(text in "\\PC{0,30}|([a-z]{1,4}=)?(ssh://|/)[a-z@:./{}\\[\\]0-9 -]{0,24}") {
            if let Ok(target) = target(&text) {
                prop_assert!(target.location.starts_with('/') || target.location.starts_with("ssh://"));
                let odd = target.location.contains(|c: char| "{}'\"\\".contains(c) || c.is_whitespace() || c.is_control());
                prop_assert!(!odd && !target.location.contains("//-"));
                prop_assert!(!target.name.is_empty() && !target.name.starts_with('-') && !target.name.contains('/'));
            }
        }
    }
}
