//! What is in an archive, learnt from its list before anything is written: how much it is, whether what somebody asks for is there, and
//! whether it would write elsewhere. borg follows symbolic links that it has just made itself, so an archive that holds `x -> /etc` and then
//! `x/passwd` would write there; whoever can write to a repository can make such an archive.

use std::collections::HashSet;

use crate::diagnostic::{Diagnostic, brief};

/// Findings that are told; one is enough to refuse.
const TOLD: usize = 5;
/// Names that are remembered for who misspells one.
const NAMES: usize = 200_000;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    /// Another name of a file that came before, whose name is the entry's source.
    HardLink,
    Directory,
    Symlink,
    /// Devices, named pipes.
    Special,
}

/// One line of borg's list. borg writes what is not UTF-8 as `?`, the same in every line.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    pub path: &'a str,
    pub kind: Kind,
    /// Of a hard link the first name.
    pub source: &'a str,
    pub size: u64,
}

/// The sum of an archive's entries, or of those below the paths that somebody asked for.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// Paths in the archive; empty: everything.
    wanted: Vec<Wanted>,
    pub files: u64,
    pub hard_links: u64,
    pub directories: u64,
    pub symlinks: u64,
    pub special: u64,
    /// Of all files, each once.
    pub bytes: u64,
    links: HashSet<String>,
    folders: HashSet<String>,
    hostile: Vec<String>,
    names: Vec<String>,
}

#[derive(Clone, Debug)]
struct Wanted {
    path: String,
    found: Option<Kind>,
    /// Where the bytes of a hard link are.
    source: String,
}

impl Contents {
    /// Of `wanted` paths, each with all below it; none: of everything.
    pub fn of(wanted: &[String]) -> Contents {
        let wanted = wanted.iter().map(|path| Wanted { path: path.clone(), found: None, source: String::new() }).collect();
        Contents { wanted, ..Contents::default() }
    }

    /// Takes the next line of the list.
    pub fn push(&mut self, entry: Entry<'_>) {
        if !self.wanted.is_empty() && !self.is_wanted(entry) {
            if self.names.len() < NAMES {
                self.names.push(entry.path.to_owned());
            }
            return;
        }
        self.look(entry);
        match entry.kind {
            Kind::File => {
                self.files += 1;
                self.bytes = self.bytes.saturating_add(entry.size);
            }
            Kind::HardLink => self.hard_links += 1,
            Kind::Directory => {
                self.directories += 1;
                self.folders.insert(entry.path.to_owned());
            }
            Kind::Symlink => {
                self.symlinks += 1;
                self.links.insert(entry.path.to_owned());
            }
            Kind::Special => self.special += 1,
        }
    }

    fn is_wanted(&mut self, entry: Entry<'_>) -> bool {
        let mut is_wanted = false;
        for wanted in &mut self.wanted {
            if entry.path == wanted.path {
                wanted.found = Some(entry.kind);
                entry.source.clone_into(&mut wanted.source);
                is_wanted = true;
            } else if below(entry.path, &wanted.path) {
                // A directory need not be there itself.
                wanted.found.get_or_insert(Kind::Directory);
                is_wanted = true;
            }
        }
        is_wanted
    }

    /// Would it write elsewhere?
    fn look(&mut self, entry: Entry<'_>) {
        let why = if !is_local(entry.path) {
            "is no path inside of a directory".to_owned()
        } else if let Some(link) = ancestors(entry.path).find(|place| self.links.contains(*place)) {
            format!("lies below `{}`, which is a symbolic link", brief(link))
        } else if entry.kind == Kind::Symlink && self.folders.contains(entry.path) {
            // borg gives directories their owners and modes last, by their paths.
            "is a directory first and then a symbolic link".to_owned()
        } else if entry.kind == Kind::HardLink
            && !(is_local(entry.source) && ancestors(entry.source).all(|place| !self.links.contains(place)))
        {
            format!("is a hard link to `{}`", brief(entry.source))
        } else {
            return;
        };
        if self.hostile.len() < TOLD {
            self.hostile.push(format!("`{}` {why}", brief(entry.path)));
        }
    }

