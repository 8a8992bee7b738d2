//! `skep backup list`, `show` and `diff`: which archives there are, what they were, and what differs between two.

use std::collections::BTreeMap;

use indicatif::{HumanBytes, HumanCount};
use jiff::Timestamp;
use serde::Serialize;

use crate::backup::archive::{Comment, parse};
use crate::backup::contents::Contents;
use crate::backup::listing::{Archive, Choice, choose, clock, of_volume, split};
use crate::backup::report::{Change, FileEntry};
use crate::backup::{Run, Runs, Stats, Task, Verdict as Ended};

use super::repositories::{Chosen, Place, Repositories, said, unread};
use super::{Failure, Outcome, Verdict, on_all_threads, output};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  skep backup list\n  skep backup list shop_data\n  skep backup list --repository /mnt/disk/node1 --passphrase-file key.txt\n  skep backup list --repository /var/backups/old --unencrypted"
)]
pub(super) struct ListArgs {
    /// Of this volume only
    volume: Option<String>,
    /// Archives of runs that did not end well, too
    #[arg(long)]
    unproven: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  skep backup show shop_data\n  skep backup show shop_data@node1-2026-11-23T02:00:07 --files\n  skep backup show shop_data --at 2d"
)]
pub(super) struct ShowArgs {
    /// An archive, or a volume, whose latest is meant
    #[arg(value_name = "ARCHIVE|VOLUME")]
    what: String,
    /// The volume as it was then: 2026-11-20, "2026-11-20 03:00", 2d
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// List its files
    #[arg(long)]
    files: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Lines begin with + for what is only in the second, - for what is only in the first, and M for what differs.")]
pub(super) struct DiffArgs {
    /// An archive
    #[arg(value_name = "ARCHIVE")]
    one: String,
    /// Another one of the same repository
    #[arg(value_name = "ARCHIVE")]
    other: String,
    /// Print JSON, a line each
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// One line of the list.
#[derive(Debug, Serialize)]
struct Row {
    volume: Option<String>,
    archive: String,
    at: Option<Timestamp>,
    node: Option<String>,
    target: String,
    repository: String,
    files: Option<u64>,
    size: Option<u64>,
    verdict: &'static str,
    /// When it was last restored on trial, and how that went.
    drilled: Option<Timestamp>,
    drill: Option<Ended>,
}

pub(super) fn list(args: &ListArgs) -> Outcome {
    on_all_threads(async {
        let repositories = args.place.open().await?;
        let (found, complete) = repositories.archives().await?;
        let runs = repositories.runs().await;
        let known = Known::of(&runs);
        let mut rows = Vec::new();
        let mut hidden = 0;
        for (opened, archives) in &found {
            for archive in of_volume(archives, args.volume.as_deref()) {
                if !archive.is_proven && !args.unproven {
                    hidden += 1;
                    continue;
                }
                rows.push(row(archive, &opened.target, &opened.reader.repository.location, &known));
            }
        }
        if let (true, Some(volume)) = (rows.is_empty() && hidden == 0, &args.volume) {
            let all: Vec<Archive> = found.into_iter().flat_map(|(_, archives)| archives).collect();
            let missing = choose(&all, Some(volume), &Choice::Latest).map(|_| Verdict::Fine);
            return missing.map_err(|finding| Failure::Findings(vec![finding]));
        }
        if args.json {
            output::json(&rows)?;
        } else {
            output::print(&table(&rows, repositories.all.len() > 1))?;
            if hidden > 0 {
                output::note(&format!("{} of runs that did not end well: --unproven shows them", output::count(hidden, "archive")));
            }
        }
        Ok(if complete { Verdict::Fine } else { Verdict::Wrong })
    })?
}

/// Runs by the archives that they were about.
struct Known<'a> {
    saved: BTreeMap<&'a str, &'a Run>,
    drilled: BTreeMap<&'a str, &'a Run>,
}

impl<'a> Known<'a> {
    fn of(runs: &'a Runs) -> Known<'a> {
        let by = |task: Task| {
            let of_task = runs.iter().filter(move |(key, _)| key.task == task);
            let all = of_task.flat_map(|(_, series)| series.success.iter().chain(&series.runs));
            all.filter_map(|run| Some((run.archive.as_deref()?, run))).collect()
        };
        Known { saved: by(Task::Save), drilled: by(Task::Drill) }
    }
}

fn row(archive: &Archive, target: &str, repository: &str, known: &Known<'_>) -> Row {
    let run = known.saved.get(archive.name.as_str()).filter(|run| run.repository.location == repository);
    let drill = known.drilled.get(archive.name.as_str()).filter(|run| run.repository.location == repository);
    let verdict = match (archive.is_proven, &archive.volume, run.map(|run| run.verdict)) {
        (false, ..) => "unproven",
        (true, None, _) => "not ours",
        (true, Some(_), Some(Ended::Warning)) => "warning",
        (true, Some(_), _) => "good",
    };
    Row {
        volume: archive.volume.clone(),
        archive: archive.name.clone(),
        at: archive.at,
        node: archive.node.clone(),
        target: target.to_owned(),
        repository: repository.to_owned(),
        files: run.map(|run| run.stats.files),
        size: run.map(|run| run.stats.original),
        verdict,
        drilled: drill.map(|run| run.ended),
        drill: drill.map(|run| run.verdict),
    }
}

fn table(rows: &[Row], with_target: bool) -> String {
    let mut head = ["VOLUME", "ARCHIVE", "WHEN (UTC)", "FILES", "SIZE", "VERDICT"].map(str::to_owned).to_vec();
    head.extend(with_target.then(|| "TARGET".to_owned()));
    let cells = |row: &Row| {
        let or = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let drill = match row.drill {
            Some(Ended::Good | Ended::Warning) => ", drilled",
            Some(Ended::Failed) => ", drill FAILED",
            None => "",
        };
        let mut cells = vec![
            or(row.volume.clone()),
            row.archive.clone(),
            or(row.at.map(|at| at.strftime("%Y-%m-%d %H:%M").to_string())),
            or(row.files.map(|files| HumanCount(files).to_string())),
            or(row.size.map(|size| HumanBytes(size).to_string())),
            format!("{}{drill}", row.verdict),
        ];
        cells.extend(with_target.then(|| row.target.clone()));
        cells
    };
    let lines: Vec<Vec<String>> = std::iter::once(head).chain(rows.iter().map(cells)).collect();
    let table = if rows.is_empty() { String::new() } else { output::aligned(&lines, 0) + "\n" };
    format!("{table}{}\n", output::count(rows.len(), "archive"))
}

/// What `ARCHIVE|VOLUME` with or without a time means.
pub(super) async fn chosen<'a>(repositories: &'a Repositories, what: &str, at: Option<&str>) -> Result<Chosen<'a>, Failure> {
    let (volume, archive) = match what.contains("::") {
        true => split(what),
        false if parse(what).is_some() => (None, Some(what)),
        false => (Some(what), None),
    };
    let choice = repositories.choice(archive, at)?;
    let found = repositories.choose(volume, &choice).await;
    match (found, archive, at) {
        // A foreign archive's name looks like a volume's.
        (Err(failure), None, None) => {
            let named = repositories.choice(Some(what), None)?;
            repositories.choose(None, &named).await.map_err(|_| failure)
        }
        (found, ..) => found,
    }
}

