//! The file of users, text -> users: lines `user:hash:groups:name:email`, of which the last three may be left out, so that files of
//! `htpasswd` are files of users. None of the fields, nor any hash that is taken, can have a colon. A line that cannot be read loses that
//! user only; two lines for one user are one too many.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::htpasswd::Hash;
use super::identity::{Identity, Password, folded};
use crate::diagnostic::{Diagnostic, Place, brief};

pub const MAX_BYTES: u64 = 1 << 20;
pub const MAX_USERS: usize = 10_000;
const MAX_LINE_BYTES: usize = 4096;
const MAX_NAME_BYTES: usize = 255;
/// More help nobody.
const MAX_FINDINGS: usize = 50;

/// Those who can sign in.
#[derive(Clone, Debug)]
pub struct Users {
    /// By their folded names.
    users: BTreeMap<String, User>,
    /// Folded.
    groups: BTreeSet<String>,
    decoy: Hash,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub identity: Identity,
    pub hash: Hash,
}

impl Users {
    /// The user with this name, in whatever case.
    pub fn get(&self, name: &str) -> Option<&User> {
        self.users.get(&folded(name))
    }

    /// Ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = &User> {
        self.users.values()
    }

    pub fn len(&self) -> usize {
        self.users.len()
    }

    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Who `name` is, if `password` is theirs; unknown users take as long as most others. Blocks for a good part of a second.
    pub fn verify(&self, name: &str, password: &Password) -> Option<Identity> {
        let user = self.get(name);
        let right = user.map_or(&self.decoy, |user| &user.hash).verify(password);
        user.filter(|_| right).map(|user| user.identity.clone())
    }

    /// Those of `groups` (folded) that some user is a member of.
    pub fn known(&self, groups: &BTreeSet<String>) -> BTreeSet<String> {
        groups & &self.groups
    }
}

/// The users in `text`, the file at `path`, and what is wrong with the lines of the others. Findings show no hashes.
pub fn parse(path: &str, text: &str) -> (Users, Vec<Diagnostic>) {
    let mut reader = Reader { path, users: BTreeMap::new(), lines: BTreeMap::new(), findings: Vec::new(), unsaid: 0 };
    for (number, line) in lines(text) {
        if reader.users.len() == MAX_USERS {
            reader.say(
                number,
                line,
                0..0,
                Diagnostic::error("too-many-users", format!("more than {MAX_USERS} users; the rest is not read")),
            );
            break;
        }
        reader.read(number, line);
    }
    let Reader { users, mut findings, unsaid, .. } = reader;
    if unsaid > 0 {
        findings.push(Diagnostic::error("more-findings", format!("{unsaid} more lines have something wrong with them")).of(path));
    }
    let groups = users.values().flat_map(|user| user.identity.groups().map(folded)).collect();
    let decoy = Hash::decoy(users.values().map(|user| &user.hash));
    (Users { users, groups, decoy }, findings)
}

/// The lines that hold users, numbered from 0; without comments and what ends a line.
pub(super) fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
}

/// The name that a line is about, folded.
pub(super) fn subject(line: &str) -> String {
    folded(line.split(':').next().unwrap_or_default())
}

/// What keeps `text` from being the name of a user, if anything does.
pub fn bad_name(text: &str) -> Option<&'static str> {
    match text {
        _ if text.trim().is_empty() => Some("is empty"),
        _ if text.len() > MAX_NAME_BYTES => Some("is longer than 255 bytes"),
        _ if text.contains(':') => Some("has a colon, which HTTP cannot send in a name"),
        _ if text.starts_with('#') => Some("begins with `#`, as comments do"),
        _ if text.trim() != text => Some("begins or ends with a space"),
        _ if text.chars().any(char::is_control) => Some("has control characters"),
        _ => None,
    }
}