    /// Regular files, by every name that they have.
    pub fn named(&self) -> u64 {
        self.files + self.hard_links
    }

    /// What a wanted path is; `None`: it was not asked for, or is not there.
    pub fn kind(&self, path: &str) -> Option<Kind> {
        self.wanted.iter().find(|wanted| wanted.path == path)?.found
    }

    /// By which name borg has the bytes of a wanted file: of several names that a file has, only the first has any.
    pub fn holder(&self, path: &str) -> Option<&str> {
        let wanted = self.wanted.iter().find(|wanted| wanted.path == path)?;
        match wanted.found? {
            Kind::File => Some(&wanted.path),
            Kind::HardLink => Some(&wanted.source),
            _ => None,
        }
    }

    /// Is it safe, and is all there that was asked for?
    ///
    /// # Errors
    /// It is not, with what is near.
    pub fn check(&self) -> Result<(), Diagnostic> {
        if let [first, ..] = &self.hostile[..] {
            let finding = Diagnostic::error("hostile-archive", format!("the archive would write outside of its directory: {first}"));
            return Err(finding.help(
                "nothing was written; borg does not make such archives of a volume: ask who did, and take single files with --stdout",
            ));
        }
        let Some(missing) = self.wanted.iter().find(|wanted| wanted.found.is_none()) else { return Ok(()) };
        let finding = Diagnostic::error("no-such-file", format!("there is no `{}` in the archive", brief(&missing.path)));
        let last = missing.path.rsplit('/').next().unwrap_or_default();
        let same = self.names.iter().find(|name| name.rsplit('/').next() == Some(last));
        let near = same.map(String::as_str).or_else(|| crate::diagnostic::nearest(&missing.path, self.names.iter().map(String::as_str)));
        Err(finding.help(near.map_or_else(
            || "`skep backup show ARCHIVE --files` lists what is there".to_owned(),
            |near| format!("did you mean `{}`?", near.escape_debug()),
        )))
    }
}

/// A path of an archive as somebody asks for it: relative to the volume's root, no way out. Empty: everything.
///
/// # Errors
/// It leads out, as a sentence.
pub fn asked(path: &str) -> Result<String, String> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(format!("`{}` leads out of the volume: write the path as `skep backup show --files` has it", brief(path))),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

/// Relative, without a part that leads up. `.` is the volume itself.
fn is_local(path: &str) -> bool {
    path == "." || (!path.is_empty() && path.split('/').all(|part| !matches!(part, "" | "." | "..")))
}

fn below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

