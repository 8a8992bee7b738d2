//! The index behind routing: hosts by hash, wildcards by suffix, paths by their prefixes, then few conditions.
//! What a lookup costs does not grow with the number of hosts, and all that it holds grows linearly with the routes.

use std::cmp::Reverse;
use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;

use super::condition::Condition;
use super::path::{canonical_path, is_plain, other_readings, readable};
use super::pattern::{HostPattern, PathPattern, parent};
use super::{Head, Matcher};

/// Why one route goes before another; greatest first. Explicit priority (none is 0), then exact host > wildcard > any, then longer path,
/// for equal paths exact > prefix, then more conditions, then the older service, then its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    pub priority: i32,
    /// 2 exact, 1 wildcard, 0 any.
    pub host: u8,
    /// In bytes of the readable form.
    pub path_length: usize,
    /// 2 exact, 1 prefix on segments, 0 string prefix.
    pub path_kind: u8,
    pub conditions: usize,
    pub age: Reverse<(Timestamp, String)>,
}

/// One row on the way into the table.
#[derive(Clone, Debug)]
pub struct Entry<T> {
    pub matcher: Matcher,
    pub created: Timestamp,
    /// The service's name: the last tie-break.
    pub owner: String,
    pub payload: T,
}

/// Two entries with the same priority, host, path and conditions: `kept` (older) wins, `refused` never matches. Indices into the build's input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub kept: usize,
    pub refused: usize,
    pub host: HostPattern,
    pub path: PathPattern,
}

/// A candidate of [`Table::explain`], best first.
#[derive(Clone, Debug)]
pub struct Candidate<'a, T> {
    pub payload: &'a T,
    pub rank: &'a Rank,
    pub host: HostPattern,
    pub path: PathPattern,
    /// `Ok`: it matches (the first such one wins). `Err`: what did not fit, in words (``header X-Beta is "0", wants Header(`X-Beta`, `1`)``).
    pub verdict: Result<(), String>,
}

/// One host of one entry.
#[derive(Debug)]
struct Row {
    /// Index into the build's input.
    entry: usize,
    rank: Rank,
    host: HostPattern,
    path: PathPattern,
    conditions: Vec<Condition>,
}

impl Row {
    fn fits(&self, head: &Head<'_>, path: &str) -> bool {
        self.path.fits(path) && self.conditions.iter().all(|condition| condition.holds(head, path))
    }

    fn verdict(&self, head: &Head<'_>, path: &str) -> Result<(), String> {
        if !self.path.fits(path) {
            return Err(match &self.path {
                PathPattern::Exact(wanted) => format!("path is {path}, wants exactly {wanted}"),
                PathPattern::Prefix(wanted) => format!("path is {path}, wants {wanted} or below it"),
                PathPattern::Start(wanted) => format!("path is {path}, wants one that starts with {wanted}"),
            });
        }
        let missed: Vec<_> = self.conditions.iter().filter(|one| !one.holds(head, path)).map(|one| one.why(head, path)).collect();
        if missed.is_empty() { Ok(()) } else { Err(missed.join("; ")) }
    }
}

/// The rows whose pattern has this text, and the next shorter text in the bucket that this one starts with.
#[derive(Debug)]
struct Node {
    text: String,
    parent: Option<usize>,
    /// Best first.
    rows: Vec<usize>,
}

/// The rows of one host pattern, by path. The nodes are sorted by text: every text that a path starts with is the last node not
/// after the path, or up the parents of that node. So one binary search finds them all, string prefixes as well as segments.
#[derive(Debug, Default)]
struct Bucket {
    nodes: Vec<Node>,
}

