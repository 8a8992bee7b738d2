//! What a directory is asked, by scheme: the filters that find a user, a user's groups, and the groups of groups.

use super::entry::{self, Entry};
use crate::config::dn;
use crate::config::filter::{About, escape, escape_bytes};
use crate::config::{Ldap, Scheme};

/// Members of a group at any depth (MS-ADTS, 3.1.1.3.4.4.3).
const IN_CHAIN: &str = "1.2.840.113556.1.4.1941";

/// Longer names are nobody's.
const LONGEST: usize = 256;

/// May somebody be called so? If not, nobody is asked.
pub fn is_name(user: &str) -> bool {
    !user.trim().is_empty() && user.len() <= LONGEST && !user.chars().any(char::is_control)
}

/// The name to bind with, where users need not be searched. A name with a domain of its own is what Active Directory takes as it is.
pub fn name(template: &str, user: &str) -> String {
    match (template.contains('='), user.contains(['@', '\\'])) {
        (true, _) => template.replace("{user}", &dn::escape(user)),
        (false, true) => user.to_owned(),
        (false, false) => template.replace("{user}", user),
    }
}

/// Finds whoever signs in as `user`.
pub fn user(ldap: &Ldap, user: &str) -> String {
    if let Some(filter) = &ldap.user_filter {
        return filter.fill(About { user, dn: "" });
    }
    let (attribute, name) = (ldap.user_attribute(), escape(user));
    // A name without @ is no address: then nobody stands in the way of another by a mail address of that name.
    let address = user.contains('@');
    match ldap.scheme {
        Scheme::ActiveDirectory if address => {
            format!("(&(objectCategory=person)(objectClass=user)(|({attribute}={name})(userPrincipalName={name})))")
        }
        Scheme::ActiveDirectory => format!("(&(objectCategory=person)(objectClass=user)({attribute}={name}))"),
        Scheme::Groups | Scheme::MemberOf => {
            let mail = ldap.email_attribute.as_deref().unwrap_or("mail");
            let by = if address { format!("(|({attribute}={name})({mail}={name}))") } else { format!("({attribute}={name})") };
            format!("(&(|(objectClass=person)(objectClass=account)(objectClass=posixAccount)){by})")
        }
    }
}

/// Finds the one person among these security identifiers of Active Directory: somebody's own, and those of all groups.
pub fn bearer(sids: &[Vec<u8>]) -> String {
    // The own one comes first.
    let each: String = sids.iter().take(64).map(|sid| format!("(objectSid={})", escape_bytes(sid))).collect();
    format!("(&(objectCategory=person)(objectClass=user)(|{each}))")
}

/// The attributes of users that are asked for.
pub fn user_attributes(ldap: &Ldap) -> Vec<String> {
    let named = [&ldap.name_attribute, &ldap.email_attribute].into_iter().flatten().map(String::as_str);
    let mut names: Vec<&str> = vec![ldap.user_attribute(), "displayName", "cn", "mail"];
    names.extend(named);
    names.extend(entry::STATES);
    match ldap.scheme {
        Scheme::Groups => names.push("gidNumber"),
        Scheme::MemberOf => names.push("memberOf"),
        Scheme::ActiveDirectory => names.extend(["primaryGroupID", "objectSid"]),
    }
    names.into_iter().map(str::to_owned).collect()
}

/// Finds the groups of the user `name` with this entry; `None`: the entry says it all.
pub fn groups(ldap: &Ldap, entry: &Entry, name: &str) -> Option<String> {
    if let Some(filter) = &ldap.group_filter {
        return Some(filter.fill(About { user: name, dn: &entry.dn }));
    }
    let (dn, name) = (escape(&entry.dn), escape(name));
    match ldap.scheme {
        Scheme::MemberOf => None,
        Scheme::Groups => {
            let digits = |gid: &&str| !gid.is_empty() && gid.bytes().all(|byte| byte.is_ascii_digit());
            let primary = entry.texts("gidNumber").find(digits).map(|gid| format!("(gidNumber={gid})")).unwrap_or_default();
            Some(format!(
                "(|(&(objectClass=groupOfNames)(member={dn}))(&(objectClass=groupOfUniqueNames)(uniqueMember={dn}))\
                 (&(objectClass=posixGroup)(|(memberUid={name}){primary})))"
            ))
        }
        Scheme::ActiveDirectory => {
            let rule = if ldap.nested_groups { format!(":{IN_CHAIN}:") } else { String::new() };
            let primary = entry::primary_group(entry).map(|sid| format!("(objectSid={})", escape_bytes(&sid))).unwrap_or_default();
            Some(format!("(&(objectClass=group)(|(member{rule}={dn}){primary}))"))
        }
    }
}

/// Finds the groups that list those of `groups` (names of entries) as members; `None`: that is not asked.
pub fn parents(ldap: &Ldap, groups: &[String]) -> Option<String> {
    if !ldap.nested_groups || groups.is_empty() {
        return None;
    }
    let each = |make: &dyn Fn(&str) -> String| format!("(|{})", groups.iter().map(|dn| make(dn)).collect::<String>());
    match (&ldap.group_filter, ldap.scheme) {
        // Nobody is called so: a group is no user of its name.
        (Some(filter), _) => filter.has_dn().then(|| each(&|dn| filter.fill(About { user: "\0", dn }))),
        // The rule has found them.
        (None, Scheme::ActiveDirectory) => None,
        (None, Scheme::Groups | Scheme::MemberOf) => Some(each(&|dn| {
            let dn = escape(dn);
            format!(
                "(&(|(objectClass=groupOfNames)(objectClass=group))(member={dn}))(&(objectClass=groupOfUniqueNames)(uniqueMember={dn}))"
            )
        })),
    }
}

