//! The shape of the house, held by a test: who may import whom, and that deciding files stay pure.
//! Reads `src/` as text with the standard library only; the map it checks is the one in `src/lib.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Top-level modules by rank. Imports go down only; rank 2 features never import each other.
const RANKS: [(u8, &[&str]); 7] = [
    (0, &["diagnostic", "snapshot", "telemetry", "outbound"]),
    (1, &["label", "config", "provider", "store", "handover"]),
    (2, &["route", "upstream", "traffic", "certificate", "auth", "policy", "volume", "backup", "project", "node", "peer"]),
    (3, &["state"]),
    (4, &["proxy", "console"]),
    (5, &[]), // every child file
    (6, &["server", "cli", "main"]),
];

/// Assemblers: the only files that may know everything.
const ASSEMBLERS: [&str; 4] = ["main", "cli", "server", "lib"];

/// Children that are pure although they are children: grammars, formats, parts of a decision.
const PURE_CHILDREN: [&str; 9] = ["auth", "backup", "label", "config", "route", "upstream", "traffic", "state", "certificate"];

/// Children of pure parents that act all the same, each for a reason: checks ask tasks over the network, certificates are asked of
/// authorities, DNS servers and the file system, users of directories and files, passwords are hashed aside, a cache has its clock.
const ACTING_CHILDREN: &[(&str, &str)] = &[
    ("auth", "connection"),
    ("auth", "dialer"),
    ("auth", "file"),
    ("auth", "gate"),
    ("auth", "hashing"),
    ("auth", "keys"),
    ("auth", "ldap"),
    ("auth", "pool"),
    ("auth", "reception"),
    ("auth", "register"),
    ("auth", "roster"),
    ("auth", "tree"),
    ("auth", "verified"),
    ("backup", "borg"),
    ("backup", "courier"),
    ("backup", "duty"),
    ("backup", "engine"),
    ("backup", "exec"),
    ("backup", "execution"),
    ("backup", "feed"),
    ("backup", "guard"),
    ("backup", "keys"),
    ("backup", "pipes"),
    ("backup", "placing"),
    ("backup", "quiet"),
    ("backup", "reader"),
    ("backup", "restorer"),
    ("backup", "room"),
    ("backup", "runner"),
    ("backup", "shelf"),
    ("backup", "smtp"),
    ("backup", "trial"),
    ("backup", "unlock"),
    ("backup", "vault"),
    ("backup", "webhook"),
    ("certificate", "account"),
    ("certificate", "acme"),
    ("certificate", "api"),
    ("certificate", "cloudflare"),
    ("certificate", "dns"),
    ("certificate", "files"),
    ("certificate", "hook"),
    ("certificate", "journal"),
    ("certificate", "local"),
    ("certificate", "order"),
    ("certificate", "ovh"),
    ("certificate", "probe"),
    ("certificate", "propagation"),
    ("certificate", "publish"),
    ("certificate", "rfc2136"),
    ("certificate", "shelf"),
    ("certificate", "transport"),
    ("certificate", "unverified"),
    ("certificate", "zone"),
    ("upstream", "probe"),
];

/// Neighbours of one rank that may see each other: the configuration writes durations and meanings as labels do, and a
/// snapshot carries the findings about the stack files that it was read from.
const NEIGHBOURS: [(&str, &str); 2] = [("config", "label"), ("snapshot", "diagnostic")];

/// What a deciding file must not name: the world outside.
const WORLD: [&str; 16] = [
    "tokio::",
    "pingora_",
    "hyper::",
    "bollard::",
    "ldap3::",
    "axum::",
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::env",
    "std::process",
    "Instant::now",
    "SystemTime::now",
    "Timestamp::now",
    "fastrand::",
    "rand::",
];

