//! What a restore drill compares: the archive's own list with what was extracted from it, never with the live volume, which has gone on since.

use super::contents::Contents;
use super::judge::size;
use super::{Database, Verdict};

/// Files whose content is compared.
pub const SAMPLE: usize = 200;
/// Of one of them; a larger one would make a drill of a drill.
const LARGEST: u64 = 1 << 30;
/// Findings that are told.
const TOLD: usize = 10;

/// Files chosen by a seed, each with the same chance, while the list passes.
#[derive(Clone, Debug)]
pub struct Sample {
    state: u64,
    seen: u64,
    pub paths: Vec<String>,
}

impl Sample {
    pub fn new(seed: u64) -> Sample {
        Sample { state: seed, seen: 0, paths: Vec::new() }
    }

    /// Another regular file. borg writes what is not UTF-8 as `?`: such names cannot be asked for.
    pub fn push(&mut self, path: &str, size: u64) {
        if size > LARGEST || path.contains(['?', '\u{fffd}']) {
            return;
        }
        self.seen += 1;
        if self.paths.len() < SAMPLE {
            self.paths.push(path.to_owned());
            return;
        }
        let place = self.next() % self.seen;
        if let Some(kept) = usize::try_from(place).ok().and_then(|place| self.paths.get_mut(place)) {
            path.clone_into(kept);
        }
    }

    /// SplitMix64 (Steele, Lea and Flood, 2014): enough for a sample.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// What lies on the disk after the extraction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub named: u64,
    pub symlinks: u64,
    pub bytes: u64,
}

/// A sampled file: what borg says of the archive's bytes, and what those on the disk say. `None`: it could not be read there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashed {
    pub path: String,
    pub archived: Option<String>,
    pub extracted: Option<String>,
}

/// All that a drill learnt.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    pub found: Found,
    pub hashed: Vec<Hashed>,
    /// Whose dump it is, and what came of looking at it and of loading it.
    pub dump: Option<Loaded>,
    /// What borg warned of.
    pub warnings: Vec<String>,
}

/// What came of a dump.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub database: Database,
    /// Is it whole? Its bytes, or why not.
    pub whole: Result<u64, String>,
    pub load: Load,
}

/// What came of loading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Load {
    /// So many tables or collections were there then.
    Counted(u64),
    Failed(String),
    /// Why it was not tried.
    Not(String),
}

/// The verdict of a drill and its sentence.
pub fn judge(contents: &Contents, evidence: &Evidence) -> (Verdict, String) {
    let mut wrong = Vec::new();
    let mut differs = |what: &str, archived: u64, extracted: u64| {
        if archived != extracted {
            wrong.push(format!("the archive has {archived} {what}, and {extracted} came out"));
        }
    };
    differs("files", contents.named(), evidence.found.named);
    differs("symbolic links", contents.symlinks, evidence.found.symlinks);
    differs("bytes", contents.bytes, evidence.found.bytes);
    wrong.extend(evidence.hashed.iter().filter_map(differing));
    wrong.extend(super::restore::losses(&evidence.warnings).iter().map(ToString::to_string));
    let mut said =
        vec![format!("{} files, {}, {} of them compared", evidence.found.named, size(evidence.found.bytes), evidence.hashed.len())];
    let mut doubts = Vec::new();
    if let Some(dump) = &evidence.dump {
        let title = super::dump::title(&dump.database);
        match (&dump.whole, &dump.load) {
            (Err(why), _) => wrong.push(why.clone()),
            (Ok(_), Load::Failed(why)) => wrong.push(format!("the {title} dump cannot be loaded: {why}")),
            (Ok(_), Load::Counted(0)) => wrong.push(format!("the {title} dump was loaded, and nothing was there then")),
            (Ok(_), Load::Counted(count)) => said.push(format!("the {title} dump was loaded: {count} tables")),
            (Ok(bytes), Load::Not(why)) => doubts.push(format!("the {title} dump of {} is whole, but was not loaded: {why}", size(*bytes))),
        }
    }
    if !wrong.is_empty() {
        let more = wrong.len().saturating_sub(TOLD);
        wrong.truncate(TOLD);
        wrong.extend((more > 0).then(|| format!("and {more} more")));
        return (Verdict::Failed, wrong.join("; "));
    }
    // Whoever knows that nobody can load it asked for it: only a missing image is somebody's to put right.
    let verdict = match evidence.warnings.is_empty() {
        true => Verdict::Good,
        false => Verdict::Warning,
    };
    said.extend(doubts);
    (verdict, said.join("; "))
}