/// What keeps `text` from being a group, if anything does.
pub fn bad_group(text: &str) -> Option<&'static str> {
    match text {
        "*" => Some("stands for any signed-in user in labels"),
        _ if text.contains(',') => Some("has a comma, which separates groups"),
        _ => bad_name(text).filter(|_| !text.starts_with('#')),
    }
}

struct Reader<'a> {
    path: &'a str,
    users: BTreeMap<String, User>,
    /// Where each user was first named.
    lines: BTreeMap<String, usize>,
    findings: Vec<Diagnostic>,
    unsaid: usize,
}

impl Reader<'_> {
    fn read(&mut self, number: usize, line: &str) {
        if line.len() > MAX_LINE_BYTES {
            return self.say(number, "", 0..0, Diagnostic::error("long-line", format!("the line has more than {MAX_LINE_BYTES} bytes")));
        }
        let fields = Fields::of(line);
        let (name, user) = (&line[fields.user.clone()], subject(line));
        let Some(hash) = fields.hash.clone() else {
            let finding = Diagnostic::error("no-hash", "the line is not `user:hash`, so nobody is known by it");
            return self.say(number, line, 0..line.len(), finding.help("write users with `skep user add NAME`"));
        };
        if let Some(why) = bad_name(name) {
            return self.say(number, line, fields.user, Diagnostic::error("bad-user", format!("the user's name {why}")));
        }
        if let Some(first) = self.lines.get(&user) {
            let message = format!("`{}` is in line {} already, and only that one counts", brief(name), first + 1);
            return self.say(number, line, fields.user, Diagnostic::error("user-twice", message).help("keep one of the two lines"));
        }
        // A second line of this name is no way out for one that cannot be read.
        self.lines.insert(user.clone(), number);
        if fields.more {
            let finding = Diagnostic::error("too-many-fields", format!("the line of `{}` has more than five fields", brief(name)));
            let end = fields.email.map_or(line.len(), |email| email.end);
            return self.say(number, line, end..line.len(), finding.help("write `user:hash:groups:name:email`"));
        }
        match Hash::parse(&line[hash.clone()]) {
            Err(why) => {
                let finding = Diagnostic::error("bad-hash", format!("`{}` cannot sign in: {why}", brief(name)));
                self.say(number, line, hash, finding.help("set a new password with `skep user passwd NAME`"));
            }
            Ok(parsed) => {
                if parsed.is_weak() {
                    let message =
                        format!("the password of `{}` is hashed by apr1, which is guessed soon by whoever gets the file", brief(name));
                    let finding = Diagnostic::warning("weak-hash", message).help("set it again with `skep user passwd NAME`");
                    self.say(number, line, hash, finding);
                }
                if let Some(identity) = self.identity(number, line, name, &fields) {
                    self.users.insert(user, User { identity, hash: parsed });
                }
            }
        }
    }

    fn identity(&mut self, number: usize, line: &str, name: &str, fields: &Fields) -> Option<Identity> {
        let text = |field: &Option<Range<usize>>| field.clone().map(|span| line[span].trim()).filter(|text| !text.is_empty());
        let groups: Vec<&str> =
            text(&fields.groups).into_iter().flat_map(|all| all.split(',')).map(str::trim).filter(|one| !one.is_empty()).collect();
        for (field, span) in [(&fields.groups, "groups"), (&fields.name, "name"), (&fields.email, "address")] {
            if let Some(at) = field.clone().filter(|at| line[at.clone()].chars().any(char::is_control)) {
                let finding = Diagnostic::error("bad-field", format!("the {span} of `{}` have control characters", brief(name)));
                self.say(number, line, at, finding);
                return None;
            }
        }
        if let Some((group, why)) = groups.iter().find_map(|group| Some((group, bad_group(group)?))) {
            let finding = Diagnostic::error("bad-group", format!("the group `{}` of `{}` {why}", brief(group), brief(name)));
            self.say(number, line, fields.groups.clone().unwrap_or_default(), finding);
            return None;
        }
        let mut identity = Identity::new(name, groups.into_iter().map(str::to_owned));
        (identity.name, identity.email) = (text(&fields.name).map(str::to_owned), text(&fields.email).map(str::to_owned));
        Some(identity)
    }

    /// Keeps `finding` about `span` of the line.
    fn say(&mut self, number: usize, line: &str, span: Range<usize>, finding: Diagnostic) {
        if self.findings.len() >= MAX_FINDINGS {
            self.unsaid += 1;
            return;
        }
        let (shown, span) = shown(line, span);
        // The lines before it are empty here: they count, and hold hashes.
        let text = "\n".repeat(number) + &shown;
        let place = Place::File { path: self.path.to_owned(), text, span: number + span.start..number + span.end };
        self.findings.push(finding.at(place).of(self.path));
    }
}

