//! Which files of a directory are certificates with their keys, and what is wrong with those that are not.
//! A replacement that cannot be served leaves what it replaces in use, and says so.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use jiff::{SignedDuration, Timestamp};

use super::Source;
use super::pem::{has_certificate, has_key};
use super::record::{Origin, Record, Secret};
use crate::diagnostic::Diagnostic;

/// What a certificate's file is called, the best one first: `NAME.fullchain.pem` beside `NAME.key`.
const CERTIFICATES: [&str; 4] = [".fullchain.pem", ".crt", ".pem", ".cer"];
/// What its key's file is called; mkcert writes `NAME-key.pem`.
const KEYS: [&str; 2] = [".key", "-key.pem"];
/// As certbot calls them, in a folder for each certificate.
const CERTBOT: (&str, &str) = ("fullchain.pem", "privkey.pem");
/// Parts of `fullchain.pem` in certbot's folders.
const CERTBOT_PARTS: [&str; 2] = ["cert.pem", "chain.pem"];
/// A certificate is worth a word so long before it expires, or a third of its life if that is less.
const SOON: SignedDuration = SignedDuration::from_hours(24 * 14);

/// A file of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Below the directory.
    pub path: String,
    /// Its text, or why there is none.
    pub text: Result<Secret, String>,
    /// May everybody on this machine read it? Then its mode.
    pub exposed: Option<u32>,
}

/// What a directory holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilesFound {
    /// By the certificate's path below the directory.
    pub records: BTreeMap<String, Arc<Record>>,
    pub findings: Vec<Diagnostic>,
}

/// Is a file of this name looked at?
pub fn is_ours(name: &str) -> bool {
    !name.starts_with('.') && CERTIFICATES.iter().chain(&KEYS).any(|end| name.ends_with(end))
}

/// The certificates in `files`. What was there `before` stays for as long as its files are broken.
pub fn read(files: &[Listed], before: &BTreeMap<String, Arc<Record>>, now: Timestamp) -> FilesFound {
    let by_path: BTreeMap<&str, &Listed> = files.iter().map(|file| (file.path.as_str(), file)).collect();
    let mut found = FilesFound::default();
    for file in files {
        let subject = format!("file {}", file.path);
        let mut say = |finding: Diagnostic| found.findings.push(finding.of(subject.clone()));
        let text = match &file.text {
            Ok(text) => text.reveal(),
            Err(why) => {
                say(Diagnostic::error("unreadable-file", why.clone()));
                kept(file, before, &mut found, &subject);
                continue;
            }
        };
        match (role(file, text, &by_path), key_beside(&file.path, &by_path)) {
            (Role::Part, _) => {}
            (Role::Key, _) => say(Diagnostic::warning("no-certificate", "there is no certificate for this key")
                .help("put the certificate beside it, as NAME.crt for NAME.key, or fullchain.pem for privkey.pem")),
            (Role::Nothing, _) => say(Diagnostic::warning("no-certificate", "there is neither a certificate nor a key in this file")
                .help("Skep reads PEM; `openssl x509 -inform der -in FILE -out NEW.crt` makes it of DER")),
            (Role::Extra(other), _) => {
                say(Diagnostic::warning("certificate-twice", format!("`{other}` is used in its place")).help("keep one of the two files"))
            }
            (Role::Certificate, None) => {
                say(Diagnostic::error("no-key", "there is no key for this certificate")
                    .help("put the key beside it, as NAME.key for NAME.crt, or privkey.pem for fullchain.pem"));
                kept(file, before, &mut found, &subject);
            }
            (Role::Certificate, Some(key)) => pair(file, text, key, before, now, &mut found),
            (Role::Both, _) => pair(file, text, file, before, now, &mut found),
        }
    }
    found
}

enum Role<'a> {
    Certificate,
    Key,
    /// Both in one.
    Both,
    /// Of a certificate that is read from another file of certbot's.
    Part,
    /// Another file has the same name but for its end.
    Extra(&'a str),
    Nothing,
}

