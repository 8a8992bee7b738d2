//! One conversation with a directory server: a limit on the time and the size of everything, and errors that say whose they are.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use ldap3::adapters::{Adapter, PagedResults};
use ldap3::asn1::StructureTag;
use ldap3::exop::WhoAmI;
use ldap3::{LdapConnAsync, LdapError, LdapResult, ResultEntry, Scope, SearchOptions};
use tokio_util::task::AbortOnDropHandle;

use super::entry::{Entry, refusal};

/// References to other servers that one answer may hold.
const REFERENCES: usize = 16;

/// Why there is no answer, as a sentence without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The connection broke, or was silent for too long.
    Connection(String),
    /// The server says that it cannot, or not now: another one may.
    Server(String),
    /// This says nothing about the server: it is asked too much, or does not want to for this user. Another one may.
    Unwilling(String),
    /// It would be no better anywhere else.
    Question(String),
}

/// What a server said about a name and a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    Yes,
    /// Why not, for the log.
    No(String),
}

/// What is searched.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    pub base: &'a str,
    pub scope: Scope,
    pub filter: &'a str,
    pub attributes: &'a [String],
    /// More entries than this are too many.
    pub most: usize,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub entries: Vec<Entry>,
    /// There are more than were asked for.
    pub more: bool,
    /// URLs at which there may be more,
    pub references: Vec<String>,
    /// or at which all of it is: here is nothing.
    pub elsewhere: bool,
}

/// A connection to a server; bound as nobody at first.
pub struct Connection {
    ldap: ldap3::Ldap,
    /// Ends with the connection, and ends it.
    _driver: AbortOnDropHandle<()>,
    request: Duration,
    page: usize,
}

impl fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Trouble::Connection(why) | Trouble::Server(why) | Trouble::Unwilling(why) | Trouble::Question(why)) = self;
        formatter.write_str(why)
    }
}

impl Connection {
    pub(super) fn new(connection: LdapConnAsync, ldap: ldap3::Ldap, request: Duration, page: usize) -> Connection {
        // What it ends with, the requests that are under way are told too.
        let driver = tokio::spawn(async move { drop(connection.drive().await) });
        Connection { ldap, _driver: AbortOnDropHandle::new(driver), request, page }
    }

    /// Is it known to have ended?
    pub fn is_closed(&mut self) -> bool {
        self.ldap.is_closed()
    }

    /// Becomes whoever `name` is, if that is the password. An empty one would make it nobody, and be called right (RFC 4513, 5.1.2).
    ///
    /// # Errors
    /// There was no answer about the two.
    pub async fn bind(&mut self, name: &str, password: &str) -> Result<Bound, Trouble> {
        if name.is_empty() || password.is_empty() {
            return Ok(Bound::No("an empty password is nobody's".to_owned()));
        }
        let result = timed(self.request, self.ldap.simple_bind(name, password)).await?;
        match result.rc {
            0 => Ok(Bound::Yes),
            // No such object, alias problem, invalid DN syntax, inappropriate authentication, invalid credentials, insufficient access
            // rights, constraint violation: about this name and password, not about the server.
            32 | 33 | 34 | 48 | 49 | 50 | 19 => Ok(Bound::No(refusal(&result.text).map_or_else(|| told(&result), str::to_owned))),
            53 => Err(Trouble::Unwilling(told(&result))),
            _ => Err(Trouble::Server(told(&result))),
        }
    }

