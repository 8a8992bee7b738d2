//! Notices in the forms of those who receive them. Names and messages are other people's text: nothing in them may become markup, a mention
//! that wakes a whole team, or a header.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use regex::Regex;
use serde_json::{Value, json};

use crate::config::Level;

use super::notice::{About, Kind, Notice};
use super::{Job, Run, Verdict};

/// Of the generic JSON. It grows when a field changes its meaning or goes; new fields may come at any time.
pub const VERSION: u32 = 1;

/// Characters of one message, and of a title.
const LONGEST: usize = 1_000;
const LONGEST_TITLE: usize = 200;
/// Lines of a chat message; receivers cut longer ones.
const CHAT_LINES: usize = 20;
/// Bytes of a ping's body.
const LONGEST_PING: usize = 1_000;

/// What ntfy gets: headers and a body (docs.ntfy.sh/publish).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ntfy {
    /// Printable ASCII: what is not is encoded as RFC 2047 has it.
    pub title: String,
    /// 1 to 5.
    pub priority: u8,
    pub tags: &'static str,
    pub body: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// One line.
    pub subject: String,
    pub body: String,
}

/// When a ping is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Start,
    Success,
    Fail,
}

/// The generic form. `lost` is how many notices before this one did not arrive there.
pub fn generic(notice: &Notice, lost: u64) -> Value {
    let about = |about: &About| {
        json!({
            "volume": about.volume,
            "repository": about.repository.as_deref().map(tidy),
            "message": tidy(&about.message),
            "archive": about.archive,
            "last_success": about.last_success,
            "retry": about.retry,
            "stats": about.stats,
        })
    };
    json!({
        "version": VERSION,
        "id": notice.id,
        "source": "skep",
        "kind": notice.kind,
        "level": notice.level,
        "node": notice.node,
        "target": notice.target,
        "at": notice.at,
        "title": line(&notice.title, LONGEST_TITLE),
        "help": notice.help,
        "repeated": notice.repeated,
        "about": notice.about.iter().map(about).collect::<Vec<_>>(),
        "more": notice.more,
        "lost": lost,
    })
}

/// For incoming webhooks of Slack and of what takes their form, as Mattermost and Rocket.Chat.
pub fn slack(notice: &Notice, lost: u64) -> Value {
    let color = match (notice.level, notice.kind) {
        (Level::Error, _) => "#c62828",
        (Level::Warning, _) => "#f9a825",
        (Level::Success, _) => "#2e7d32",
    };
    let named = |about: &About| match (&about.volume, &about.repository) {
        (Some(volume), _) => format!("• volume {}", code(volume)),
        (None, Some(repository)) => format!("• repository {}", code(repository)),
        (None, None) => "•".to_owned(),
    };
    let mut lines: Vec<String> = notice
        .about
        .iter()
        .take(CHAT_LINES)
        .map(|about| {
            let message = if about.message.is_empty() { String::new() } else { format!(": {}", code(&about.message)) };
            format!("{}{message}{}", named(about), last_success(notice, about))
        })
        .collect();
    lines.extend(unlisted(notice, CHAT_LINES));
    lines.extend((!notice.help.is_empty()).then(|| quoted(&notice.help)));
    lines.extend(missed(lost));
    let mut fields = vec![json!({ "title": "Node", "value": code(&notice.node), "short": true })];
    fields.extend(notice.target.as_ref().map(|target| json!({ "title": "Target", "value": code(target), "short": true })));
    let title = quoted(&line(&notice.title, LONGEST_TITLE));
    json!({
        "text": title,
        "attachments": [{
            "fallback": title,
            "color": color,
            "text": lines.join("\n"),
            "mrkdwn_in": ["text", "fields"],
            "fields": fields,
            "footer": "skep",
            "ts": notice.at.as_second(),
        }],
    })
}

pub fn ntfy(notice: &Notice, lost: u64) -> Ntfy {
    let (priority, tags) = match notice.level {
        Level::Error => (4, "rotating_light"),
        Level::Warning => (3, "warning"),
        Level::Success => (2, "white_check_mark"),
    };
    let body = clip(&text(notice, lost, CHAT_LINES), 3_800); // longer ones become attachments
    Ntfy { title: header(&line(&notice.title, LONGEST_TITLE)), priority, tags, body }
}

pub fn mail(notice: &Notice, lost: u64) -> Mail {
    let word = match (notice.kind, notice.level) {
        (Kind::Recovered, _) => "good again",
        (_, level) => level.word(),
    };
    let subject = line(&format!("[skep {}] {word}: {}", notice.node, notice.title), LONGEST_TITLE);
    Mail { subject, body: text(notice, lost, usize::MAX) }
}

/// Where a healthchecks-style service is told of a run; names are filled in as such services take them in URLs.
pub fn ping_url(base: &str, phase: Phase, node: &str, volume: &str, target: &str) -> String {
    let filled = base.replace("{volume}", &slug(volume)).replace("{target}", &slug(target)).replace("{node}", &slug(node));
    let (path, query) = filled.split_once('?').map_or((filled.as_str(), None), |(path, query)| (path, Some(query)));
    let end = match phase {
        Phase::Start => "/start",
        Phase::Success => "",
        Phase::Fail => "/fail",
    };
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("{}{end}{query}", path.trim_end_matches('/'))
}

