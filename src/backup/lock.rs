//! Who holds a repository's lock, and whether it may be broken: only when the journal proves that the holder is dead. borg names its
//! locks `HOST@ID.PID-THREAD`, in a directory `lock.exclusive` and a file `lock.roster` (borg/locking.py); the host is the name that
//! we gave the run. A repository over ssh is locked by the server's process, which ends with the connection.

use std::collections::BTreeSet;

use super::command::holder;

/// May a lock with these holders be broken, if `dead` are the runs whose processes are proven dead?
///
/// # Errors
/// Why not, in words.
pub fn may_break(holders: &[String], dead: &BTreeSet<String>) -> Result<(), String> {
    if holders.is_empty() {
        return Err("nobody is known to hold the lock".to_owned());
    }
    let dead: BTreeSet<String> = dead.iter().map(|run| holder(run)).collect();
    match holders.iter().find(|name| !dead.contains(host(name))) {
        None => Ok(()),
        Some(alive) => Err(format!("`{}` holds the lock, and is not known to be dead", crate::diagnostic::brief(alive))),
    }
}

/// `skep-RUN` of `skep-RUN.1234-0`, and of `skep-RUN@5678.1234-0`.
fn host(name: &str) -> &str {
    let name = name.rsplit_once('.').map_or(name, |(name, _)| name);
    name.split_once('@').map_or(name, |(host, _)| host)
}

/// The hosts in a `lock.roster`: `{"exclusive": [["HOST@ID", PID, THREAD]], "shared": [...]}`.
pub fn roster(text: &str) -> Vec<String> {
    let parsed: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let lists = ["exclusive", "shared"].into_iter().filter_map(|kind| parsed.get(kind)?.as_array());
    lists.flatten().filter_map(|entry| Some(format!("{}.0-0", entry.get(0)?.as_str()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_dead_lose_their_locks() {
        let dead: BTreeSet<String> = ["20261123T020007-a1b2".to_owned()].into();
        let ours = "skep-20261123T020007-a1b2";
        for (holders, broken) in [
            (vec![format!("{ours}.4711-0")], true),
            (vec![format!("{ours}@93823.4711-0"), format!("{ours}.4712-0")], true),
            (vec![format!("{ours}.4711-0"), "skep-20261123T020008-ffff.1-0".to_owned()], false),
            (vec!["otherhost@123.99-0".to_owned()], false),
            (vec![], false),
        ] {
            assert_eq!(may_break(&holders, &dead).is_ok(), broken, "{holders:?}");
        }
    }

    #[test]
    fn a_roster_names_hosts() {
        let text = r#"{"exclusive": [["skep-r1", 4711, 0]], "shared": [["other@12", 1, 0]]}"#;
        assert_eq!(roster(text), ["skep-r1.0-0", "other@12.0-0"]);
        assert_eq!(may_break(&roster(text)[..1], &["r1".to_owned()].into()), Ok(()));
        for other in ["", "[]", "{\"exclusive\": 3}", "{\"shared\": [[], [1]]}"] {
            assert!(roster(other).is_empty(), "{other}");
        }
    }
}
