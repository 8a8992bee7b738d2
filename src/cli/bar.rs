//! What borg does, while it does it: a live bar where a person watches (volume, files, bytes, rate, time left), lines elsewhere.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::backup::{Progress, Sink, Stats};

use super::output;

const TICK: Duration = Duration::from_millis(120);
/// Where nobody watches, a line comes so often at most.
const LINES: Duration = Duration::from_secs(30);
/// Of a path, so that the line fits.
const PATH: usize = 48;

/// One bar; phases follow each other on it.
#[derive(Clone)]
pub(super) struct Bar {
    bar: ProgressBar,
    watched: bool,
    seen: Arc<Mutex<Seen>>,
}

struct Seen {
    /// What this archive will have, as far as it is known.
    expected: Option<Stats>,
    began: Instant,
    told: Instant,
    warnings: u64,
}

impl Bar {
    /// A bar on standard error. `expected`: what the volume had last, from which the time left is told.
    pub fn new(expected: Option<Stats>) -> Bar {
        let watched = std::io::stderr().is_terminal();
        let target = if watched { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(style(false));
        bar.enable_steady_tick(TICK);
        let now = Instant::now();
        Bar { bar, watched, seen: Arc::new(Mutex::new(Seen { expected, began: now, told: now, warnings: 0 })) }
    }

    /// What is known by now of the size of what is read.
    pub fn expect(&self, stats: Stats) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).expected = Some(stats);
    }

    /// Where progress goes to.
    pub fn sink(&self) -> Sink {
        let this = self.clone();
        Arc::new(move |progress| this.show(progress))
    }

    /// Takes the bar away, so that what is printed next stands by itself.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }

    fn show(&self, progress: Progress) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match progress {
            Progress::Phase { text } => {
                seen.began = Instant::now();
                self.bar.set_style(style(false));
                self.bar.set_prefix(output::harmless(&text));
                self.bar.set_message("");
                if !self.watched {
                    output::note(&output::harmless(&text));
                }
            }
            Progress::Archive { stats, path } => {
                let expected = seen.expected.map_or(0, |expected| expected.original).max(stats.original);
                self.bar.set_style(style(seen.expected.is_some()));
                self.bar.set_length(expected);
                self.bar.set_position(stats.original);
                let text = archive(&stats, seen.expected.as_ref(), seen.began.elapsed(), &path);
                self.line(&mut seen, &text);
                self.bar.set_message(text);
            }
            Progress::Percent { percent, text } => {
                self.bar.set_style(style(true));
                self.bar.set_length(1000);
                self.bar.set_position((percent.clamp(0.0, 100.0) * 10.0) as u64);
                let text = format!("{percent:.0} %  {}", tail(&output::harmless(&text)));
                self.line(&mut seen, &text);
                self.bar.set_message(text);
            }
            Progress::Warning { text } => {
                seen.warnings += 1;
                let text = format!("warning: {}", output::harmless(&text));
                match self.watched {
                    true => self.bar.println(text),
                    false => output::note(&text),
                }
            }
        }
    }

    /// The same for whoever reads a log.
    fn line(&self, seen: &mut Seen, text: &str) {
        if !self.watched && seen.told.elapsed() >= LINES {
            seen.told = Instant::now();
            output::note(text);
        }
    }
}

/// `1,204 files  3.1 GiB of 5.0 GiB  88.2 MiB/s  2 minutes left  ./some/file`
fn archive(stats: &Stats, expected: Option<&Stats>, elapsed: Duration, path: &str) -> String {
    let rate = stats.original as f64 / elapsed.as_secs_f64().max(0.001);
    let total = expected.filter(|expected| expected.original >= stats.original);
    let bytes = match total {
        Some(total) => format!("{} of {}", HumanBytes(stats.original), HumanBytes(total.original)),
        None => HumanBytes(stats.original).to_string(),
    };
    let left = total.filter(|_| rate >= 1.0).map(|total| Duration::from_secs_f64((total.original - stats.original) as f64 / rate));
    let left = left.map(|left| format!("  {} left", HumanDuration(left))).unwrap_or_default();
    let files = if stats.files == 1 { "file" } else { "files" };
    format!("{} {files}  {bytes}  {}/s{left}  {}", HumanCount(stats.files), HumanBytes(rate as u64), tail(&output::harmless(path)))
}

/// The end of a text says more than its beginning.
fn tail(text: &str) -> String {
    let count = text.chars().count();
    match count > PATH {
        true => format!("…{}", text.chars().skip(count - PATH + 1).collect::<String>()),
        false => text.to_owned(),
    }
}

/// With a bar where the whole is known.
fn style(known: bool) -> ProgressStyle {
    let template = if known { "{spinner} {prefix}  {bar:24} {msg}" } else { "{spinner} {prefix}  {msg}" };
    // Both are constants that a test reads.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_and_how_long() {
        let stats = |files, original| Stats { files, original, ..Stats::default() };
        let second = Duration::from_secs(1);
        let text = archive(&stats(1204, 10 << 20), Some(&stats(2000, 40 << 20)), second, "./a");
        assert_eq!(text, "1,204 files  10.00 MiB of 40.00 MiB  10.00 MiB/s  3 seconds left  ./a");
        assert_eq!(archive(&stats(1, 0), None, Duration::ZERO, "./a\u{1b}[2J"), "1 file  0 B  0 B/s  ./a\\u{1b}[2J");
        let grown = archive(&stats(9, 50 << 20), Some(&stats(2, 40 << 20)), second, "");
        assert_eq!(grown.trim_end(), "9 files  50.00 MiB  50.00 MiB/s");
        assert_eq!(tail(&"x".repeat(100)).chars().count(), PATH);
    }

    #[test]
    fn the_templates_can_be_read() {
        for template in ["{spinner} {prefix}  {bar:24} {msg}", "{spinner} {prefix}  {msg}"] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
