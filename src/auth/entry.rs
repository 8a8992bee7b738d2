//! What a directory's entries say of somebody: the name, whether they may sign in at all, and the names of their groups.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::identity::{Identity, folded};
use crate::config::dn::Dn;
use crate::config::{Ldap, Scheme};

/// An entry as the directory gave it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub dn: String,
    /// Values by attribute in lower case.
    pub attributes: BTreeMap<String, Vec<Vec<u8>>>,
}

/// Attributes that say that an account is closed, whatever directory it is in.
pub const STATES: [&str; 5] = ["userAccountControl", "accountExpires", "pwdAccountLockedTime", "nsAccountLock", "shadowExpire"];

impl Entry {
    pub fn new<'a>(dn: &str, attributes: impl IntoIterator<Item = (&'a str, &'a str)>) -> Entry {
        let mut entry = Entry { dn: dn.to_owned(), ..Entry::default() };
        for (name, value) in attributes {
            entry.attributes.entry(name.to_ascii_lowercase()).or_default().push(value.as_bytes().to_vec());
        }
        entry
    }

    pub fn bytes(&self, attribute: &str) -> &[Vec<u8>] {
        self.attributes.get(&attribute.to_ascii_lowercase()).map_or(&[], Vec::as_slice)
    }

    /// The values that are text, but for empty ones.
    pub fn texts<'a>(&'a self, attribute: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        self.bytes(attribute).iter().filter_map(|value| std::str::from_utf8(value).ok()).filter(|text| !text.trim().is_empty())
    }

    /// The value of `attribute` that stands in the entry's name, else the first in order: directories keep values in none.
    pub fn name(&self, attribute: &str) -> Option<&str> {
        let own = Dn::parse(&self.dn).and_then(|dn| dn.own().map(|(kind, value)| (kind.to_owned(), value.to_owned())));
        let own = own.filter(|(kind, _)| kind.eq_ignore_ascii_case(attribute)).map(|(_, value)| value);
        self.texts(attribute).find(|text| own.as_deref() == Some(*text)).or_else(|| self.texts(attribute).min())
    }
}

/// Why somebody may not sign in although the password may be right; `None`: they may. A lock that comes from wrong passwords is the
/// server's to enforce when it is asked about a password: strangers cause such locks, so they end no sessions.
pub fn closed(entry: &Entry, now: Timestamp) -> Option<&'static str> {
    let number = |attribute| entry.texts(attribute).next().and_then(|text| text.trim().parse::<i64>().ok());
    // ADS_UF_ACCOUNTDISABLE (MS-ADTS, 2.2.16).
    if number("userAccountControl").is_some_and(|flags| flags & 2 != 0) {
        return Some("the account is disabled");
    }
    // 100 ns since 1601; 0 and the largest number are never (MS-ADA1, 2.2).
    const TO_UNIX: i64 = 11_644_473_600;
    let expires = number("accountExpires").filter(|expires| !matches!(*expires, 0 | i64::MAX));
    if expires.is_some_and(|expires| expires / 10_000_000 - TO_UNIX <= now.as_second()) {
        return Some("the account has expired");
    }
    // The time that stands for "until an administrator unlocks it" (draft-behera-ldap-password-policy, 5.3.3).
    if entry.texts("pwdAccountLockedTime").any(|time| time == "000001010000Z") {
        return Some("the account is locked");
    }
    if entry.texts("nsAccountLock").any(|word| word.eq_ignore_ascii_case("true")) {
        return Some("the account is disabled");
    }
    // Days since 1970 (shadow(5)); 0 is not to be used.
    if number("shadowExpire").is_some_and(|days| days > 0 && days <= now.as_second() / 86_400) {
        return Some("the account has expired");
    }
    None
}