impl Bucket {
    fn build(mut rows: Vec<usize>, all: &[Row]) -> Bucket {
        rows.sort_by(|one, two| all[*one].path.text().cmp(all[*two].path.text()).then(one.cmp(two)));
        let mut nodes: Vec<Node> = Vec::new();
        for row in rows {
            let text = all[row].path.text();
            match nodes.last_mut().filter(|node| node.text == text) {
                Some(node) => node.rows.push(row),
                None => {
                    let parent = prefix_of(&nodes, nodes.len().checked_sub(1), text);
                    nodes.push(Node { text: text.to_owned(), parent, rows: vec![row] });
                }
            }
        }
        Bucket { nodes }
    }

    /// The nodes whose text `path` starts with, longest first.
    fn nodes<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a Node> {
        let before = self.nodes.partition_point(|node| node.text.as_str() <= path);
        let longest = prefix_of(&self.nodes, before.checked_sub(1), path);
        std::iter::successors(longest, |at| self.nodes[*at].parent).map(|at| &self.nodes[at])
    }
}

/// From `at` upwards, the first node whose text `path` starts with.
fn prefix_of(nodes: &[Node], at: Option<usize>, path: &str) -> Option<usize> {
    std::iter::successors(at, |at| nodes[*at].parent).find(|at| path.starts_with(&nodes[*at].text))
}

/// The immutable, indexed table.
#[derive(Debug)]
pub struct Table<T> {
    payloads: Vec<T>,
    /// Best first, so that a row's index is its place in the order.
    rows: Vec<Row>,
    exact: HashMap<String, Bucket>,
    /// By the part behind `*.`.
    wildcard: HashMap<String, Bucket>,
    any: Bucket,
}

impl<T> Table<T> {
    /// Indexes `entries`. Order of the input does not matter.
    pub fn build(entries: Vec<Entry<T>>) -> (Table<T>, Vec<Conflict>) {
        let mut rows: Vec<Row> = entries.iter().enumerate().flat_map(|(index, entry)| rows_of(index, entry)).collect();
        rows.sort_by(|one, two| {
            let rest = (&one.conditions, &one.host, &one.path, one.entry);
            two.rank.cmp(&one.rank).then_with(|| rest.cmp(&(&two.conditions, &two.host, &two.path, two.entry)))
        });
        let (rows, conflicts) = refuse_copies(rows);
        let mut buckets: HashMap<&HostPattern, Vec<usize>> = HashMap::new();
        for (index, row) in rows.iter().enumerate() {
            buckets.entry(&row.host).or_default().push(index);
        }
        let (mut exact, mut wildcard, mut any) = (HashMap::new(), HashMap::new(), Bucket::default());
        for (host, members) in buckets {
            let bucket = Bucket::build(members, &rows);
            match host {
                HostPattern::Exact(name) => drop(exact.insert(name.clone(), bucket)),
                HostPattern::Wildcard(suffix) => drop(wildcard.insert(suffix.clone(), bucket)),
                HostPattern::Any => any = bucket,
            }
        }
        let payloads = entries.into_iter().map(|entry| entry.payload).collect();
        (Table { payloads, rows, exact, wildcard, any }, conflicts)
    }

    /// The winner, in time that does not grow with the number of hosts. `None`: no route, or a path that servers read
    /// differently and that not all readings lead to the same route (see [`super::path`]).
    ///
    /// Allocates nothing unless the path holds percent-encodings, parameters, empty or dot segments.
    pub fn find(&self, head: &Head<'_>) -> Option<&T> {
        let row = if is_plain(head.path) {
            self.best(head, head.path)
        } else {
            let canonical = canonical_path(head.path)?;
            let path = readable(&canonical);
            let row = self.best(head, &path);
            let clear = other_readings(&path).iter().all(|other| self.best(head, other) == row);
            row.filter(|_| clear)
        };
        row.map(|row| &self.payloads[self.rows[row].entry])
    }

