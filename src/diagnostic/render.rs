//! Findings as text for people, with annotate-snippets: the label or line that is meant and a caret under the part that is wrong.
//! Users' texts are hostile until shown otherwise: nothing of them reaches a terminal unescaped or at full length.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Message, Renderer, Snippet};

use super::{Diagnostic, Place, Severity, printable};

/// All findings as text for people, worst first, each with the label or line that it points at and a caret under the part that is wrong.
/// Safe to print whatever users wrote: control and direction characters are shown escaped, long values shortened around the caret.
pub fn render(findings: &[Diagnostic], color: bool) -> String {
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let mut ordered: Vec<&Diagnostic> = findings.iter().collect();
    ordered.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    ordered.iter().map(|finding| render_one(finding, &renderer) + "\n").collect::<Vec<_>>().join("\n")
}

fn render_one(finding: &Diagnostic, renderer: &Renderer) -> String {
    let level = match finding.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
        Severity::Info => Level::INFO,
    };
    let title = match (finding.subject.as_str(), &finding.place) {
        ("", _) => sentence(&finding.message),
        (subject, Some(Place::File { path, .. })) if subject == path => sentence(&finding.message),
        (subject, _) => sentence(&format!("{subject}: {}", finding.message)),
    };
    let mut group = level.primary_title(title).id(finding.code.clone()).elements(Vec::<Message<'_>>::new());
    match &finding.place {
        Some(Place::Label { key, value, span, in_key }) => {
            let line = label_line(key, value, span, *in_key);
            let caret = AnnotationKind::Primary.span(line.caret);
            group = group.element(Snippet::source(line.text).line_numbering(false).annotation(caret));
        }
        Some(Place::File { path, text, span }) => {
            let (line, number) = file_line(text, span);
            let caret = AnnotationKind::Primary.span(line.caret);
            let path: String = path.chars().map(printable).collect();
            group = group.element(Snippet::source(line.text).line_start(number).path(path).annotation(caret));
        }
        None => {}
    }
    if let Some(help) = &finding.help {
        group = group.element(Level::HELP.message(sentence(help)));
    }
    renderer.render(&[group])
}

/// Our own sentences may carry users' words and line breaks of their own; nothing else that moves a cursor.
fn sentence(text: &str) -> String {
    text.chars().map(|c| if c == '\n' { "\n".to_owned() } else { printable(c) }).collect()
}

/// One line of text to show and the part of it that is meant, in bytes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Line {
    text: String,
    caret: Range<usize>,
}

impl Line {
    /// Adds `text` escaped; the part `span` of it, if any, becomes the caret.
    fn push(&mut self, text: &str, quote: bool, span: Option<&Range<usize>>) {
        for (at, character) in text.char_indices() {
            self.mark(at, span);
            match character {
                '"' if quote => self.text.push_str("\\\""),
                _ => self.text.push_str(&printable(character)),
            }
        }
        self.mark(text.len(), span);
    }

    fn mark(&mut self, at: usize, span: Option<&Range<usize>>) {
        let Some(span) = span else { return };
        if at <= span.start {
            self.caret.start = self.text.len();
        }
        if at <= span.end {
            self.caret.end = self.text.len();
        }
    }
}

/// How much of a value is shown before and after the start of what is wrong, in bytes.
const BEFORE: usize = 60;
const AFTER: usize = 120;

/// `label: "value"`, with the caret under `span` of the value, or of the label when `in_key`.
fn label_line(key: &str, value: &str, span: &Range<usize>, in_key: bool) -> Line {
    let mut line = Line::default();
    let (key_span, value_span) = if in_key { (Some(span), None) } else { (None, Some(span)) };
    excerpt(&mut line, key, false, key_span);
    line.text.push_str(": \"");
    excerpt(&mut line, value, true, value_span);
    line.text.push('"');
    line
}

/// The line of `text` that `span` begins in, and its number.
fn file_line(text: &str, span: &Range<usize>) -> (Line, usize) {
    let at = boundary(text, span.start);
    let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let end = text[at..].find('\n').map_or(text.len(), |newline| at + newline);
    let inside = at - start..span.end.clamp(at, end) - start;
    let mut line = Line::default();
    excerpt(&mut line, text[start..end].trim_end_matches('\r'), false, Some(&inside));
    (line, text[..at].matches('\n').count() + 1)
}

/// Adds what surrounds `span` in `text`; what is left out shows as `…`.
fn excerpt(line: &mut Line, text: &str, quote: bool, span: Option<&Range<usize>>) {
    let start = boundary(text, span.map_or(0, |span| span.start));
    let from = boundary(text, start.saturating_sub(BEFORE));
    let to = boundary(text, start.saturating_add(AFTER));
    if from > 0 {
        line.text.push('…');
    }
    let inside = span.map(|span| start - from..span.end.clamp(start, to) - from);
    line.push(&text[from..to], quote, inside.as_ref());
    if to < text.len() {
        line.text.push('…');
    }
}