/// The line as it may be printed, and where `span` is in it: without the hash, and without all that follows what is no hash, because it
/// may be part of a password.
fn shown(line: &str, span: Range<usize>) -> (String, Range<usize>) {
    const HIDDEN: &str = "…";
    let Fields { user, hash, .. } = Fields::of(line);
    let Some(hash) = hash else { return (HIDDEN.to_owned(), 0..HIDDEN.len()) };
    let rest = if Hash::parse(&line[hash.clone()]).is_ok() { &line[hash.end..] } else { "" };
    let begin = &line[..hash.start];
    let text = format!("{begin}{HIDDEN}{rest}");
    let span = match span {
        span if span.end <= user.end => span,
        span if span.start >= hash.end && !rest.is_empty() => {
            let moved = |at: usize| at - hash.end + begin.len() + HIDDEN.len();
            moved(span.start)..moved(span.end)
        }
        _ => begin.len()..begin.len() + HIDDEN.len(),
    };
    (text, span)
}

/// Where the fields of a line are.
#[derive(Debug, Default)]
pub(super) struct Fields {
    pub user: Range<usize>,
    pub hash: Option<Range<usize>>,
    pub groups: Option<Range<usize>>,
    pub name: Option<Range<usize>>,
    pub email: Option<Range<usize>>,
    /// There are more of them.
    pub more: bool,
}