/// All that is known of an archive.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    archive: &'a str,
    volume: Option<&'a str>,
    at: Option<Timestamp>,
    target: &'a str,
    repository: &'a str,
    hostname: &'a str,
    stats: Stats,
    comment: Option<&'a Comment>,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Vec<File>>,
}

#[derive(Debug, Serialize)]
struct File {
    mode: String,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: String,
    path: String,
}

impl File {
    fn of(entry: &FileEntry) -> File {
        File {
            mode: entry.mode.clone(),
            uid: entry.uid.unwrap_or_default(),
            gid: entry.gid.unwrap_or_default(),
            size: entry.size,
            mtime: entry.mtime.clone(),
            path: entry.path.clone(),
        }
    }

    fn line(&self) -> String {
        let time = self.mtime.get(..19).unwrap_or(&self.mtime);
        format!("{}  {:>5} {:>5} {:>12}  {time}  {}\n", self.mode, self.uid, self.gid, self.size, output::harmless(&self.path))
    }
}

pub(super) fn show(args: &ShowArgs) -> Outcome {
    on_all_threads(async {
        let repositories = args.place.open().await?;
        let chosen = chosen(&repositories, &args.what, args.at.as_deref()).await?;
        let reader = &chosen.opened.reader;
        let known = reader.known(&chosen.archive.name, &repositories.stop).await.map_err(said)?;
        if args.files && !args.json {
            // A list may be longer than memory: each line goes at once.
            output::note(&format!(
                "{}, the files of {}",
                chosen.archive.at.map(clock).unwrap_or_default(),
                output::harmless(&chosen.archive.name)
            ));
            files(&chosen, &repositories).await?;
            return Ok(Verdict::Fine);
        }
        let mut listed = Vec::new();
        if args.files {
            let mut each = |entry: &FileEntry| listed.push(File::of(entry));
            reader.contents(&chosen.archive.name, &[], &mut each, &repositories.stop).await.map_err(unread)?;
        }
        let shown = Shown {
            archive: &chosen.archive.name,
            volume: chosen.archive.volume.as_deref(),
            at: chosen.archive.at,
            target: &chosen.opened.target,
            repository: &reader.repository.location,
            hostname: &known.hostname,
            stats: known.stats,
            comment: known.comment.as_ref(),
            files: args.files.then_some(listed),
        };
        match args.json {
            true => output::json(&shown)?,
            false => output::print(&description(&shown))?,
        }
        Ok(Verdict::Fine)
    })?
}

