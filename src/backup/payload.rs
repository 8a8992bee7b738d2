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
        "help": tidy(&notice.help),
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
    lines.extend((!notice.help.is_empty()).then(|| quoted(&tidy(&notice.help))));
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
    lines.extend((!notice.help.is_empty()).then(|| format!("\n{}", tidy(&notice.help))));
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::notice::trial;
    use super::*;

    fn notice(title: &str, volume: &str, message: &str) -> Notice {
        let at = "2026-11-23T02:00:07Z".parse().unwrap();
        let about = About {
            volume: Some(volume.to_owned()),
            repository: Some("ssh://borg@host/./b/n1".to_owned()),
            message: message.to_owned(),
            last_success: Some("2026-11-22T02:00:07Z".parse().unwrap()),
            ..About::default()
        };
        Notice {
            id: "1".into(),
            kind: Kind::Failed,
            level: Level::Error,
            node: "n1".into(),
            target: Some("offsite".into()),
            title: title.to_owned(),
            help: "Run `skep backup run --now db`.".into(),
            about: vec![about],
            more: 0,
            repeated: false,
            ..trial("n1", at)
        }
    }

    #[test]
    fn each_form_says_what_happened_where_and_what_to_do() {
        let notice = notice("Saving volume db to offsite failed", "db", "the disk is full");
        let mail = mail(&notice, 2);
        assert_eq!(mail.subject, "[skep n1] error: Saving volume db to offsite failed");
        let expected = "Saving volume db to offsite failed\n\nNode:    n1\nTarget:  offsite\nWhen:    2026-11-23 02:00:07 UTC\n\n\
            - db: the disk is full (last good: 2026-11-22 02:00 UTC)\n\nRun `skep backup run --now db`.\n\n\
            2 earlier notices could not be delivered here: `skep backup status` shows how things stand.\n";
        assert_eq!(mail.body, expected);
        let slack = slack(&notice, 0);
        assert_eq!(slack["text"], "Saving volume db to offsite failed");
        let lines = "• volume `db`: `the disk is full` (last good: 2026-11-22 02:00 UTC)\nRun `skep backup run --now db`.";
        assert_eq!(slack["attachments"][0]["text"], lines);
        assert_eq!(slack["attachments"][0]["fields"][1]["value"], "`offsite`");
        let ntfy = ntfy(&notice, 0);
        assert_eq!((ntfy.title.as_str(), ntfy.priority, ntfy.tags), ("Saving volume db to offsite failed", 4, "rotating_light"));
        let generic = generic(&notice, 1);
        assert_eq!((generic["version"].as_u64(), generic["kind"].as_str(), generic["lost"].as_u64()), (Some(1), Some("failed"), Some(1)));
        assert_eq!(generic["about"][0]["message"], "the disk is full");
        let keys: Vec<&str> = generic.as_object().unwrap().keys().map(String::as_str).collect();
        let documented = "version id source kind level node target at title help repeated about more lost";
        assert_eq!(keys.join(" "), documented, "the form is documented; version it when it changes");
    }

    #[test]
    fn passwords_in_urls_are_not_told() {
        let notice = notice("T", "db", "ssh://borg:s3cret@host/x is gone, postgres://u:s3cret@db too");
        let told = [mail(&notice, 0).body, slack(&notice, 0).to_string(), ntfy(&notice, 0).body, generic(&notice, 0).to_string()];
        for text in told {
            assert!(!text.contains("s3cret") && text.contains("host/x"), "{text}");
        }
    }

    #[test]
    fn a_long_notice_is_cut_where_receivers_would_refuse_it() {
        let mut long = notice("T", "db", &"x".repeat(5_000));
        long.about = vec![long.about[0].clone(); 50];
        long.more = 100;
        assert!(ntfy(&long, 0).body.len() <= 3_800);
        let slack = slack(&long, 0)["attachments"][0]["text"].as_str().unwrap().to_owned();
        assert!(slack.contains("and 130 more"), "{slack}");
        assert_eq!(mail(&long, 0).body.matches("- db: ").count(), 50);
    }

    #[test]
    fn pings_name_their_check() {
        let table = [
            ("https://hc-ping.com/uuid", Phase::Start, "https://hc-ping.com/uuid/start"),
            ("https://hc-ping.com/uuid/", Phase::Success, "https://hc-ping.com/uuid"),
            ("https://hc-ping.com/uuid", Phase::Fail, "https://hc-ping.com/uuid/fail"),
            (
                "https://hc-ping.com/k/{node}-{volume}-{target}?create=1",
                Phase::Fail,
                "https://hc-ping.com/k/n-1-shop_data-off-site/fail?create=1",
            ),
        ];
        for (base, phase, url) in table {
            assert_eq!(ping_url(base, phase, "n.1", "Shop_Data", "off/site"), url);
        }
    }

    proptest! {
        #[test]
        fn hostile_text_stays_text(
            title in "(\\PC|[\r\n\u{0}<>&@`*=?\u{202e}]|<!channel>|@all|\\]\\(http://x\\)){0,60}",
            message in "(\\PC|[\r\n\u{0}<>&@`\u{202e}]|<!here>|@channel){0,60}",
        ) {
            let notice = notice(&title, "db", &message);
            let slack = slack(&notice, 0);
            let all = format!("{}\n{}", slack["text"].as_str().unwrap(), slack["attachments"][0]["text"].as_str().unwrap());
            let words = all.replace("&lt;", "").replace("&gt;", "").replace("&amp;", "");
            prop_assert!(!words.contains(['<', '>', '&']), "{}", all);
            prop_assert!(!all.contains("@all") && !all.contains("@channel") && !all.contains("]("), "{}", all);
            let line = all.lines().find(|line| line.starts_with('•')).unwrap();
            prop_assert_eq!(line.matches('`').count() % 4, if message.trim().is_empty() { line.matches('`').count() % 4 } else { 0 });
            prop_assert_eq!(all.lines().count(), 3, "no line is added: {}", all);

            let ntfy = ntfy(&notice, 0);
            prop_assert!(ntfy.title.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{}", ntfy.title);
            prop_assert!(http::HeaderValue::from_str(&ntfy.title).is_ok());
            let mail = mail(&notice, 0);
            prop_assert!(!mail.subject.contains(char::is_control), "{:?}", mail.subject);
            prop_assert_eq!(mail.body.lines().count(), 10 - 1, "{}", mail.body);
            let generic = generic(&notice, 0).to_string();
            prop_assert!(serde_json::from_str::<Value>(&generic).is_ok());
        }

        #[test]
        fn encoded_titles_read_as_they_were(title in "[ -~äöüß€🐝]{0,200}") {
            let encoded = header(&title);
            if encoded != title {
                let words = encoded.split(' ').map(|word| {
                    assert!(word.len() <= 75, "{word}");
                    let inner = word.strip_prefix("=?UTF-8?B?").and_then(|rest| rest.strip_suffix("?=")).expect(word);
                    STANDARD.decode(inner).unwrap()
                });
                prop_assert_eq!(String::from_utf8(words.flatten().collect()).unwrap(), title);
            }
        }
    }
}
