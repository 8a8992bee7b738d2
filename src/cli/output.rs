//! What is printed: results to standard output, notes to standard error, aligned and with colour only where a person looks.
//! A reader that goes away (`skep routes | head`) is no error.

use std::io::{ErrorKind, IsTerminal, Write};

use serde::Serialize;

use super::Failure;

/// Prints a result. `text` ends with a line break or gets one.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let line_break = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.write_all(line_break.as_bytes())).and_then(|()| out.flush());
    printed.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::PipeClosed,
        _ => Failure::said(format!("cannot print: {error}")),
    })
}

/// Prints a result as JSON.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    print(&serde_json::to_string_pretty(value).map_err(Failure::said)?)
}

/// Tells the person at the terminal something that is not the result.
pub(super) fn note(text: &str) {
    // When even standard error is closed, nobody is left to tell.
    _ = writeln!(std::io::stderr(), "{text}");
}

/// Is colour wanted on standard output?
pub(super) fn color() -> bool {
    wanted(std::io::stdout().is_terminal())
}

/// Is colour wanted on standard error?
pub(super) fn color_on_stderr() -> bool {
    wanted(std::io::stderr().is_terminal())
}

/// See no-color.org: set and not empty means no.
fn wanted(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A text as it may be sent to a terminal: names come from others, so control, direction and invisible characters are shown escaped.
pub(super) fn harmless(text: &str) -> String {
    let shown = |c: char| {
        if c.is_alphanumeric() || (' '..='~').contains(&c) || "—…".contains(c) { c.to_string() } else { c.escape_debug().to_string() }
    };
    text.chars().map(shown).collect()
}

/// The same for several lines.
pub(super) fn harmless_lines(text: &str) -> String {
    text.split('\n').map(harmless).collect::<Vec<_>>().join("\n")
}

/// Rows in columns two spaces apart; the last column is as long as it is. Empty cells at a row's end leave no blanks.
pub(super) fn aligned(rows: &[Vec<String>], indent: usize) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| harmless(cell)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = " ".repeat(indent);
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `1 route`, `2 routes`.
pub(super) fn count(number: usize, word: &str) -> String {
    format!("{number} {word}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_each_other() {
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        let text = aligned(&[row(&["a", "bb", "c"]), row(&["dddd", "é", ""]), row(&["x"])], 1);
        assert_eq!(text, " a     bb  c\n dddd  é\n x\n");
        assert_eq!(aligned(&[], 0), "");
    }

    #[test]
    fn names_cannot_move_the_cursor() {
        assert_eq!(harmless("a\u{1b}[31m\u{202e}b\nc"), "a\\u{1b}[31m\\u{202e}b\\nc");
    }

    #[test]
    fn counted() {
        assert_eq!([count(0, "route"), count(1, "route"), count(2, "route")], ["0 routes", "1 route", "2 routes"]);
    }
}