async fn files(chosen: &Chosen<'_>, repositories: &Repositories) -> Result<Contents, Failure> {
    let mut failed = None;
    let mut each = |entry: &FileEntry| {
        if failed.is_none() {
            failed = output::print(&File::of(entry).line()).err();
        }
    };
    let contents = chosen.opened.reader.contents(&chosen.archive.name, &[], &mut each, &repositories.stop).await.map_err(unread)?;
    failed.map_or(Ok(contents), Err)
}

fn description(shown: &Shown<'_>) -> String {
    let mut rows = vec![
        ("archive", shown.archive.to_owned()),
        ("made", shown.at.map(clock).unwrap_or_else(|| "-".to_owned())),
        ("repository", shown.repository.to_owned()),
        (
            "size",
            format!(
                "{} files, {}, compressed {}, {} of that in this archive only",
                HumanCount(shown.stats.files),
                HumanBytes(shown.stats.original),
                HumanBytes(shown.stats.compressed),
                HumanBytes(shown.stats.deduplicated)
            ),
        ),
    ];
    match shown.comment {
        None => rows.push(("", format!("made on {} by somebody else than Skep", shown.hostname))),
        Some(comment) => {
            let map =
                |map: &BTreeMap<String, String>| map.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("  ");
            let driver = if comment.driver.is_empty() { "local" } else { &comment.driver };
            rows.push(("volume", format!("{} of {} ({driver})", comment.volume, comment.node)));
            let more = [
                ("options", map(&comment.options)),
                ("labels", map(&comment.labels)),
                ("stack", comment.stack.clone().unwrap_or_default()),
                ("service", comment.service.clone().unwrap_or_default()),
                ("owner", comment.owner.clone().unwrap_or_default()),
                ("mode", comment.mode.as_ref().map(mode).unwrap_or_default()),
                ("dump", comment.database().map(|database| crate::backup::dump::name(database).to_owned()).unwrap_or_default()),
            ];
            rows.extend(more.into_iter().filter(|(_, text)| !text.is_empty()));
            for (container, image) in &comment.tags {
                let digest = comment.images.get(container).map(String::as_str).unwrap_or_default();
                rows.push(("image", format!("{image}  {digest}  in {container}")));
            }
            rows.push(("spec", comment.spec.clone()));
        }
    }
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(name, text)| vec![name.to_owned(), text]).collect();
    output::aligned(&rows, 0)
}

