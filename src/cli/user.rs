//! `skep user`: the file of users, changed and asked without an editor. Passwords are asked for or read from standard input; they are
//! never arguments, which other users of the machine can see.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};

use crate::auth::edit::{self, Entry, Refused};
use crate::auth::file::{Found, read, rewrite};
use crate::auth::htpasswd::{MAX_PASSWORD_BYTES, hashed};
use crate::auth::identity::Password;
use crate::auth::users::{self, User};
use crate::diagnostic::{Diagnostic, Severity, render};

use super::settings::ConfigFile;
use super::{Failure, Outcome, Verdict, output};

/// What is shorter is guessed (NIST SP 800-63B, 3.1.1.2).
const SHORT: usize = 8;

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,
    /// The file of users [default: `auth.users` of the settings]
    #[arg(long, value_name = "FILE", global = true)]
    file: Option<PathBuf>,
    #[command(subcommand)]
    what: What,
}

const HELP: &str = "\
Examples:
  skep user add ada --group staff --group admins --name 'Ada Lovelace' --email ada@example.com
  printf %s \"$PASSWORD\" | skep user passwd ada --password-stdin
  skep user list
  skep user check ada

The file has a line `user:hash:groups:name:email` for each user; the last three may be left out, so that a file of htpasswd (bcrypt, argon2, apr1) will do. A running edge takes changes up within seconds. Groups are changed with an editor.

Exit codes: 0 done, or the password is right; 1 no such user, or a wrong password; 2 it could not be done.";

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Add a user; makes the file if there is none
    Add {
        /// What they sign in with
        #[arg(value_name = "NAME")]
        user: String,
        /// A group that they are a member of, as labels name it; once for each
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<String>,
        /// What they are called
        #[arg(long, value_name = "TEXT")]
        name: Option<String>,
        /// Their address
        #[arg(long, value_name = "ADDRESS")]
        email: Option<String>,
        #[command(flatten)]
        password: Source,
    },
    /// Remove a user; their sessions end when they are checked again (`auth.recheck`)
    Remove {
        #[arg(value_name = "NAME")]
        user: String,
    },
    /// Set a user's password
    Passwd {
        #[arg(value_name = "NAME")]
        user: String,
        #[command(flatten)]
        password: Source,
    },
    /// List all users, and what is wrong with the file
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Ask for a user's password and say whether it is right
    Check {
        #[arg(value_name = "NAME")]
        user: String,
        #[command(flatten)]
        password: Source,
    },
}

/// Where a password comes from.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Source {
    /// Read the password from standard input, its first line, instead of asking for it
    #[arg(long)]
    password_stdin: bool,
}

pub(super) fn run(args: Args) -> Outcome {
    let (configured, file) = file(&args)?;
    match args.what {
        What::Add { user, groups, name, email, password } => {
            let entry = Entry { user, groups, name, email };
            add(&file, &entry, password)?;
            let whole = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            if configured.as_deref().map(whole) != Some(whole(&file)) {
                let set =
                    format!("the settings do not name this file: set `auth.users = \"{}\"`, so that it counts", whole(&file).display());
                output::note(&output::harmless(&set));
            }
        }
        What::Remove { user } => {
            change(&file, |text| edit::remove(text, &user))?;
            done(&format!("`{user}` was removed from {}", file.display()))?;
        }
        What::Passwd { user, password } => {
            // Before anybody types for nothing.
            edit::set_hash(&text_of(&file)?, &user, "").map_err(Failure::said)?;
            let hash = hash(&password.twice()?)?;
            change(&file, |text| with_user(edit::set_hash(text, &user, &hash)?, &file, &user))?;
            done(&format!("the password of `{user}` was set in {}", file.display()))?;
        }
        What::List { json } => return list(&file, json),
        What::Check { user, password } => return check(&file, &user, password),
    }
    Ok(Verdict::Fine)
}

/// The file that the settings name, and the one that is meant.
fn file(args: &Args) -> Result<(Option<PathBuf>, PathBuf), Failure> {
    // Settings that cannot be read are no reason to refuse a file that was named.
    let configured = match (args.config.read(), &args.file) {
        (Ok((config, _)), _) => config.auth.users,
        (Err(_), Some(_)) => None,
        (Err(findings), None) => return Err(Failure::Findings(findings)),
    };
    let none = "there is no file of users: set `auth.users` in the settings to where it is to be, or name it with --file";
    let file = args.file.clone().or_else(|| configured.clone()).ok_or_else(|| Failure::said(none))?;
    Ok((configured, file))
}

fn add(file: &Path, entry: &Entry, password: Source) -> Result<(), Failure> {
    entry.check().map_err(Failure::said)?;
    if file.exists() {
        // Before anybody types for nothing.
        edit::add(&text_of(file)?, entry, "").map_err(Failure::said)?;
    }
    let hash = hash(&password.twice()?)?;
    let new = rewrite(file, |text| {
        let added = with_user(edit::add(text.unwrap_or_default(), entry, &hash)?, file, &entry.user)?;
        Ok::<_, Undone>((added, text.is_none()))
    });
    let new = new.map_err(|undone| undone.of(file))?;
    let groups = match entry.groups.as_slice() {
        [] => "in no group: only routes with `auth: *` are open to them".to_owned(),
        groups => format!("in {}", groups.join(", ")),
    };
    let made = if new { ", which is new" } else { "" };
    done(&format!("`{}` was added to {}{made}, {groups}", entry.user, file.display()))
}