/// What is told of the end of a run.
pub fn ping_body(run: &Run) -> String {
    let volume = run.volume.as_deref().unwrap_or_default();
    let text = format!("{volume} to {}: {}", run.target, run.message);
    clip(&line(&text, LONGEST), LONGEST_PING)
}

/// What is told of its begin.
pub fn ping_start(job: &Job) -> String {
    clip(&line(&format!("{} to {}", job.volume.as_deref().unwrap_or_default(), job.target), LONGEST), LONGEST_PING)
}

pub fn phase(verdict: Verdict) -> Phase {
    if verdict == Verdict::Failed { Phase::Fail } else { Phase::Success }
}

/// The whole notice as plain text.
fn text(notice: &Notice, lost: u64, most: usize) -> String {
    let mut lines = vec![line(&notice.title, LONGEST_TITLE), String::new(), format!("Node:    {}", line(&notice.node, LONGEST_TITLE))];
    lines.extend(notice.target.as_ref().map(|target| format!("Target:  {}", line(target, LONGEST_TITLE))));
    lines.push(format!("When:    {}", notice.at.strftime("%Y-%m-%d %H:%M:%S UTC")));
    lines.push(String::new());
    for about in notice.about.iter().take(most) {
        let named = about.volume.as_deref().or(about.repository.as_deref()).unwrap_or_default();
        let message = if about.message.is_empty() { String::new() } else { format!(": {}", tidy(&about.message)) };
        lines.push(format!("- {}{message}{}", line(named, LONGEST), last_success(notice, about)));
    }
    lines.extend(unlisted(notice, most));
    lines.extend((!notice.help.is_empty()).then(|| format!("\n{}", notice.help)));
    lines.extend(missed(lost).map(|text| format!("\n{text}")));
    lines.join("\n") + "\n"
}

fn last_success(notice: &Notice, about: &About) -> String {
    let at = |at: jiff::Timestamp| at.strftime("%Y-%m-%d %H:%M UTC").to_string();
    let retry = about.retry.map(|retry| format!(" (tried again at {})", at(retry))).unwrap_or_default();
    let last = match about.last_success {
        Some(success) if notice.level > Level::Success => format!(" (last good: {})", at(success)),
        None if matches!(notice.kind, Kind::Failed | Kind::Overdue) => " (never saved)".to_owned(),
        _ => String::new(),
    };
    last + &retry
}

fn unlisted(notice: &Notice, most: usize) -> Option<String> {
    let more = notice.more + notice.about.len().saturating_sub(most) as u64;
    (more > 0).then(|| format!("and {more} more: `skep backup status` shows all"))
}

fn missed(lost: u64) -> Option<String> {
    let plural = if lost == 1 { "" } else { "s" };
    (lost > 0).then(|| format!("{lost} earlier notice{plural} could not be delivered here: `skep backup status` shows how things stand."))
}

/// Other people's text in one line, without what would hide in it, and without passwords in URLs.
fn tidy(text: &str) -> String {
    line(text, LONGEST)
}

fn line(text: &str, longest: usize) -> String {
    // Controls end lines and headers; the others turn the direction of what follows, or cannot be seen.
    let hidden = |letter: char| matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    let plain: String =
        text.chars().map(|letter| if letter.is_control() || hidden(letter) { ' ' } else { letter }).take(10 * LONGEST).collect();
    let plain = PASSWORD.replace_all(plain.trim(), "$scheme://***@");
    match plain.char_indices().nth(longest) {
        Some((end, _)) => format!("{}…", &plain[..end]),
        None => plain.into_owned(),
    }
}

/// The user and password of a URL.
static PASSWORD: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://[^\s/@:]*:[^\s/@]*@").expect("it is a regular expression"));

/// At most so many bytes.
fn clip(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most.saturating_sub('…'.len_utf8())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

/// As Slack wants text that is no markup (api.slack.com/reference/surfaces/formatting); mentions and links of Mattermost's are cut in two.
fn quoted(text: &str) -> String {
    let plain = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    plain.replace('@', "@\u{2060}").replace("](", "]\u{2060}(")
}

/// Text between backticks, in which chats look for neither markup nor mentions.
fn code(text: &str) -> String {
    format!("`{}`", quoted(&tidy(text).replace('`', "'")))
}

/// A header's value: as it is, or in encoded words (RFC 2047, section 2) of at most 75 characters.
fn header(text: &str) -> String {
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && !text.contains("=?") {
        return text.to_owned();
    }
    const BYTES: usize = 45;
    let mut words = Vec::new();
    let mut word = String::new();
    for letter in text.chars() {
        if word.len() + letter.len_utf8() > BYTES {
            words.push(std::mem::take(&mut word));
        }
        word.push(letter);
    }
    words.push(word);
    words.iter().map(|word| format!("=?UTF-8?B?{}?=", STANDARD.encode(word))).collect::<Vec<_>>().join(" ")
}

/// Lower-case letters, digits and hyphens: what healthchecks-style services take as the name of a check.
fn slug(name: &str) -> String {
    let letter = |letter: char| match letter.to_ascii_lowercase() {
        letter if letter.is_ascii_alphanumeric() || letter == '_' => letter,
        _ => '-',
    };
    name.chars().map(letter).take(100).collect()
}
