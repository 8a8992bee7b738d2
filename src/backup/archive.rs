//! Names of archives, and what an archive says of itself. Only an archive of a run that ended well has a final name.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Database, Mode, Subject};
use crate::snapshot::Labels;

const TIME: &str = "%Y-%m-%dT%H:%M:%S";
/// The same as a glob of borg.
const ANY_TIME: &str = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9][0-9]";
const UNPROVEN: &str = ".unproven";
/// Of a comment, in bytes: it is read with every listing.
const MAX_COMMENT: usize = 16 << 10;

/// An archive's name, read. Neither volumes nor nodes have an `@` in their names, so no two pairs share one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ArchiveName {
    pub volume: String,
    pub node: String,
    pub at: Timestamp,
    /// Its run has not ended well, or not yet.
    pub unproven: bool,
}

/// `shop_data@node1-2026-11-23T02:00:07`, by UTC.
pub fn name(volume: &str, node: &str, at: Timestamp) -> String {
    format!("{}@{}-{}", plain(volume), plain(node), time(at))
}

/// The moment as names have it, and as borg's `--timestamp` wants it.
pub fn time(at: Timestamp) -> String {
    at.strftime(TIME).to_string()
}

/// What it is called as long as its run has not ended well.
pub fn unproven(name: &str) -> String {
    format!("{name}{UNPROVEN}")
}

/// Exactly the archives of one volume of one node, as a glob of borg.
pub fn glob(volume: &str, node: &str) -> String {
    format!("{}@{}-{ANY_TIME}", plain(volume), plain(node))
}

/// Those of them that never got their final name, with the checkpoints that borg leaves behind.
pub fn unproven_glob(volume: &str, node: &str) -> String {
    format!("{}{UNPROVEN}*", glob(volume, node))
}

/// What [`name`] or [`unproven`] made; `None`: somebody else's archive.
pub fn parse(name: &str) -> Option<ArchiveName> {
    let (name, unproven) = match name.split_once(UNPROVEN) {
        Some((name, _)) => (name, true),
        None => (name, false),
    };
    let (volume, rest) = name.split_once('@')?;
    let at = rest.len().checked_sub("2026-11-23T02:00:07".len()).filter(|at| rest.is_char_boundary(*at))?;
    let (node, time) = rest.split_at(at);
    let at = jiff::civil::DateTime::strptime(TIME, time).ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
    let node = node.strip_suffix('-').filter(|node| !node.is_empty() && !volume.is_empty())?;
    Some(ArchiveName { volume: volume.to_owned(), node: node.to_owned(), at, unproven })
}

/// What borg, its globs and its placeholders leave alone.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' }).collect()
}

/// What an archive was, for a restore: kept as its comment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Comment {
    /// Of this form.
    pub skep: u32,
    pub volume: String,
    pub driver: String,
    pub options: Labels,
    pub labels: Labels,
    pub node: String,
    pub stack: Option<String>,
    pub service: Option<String>,
    pub owner: Option<String>,
    /// Container name to the digest of its image.
    pub images: BTreeMap<String, String>,
    /// Container name to the name of its image, as it was asked for.
    pub tags: BTreeMap<String, String>,
    /// Of the service's labels and images, to see whether it has changed since.
    pub spec: String,
    pub mode: Option<Mode>,
    /// Something had to be left out, because it was too long.
    pub shortened: bool,
}

impl Comment {
    /// Of what is saved now.
    pub fn of(subject: &Subject) -> Comment {
        let images: BTreeMap<String, String> =
            subject.containers.iter().map(|container| (container.name.clone(), container.digest.clone())).collect();
        let tags = subject.containers.iter().map(|container| (container.name.clone(), container.image.clone())).collect();
        let labels: Vec<&Labels> = subject.containers.iter().map(|container| &container.labels).collect();
        Comment {
            skep: 1,
            volume: subject.volume.name.clone(),
            driver: subject.volume.driver.clone(),
            options: subject.volume.options.clone(),
            labels: subject.volume.labels.clone(),
            node: subject.node.clone(),
            stack: subject.stack.clone(),
            service: subject.service.clone(),
            owner: subject.owner.clone(),
            spec: digest(&(&images, labels)),
            images,
            tags,
            mode: Some(subject.settings.mode.clone()),
            shortened: false,
        }
    }

    /// As JSON of a bounded length: labels go first where there is too much.
    pub fn text(&self) -> String {
        let text = |comment: &Comment| serde_json::to_string(comment).unwrap_or_default();
        let whole = text(self);
        if whole.len() <= MAX_COMMENT {
            return whole;
        }
        let shorter = Comment { labels: Labels::new(), tags: BTreeMap::new(), shortened: true, ..self.clone() };
        match text(&shorter) {
            short if short.len() <= MAX_COMMENT => short,
            _ => text(&Comment { images: BTreeMap::new(), options: Labels::new(), ..shorter }),
        }
    }

    /// What [`Comment::text`] wrote; `None`: it is somebody else's words.
    pub fn read(text: &str) -> Option<Comment> {
        serde_json::from_str(text).ok().filter(|comment: &Comment| comment.skep > 0)
    }

    /// The database whose dump is in it.
    pub fn database(&self) -> Option<&Database> {
        match &self.mode {
            Some(Mode::Dump(database)) => Some(database),
            _ => None,
        }
    }
}

/// Tells two specs apart; nobody is kept from forging it.
fn digest(value: &impl Serialize) -> String {
    use std::hash::Hasher;
    let mut hasher = fnv::FnvHasher::default();
    hasher.write(&serde_json::to_vec(value).unwrap_or_default());
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn a_name_says_what_it_is_of() {
        let name = name("shop_data", "node-1.example", at("2026-11-23T02:00:07Z"));
        assert_eq!(name, "shop_data@node-1.example-2026-11-23T02:00:07");
        let read = parse(&unproven(&name)).expect("ours");
        assert_eq!((read.volume.as_str(), read.node.as_str(), read.unproven), ("shop_data", "node-1.example", true));
        assert!(!parse(&name).expect("ours").unproven);
        assert!(parse(&format!("{}.checkpoint.1", unproven(&name))).expect("ours").unproven);
        for other in
            ["", "x", "host-2026-11-23T02:00:07", "@n-2026-11-23T02:00:07", "v@2026-11-23T02:00:07", "v@n-2026-13-23T02:00:07", "v@ü"]
        {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_comment_has_a_bound() {
        let labels: Labels = (0..2000).map(|number| (format!("label.{number}"), "x".repeat(40))).collect();
        let comment = Comment { skep: 1, volume: "v".to_owned(), labels, ..Comment::default() };
        let text = comment.text();
        let read = Comment::read(&text).expect("a comment");
        assert!(text.len() <= MAX_COMMENT && read.shortened && read.volume == "v");
        assert_eq!(Comment::read("nightly"), None);
        assert_eq!(Comment::read("{}"), None);
    }

    proptest! {
        #[test]
        fn names_read_back(volume in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,60}", node in "[a-zA-Z0-9][a-zA-Z0-9.-]{0,60}", second in 0i64..4_000_000_000) {
            prop_assume!(!volume.contains(UNPROVEN) && !node.contains(UNPROVEN));
            let at = Timestamp::from_second(second).expect("a time");
            let read = parse(&name(&volume, &node, at)).expect("ours");
            prop_assert_eq!((read.volume, read.node, read.at, read.unproven), (volume, node, at, false));
        }

        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,60}") {
            parse(&text);
            Comment::read(&text);
        }
    }
}