/// The greatest character boundary of `text` that is not behind `at`.
fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn label(key: &str, value: &str, span: Range<usize>) -> Place {
        Place::Label { key: key.to_owned(), value: value.to_owned(), span, in_key: false }
    }

    /// The text under the carets of a rendered finding.
    fn under_caret(rendered: &str) -> String {
        let lines: Vec<&str> = rendered.lines().collect();
        let at = lines.iter().position(|line| line.contains('^')).expect("a caret");
        let columns = lines[at].chars().enumerate().filter(|(_, c)| *c == '^').map(|(column, _)| column);
        let above: Vec<char> = lines[at - 1].chars().collect();
        columns.filter_map(|column| above.get(column)).collect()
    }

    #[test]
    fn a_label_is_shown_with_a_caret_under_what_is_wrong() {
        let finding = Diagnostic::error("bad-port", "`8o` is not a port")
            .at(label("skep.port", "8o", 0..2))
            .help("write a number")
            .of("service shop_web");
        insta::assert_snapshot!(render(&[finding], false), @r#"
        error[bad-port]: service shop_web: `8o` is not a port
         |
         | skep.port: "8o"
         |             ^^
         |
         = help: write a number
        "#);
    }

    #[test]
    fn a_misspelt_key_is_marked_in_the_key() {
        let place = Place::Label { key: "skep.prot".to_owned(), value: "80".to_owned(), span: 0..9, in_key: true };
        let finding =
            Diagnostic::warning("unknown-key", "`prot` is not a key of Skep").at(place).help("did you mean `skep.port`?").of("service a");
        insta::assert_snapshot!(render(&[finding], false), @r#"
        warning[unknown-key]: service a: `prot` is not a key of Skep
         |
         | skep.prot: "80"
         | ^^^^^^^^^
         |
         = help: did you mean `skep.port`?
        "#);
    }

    #[test]
    fn a_file_is_shown_with_the_line_and_its_number() {
        let text = "[http]\nlisten = [\":80\"]\nlisen = 3\r\n";
        let at = text.find("lisen").expect("it is there");
        let place = Place::File { path: "skep.toml".to_owned(), text: text.to_owned(), span: at..at + 5 };
        let finding =
            Diagnostic::error("unknown-setting", "`lisen` is not a setting").at(place).help("did you mean `listen`?").of("skep.toml");
        insta::assert_snapshot!(render(&[finding], false), @r#"
        error[unknown-setting]: `lisen` is not a setting
         --> skep.toml:3:1
          |
        3 | lisen = 3
          | ^^^^^
          |
          = help: did you mean `listen`?
        "#);
    }

    #[test]
    fn findings_without_a_place_and_several_findings() {
        let first = Diagnostic::info("long-requests", "requests end after 60 s").of("service a");
        let second = Diagnostic::error("no-engine", "Docker does not answer").help("start it");
        insta::assert_snapshot!(render(&[first, second], false), @r#"
        error[no-engine]: Docker does not answer
         |
         = help: start it

        info[long-requests]: service a: requests end after 60 s
        "#);
        assert_eq!(render(&[], false), "");
    }

    #[test]
    fn carets_stand_under_the_part_whatever_surrounds_it() {
        for (value, part) in [
            ("a.de, b:80, c.de".to_owned(), ":80"),
            ("X-A: \"1\"\n-X B".to_owned(), "X B"),
            ("tab\there and \u{1b}[31m there".to_owned(), "there"),
            (format!("{}, bad, {}", "x".repeat(5_000), "y".repeat(5_000)), "bad"),
        ] {
            let at = value.find(part).expect("it is there");
            let rendered = render(&[Diagnostic::error("x", "y").at(label("skep.host", &value, at..at + part.len()))], false);
            assert_eq!(under_caret(&rendered), part);
            assert!(rendered.len() < 1_000 && !rendered.contains('\u{1b}'), "{rendered}");
        }
    }

    proptest! {
        #[test]
        fn any_text_and_any_span_is_rendered_harmlessly(
            key in "\\PC{0,20}|[\\x00-\\x7f]{0,10}",
            value in "\\PC{0,300}|[\\x00-\\x7f]{0,50}|(\\r?\\n){0,3}",
            start in 0usize..400,
            end in 0usize..400,
            in_key: bool,
            message in "\\PC{0,20}|[\\x00-\\x7f]{0,10}",
        ) {
            let places = [
                Place::Label { key: key.clone(), value: value.clone(), span: start..end, in_key },
                Place::File { path: key, text: value, span: start..end },
            ];
            for place in places {
                let finding = Diagnostic::warning("code", &message).at(place).help(&message).of(&message);
                let rendered = render(&[finding], false);
                prop_assert!(rendered.chars().all(|c| c == '\n' || !c.is_control()), "{rendered:?}");
                prop_assert!(rendered.lines().count() < 20);
            }
        }
    }
}