    /// # Errors
    /// There was no whole answer.
    pub async fn search(&mut self, query: Query<'_>) -> Result<Found, Trouble> {
        // A server may page slowly for long; everything together may take so many times as long as one answer.
        let limit = self.request * 4;
        match tokio::time::timeout(limit, AssertUnwindSafe(self.collect(query)).catch_unwind()).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(garbled())),
            Err(_) => Err(Trouble::Connection(format!("the search took longer than {limit:?}"))),
        }
    }

    async fn collect(&mut self, query: Query<'_>) -> Result<Found, Trouble> {
        let broken = |error: LdapError| Trouble::Connection(said(&error));
        let limit = i32::try_from(query.most + 1).unwrap_or(i32::MAX);
        let paged = query.most >= self.page;
        let pages: Vec<Box<dyn Adapter<'_, String, &[String]>>> = match paged {
            true => vec![Box::new(PagedResults::new(i32::try_from(self.page).unwrap_or(i32::MAX)))],
            false => Vec::new(),
        };
        // With pages, a limit would be one of the whole search for some servers and one of the page for others.
        self.ldap.with_search_options(SearchOptions::new().sizelimit(if paged { 0 } else { limit }));
        self.ldap.with_timeout(self.request);
        let mut stream =
            self.ldap.streaming_search_with(pages, query.base, query.scope, query.filter, query.attributes).await.map_err(broken)?;
        let mut found = Found::default();
        while let Some(answer) = stream.next().await.map_err(broken)? {
            if answer.is_ref() {
                found.references.extend(texts(answer.0).unwrap_or_default());
                found.references.truncate(REFERENCES);
            } else if !answer.is_intermediate() {
                found.entries.push(entry(answer).ok_or_else(garbled)?);
            }
            if found.entries.len() > query.most {
                found.more = true;
                return Ok(found);
            }
        }
        let result = stream.finish().await;
        match result.rc {
            0 => Ok(found),
            4 if found.entries.len() >= query.most => Ok(Found { more: true, ..found }),
            10 => {
                found.references.extend(result.refs.into_iter().take(REFERENCES));
                Ok(Found { elsewhere: true, ..found })
            }
            // The limits of time, size and work: the next server has them too.
            3 | 4 | 11 => Err(Trouble::Question(format!("the search is too large for the server: {}", told(&result)))),
            // The base of the search is gone, or not ours to see.
            32 if query.scope == Scope::Base => Ok(Found::default()),
            32 => Err(Trouble::Server(format!("there is no `{}`, or it may not be seen", query.base))),
            _ => Err(Trouble::Server(format!("the search failed: {}", told(&result)))),
        }
    }

    /// Whom the server takes us for (RFC 4532): `dn:...`, `u:...`; `None`: it does not say.
    ///
    /// # Errors
    /// There was no answer.
    pub async fn who_am_i(&mut self) -> Result<Option<String>, Trouble> {
        let exop = timed(self.request, self.ldap.extended(WhoAmI)).await?;
        let value = exop.0.val.filter(|_| exop.1.rc == 0);
        Ok(value.and_then(|value| String::from_utf8(value).ok()).filter(|who| !who.is_empty()))
    }

    /// Says goodbye, so that the server does not have to notice.
    pub async fn close(mut self) {
        _ = timed(Duration::from_millis(200), self.ldap.unbind()).await;
    }
}

/// `work`, in time. The client library panics on answers that are no LDAP; that is the server's fault and no reason to end.
async fn timed<T>(limit: Duration, work: impl Future<Output = Result<T, LdapError>>) -> Result<T, Trouble> {
    match tokio::time::timeout(limit, AssertUnwindSafe(work).catch_unwind()).await {
        Err(_) => Err(Trouble::Connection(format!("no answer within {limit:?}"))),
        Ok(Err(_)) => Err(garbled()),
        Ok(Ok(answer)) => answer.map_err(|error| Trouble::Connection(said(&error))),
    }
}

pub(super) fn garbled() -> Trouble {
    Trouble::Connection("what it answers is no LDAP".to_owned())
}

/// An error of the connection in our words.
pub(super) fn said(error: &LdapError) -> String {
    match error {
        LdapError::Io { source } => source.to_string(),
        LdapError::LdapResult { result } => format!("StartTLS is refused: {}", told(result)),
        LdapError::OpSend { .. } | LdapError::ResultRecv { .. } | LdapError::EndOfStream | LdapError::IdScrubSend { .. } => {
            "the server closed the connection".to_owned()
        }
        LdapError::Timeout { .. } => "no answer in time".to_owned(),
        error => error.to_string(),
    }
}

/// A result with the server's own words, bounded: they are shown in the log.
fn told(result: &LdapResult) -> String {
    let text: String = result.text.chars().filter(|letter| !letter.is_control()).take(200).collect();
    match result.rc {
        8 | 13 => format!("it wants an encrypted connection (result {}) {text}", result.rc),
        rc if text.is_empty() => format!("result {rc}"),
        rc => format!("result {rc}: {text}"),
    }
}

/// `None`: it is no entry.
fn entry(answer: ResultEntry) -> Option<Entry> {
    let mut parts = answer.0.match_id(4)?.expect_constructed()?.into_iter();
    let dn = String::from_utf8(parts.next()?.expect_primitive()?).ok()?;
    let mut attributes = BTreeMap::new();
    for attribute in parts.next()?.expect_constructed()? {
        let mut parts = attribute.expect_constructed()?.into_iter();
        let name = String::from_utf8(parts.next()?.expect_primitive()?).ok()?;
        let values: Option<Vec<Vec<u8>>> = parts.next()?.expect_constructed()?.into_iter().map(StructureTag::expect_primitive).collect();
        attributes.insert(name.to_ascii_lowercase(), values?);
    }
    Some(Entry { dn, attributes })
}

fn texts(tag: StructureTag) -> Option<Vec<String>> {
    tag.expect_constructed()?.into_iter().map(|part| String::from_utf8(part.expect_primitive()?).ok()).collect()
}