/// Changes the file, which must be there.
fn change(file: &Path, edit: impl FnOnce(&str) -> Result<String, Refused>) -> Result<(), Failure> {
    let changed = rewrite(file, |text| match text {
        Some(text) => Ok((edit(text)?, ())),
        None => Err(Undone::Disk(io::ErrorKind::NotFound.into())),
    });
    changed.map_err(|undone| undone.of(file))
}

/// `text`, unless `user` could not sign in by it.
fn with_user(text: String, file: &Path, user: &str) -> Result<String, Refused> {
    let (users, findings) = users::parse(&file.display().to_string(), &text);
    match users.get(user) {
        Some(_) => Ok(text),
        None => Err(Refused(format!("`{user}` could not sign in, so nothing was changed:\n{}", render(&findings, false).trim_end()))),
    }
}

/// Why the file is as it was.
enum Undone {
    Disk(io::Error),
    Refused(Refused),
}

impl Undone {
    fn of(self, file: &Path) -> Failure {
        match self {
            Undone::Disk(error) => Failure::said(format!("{} cannot be written: {error}", file.display())),
            Undone::Refused(why) => Failure::said(format!("{}: {why}", file.display())),
        }
    }
}

impl From<io::Error> for Undone {
    fn from(error: io::Error) -> Undone {
        Undone::Disk(error)
    }
}

impl From<Refused> for Undone {
    fn from(refused: Refused) -> Undone {
        Undone::Refused(refused)
    }
}

fn text_of(file: &Path) -> Result<zeroize::Zeroizing<String>, Failure> {
    crate::auth::file::text_of(file).map_err(|error| Failure::said(format!("{} cannot be read: {error}", file.display())))
}

fn done(what: &str) -> Result<(), Failure> {
    output::print(&output::harmless(what))
}

fn list(file: &Path, json: bool) -> Outcome {
    let Found { users, findings } = read(file);
    let users = users.map_err(Failure::said)?;
    if json {
        let users: Vec<_> = users.iter().map(|User { identity, .. }| identity).collect();
        output::json(&serde_json::json!({ "users": users, "findings": findings }))?;
    } else {
        let heads = ["USER", "GROUPS", "NAME", "EMAIL"].map(str::to_owned).to_vec();
        let rows = users.iter().map(|User { identity, .. }| {
            let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            let groups = identity.groups().collect::<Vec<_>>().join(", ");
            let groups = if groups.is_empty() { "-".to_owned() } else { groups };
            vec![identity.user.clone(), groups, text(&identity.name), text(&identity.email)]
        });
        output::print(&output::aligned(&std::iter::once(heads).chain(rows).collect::<Vec<_>>(), 0))?;
        note(&findings);
    }
    let wrong = findings.iter().any(|finding| finding.severity == Severity::Error);
    Ok(if wrong { Verdict::Wrong } else { Verdict::Fine })
}

fn check(file: &Path, user: &str, password: Source) -> Outcome {
    let Found { users, findings } = read(file);
    let users = users.map_err(Failure::said)?;
    if users.get(user).is_none() {
        note(&findings);
        let why =
            edit::set_hash(&text_of(file)?, user, "").map_or_else(|refused| refused.to_string(), |_| "the line is not good".to_owned());
        done(&format!("`{user}` cannot sign in: {why}"))?;
        return Ok(Verdict::Wrong);
    }
    match users.verify(user, &password.once("Password: ")?) {
        Some(identity) => {
            let groups = identity.groups().collect::<Vec<_>>().join(", ");
            let groups = if groups.is_empty() { "no group".to_owned() } else { groups };
            done(&format!("the password is right: `{}`, in {groups}", identity.user))?;
            Ok(Verdict::Fine)
        }
        None => done("the password is wrong").map(|()| Verdict::Wrong),
    }
}

fn note(findings: &[Diagnostic]) {
    if !findings.is_empty() {
        output::note(render(findings, output::color_on_stderr()).trim_end());
    }
}

fn hash(password: &Password) -> Result<String, Failure> {
    let mut salt = [0; 16];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| Failure::said("this machine gives no random numbers"))?;
    let hash = hashed(password, salt).map_err(Failure::said)?;
    if password.reveal().chars().count() < SHORT {
        output::note(&format!("the password is shorter than {SHORT} characters: it will be guessed"));
    }
    Ok(hash)
}

impl Source {
    /// A password that is to be set: typed twice, so that it is what was meant.
    fn twice(self) -> Result<Password, Failure> {
        let first = self.once("New password: ")?;
        match self.password_stdin || self.once("Once more: ")? == first {
            true => Ok(first),
            false => Err(Failure::said("the two are not the same; nothing was changed")),
        }
    }

    fn once(self, prompt: &str) -> Result<Password, Failure> {
        if self.password_stdin {
            return line_of(&mut io::stdin().lock());
        }
        let typed = rpassword::prompt_password(prompt);
        typed.map(Password::new).map_err(|error| {
            Failure::said(format!("nobody can be asked for a password here ({error}): give it to standard input, with --password-stdin"))
        })
    }
}

/// The first line, without its end.
fn line_of(input: &mut impl BufRead) -> Result<Password, Failure> {
    let mut line = zeroize::Zeroizing::new(String::with_capacity(MAX_PASSWORD_BYTES + 3));
    let limit = MAX_PASSWORD_BYTES as u64 + 2;
    input.take(limit).read_line(&mut line).map_err(|error| Failure::said(format!("the password cannot be read: {error}")))?;
    Ok(Password::new(line.trim_end_matches(['\n', '\r']).to_owned()))
}