impl Fields {
    pub fn of(line: &str) -> Fields {
        let mut start = 0;
        let mut spans = line.split(':').map(|field| {
            let span = start..start + field.len();
            start = span.end + 1;
            span
        });
        Fields {
            user: spans.next().unwrap_or_default(),
            hash: spans.next(),
            groups: spans.next(),
            name: spans.next(),
            email: spans.next(),
            more: spans.next().is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::htpasswd::tests::{APR1, ARGON2ID, BCRYPT, password};
    use super::*;
    use crate::diagnostic::render;

    fn codes(findings: &[Diagnostic]) -> Vec<&str> {
        findings.iter().map(|finding| finding.code.as_str()).collect()
    }

    #[test]
    fn a_file_of_users_is_a_file_of_htpasswd_with_more_to_it() {
        let text = format!(
            "\u{feff}# The office\n\nAda:{ARGON2ID}:staff, Human Resources:Ada Lovelace:ada@example.com\r\nbob:{BCRYPT}\n  # eve left\ncai:{BCRYPT}::Cài:\n"
        );
        let (users, findings) = parse("users", &text);
        assert_eq!((users.len(), codes(&findings)), (3, vec![]), "{}", render(&findings, false));
        let ada = users.verify("ada", &password("correct horse")).expect("it is her");
        assert_eq!((ada.user.as_str(), ada.name.as_deref(), ada.email.as_deref()), ("Ada", Some("Ada Lovelace"), Some("ada@example.com")));
        assert!(ada.belongs("staff") && ada.belongs("human resources") && !ada.belongs("admins"));
        let cai = &users.get("CAI").expect("there").identity;
        assert_eq!((cai.name.as_deref(), cai.email.as_deref(), cai.groups().count()), (Some("Cài"), None, 0));
        for (user, clear) in [("ada", "wrong"), ("ada", ""), ("eve", "correct horse"), ("", ""), ("# eve left", "correct horse")] {
            assert_eq!(users.verify(user, &password(clear)), None, "{user}");
        }
        let asked = ["staff", "human resources", "nobody"].map(str::to_owned).into();
        assert_eq!(users.known(&asked).into_iter().collect::<Vec<_>>(), ["human resources", "staff"]);
    }

    #[test]
    fn a_bad_line_loses_its_user_only_and_shows_no_secret() {
        for (line, code, caret) in [
            ("eve hunter2".to_owned(), "no-hash", "…"),
            ("eve:hunter2".to_owned(), "bad-hash", "…"),
            ("eve:hunter2:hunter3:hunter4".to_owned(), "bad-hash", "…"),
            (format!(":{BCRYPT}"), "bad-user", ""),
            (format!(" eve:{BCRYPT}"), "bad-user", " eve"),
            (format!("Ada:{BCRYPT}"), "user-twice", "Ada"),
            (format!("eve:{BCRYPT}:*"), "bad-group", "*"),
            (format!("eve:{BCRYPT}:a:b:c:d:e"), "too-many-fields", ":d:e"),
            (format!("eve:{BCRYPT}:a\u{7}"), "bad-field", "a\u{7}"),
            (format!("{}:{BCRYPT}", "x".repeat(300)), "bad-user", &"x".repeat(300)),
            ("x".repeat(5000), "long-line", ""),
        ] {
            let text = format!("ada:{BCRYPT}\n{line}\nbob:{BCRYPT}\n");
            let (users, findings) = parse("users", &text);
            assert_eq!((users.len(), codes(&findings)), (2, vec![code]), "{line}");
            let Some(Place::File { text, span, .. }) = &findings[0].place else { panic!("{line}: no place") };
            assert_eq!(text[..span.start].matches('\n').count(), 1, "{line}: the second line");
            let wanted = if code == "long-line" { "…" } else { caret };
            assert_eq!(&text[span.clone()], wanted, "{line}");
            let shown = render(&findings, false) + &serde_json::to_string(&findings).expect("serializes");
            assert!(!shown.contains("hunter") && !shown.contains(&BCRYPT[7..]), "{shown}");
        }
    }

    #[test]
    fn weak_hashes_work_and_are_said() {
        let (users, findings) = parse("users", &format!("ada:{APR1}:staff"));
        assert_eq!((users.len(), codes(&findings)), (1, vec!["weak-hash"]));
    }

    #[test]
    fn a_line_that_cannot_be_read_is_not_replaced_by_a_later_one() {
        let (users, findings) = parse("users", &format!("ada:broken\nada:{BCRYPT}"));
        assert_eq!((users.len(), codes(&findings)), (0, vec!["bad-hash", "user-twice"]));
    }

    #[test]
    fn findings_and_users_are_bounded() {
        let (users, findings) = parse("users", &"x\n".repeat(1000));
        assert_eq!((users.len(), findings.len()), (0, MAX_FINDINGS + 1));
        let text: String = (0..=MAX_USERS).map(|number| format!("u{number}:{BCRYPT}\n")).collect();
        assert!(text.len() < usize::try_from(MAX_BYTES).expect("small"));
        let (users, findings) = parse("users", &text);
        assert_eq!((users.len(), codes(&findings)), (MAX_USERS, vec!["too-many-users"]));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "([a-z:#,* \\r\\t]|\\PC|\\n){0,200}") {
            let (_, findings) = parse("users", &text);
            render(&findings, false);
        }

        #[test]
        fn no_line_shows_a_secret(before in "[a-z:]{0,5}", after in "[a-z:, ]{0,20}") {
            let (_, findings) = parse("users", &format!("{before}:SECRET{after}\nSECRET {}", after.replace(':', "")));
            prop_assert!(!render(&findings, false).contains("SECRET") || before.contains(':'));
        }
    }
}