fn role<'a>(file: &Listed, text: &str, files: &BTreeMap<&'a str, &'a Listed>) -> Role<'a> {
    let (folder, name) = split(&file.path);
    let beside = |name: &str| files.get_key_value(format!("{folder}{name}").as_str()).map(|(path, _)| *path);
    let of_certbot = beside(CERTBOT.0).is_some() && beside(CERTBOT.1).is_some();
    if of_certbot && CERTBOT_PARTS.contains(&name) {
        return Role::Part;
    }
    let is_key = name == CERTBOT.1 || KEYS.iter().any(|end| name.ends_with(end));
    if is_key && !has_certificate(text) {
        let partner = match name == CERTBOT.1 {
            true => beside(CERTBOT.0),
            false => KEYS.iter().find_map(|end| partner(name.strip_suffix(end)?, &beside)),
        };
        return if partner.is_some() { Role::Part } else { Role::Key };
    }
    // With a key beside it, this is the certificate whatever is in it by now: it may be half written.
    if key_beside(&file.path, files).is_some() {
        let stem = CERTIFICATES.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        return match partner(stem, &beside).filter(|path| *path != file.path && name != CERTBOT.0) {
            Some(better) => Role::Extra(better),
            None => Role::Certificate,
        };
    }
    match (has_certificate(text), has_key(text)) {
        (true, true) => Role::Both,
        (true, false) => Role::Certificate,
        (false, true) => Role::Key,
        (false, false) => Role::Nothing,
    }
}

/// The certificate's file for a key called `stem`.
fn partner<'a>(stem: &str, beside: &impl Fn(&str) -> Option<&'a str>) -> Option<&'a str> {
    CERTIFICATES.iter().find_map(|end| beside(&format!("{stem}{end}")))
}

/// The key's file for the certificate at `path`.
fn key_beside<'a>(path: &str, files: &BTreeMap<&'a str, &'a Listed>) -> Option<&'a Listed> {
    let (folder, name) = split(path);
    let beside = |name: &str| files.get(format!("{folder}{name}").as_str()).copied();
    if name == CERTBOT.0 {
        return beside(CERTBOT.1);
    }
    let stems = CERTIFICATES.iter().filter_map(|end| name.strip_suffix(end));
    stems.flat_map(|stem| KEYS.map(|end| format!("{stem}{end}"))).filter(|key| key != name).find_map(|key| beside(&key))
}

fn split(path: &str) -> (&str, &str) {
    path.split_at(path.rfind('/').map_or(0, |slash| slash + 1))
}

fn pair(file: &Listed, text: &str, key: &Listed, before: &BTreeMap<String, Arc<Record>>, now: Timestamp, found: &mut FilesFound) {
    let subject = format!("file {}", file.path);
    if let Some(mode) = key.exposed {
        let finding = Diagnostic::warning("exposed-key", format!("everybody on this machine may read this private key (mode {mode:04o})"));
        found.findings.push(finding.of(format!("file {}", key.path)).help("run `chmod o= FILE`, or give a Docker secret `mode: 0400`"));
    }
    // What keeps the key's file from being read is said with that file.
    let Ok(key_text) = &key.text else { return kept(file, before, found, &subject) };
    let id = id(&file.path, text);
    let origin = Origin { id, service: String::new(), source: Source::File, issuer: None };
    match Record::from_pem(origin, text, key_text.reveal()) {
        Ok(record) => {
            found.findings.extend(outlook(&record, now).map(|finding| finding.of(subject)));
            found.records.insert(file.path.clone(), Arc::new(record));
        }
        Err(flaw) => {
            found.findings.push(Diagnostic::error("bad-certificate", flaw.to_string()).of(subject.clone()));
            kept(file, before, found, &subject);
        }
    }
}

/// Leaves what there was before in use.
fn kept(file: &Listed, before: &BTreeMap<String, Arc<Record>>, found: &mut FilesFound, subject: &str) {
    let Some(record) = before.get(&file.path) else { return };
    found.records.insert(file.path.clone(), Arc::clone(record));
    let until = format!("the certificate of before stays in use; it expires on {}", record.not_after);
    found.findings.push(Diagnostic::warning("old-certificate", until).of(subject).help("put the file right, or remove it and its key"));
}