/// Finds those of the groups `names` that there are.
pub fn known<'a>(ldap: &Ldap, names: impl IntoIterator<Item = &'a String>) -> String {
    let attribute = ldap.group_attribute();
    let each: String = names.into_iter().map(|name| format!("({attribute}={})", escape(name))).collect();
    let kind = match (&ldap.group_filter, ldap.scheme) {
        // What a group is there, only the filter knows, and it asks about members.
        (Some(_), _) => "(objectClass=*)",
        (None, Scheme::ActiveDirectory) => "(objectClass=group)",
        (None, Scheme::MemberOf) => "(|(objectClass=groupOfNames)(objectClass=groupOfUniqueNames)(objectClass=group))",
        (None, Scheme::Groups) => "(|(objectClass=groupOfNames)(objectClass=groupOfUniqueNames)(objectClass=posixGroup))",
    };
    format!("(&{kind}(|{each}))")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::filter::Template;

    fn of(scheme: Scheme) -> Ldap {
        Ldap { scheme, ..Ldap::default() }
    }

    #[test]
    fn users_are_found_as_the_scheme_has_it() {
        assert_eq!(user(&of(Scheme::Groups), "a*"), r"(&(|(objectClass=person)(objectClass=account)(objectClass=posixAccount))(uid=a\2a))");
        assert!(user(&of(Scheme::MemberOf), "a@b").ends_with("(|(uid=a@b)(mail=a@b)))"));
        assert_eq!(user(&of(Scheme::ActiveDirectory), "ada"), "(&(objectCategory=person)(objectClass=user)(sAMAccountName=ada))");
        assert!(user(&of(Scheme::ActiveDirectory), "a@b").ends_with("(|(sAMAccountName=a@b)(userPrincipalName=a@b)))"));
        let filter = Template::parse("(|(uid={user})(mail={user}))", &["{user}"]).ok();
        assert_eq!(user(&Ldap { user_filter: filter, ..Ldap::default() }, "a)"), r"(|(uid=a\29)(mail=a\29))");
    }

    #[test]
    fn a_template_makes_a_name_and_no_more_of_it() {
        for (template, user, whole) in [
            ("uid={user},dc=x", "ada", "uid=ada,dc=x"),
            ("uid={user},dc=x", " a,b", r"uid=\20a\2cb,dc=x"),
            ("uid={user},dc=x", "a@b", "uid=a@b,dc=x"),
            ("{user}@corp.example", "ada", "ada@corp.example"),
            ("{user}@corp.example", "ada@other.example", "ada@other.example"),
            (r"CORP\{user}", "ada", r"CORP\ada"),
            (r"CORP\{user}", r"OTHER\ada", r"OTHER\ada"),
        ] {
            assert_eq!(name(template, user), whole);
        }
    }

    #[test]
    fn groups_are_found_as_the_scheme_has_it() {
        let ada = Entry::new(r"cn=A\2a (x),dc=y", [("gidNumber", "7"), ("primaryGroupID", "513")]);
        let filter = groups(&of(Scheme::Groups), &ada, "a*").unwrap();
        assert!(filter.contains(r"(member=cn=A\5c2a \28x\29,dc=y)") && filter.contains(r"(|(memberUid=a\2a)(gidNumber=7))"), "{filter}");
        assert_eq!(groups(&of(Scheme::MemberOf), &ada, "a"), None);
        let filter = groups(&of(Scheme::ActiveDirectory), &Entry::new("cn=a", []), "a").unwrap();
        assert_eq!(filter, "(&(objectClass=group)(|(member:1.2.840.113556.1.4.1941:=cn=a)))");
        let flat = Ldap { nested_groups: false, ..of(Scheme::ActiveDirectory) };
        assert_eq!(groups(&flat, &Entry::new("cn=a", []), "a").unwrap(), "(&(objectClass=group)(|(member=cn=a)))");
        let own = Template::parse("(|(occupant={dn})(memberUid={user}))", &["{dn}", "{user}"]).ok();
        let own = Ldap { group_filter: own, ..Ldap::default() };
        assert_eq!(groups(&own, &Entry::new("cn=a", []), "b").unwrap(), "(|(occupant=cn=a)(memberUid=b))");
        assert_eq!(parents(&own, &["cn=g".to_owned()]).unwrap(), r"(|(|(occupant=cn=g)(memberUid=\00)))");
        assert_eq!(parents(&flat, &["cn=g".to_owned()]), None);
    }

    #[test]
    fn nobody_is_asked_about_what_is_no_name() {
        for user in ["ada", " ada", "a*", "Ľudmila", "a\\,b", &"x".repeat(256)] {
            assert!(is_name(user), "{user}");
        }
        for user in ["", "  ", "a\0", "\u{85}a", "a\nb", &"x".repeat(257)] {
            assert!(!is_name(user), "{user:?}");
        }
    }

    proptest! {
        /// Whatever names there are, filters can be read by the client that sends them.
        #[test]
        fn filters_can_always_be_sent(name in "\\PC*|[*()\\\\\0&|!= ]{0,12}", scheme in 0..3_usize) {
            let ldap = of([Scheme::Groups, Scheme::MemberOf, Scheme::ActiveDirectory][scheme]);
            let entry = Entry::new(&name, [("gidNumber", name.as_str())]);
            let names = [name.clone()];
            let all = [Some(user(&ldap, &name)), groups(&ldap, &entry, &name), parents(&ldap, &names), Some(known(&ldap, &names))];
            for filter in all.into_iter().flatten() {
                prop_assert!(ldap3::parse_filter(&filter).is_ok(), "{}", filter);
            }
        }
    }
}