struct Source {
    path: PathBuf,
    /// `proxy` for `src/proxy.rs` and for `src/proxy/pingora.rs`.
    parent: String,
    child: Option<String>,
    /// Without its `#[cfg(test)]` part.
    code: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let relative = path.strip_prefix(&root).unwrap().with_extension("");
            let parts: Vec<String> = relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("\n#[cfg(test)]").next().unwrap().to_owned();
            assert!(parts.len() <= 2, "{}: nothing is deeper than src/x/y.rs", path.display());
            assert!(parts.last().unwrap() != "mod", "{}: pairs are foo.rs and foo/, never mod.rs", path.display());
            assert!(text.starts_with("//!"), "{}: open each file with why it exists", path.display());
            found.push(Source { path, parent: parts[0].clone(), child: parts.get(1).cloned(), code });
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

fn is_pure_child(source: &Source) -> bool {
    let own = (source.parent.as_str(), source.child.as_deref().unwrap_or_default());
    PURE_CHILDREN.contains(&own.0) && !ACTING_CHILDREN.contains(&own)
}

fn rank(module: &str) -> u8 {
    RANKS
        .iter()
        .find(|(_, modules)| modules.contains(&module))
        .map(|(rank, _)| *rank)
        .unwrap_or_else(|| panic!("no rank for module {module}"))
}

/// The modules below `crate::` that `code` names, with the child where one is named.
fn imports(code: &str) -> Vec<(String, Option<String>)> {
    let mut found = Vec::new();
    for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
        for piece in line.split("crate::").skip(1) {
            let name = |text: &str| text.chars().take_while(|letter| letter.is_ascii_lowercase() || *letter == '_').collect::<String>();
            let module = name(piece);
            let rest = piece[module.len()..].strip_prefix("::").map(name).filter(|child| !child.is_empty());
            if !module.is_empty() && (rest.is_some() || piece[module.len()..].starts_with("::") || piece[module.len()..].starts_with(';')) {
                found.push((module, rest));
            }
        }
    }
    found
}

#[test]
fn imports_go_down_only() {
    let sources = sources();
    let children: BTreeMap<&str, Vec<&str>> = sources.iter().fold(BTreeMap::new(), |mut map, source| {
        if let Some(child) = &source.child {
            map.entry(source.parent.as_str()).or_insert_with(Vec::new).push(child.as_str());
        }
        map
    });
    let mut wrong = Vec::new();
    let mut edges = 0;
    for source in sources.iter().filter(|source| !ASSEMBLERS.contains(&source.parent.as_str())) {
        let acting = source.child.is_some() && !is_pure_child(source);
        let own = if acting { 5 } else { rank(&source.parent) };
        for (module, child) in imports(&source.code) {
            edges += 1;
            if module == source.parent || NEIGHBOURS.contains(&(source.parent.as_str(), module.as_str())) {
                continue;
            }
            let down = rank(&module) < own;
            let into_a_child =
                child.as_deref().is_some_and(|child| children.get(module.as_str()).is_some_and(|list| list.contains(&child)));
            let acts = ACTING_CHILDREN.contains(&(module.as_str(), child.as_deref().unwrap_or_default()));
            let pure_child = PURE_CHILDREN.contains(&module.as_str()) && !acts;
            if !down || (into_a_child && !pure_child) {
                wrong.push(format!("{}: crate::{module}{}", source.path.display(), child.map(|c| format!("::{c}")).unwrap_or_default()));
            }
        }
    }
    assert!(edges > 30, "the test reads imports: {edges}");
    assert!(wrong.is_empty(), "imports that go up or sideways:\n{}", wrong.join("\n"));
}

#[test]
fn deciding_files_do_not_touch_the_world() {
    let mut wrong = Vec::new();
    for source in sources() {
        let deciding = !ASSEMBLERS.contains(&source.parent.as_str()) && (source.child.is_none() || is_pure_child(&source));
        if !deciding {
            continue;
        }
        for line in source.code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            wrong.extend(
                WORLD
                    .iter()
                    .filter(|name| line.contains(**name))
                    .map(|name| format!("{}: {name} in `{}`", source.path.display(), line.trim())),
            );
        }
    }
    assert!(wrong.is_empty(), "deciding files that act:\n{}", wrong.join("\n"));
}

#[test]
fn rooms_have_nouns() {
    for source in sources() {
        let name = source.child.unwrap_or(source.parent);
        for empty in ["util", "helper", "manager", "common", "misc", "shared"] {
            assert!(!name.contains(empty), "{}: a room without a noun", source.path.display());
        }
    }
}
