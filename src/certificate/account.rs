//! Our account with an authority: registered once, its key kept in the store, found again at each order.

use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use instant_acme::{Account, AccountCredentials, Error, ExternalAccountKey, NewAccount};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::failure::{AccountProblem, Failure, kind_of};
use super::transport::Transport;
use crate::config::{Config, Issuer};
use crate::diagnostic::Diagnostic;
use crate::store::{self, Store, Version};

/// An account as it is kept. It holds a private key, so that it is neither shown nor logged.
#[derive(Serialize, Deserialize)]
struct Kept {
    directory: String,
    email: Option<String>,
    credentials: AccountCredentials,
}

/// Whose account it is.
#[derive(Clone, Copy)]
pub struct Holder<'a> {
    pub issuer: &'a Issuer,
    pub email: Option<&'a str>,
}

impl Holder<'_> {
    /// The account's key in the store: one for each directory, address and external account.
    pub fn key(&self) -> String {
        let parts = [self.issuer.directory.as_str(), self.email.unwrap_or_default(), self.issuer.eab_kid.as_deref().unwrap_or_default()];
        let hash = digest(&SHA256, parts.join("\n").as_bytes());
        let hex: String = hash.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("acme/account/{hex}")
    }
}

/// The kept account with its version in the store, if there is one.
///
/// # Errors
/// The store cannot be read, or the authority cannot be reached.
pub async fn kept(holder: Holder<'_>, store: &dyn Store, transport: &Transport) -> Result<Option<(Account, Version)>, Failure> {
    let Some((kept, version)) = store::read::<Kept>(store, &holder.key()).await.map_err(local)? else { return Ok(None) };
    let built = Account::builder_with_http(Box::new(transport.clone())).from_credentials(kept.credentials).await;
    built.map(|account| Some((account, version))).map_err(|error| Failure::of(&error, &Default::default(), Timestamp::now()))
}

/// Registers an account and keeps it in place of the one of version `replaced`; if another node was first, its account is the one.
/// Asked for again where the authority refuses the nonce only: each try makes a new key.
///
/// # Errors
/// The authority refuses, or the account cannot be kept: then it is not used, because the next start would not know it.
pub async fn register(
    holder: Holder<'_>,
    store: &dyn Store,
    replaced: Option<&Version>,
    transport: &Transport,
) -> Result<Account, Failure> {
    const TRIES: u32 = 5;
    let issuer = holder.issuer;
    let binding = binding(issuer).await?;
    let contact = holder.email.map(|email| format!("mailto:{email}"));
    let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
    let asked = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let mut tries = 0;
    let (account, credentials) = loop {
        tries += 1;
        let builder = Account::builder_with_http(Box::new(transport.clone()));
        match builder.create(&asked, issuer.directory.clone(), binding.as_ref()).await {
            Ok(made) => break made,
            Err(error) if tries < TRIES && kind_of(&error) == Some("badNonce") => {}
            Err(error) => return Err(refused(&error, holder)),
        }
    };
    let kept = Kept { directory: issuer.directory.clone(), email: holder.email.map(str::to_owned), credentials };
    match store::write(store, &holder.key(), &kept, replaced).await {
        Ok(_) => {
            tracing::info!(issuer = issuer.name, account = account.id(), "registered with the certificate authority");
            Ok(account)
        }
        Err(conflict @ store::Error::Conflict { .. }) => match self::kept(holder, store, transport).await? {
            Some((account, _)) => Ok(account),
            None => Err(local(conflict)),
        },
        Err(error) => Err(local(error)),
    }
}

fn local(error: store::Error) -> Failure {
    Failure::Local(error.to_string())
}

fn refused(error: &Error, holder: Holder<'_>) -> Failure {
    let Issuer { name, eab_kid, .. } = holder.issuer;
    let failure = Failure::of(error, &Default::default(), Timestamp::now());
    let told = failure.to_string();
    let (problem, text) = match kind_of(error) {
        Some("externalAccountRequired") if eab_kid.is_none() => {
            (AccountProblem::Binding, format!("{name} wants an external account binding: set eab-kid and eab-key-file in [issuer.{name}]"))
        }
        // What they say of a binding that they do not accept; without one, they have nothing to refuse.
        Some("unauthorized" | "malformed" | "accountDoesNotExist" | "externalAccountRequired") if eab_kid.is_some() => {
            (AccountProblem::Binding, format!("{name} refuses the external account binding of [issuer.{name}]: {told}"))
        }
        Some("malformed" | "invalidContact") if holder.email.is_none() && told.to_ascii_lowercase().contains("contact") => {
            (AccountProblem::Contact, format!("{name} wants an e-mail address: set acme.email"))
        }
        _ => return failure,
    };
    Failure::Account { problem, text }
}