/// The directories above, the nearest last.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(end, _)| &path[..end])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry<'a>(kind: Kind, path: &'a str, source: &'a str) -> Entry<'a> {
        Entry { path, kind, source, size: 10 }
    }

    fn checked(wanted: &[&str], entries: &[(Kind, &str, &str)]) -> Result<Contents, String> {
        let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        let mut contents = Contents::of(&wanted);
        entries.iter().for_each(|(kind, path, source)| contents.push(entry(*kind, path, source)));
        contents.check().map_err(|finding| format!("{}; {}", finding.message, finding.help.unwrap_or_default()))?;
        Ok(contents)
    }

    #[test]
    fn an_archive_that_would_write_elsewhere_is_refused() {
        use Kind::{Directory, File, HardLink, Symlink};
        for (entries, wanted) in [
            (&[(Symlink, "x", ""), (File, "x/passwd", "")][..], "`x/passwd` lies below `x`"),
            (&[(Directory, "a", ""), (Symlink, "a/x", ""), (File, "a/x/b/c", "")], "`a/x/b/c` lies below `a/x`"),
            (&[(Symlink, "x", ""), (Directory, "x", ""), (File, "x/y", "")], "`x/y` lies below `x`"),
            (&[(Directory, "x", ""), (Symlink, "x", "")], "`x` is a directory first"),
            (&[(File, "../up", "")], "`../up` is no path inside"),
            (&[(File, "/etc/passwd", "")], "`/etc/passwd` is no path inside"),
            (&[(File, "a/../../up", "")], "is no path inside"),
            (&[(File, "", "")], "is no path inside"),
            (&[(HardLink, "mine", "/etc/shadow")], "is a hard link to `/etc/shadow`"),
            (&[(Symlink, "x", ""), (HardLink, "mine", "x/shadow")], "is a hard link to `x/shadow`"),
        ] {
            let said = checked(&[], entries).expect_err("hostile");
            assert!(said.contains(wanted), "{said}");
        }
    }

    #[test]
    fn what_a_volume_really_holds_is_fine() {
        use Kind::{Directory, File, HardLink, Special, Symlink};
        let entries = [
            (Directory, ".", ""),
            (File, "b", ""),
            (HardLink, "a", "b"),
            (Symlink, "l", ""),
            (File, "l.txt", ""),
            (Directory, "d", ""),
            (Symlink, "d/l", ""),
            (Special, "p", ""),
        ];
        let contents = checked(&[], &entries).unwrap();
        assert_eq!((contents.files, contents.named(), contents.directories, contents.symlinks, contents.bytes), (2, 3, 2, 2, 20));
    }

    #[test]
    fn only_what_is_asked_for_counts() {
        use Kind::{Directory, File, Symlink};
        let entries = [(Directory, "etc", ""), (File, "etc/app.conf", ""), (File, "etcetera", ""), (Symlink, "x", ""), (File, "x/y", "")];
        let contents = checked(&["etc"], &entries).unwrap();
        assert_eq!((contents.files, contents.kind("etc"), contents.kind("x")), (1, Some(Directory), None));
        assert_eq!(checked(&["x/y"], &entries).unwrap().kind("x/y"), Some(File), "borg makes a directory for it");
        assert!(checked(&["x"], &entries).is_err());
        let linked = checked(&["b"], &[(File, "a", ""), (Kind::HardLink, "b", "a")]).unwrap();
        assert_eq!((linked.holder("b"), linked.holder("a")), (Some("a"), None));
        assert!(checked(&["etc/app.cnf"], &entries).unwrap_err().contains("did you mean `etc/app.conf`?"));
        assert!(checked(&["app.conf"], &entries).unwrap_err().contains("did you mean `etc/app.conf`?"));
    }

    #[test]
    fn paths_as_people_write_them() {
        for (path, wanted) in [("/etc/app.conf", "etc/app.conf"), ("./a//b/", "a/b"), (".", ""), ("", ""), ("a/..b", "a/..b")] {
            assert_eq!(asked(path), Ok(wanted.to_owned()), "{path}");
        }
        for path in ["..", "a/../../b", "/../etc"] {
            assert!(asked(path).unwrap_err().contains("leads out"), "{path}");
        }
    }

    proptest! {
        /// Whatever an archive holds: when it is not refused, no entry's place is below a link that the archive made.
        #[test]
        fn nothing_is_written_through_a_link(paths in proptest::collection::vec(("[ab./]{1,6}", 0..3u8), 0..12)) {
            let mut contents = Contents::default();
            let mut links: HashSet<std::path::PathBuf> = HashSet::new();
            let mut escapes = false;
            for (path, kind) in &paths {
                let kind = [Kind::File, Kind::Directory, Kind::Symlink][usize::from(*kind)];
                let place = std::path::Path::new(path);
                escapes |= place.is_absolute() || place.components().any(|part| part == std::path::Component::ParentDir);
                escapes |= place.ancestors().skip(1).any(|above| links.contains(above));
                if kind == Kind::Symlink {
                    links.insert(place.components().collect());
                }
                contents.push(Entry { path, kind, source: "", size: 0 });
            }
            prop_assert!(!escapes || contents.check().is_err(), "{:?}", paths);
        }
    }
}