/// Who the entry is about; `None`: it has no name to sign in with.
pub fn identity(ldap: &Ldap, entry: &Entry, groups: impl IntoIterator<Item = String>) -> Option<Identity> {
    let display = match &ldap.name_attribute {
        Some(attribute) => entry.name(attribute),
        None => entry.name("displayName").or_else(|| entry.name("cn")),
    };
    let email = entry.texts(ldap.email_attribute.as_deref().unwrap_or("mail")).next();
    let mut identity = Identity::new(entry.name(ldap.user_attribute())?, groups);
    identity.name = display.map(str::to_owned);
    identity.email = email.map(str::to_owned);
    Some(identity)
}

/// The groups that the entry itself names, where the scheme has it so, below `group-base`.
///
/// # Errors
/// The directory told a part of them only.
pub fn own_groups(ldap: &Ldap, entry: &Entry) -> Result<Vec<(String, String)>, &'static str> {
    if ldap.scheme != Scheme::MemberOf {
        return Ok(Vec::new());
    }
    if entry.attributes.keys().any(|name| name.starts_with("memberof;range=")) {
        return Err("the directory tells a part of memberOf only; use scheme = \"active-directory\"");
    }
    let base =
        ldap.group_base.as_deref().and_then(Dn::parse).unwrap_or(Dn::parse("").unwrap_or_else(|| unreachable!("the root is a name")));
    let named = |text: &str| {
        let dn = Dn::parse(text).filter(|dn| dn.is_within(&base))?;
        Some((text.to_owned(), dn.own()?.1.to_owned()))
    };
    Ok(entry.texts("memberOf").filter_map(named).collect())
}

/// Is it the one that `user` names? After a re-check by name, an entry that was found by its mail is somebody else.
pub fn is_named(identity: &Identity, user: &str) -> bool {
    folded(&identity.user) == folded(user)
}

/// The SID of somebody's primary group in Active Directory, which no group lists among its members: the domain of the user's own SID
/// with the group's number in it (MS-DTYP, 2.4.2.2).
pub fn primary_group(entry: &Entry) -> Option<Vec<u8>> {
    let number: u32 = entry.texts("primaryGroupID").next()?.trim().parse().ok()?;
    let sid = entry.bytes("objectSid").first()?;
    let parts = usize::from(*sid.get(1)?);
    (sid[0] == 1 && parts >= 1 && sid.len() == 8 + 4 * parts).then(|| [&sid[..sid.len() - 4], &number.to_le_bytes()].concat())
}