fn mode(mode: &crate::backup::Mode) -> String {
    match mode {
        crate::backup::Mode::Hot => "hot".to_owned(),
        crate::backup::Mode::Pause => "pause".to_owned(),
        crate::backup::Mode::Stop => "stop".to_owned(),
        crate::backup::Mode::Dump(database) => format!("{} dump", crate::backup::dump::title(database)),
    }
}

pub(super) fn diff(args: &DiffArgs) -> Outcome {
    on_all_threads(async {
        let repositories = args.place.open().await?;
        let one = repositories.choose(None, &repositories.choice(Some(&args.one), None)?).await?;
        let all = one.opened.reader.archives(&repositories.stop).await.map_err(said)?;
        let choice = Choice::Named(args.other.clone());
        let other = choose(&all, None, &choice).map_err(|finding| Failure::Findings(vec![finding]))?;
        let (mut count, mut failed) = (0usize, None);
        let mut each = |change: Change| {
            count += 1;
            let text = match args.json {
                true => serde_json::json!({ "path": change.path, "changes": change.changes }).to_string(),
                false => changed(&change),
            };
            failed = output::print(&text).err();
            failed.is_none()
        };
        one.opened.reader.differences(&one.archive.name, &other.name, &mut each, &repositories.stop).await.map_err(said)?;
        if let Some(failure) = failed {
            return Err(failure);
        }
        output::note(&if count == 0 { "nothing differs".to_owned() } else { format!("{} differ", output::count(count, "path")) });
        Ok(Verdict::Fine)
    })?
}

/// `M etc/app.conf  12 B added, 3 B removed`
fn changed(change: &Change) -> String {
    let kind = |change: &serde_json::Value| change["type"].as_str().unwrap_or_default().to_owned();
    let kinds: Vec<String> = change.changes.iter().map(kind).collect();
    let is = |prefix: &str| kinds.iter().any(|kind| kind.starts_with(prefix));
    let sign = if is("added") {
        '+'
    } else if is("removed") {
        '-'
    } else {
        'M'
    };
    let detail = |change: &serde_json::Value| match (change["added"].as_u64(), change["removed"].as_u64()) {
        (Some(added), Some(removed)) => format!("{} added, {} removed", HumanBytes(added), HumanBytes(removed)),
        _ => kind(change),
    };
    let details: Vec<String> = if sign == 'M' { change.changes.iter().map(detail).collect() } else { Vec::new() };
    format!("{sign} {}  {}", output::harmless(&change.path), details.join(", ")).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_by_a_sign() {
        for (changes, wanted) in [
            (r#"[{"type": "modified", "added": 12, "removed": 3}]"#, "M a  12 B added, 3 B removed"),
            (r#"[{"type": "added", "size": 5}]"#, "+ a"),
            (r#"[{"type": "removed directory"}]"#, "- a"),
            (r#"[{"type": "mode", "old_mode": "-rw", "new_mode": "-r-"}, {"type": "owner"}]"#, "M a  mode, owner"),
        ] {
            let change = Change { path: "a".into(), changes: serde_json::from_str(changes).expect("JSON") };
            assert_eq!(changed(&change), wanted);
        }
    }

    #[test]
    fn a_table_says_which_are_good() {
        let name = "shop@n1-2026-11-23T02:00:07";
        let known = Known { saved: BTreeMap::new(), drilled: BTreeMap::new() };
        let rows = [
            row(&Archive::of(name, None), "disk", "/b", &known),
            row(&Archive::of(&format!("{name}.unproven"), None), "disk", "/b", &known),
            row(&Archive::of("old-1", None), "disk", "/b", &known),
        ];
        let text = table(&rows, false);
        assert!(text.contains("shop    shop@n1-2026-11-23T02:00:07           2026-11-23 02:00  -      -     good"), "{text}");
        assert!(text.contains("unproven\n-       old-1") && text.ends_with("3 archives\n"), "{text}");
    }
}
