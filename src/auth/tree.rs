//! What is asked of one directory server: who somebody is, whether a password is theirs, and the groups they are in.

use std::collections::BTreeSet;

use jiff::Timestamp;
use ldap3::Scope;

use super::connection::{Bound, Connection, Found, Query, Trouble};
use super::entry::{self, Entry};
use super::identity::{Identity, Password, folded};
use super::pool::Pool;
use super::question;
use super::referral::Referral;
use crate::config;
use crate::config::dn::Dn;

/// Groups of one user; whoever is in more is in none.
const GROUPS: usize = 10_000;
/// Groups in groups, in groups.
const DEPTH: usize = 16;
/// Names that one filter asks about.
const BATCH: usize = 50;

/// The entries of a directory as the settings see them.
pub struct Tree {
    pub config: config::Ldap,
    /// Servers that may be referred to.
    others: Vec<Pool>,
    user_attributes: Vec<String>,
    group_attributes: Vec<String>,
}

/// An entry, and the server that has it.
struct Located<'a> {
    entry: Entry,
    pool: Option<&'a Pool>,
}

/// Who reads entries: the service account of a server, or somebody who has just signed in.
enum Reader<'a> {
    Service(&'a Pool),
    Own(&'a mut Connection),
}

impl Tree {
    pub fn new(config: &config::Ldap, others: Vec<Pool>) -> Tree {
        let (user_attributes, group_attributes) = (question::user_attributes(config), vec![config.group_attribute().to_owned()]);
        Tree { config: config.clone(), others, user_attributes, group_attributes }
    }

    /// Who `user` is, if that is the password; nobody else may be told apart from a wrong password.
    ///
    /// # Errors
    /// The server did not say.
    pub async fn signed_in(&self, pool: &Pool, user: &str, password: &Password) -> Result<Option<Identity>, Trouble> {
        let Some(template) = &self.config.bind_template else {
            let found = self.find(&mut Reader::Service(pool), user).await?;
            // Whoever does not exist is asked about all the same, so that it takes as long.
            let name = found.as_ref().map_or_else(|| self.nobody(), |found| found.entry.dn.clone());
            let at = found.as_ref().and_then(|found| found.pool).unwrap_or(pool);
            let bound = match self.bind(at, &name, password).await {
                // Some servers answer so about accounts that are closed.
                Err(Trouble::Unwilling(_))
                    if found.as_ref().is_some_and(|found| entry::closed(&found.entry, Timestamp::now()).is_some()) =>
                {
                    None
                }
                bound => bound?,
            };
            let (Some(connection), Some(found)) = (bound, found) else { return Ok(None) };
            connection.close().await;
            return self.identity(&mut Reader::Service(pool), &found.entry).await;
        };
        // Whoever is named by an entry elsewhere is nobody of these users.
        if !template.contains('=') && user.contains('=') {
            return Ok(None);
        }
        let name = question::name(template, user);
        let Some(mut connection) = self.bind(pool, &name, password).await? else { return Ok(None) };
        let dn = self.own_name(&mut connection, &name).await?;
        let mut reader = if self.config.bind_dn.is_some() { Reader::Service(pool) } else { Reader::Own(&mut connection) };
        let entry = match dn {
            Bearer::Dn(dn) => self.read(&mut reader, &dn, user).await?,
            Bearer::Filter(filter) => self.found_again(&mut reader, user, &filter).await?,
        };
        let Some(entry) = entry else {
            tracing::warn!(name, "whoever signs in is no user by ldap.user-base and ldap.user-filter, or may not see the own entry");
            return Ok(None);
        };
        let identity = self.identity(&mut reader, &entry).await;
        connection.close().await;
        identity
    }

    /// The entry that `filter` finds, if it is what the settings call a user.
    async fn found_again(&self, reader: &mut Reader<'_>, user: &str, filter: &str) -> Result<Option<Entry>, Trouble> {
        let Some(Located { entry, .. }) = self.find_by(reader, user, filter).await? else { return Ok(None) };
        if self.config.user_filter.is_none() {
            return Ok(Some(entry));
        }
        let Some(account) = entry.name(self.config.user_attribute()) else { return Ok(None) };
        let again = self.find(reader, account).await?;
        Ok(again.map(|found| found.entry).filter(|again| again.dn == entry.dn))
    }

    /// `None`: the password is wrong, or nobody is called so.
    async fn bind(&self, pool: &Pool, name: &str, password: &Password) -> Result<Option<Connection>, Trouble> {
        let (connection, bound) = pool.sign_in(name, password.reveal()).await?;
        match bound {
            Bound::Yes => return Ok(Some(connection)),
            Bound::No(why) => tracing::debug!(name, why, "the directory refuses a sign-in"),
        }
        connection.close().await;
        Ok(None)
    }

    /// An entry that there is not.
    fn nobody(&self) -> String {
        match self.config.user_base.as_deref() {
            Some(base) => format!("cn=nobody of this name,{base}"),
            None => "cn=nobody of this name".to_owned(),
        }
    }

    /// Whose entry it is that just signed in as `name`. What Active Directory takes as a name leads to an entry by its own rules, so it
    /// is asked whom it means.
    async fn own_name(&self, connection: &mut Connection, name: &str) -> Result<Bearer, Trouble> {
        let unknown = || Trouble::Question("the server does not say who signed in".to_owned());
        if Dn::parse(name).is_some() {
            return Ok(Bearer::Dn(name.to_owned()));
        }
        if let Some(who) = connection.who_am_i().await? {
            let account = who.strip_prefix("u:").map(|account| account.rsplit('\\').next().unwrap_or(account));
            let within = |dn: &Dn| self.config.user_base.as_deref().and_then(Dn::parse).is_some_and(|base| dn.is_within(&base));
            let dn = who.strip_prefix("dn:").filter(|dn| Dn::parse(dn).as_ref().is_some_and(within));
            let dn = dn.map(|dn| Bearer::Dn(dn.to_owned()));
            return dn.or_else(|| account.map(|account| Bearer::Filter(question::user(&self.config, account)))).ok_or_else(unknown);
        }
        // Samba does not answer that, and knows this (MS-ADTS, 3.1.1.3.2.43).
        let attributes = ["tokenGroups".to_owned()];
        let query = Query { base: "", scope: Scope::Base, filter: "(objectClass=*)", attributes: &attributes, most: 1 };
        let root = connection.search(query).await?.entries.into_iter().next().unwrap_or_default();
        match root.bytes("tokenGroups") {
            [] => Err(unknown()),
            sids => Ok(Bearer::Filter(question::bearer(sids))),
        }
    }

    /// The entry of whoever signs in as `user`; `None` if there is none, or if there are several.
    async fn find(&self, reader: &mut Reader<'_>, user: &str) -> Result<Option<Located<'_>>, Trouble> {
        self.find_by(reader, user, &question::user(&self.config, user)).await
    }

    async fn find_by(&self, reader: &mut Reader<'_>, user: &str, filter: &str) -> Result<Option<Located<'_>>, Trouble> {
        let base = self.config.user_base.as_deref().unwrap_or_default();
        let query = Query { base, scope: Scope::Subtree, filter, attributes: &self.user_attributes, most: 1 };
        let found = reader.search(query).await?;
        let mut more = found.more;
        let mut all: Vec<Located<'_>> = found.entries.into_iter().map(|entry| Located { entry, pool: None }).collect();
        let mut followed = false;
        for (pool, base) in found.references.iter().filter_map(|url| self.referred(url)) {
            followed = true;
            let base = if base.is_empty() { query.base } else { &base };
            // Whether that one answers says nothing about this one.
            let there = pool.search(Query { base, ..query }).await.map_err(|why| Trouble::Question(format!("by a referral, {why}")))?;
            more |= there.more;
            all.extend(there.entries.into_iter().map(|entry| Located { entry, pool: Some(pool) }));
        }
        if found.elsewhere && !followed {
            return Err(elsewhere(&found.references));
        }
        if more || all.len() > 1 {
            tracing::warn!(user, "several entries are called so, and none may sign in; narrow ldap.user-base or ldap.user-filter");
            return Ok(None);
        }
        // Without a name it would be everybody's.
        Ok(all.pop().filter(|found| !found.entry.dn.is_empty()))
    }

    /// Where a referral leads, if it may be followed.
    fn referred(&self, url: &str) -> Option<(&Pool, String)> {
        let referral = Referral::parse(url)?;
        let pool = self.others.iter().find(|pool| pool.server == referral.server)?;
        Some((pool, referral.base))
    }

    /// The entry `dn`, if it is what the settings call a user.
    async fn read(&self, reader: &mut Reader<'_>, dn: &str, user: &str) -> Result<Option<Entry>, Trouble> {
        let own = self.config.user_filter.as_ref().map(|_| question::user(&self.config, user));
        let filter = own.as_deref().unwrap_or("(objectClass=*)");
        let query = Query { base: dn, scope: Scope::Base, filter, attributes: &self.user_attributes, most: 1 };
        let found = reader.search(query).await?;
        match found.elsewhere {
            true => Err(elsewhere(&found.references)),
            false => Ok(found.entries.into_iter().next()),
        }
    }

    async fn identity(&self, reader: &mut Reader<'_>, entry: &Entry) -> Result<Option<Identity>, Trouble> {
        if let Some(why) = entry::closed(entry, Timestamp::now()) {
            tracing::debug!(dn = entry.dn, why, "the directory has closed an account");
            return Ok(None);
        }
        let attribute = self.config.user_attribute();
        let nameless = || Trouble::Question(format!("`{}` has no {attribute}: set ldap.user-attribute", entry.dn));
        let name = entry.name(attribute).ok_or_else(nameless)?;
        let groups = self.groups(reader, entry, name).await?;
        entry::identity(&self.config, entry, groups).map(Some).ok_or_else(nameless)
    }

    /// The names of all groups of an entry.
    async fn groups(&self, reader: &mut Reader<'_>, entry: &Entry, name: &str) -> Result<BTreeSet<String>, Trouble> {
        let partly = |why: &str| Trouble::Question(format!("`{}`: {why}", entry.dn));
        let mut fresh = entry::own_groups(&self.config, entry).map_err(partly)?;
        if let Some(filter) = question::groups(&self.config, entry, name) {
            fresh.extend(self.groups_by(reader, &filter).await?);
        }
        let (mut names, mut seen) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..DEPTH {
            let mut next = Vec::new();
            for (dn, name) in fresh.drain(..) {
                names.insert(name);
                if seen.insert(folded(&dn)) {
                    next.push(dn);
                }
            }
            if seen.len() > GROUPS {
                return Err(partly("it is in too many groups"));
            }
            for batch in next.chunks(BATCH) {
                if let Some(filter) = question::parents(&self.config, batch) {
                    fresh.extend(self.groups_by(reader, &filter).await?);
                }
            }
            if fresh.is_empty() {
                break;
            }
        }
        Ok(names)
    }

    /// Entries of groups with their names.
    async fn groups_by(&self, reader: &mut Reader<'_>, filter: &str) -> Result<Vec<(String, String)>, Trouble> {
        let Some(base) = self.group_base() else { return Ok(Vec::new()) };
        let query = Query { base, scope: Scope::Subtree, filter, attributes: &self.group_attributes, most: GROUPS };
        let found = reader.search(query).await?;
        if found.more {
            return Err(Trouble::Question(format!("more than {GROUPS} groups are found below `{base}`")));
        }
        if found.elsewhere {
            return Err(elsewhere(&found.references));
        }
        let named = |entry: Entry| Some((entry.dn.clone(), entry.name(self.config.group_attribute())?.to_owned()));
        Ok(found.entries.into_iter().filter_map(named).collect())
    }

    /// Below it are the groups; `None`: entries of users name theirs.
    pub fn group_base(&self) -> Option<&str> {
        self.config.group_base.as_deref().or(self.config.user_base.as_deref())
    }

    /// Who `user` is now.
    ///
    /// # Errors
    /// The server did not say.
    pub async fn looked_up(&self, pool: &Pool, user: &str) -> Result<Option<Identity>, Trouble> {
        let reader = &mut Reader::Service(pool);
        let direct =
            self.config.bind_template.as_deref().map(|template| question::name(template, user)).filter(|name| Dn::parse(name).is_some());
        let entry = match direct {
            Some(dn) => self.read(reader, &dn, user).await?,
            None => self.find(reader, user).await?.map(|found| found.entry),
        };
        let Some(entry) = entry else { return Ok(None) };
        Ok(self.identity(reader, &entry).await?.filter(|identity| entry::is_named(identity, user)))
    }

    /// Those of `groups` that there are.
    ///
    /// # Errors
    /// The server did not say.
    pub async fn known_of(&self, pool: &Pool, groups: &BTreeSet<String>) -> Result<BTreeSet<String>, Trouble> {
        let mut known = BTreeSet::new();
        let all: Vec<&String> = groups.iter().filter(|group| !group.is_empty()).collect();
        for batch in all.chunks(BATCH) {
            let filter = question::known(&self.config, batch.iter().copied());
            let found = self.groups_by(&mut Reader::Service(pool), &filter).await?;
            known.extend(found.into_iter().map(|(_, name)| folded(&name)));
        }
        Ok(groups.intersection(&known).cloned().collect())
    }
}

impl Reader<'_> {
    async fn search(&mut self, query: Query<'_>) -> Result<Found, Trouble> {
        match self {
            Reader::Service(pool) => pool.search(query).await,
            Reader::Own(connection) => connection.search(query).await,
        }
    }
}

/// What is not here is not gone.
fn elsewhere(references: &[String]) -> Trouble {
    let first: String = references.first().map_or("another server", String::as_str).chars().take(100).collect();
    Trouble::Server(format!("it refers to {}, which is not followed", first.escape_debug()))
}

/// Who signed in.
enum Bearer {
    Dn(String),
    /// Whom this finds.
    Filter(String),
}