/// Why a name and a password are refused, as Active Directory hides it in `data 52e` (a Win32 error in hexadecimal).
pub fn refusal(text: &str) -> Option<&'static str> {
    let code = text.split_once("data ").map(|(_, rest)| rest.split(',').next().unwrap_or_default().trim());
    Some(match code {
        Some("525") => "there is no such user",
        Some("52e") => "the password is wrong",
        Some("530") => "not at this time of day",
        Some("531") => "not from here",
        Some("532") => "the password has expired",
        Some("533") => "the account is disabled",
        Some("701") => "the account has expired",
        Some("773") => "the password must be changed first",
        Some("775") => "the account is locked",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-23T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn closed_accounts_are_known_as_directories_mark_them() {
        let filetime = |time: &str| ((time.parse::<Timestamp>().unwrap().as_second() + 11_644_473_600) * 10_000_000).to_string();
        let (past, future) = (filetime("2026-11-23T11:59:59Z"), filetime("2026-11-23T12:00:01Z"));
        for (attribute, value, open) in [
            ("userAccountControl", "512", true),
            ("userAccountControl", "514", false),
            ("userAccountControl", "66050", false),
            ("accountExpires", "0", true),
            ("accountExpires", "9223372036854775807", true),
            ("accountExpires", &future, true),
            ("accountExpires", &past, false),
            ("pwdAccountLockedTime", "000001010000Z", false),
            // Wrong passwords did that.
            ("pwdAccountLockedTime", "20261123115900Z", true),
            ("nsAccountLock", "TRUE", false),
            ("nsAccountLock", "false", true),
            ("shadowExpire", "-1", true),
            ("shadowExpire", "20781", true),
            ("shadowExpire", "20780", false),
            ("shadowExpire", "20000", false),
        ] {
            let entry = Entry::new("uid=ada", [(attribute, value)]);
            assert_eq!(closed(&entry, now()).is_none(), open, "{attribute}: {value}");
        }
        assert_eq!(closed(&Entry::default(), now()), None);
    }

    #[test]
    fn the_reason_of_a_refusal_is_read_out_of_its_text() {
        let text = |code: &str| format!("80090308: LdapErr: DSID-0C09044E, comment: AcceptSecurityContext error, data {code}, v2580");
        assert_eq!(refusal(&text("52e")), Some("the password is wrong"));
        assert_eq!(refusal(&text("775")), Some("the account is locked"));
        assert_eq!(refusal(&text("0")), None);
        assert_eq!(refusal("Invalid credentials"), None);
    }

    #[test]
    fn somebody_is_who_the_entry_says() {
        let ldap = Ldap::default();
        let entry =
            Entry::new("uid=ada,dc=x", [("UID", "aaa"), ("uid", "ada"), ("cn", "Ada L."), ("mail", "ada@x.example"), ("mail", "b@x")]);
        let ada = identity(&ldap, &entry, ["Staff".to_owned()]).unwrap();
        assert_eq!((ada.user.as_str(), ada.name.as_deref(), ada.email.as_deref()), ("ada", Some("Ada L."), Some("ada@x.example")));
        assert!(ada.belongs("staff") && is_named(&ada, "ADA") && !is_named(&ada, "ada@x.example"));
        let elsewhere = Entry::new("cn=Ada,dc=x", [("uid", "b"), ("uid", "a"), ("displayName", "A"), ("cn", "Ada")]);
        let first = identity(&ldap, &elsewhere, []).unwrap();
        assert_eq!((first.user.as_str(), first.name.as_deref()), ("a", Some("A")));
        assert_eq!(identity(&ldap, &Entry::new("cn=Ada", [("uid", "  ")]), []), None);
    }

    #[test]
    fn groups_are_named_by_their_entries_below_the_base() {
        let ldap = Ldap { scheme: Scheme::MemberOf, group_base: Some("OU=Groups, DC=x".to_owned()), ..Ldap::default() };
        let entry = Entry::new(
            "cn=ada",
            [
                ("memberOf", r"CN=A\, B\2b,ou=groups,dc=x"),
                ("memberOf", "cn=Deep,ou=more,ou=groups,dc=x"),
                ("memberOf", "cn=admins,ou=others,dc=x"),
                ("memberOf", r"cn=admins\,ou=groups,dc=x"),
                ("memberOf", "no name"),
            ],
        );
        let names: Vec<String> = own_groups(&ldap, &entry).unwrap().into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, ["A, B+", "Deep"]);
        assert_eq!(own_groups(&Ldap::default(), &entry), Ok(vec![]));
        assert!(own_groups(&ldap, &Entry::new("cn=ada", [("memberOf;range=0-1499", "cn=a,ou=groups,dc=x")])).is_err());
    }

    #[test]
    fn the_primary_group_is_in_the_domain_of_its_member() {
        let mut entry = Entry::new("cn=ada", [("primaryGroupID", "513")]);
        assert_eq!(primary_group(&entry), None);
        let sid = [1, 2, 0, 0, 0, 0, 0, 5, 21, 0, 0, 0, 0x51, 4, 0, 0];
        entry.attributes.insert("objectsid".to_owned(), vec![sid.to_vec()]);
        assert_eq!(primary_group(&entry).unwrap(), [1, 2, 0, 0, 0, 0, 0, 5, 21, 0, 0, 0, 1, 2, 0, 0]);
        entry.attributes.insert("objectsid".to_owned(), vec![sid[..9].to_vec()]);
        assert_eq!(primary_group(&entry), None);
    }
}