/// What is wrong with the files of the issuers that are asked; for starts and `skep check`, as the configuration alone does not tell.
pub fn findings(config: &Config) -> Vec<Diagnostic> {
    let asked = config.acme.issuers.iter().filter(|_| config.acme.configured()).filter_map(|name| config.issuers.get(name));
    let mut findings = Vec::new();
    for issuer in asked {
        if let Err(what) = Transport::new(issuer.root.as_deref(), std::time::Duration::ZERO) {
            findings.push(Diagnostic::error("issuer-root", what).help(format!("correct root in [issuer.{}]", issuer.name)));
        }
        let key = issuer.eab_key_file.as_ref().map(|path| (path, std::fs::read_to_string(path).map(Zeroizing::new)));
        let wrong = match &key {
            Some((path, Err(error))) => Some(format!("{} cannot be read: {error}", path.display())),
            Some((path, Ok(text))) if binding_key(text).is_none() => Some(format!("{} holds no key in base64", path.display())),
            _ => None,
        };
        findings.extend(wrong.map(|what| {
            Diagnostic::error("issuer-eab-key", what)
                .help(format!("put the key that the authority gave you into the file of eab-key-file in [issuer.{}]", issuer.name))
        }));
    }
    findings
}

/// The external account binding that is configured.
async fn binding(issuer: &Issuer) -> Result<Option<ExternalAccountKey>, Failure> {
    let (Some(kid), Some(path)) = (&issuer.eab_kid, &issuer.eab_key_file) else { return Ok(None) };
    let bad = |what: &str| Failure::Local(format!("issuer.{}.eab-key-file {}: {what}", issuer.name, Path::new(path).display()));
    let text = tokio::fs::read_to_string(path).await.map(Zeroizing::new).map_err(|error| bad(&error.to_string()))?;
    let key = binding_key(&text).ok_or_else(|| bad("it must hold the key as the authority gave it, in base64"))?;
    Ok(Some(ExternalAccountKey::new(kid.clone(), &key)))
}

/// The key that base64 in either alphabet, with or without padding, stands for.
fn binding_key(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let text = Zeroizing::new(text.trim().trim_end_matches('=').replace('+', "-").replace('/', "_"));
    let key = BASE64_URL_SAFE_NO_PAD.decode(text.as_str()).ok().filter(|key| !key.is_empty())?;
    Some(Zeroizing::new(key))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accounts_are_apart_by_directory_address_and_binding() {
        let issuer = Issuer::new("a", "https://a/dir");
        let other = Issuer { eab_kid: Some("kid".to_owned()), ..issuer.clone() };
        let keys = [
            Holder { issuer: &issuer, email: None }.key(),
            Holder { issuer: &issuer, email: Some("a@b") }.key(),
            Holder { issuer: &other, email: None }.key(),
            Holder { issuer: &Issuer::new("a", "https://b/dir"), email: None }.key(),
        ];
        assert_eq!(std::collections::BTreeSet::from(keys.clone()).len(), 4, "{keys:?}");
        assert!(keys[0].starts_with("acme/account/") && keys[0].len() == 29, "{}", keys[0]);
    }

    #[test]
    fn files_of_issuers_that_are_asked_are_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).unwrap();
            Some(folder.path().join(name))
        };
        let with = |root, key| {
            let mut config = Config::default();
            config.acme.agree_tos = true;
            config.issuers.insert("letsencrypt".to_owned(), Issuer { root, eab_key_file: key, ..Issuer::new("letsencrypt", "") });
            findings(&config).into_iter().map(|finding| finding.code).collect::<Vec<_>>()
        };
        assert_eq!(with(None, None), [""; 0]);
        assert_eq!(with(None, file("key", "-_8\n")), [""; 0]);
        assert_eq!(with(file("root", "no PEM"), file("bad", "no key")), ["issuer-root", "issuer-eab-key"]);
        assert_eq!(with(Some("/nowhere".into()), Some("/nowhere".into())), ["issuer-root", "issuer-eab-key"]);
    }

    #[test]
    fn binding_keys_come_in_either_alphabet() {
        for text in ["-_8", "+/8=", " -_8=\n"] {
            assert_eq!(binding_key(text).as_deref(), Some(&vec![0xfb, 0xff]), "{text}");
        }
        for text in ["", "=", "no key", "a"] {
            assert_eq!(binding_key(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_binding_key_reads_back(key in proptest::collection::vec(any::<u8>(), 1..64)) {
            use base64::prelude::BASE64_STANDARD;
            let read = binding_key(&BASE64_STANDARD.encode(&key));
            prop_assert_eq!(read.as_deref(), Some(&key));
        }

        #[test]
        fn any_text_is_survived(text in "\\PC{0,40}") {
            let _ = binding_key(&text);
        }
    }
}
