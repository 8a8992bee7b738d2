//! `[ldap]`: the directory that knows users and groups.

/// Where the directory is, and how users and groups are found in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ldap {
    /// `ldaps://ldap.example.com`, `ldap://ldap.example.com` (with StartTLS), asked in this order; empty: there is no directory.
    pub servers: Vec<String>,
}

/// Is there a directory to ask?
pub fn is_configured(ldap: &Ldap) -> bool {
    !ldap.servers.is_empty()
}