    /// Every route of the head's host, best first, with why it lost. A path that [`Table::find`] refuses says so.
    pub fn explain(&self, head: &Head<'_>) -> Vec<Candidate<'_, T>> {
        let mut indices: Vec<usize> =
            self.buckets(head.host).flat_map(|bucket| bucket.nodes.iter().flat_map(|node| node.rows.iter().copied())).collect();
        indices.sort_unstable();
        let canonical = canonical_path(head.path);
        let path = canonical.as_deref().map(readable);
        let refused = match &path {
            None => Some(format!("path {:?} is malformed, or servers read it differently", head.path)),
            Some(path) => {
                let row = self.best(head, path);
                let other = other_readings(path).into_iter().find(|other| self.best(head, other) != row);
                other.map(|other| format!("some servers read {path} as {other}, which is not this route's: refused"))
            }
        };
        let verdict =
            |row: &Row| path.as_ref().map_or(Ok(()), |path| row.verdict(head, path)).and_then(|()| refused.clone().map_or(Ok(()), Err));
        let candidate = |row: &'_ usize| {
            let row = &self.rows[*row];
            let (host, path) = (row.host.clone(), row.path.clone());
            Candidate { payload: &self.payloads[row.entry], rank: &row.rank, host, path, verdict: verdict(row) }
        };
        indices.iter().map(candidate).collect()
    }

    /// All hosts that some route names, in order: for "did you mean".
    pub fn hosts(&self) -> impl Iterator<Item = &HostPattern> {
        self.rows.iter().map(|row| &row.host).collect::<BTreeSet<_>>().into_iter()
    }

    /// The at most three buckets that a host's routes are in.
    fn buckets(&self, host: &str) -> impl Iterator<Item = &Bucket> {
        let wildcard = parent(host).and_then(|suffix| self.wildcard.get(suffix));
        self.exact.get(host).into_iter().chain(wildcard).chain(std::iter::once(&self.any))
    }

    /// The best row for `head` if its path reads `path`.
    fn best(&self, head: &Head<'_>, path: &str) -> Option<usize> {
        let mut best: Option<usize> = None;
        for node in self.buckets(head.host).flat_map(|bucket| bucket.nodes(path)) {
            let better = node.rows.iter().copied().take_while(|row| best.is_none_or(|best| *row < best));
            best = better.into_iter().find(|row| self.rows[*row].fits(head, path)).or(best);
        }
        best
    }
}

fn rows_of<T>(index: usize, entry: &Entry<T>) -> impl Iterator<Item = Row> {
    let Matcher { hosts, path, conditions, priority } = &entry.matcher;
    let conditions: Vec<Condition> = conditions.iter().collect::<BTreeSet<_>>().into_iter().cloned().collect();
    hosts.iter().collect::<BTreeSet<_>>().into_iter().map(move |host| Row {
        entry: index,
        rank: Rank {
            priority: priority.unwrap_or_default(),
            host: host.precedence(),
            path_length: path.text().len(),
            path_kind: path.precedence(),
            conditions: conditions.len(),
            age: Reverse((entry.created, entry.owner.clone())),
        },
        host: host.clone(),
        path: path.clone(),
        conditions: conditions.clone(),
    })
}

/// Keeps the first of all rows (best first, so the oldest) that ask for the same with the same priority.
fn refuse_copies(rows: Vec<Row>) -> (Vec<Row>, Vec<Conflict>) {
    let mut firsts = HashMap::new();
    let mut conflicts = Vec::new();
    let mut refused = BTreeSet::new();
    for (index, row) in rows.iter().enumerate() {
        match firsts.entry((row.rank.priority, &row.host, &row.path, &row.conditions)) {
            Slot::Vacant(slot) => drop(slot.insert(row.entry)),
            Slot::Occupied(slot) => {
                refused.insert(index);
                conflicts.push(Conflict { kept: *slot.get(), refused: row.entry, host: row.host.clone(), path: row.path.clone() });
            }
        }
    }
    drop(firsts);
    let kept = rows.into_iter().enumerate().filter(|(index, _)| !refused.contains(index)).map(|(_, row)| row).collect();
    (kept, conflicts)
}