/// A finding where a certificate is not valid, or not for long.
fn outlook(record: &Record, now: Timestamp) -> Option<Diagnostic> {
    let life = record.not_before.duration_until(record.not_after);
    let soon = SOON.min(life / 3);
    let replace = "put a new one in its place; it is taken up within seconds";
    if record.not_after <= now {
        return Some(Diagnostic::error("expired-certificate", format!("the certificate expired on {}", record.not_after)).help(replace));
    }
    if now.duration_until(record.not_after) < soon {
        return Some(Diagnostic::warning("expiring-certificate", format!("the certificate expires on {}", record.not_after)).help(replace));
    }
    let early = format!("the certificate is not valid before {}", record.not_before);
    (record.not_before > now).then(|| Diagnostic::warning("early-certificate", early).help("check the clock of this machine"))
}

/// The same for the same file with the same content, and for no other.
fn id(path: &str, chain: &str) -> String {
    let hash = digest(&SHA256, format!("{path}\0{chain}").as_bytes());
    hash.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::local::self_signed;

    fn now() -> Timestamp {
        Timestamp::now()
    }

    fn certificate(name: &str) -> (String, String) {
        let record = self_signed("", &[name.to_owned()].into(), now()).expect("made");
        (record.chain.clone(), record.key.reveal().to_owned())
    }

    fn listed(files: &[(&str, &str)]) -> Vec<Listed> {
        let one = |(path, text): &(&str, &str)| Listed { path: (*path).into(), text: Ok(Secret::new((*text).into())), exposed: None };
        files.iter().map(one).collect()
    }

    fn outcome(files: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        let found = read(&listed(files), &BTreeMap::new(), now());
        (found.records.into_keys().collect(), found.findings.into_iter().map(|f| format!("{}: {}", f.subject, f.code)).collect())
    }

    #[test]
    fn every_layout_is_understood() {
        let (chain, key) = certificate("a.test");
        let (c, k, both) = (chain.as_str(), key.as_str(), format!("{key}{chain}"));
        for (files, records) in [
            (&[("a.crt", c), ("a.key", k)][..], &["a.crt"][..]),
            (&[("a.pem", c), ("a.key", k)], &["a.pem"]),
            (&[("a.cer", c), ("a.key", k)], &["a.cer"]),
            (&[("a.fullchain.pem", c), ("a.key", k)], &["a.fullchain.pem"]),
            (&[("a.test.pem", c), ("a.test-key.pem", k)], &["a.test.pem"]),
            (&[("a.pem", &both)], &["a.pem"]),
            (
                &[("a.test/cert.pem", c), ("a.test/chain.pem", c), ("a.test/fullchain.pem", c), ("a.test/privkey.pem", k)],
                &["a.test/fullchain.pem"],
            ),
            (&[("x/a.crt", c), ("x/a.key", k), ("y/a.crt", c), ("y/a.key", k)], &["x/a.crt", "y/a.crt"]),
        ] {
            assert_eq!(
                outcome(files),
                (records.iter().map(|path| (*path).to_owned()).collect(), vec![]),
                "{:?}",
                files.iter().map(|f| f.0).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn nothing_is_left_aside_in_silence() {
        let ((chain, key), (_, other)) = (certificate("a.test"), certificate("b.test"));
        let (c, k, o) = (chain.as_str(), key.as_str(), other.as_str());
        for (files, records, findings) in [
            (&[("a.crt", c)][..], &[][..], &["file a.crt: no-key"][..]),
            (&[("a.key", k)], &[], &["file a.key: no-certificate"]),
            (&[("a.crt", c), ("b.key", k)], &[], &["file a.crt: no-key", "file b.key: no-certificate"]),
            (&[("x/a.crt", c), ("y/a.key", k)], &[], &["file x/a.crt: no-key", "file y/a.key: no-certificate"]),
            (&[("a.crt", c), ("a.key", o)], &[], &["file a.crt: bad-certificate"]),
            (&[("a.crt", ""), ("a.key", k)], &[], &["file a.crt: bad-certificate"]),
            (&[("a.crt", c), ("a.key", "")], &[], &["file a.crt: bad-certificate"]),
            (&[("a.pem", "hello")], &[], &["file a.pem: no-certificate"]),
            (&[("privkey.pem", k)], &[], &["file privkey.pem: no-certificate"]),
            (&[("a.crt", c), ("a.key", k), ("a.pem", c)], &["a.crt"], &["file a.pem: certificate-twice"]),
        ] {
            let expected =
                (records.iter().map(|path| (*path).to_owned()).collect(), findings.iter().map(|text| (*text).to_owned()).collect());
            assert_eq!(outcome(files), expected, "{:?}", files.iter().map(|f| f.0).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_broken_replacement_leaves_the_old_certificate() {
        let ((chain, key), (new, new_key)) = (certificate("a.test"), certificate("a.test"));
        let good = read(&listed(&[("a.crt", &chain), ("a.key", &key)]), &BTreeMap::new(), now());
        for broken in [
            [("a.crt", new.as_str()), ("a.key", key.as_str())],
            [("a.crt", &new[..99]), ("a.key", &new_key)],
            [("a.crt", &new), ("z.key", "")],
        ] {
            let found = read(&listed(&broken), &good.records, now());
            assert_eq!(found.records, good.records);
            assert!(found.findings.iter().any(|finding| finding.code == "old-certificate"), "{:?}", found.findings);
        }
        let mut unreadable = listed(&[("a.crt", &new), ("a.key", &new_key)]);
        unreadable[1].text = Err("cannot read it".into());
        assert_eq!(read(&unreadable, &good.records, now()).records, good.records);
        let replaced = read(&listed(&[("a.crt", &new), ("a.key", &new_key)]), &good.records, now());
        assert_ne!(replaced.records["a.crt"].id, good.records["a.crt"].id);
        assert_eq!(read(&[], &good.records, now()), FilesFound::default(), "removed is removed");
    }

    #[test]
    fn clocks_and_permissions_are_said() {
        let (chain, key) = certificate("a.test");
        let mut files = listed(&[("a.crt", &chain), ("a.key", &key)]);
        let codes = |files: &[Listed], days: i64| {
            let found = read(files, &BTreeMap::new(), now() + SignedDuration::from_hours(24 * days));
            assert_eq!(found.records.len(), 1);
            found.findings.into_iter().map(|finding| finding.code).collect::<Vec<_>>()
        };
        assert_eq!(codes(&files, -1), ["early-certificate"]);
        assert_eq!(codes(&files, 380), Vec::<String>::new());
        assert_eq!(codes(&files, 390), ["expiring-certificate"]);
        assert_eq!(codes(&files, 400), ["expired-certificate"]);
        files[1].exposed = Some(0o644);
        assert_eq!(codes(&files, 1), ["exposed-key"]);
    }

    #[test]
    fn nothing_shows_a_key() {
        let (chain, key) = certificate("a.test");
        let letters = key.lines().nth(1).expect("base64").to_owned();
        let files = listed(&[("a.crt", &chain), ("a.key", &key), ("b.key", &key), ("c.crt", &key)]);
        let found = read(&files, &BTreeMap::new(), now());
        assert!(!format!("{files:?} {found:?}").contains(&letters));
    }

    proptest::proptest! {
        #[test]
        fn any_names_are_paired_without_panic(names in proptest::collection::vec("([ab]/)?[ab]?(fullchain|privkey|cert|-key)?\\.(key|pem|crt|cer|fullchain\\.pem)", 0..8)) {
            let files: Vec<_> = names.iter().map(|name| (name.as_str(), "-----BEGIN CERTIFICATE-----")).collect();
            let (records, findings) = outcome(&files);
            proptest::prop_assert!(records.is_empty() && (names.is_empty() || !findings.is_empty() || names.iter().all(|name| is_key(name))));
        }
    }

    fn is_key(name: &str) -> bool {
        KEYS.iter().any(|end| name.ends_with(end))
            || name.ends_with("cert.pem")
            || name.ends_with("chain.pem")
            || name.ends_with("privkey.pem")
    }
}