fn differing(hashed: &Hashed) -> Option<String> {
    let path = hashed.path.escape_debug();
    match (&hashed.archived, &hashed.extracted) {
        (Some(archived), Some(extracted)) if archived == extracted => None,
        (None, _) => Some(format!("`{path}` cannot be read in the archive")),
        (_, None) => Some(format!("`{path}` did not come out")),
        _ => Some(format!("`{path}` has another content than in the archive")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::backup::contents::{Entry, Kind};

    fn contents() -> Contents {
        let mut contents = Contents::default();
        for (path, kind) in [(".", Kind::Directory), ("a", Kind::File), ("b", Kind::HardLink), ("l", Kind::Symlink)] {
            contents.push(Entry { path, kind, source: if kind == Kind::HardLink { "a" } else { "" }, size: 5 });
        }
        contents
    }

    fn evidence() -> Evidence {
        let same = Hashed { path: "a".into(), archived: Some("00".into()), extracted: Some("00".into()) };
        Evidence { found: Found { named: 2, symlinks: 1, bytes: 5 }, hashed: vec![same], ..Evidence::default() }
    }

    #[test]
    fn what_came_out_is_what_went_in() {
        assert_eq!(judge(&contents(), &evidence()), (Verdict::Good, "2 files, 5 B, 1 of them compared".to_owned()));
        let fewer = Evidence { found: Found { named: 1, ..evidence().found }, ..evidence() };
        assert_eq!(judge(&contents(), &fewer), (Verdict::Failed, "the archive has 2 files, and 1 came out".to_owned()));
        for (archived, extracted, wanted) in [
            (Some("00"), Some("01"), "`a` has another content than in the archive"),
            (None, Some("00"), "`a` cannot be read in the archive"),
            (Some("00"), None, "`a` did not come out"),
        ] {
            let hashed = Hashed { path: "a".into(), archived: archived.map(Into::into), extracted: extracted.map(Into::into) };
            assert_eq!(judge(&contents(), &Evidence { hashed: vec![hashed], ..evidence() }), (Verdict::Failed, wanted.to_owned()));
        }
        let warned = Evidence { warnings: vec!["a: when setting extended attribute: not supported".into()], ..evidence() };
        assert_eq!(judge(&contents(), &warned).0, Verdict::Warning);
        let lost = Evidence { warnings: vec!["a: write: [Errno 28] No space left on device".into()], ..evidence() };
        assert_eq!(judge(&contents(), &lost).0, Verdict::Failed);
    }

    #[test]
    fn a_dump_is_whole_and_loads() {
        let with = |whole: Result<u64, &str>, load| {
            let dump = Loaded { database: Database::Postgres, whole: whole.map_err(str::to_owned), load };
            judge(&contents(), &Evidence { dump: Some(dump), ..evidence() })
        };
        assert_eq!(with(Ok(9), Load::Counted(3)).0, Verdict::Good);
        assert_eq!(with(Ok(9), Load::Counted(0)).0, Verdict::Failed);
        assert_eq!(with(Ok(9), Load::Failed("no".into())).0, Verdict::Failed);
        assert_eq!(with(Err("it breaks off"), Load::Not("x".into())), (Verdict::Failed, "it breaks off".to_owned()));
        let (verdict, said) = with(Ok(9), Load::Not("its image is not on this node".into()));
        assert!(verdict == Verdict::Good && said.ends_with("is whole, but was not loaded: its image is not on this node"), "{said}");
    }

    #[test]
    fn many_findings_are_cut() {
        let hashed = (0..50).map(|n| Hashed { path: n.to_string(), archived: None, extracted: None }).collect();
        let (_, said) = judge(&contents(), &Evidence { hashed, ..evidence() });
        assert!(said.ends_with("; and 40 more"), "{said}");
    }

    proptest! {
        #[test]
        fn a_sample_is_bounded_and_of_what_was_there(seed: u64, count in 0..2000usize) {
            let mut sample = Sample::new(seed);
            (0..count).for_each(|n| sample.push(&format!("f{n}"), 1));
            let distinct: BTreeSet<&String> = sample.paths.iter().collect();
            prop_assert_eq!(distinct.len(), count.min(SAMPLE));
            let mut again = Sample::new(seed);
            (0..count).for_each(|n| again.push(&format!("f{n}"), 1));
            prop_assert_eq!(again.paths, sample.paths);
        }
    }
}
