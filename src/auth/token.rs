//! Signed tokens (JWT, RFC 7519) by which upstreams know who somebody is without trusting the network between us, and the keys that they
//! are checked with (JWKS, RFC 7517). Each is for one host, lives for minutes, and is signed once for many requests.

use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::agreement::{ECDH_P256, PrivateKey};
use aws_lc_rs::encoding::{AsBigEndian, EcPrivateKeyBin};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use http::HeaderValue;
use jiff::Timestamp;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use moka::sync::Cache;
use serde::Serialize;

use super::identity::Identity;
use super::seal::{Key, Keys, age};

/// From signing to the end.
pub const LIFETIME: Duration = Duration::from_secs(300);
/// A token is given out again for so long: whoever gets it has a minute left.
const REUSE: Duration = Duration::from_secs(240);
/// Upstreams may keep the published keys for so long, so that a new key does not sign earlier.
const SPREAD: Duration = Duration::from_secs(3600);
/// A key is published until nothing can be alive that it signed.
pub const KEY_LIFETIME: Duration = Duration::from_secs(2 * 3600);
/// Tokens that are kept for reuse.
const MOST: u64 = 10_000;

/// Signs with one key, and publishes all.
pub struct Signer {
    kid: String,
    key: EncodingKey,
    jwks: Arc<str>,
}

impl fmt::Debug for Signer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Signer").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl Signer {
    /// `keys` at `now`; `None` when none of them can be used.
    pub fn new(keys: &Keys, now: Timestamp) -> Option<Signer> {
        let mut pairs: Vec<(EncodingKey, Jwk)> = keys.ordered(now, SPREAD).into_iter().filter_map(pair).collect();
        let published = JwkSet { keys: pairs.iter().map(|(_, public)| public.clone()).collect() };
        let jwks = serde_json::to_string(&published).ok()?.into();
        let (key, public) = (!pairs.is_empty()).then(|| pairs.swap_remove(0))?;
        Some(Signer { kid: public.common.key_id?, key, jwks })
    }

    /// The public keys as upstreams read them, JSON (`application/jwk-set+json`).
    pub fn jwks(&self) -> &Arc<str> {
        &self.jwks
    }

    fn sign(&self, claims: &Claims<'_>) -> Option<HeaderValue> {
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::ES256) };
        HeaderValue::try_from(jsonwebtoken::encode(&header, claims, &self.key).ok()?).ok()
    }
}

/// The P-256 key that a secret is the private half of: nearly every secret is one.
fn pair(key: &Key) -> Option<(EncodingKey, Jwk)> {
    let secret = key.secret()?;
    let private = PrivateKey::from_private_key(&ECDH_P256, &*secret).ok()?;
    let public = private.compute_public_key().ok()?;
    let bytes: EcPrivateKeyBin<'_> = private.as_be_bytes().ok()?;
    let pair = EcdsaKeyPair::from_private_key_and_public_key(&ECDSA_P256_SHA256_FIXED_SIGNING, bytes.as_ref(), public.as_ref()).ok()?;
    let key = EncodingKey::from_ec_der(pair.to_pkcs8v1().ok()?.as_ref());
    let mut public = Jwk::from_encoding_key(&key, Algorithm::ES256).ok()?;
    public.common.key_id = Some(public.thumbprint(ThumbprintHash::SHA256).ok()?);
    public.common.public_key_use = Some(PublicKeyUse::Signature);
    Some((key, public))
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: String,
    aud: &'a str,
    sub: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<&'a str>,
    groups: Vec<&'a str>,
    iat: i64,
    exp: i64,
}

/// Tokens that can be given out again.
#[derive(Debug)]
pub struct Tokens {
    /// By a hash of identity and host; what is found is compared.
    cache: Cache<u64, Arc<Signed>>,
    hasher: std::hash::RandomState,
}

#[derive(Debug)]
struct Signed {
    /// The very one: as long as it is held here, no other can be in its place.
    identity: Arc<Identity>,
    host: String,
    made: Timestamp,
    token: HeaderValue,
}

impl Default for Tokens {
    fn default() -> Tokens {
        Tokens { cache: Cache::builder().max_capacity(MOST).time_to_live(LIFETIME).build(), hasher: std::hash::RandomState::new() }
    }
}

impl Tokens {
    /// What tells the upstream of `host` who `identity` is: [`super::accounts::Live::identity`], which stays the same while the
    /// directory says the same. `None` if it cannot be signed; then nothing is said.
    pub fn get(&self, signer: &Signer, identity: &Arc<Identity>, host: &str, now: Timestamp) -> Option<HeaderValue> {
        let key = self.hasher.hash_one((Arc::as_ptr(identity) as usize, host));
        let good = |signed: &Arc<Signed>| {
            let fresh = age(signed.made, now) < REUSE && signed.made <= now;
            fresh && Arc::ptr_eq(&signed.identity, identity) && signed.host == host
        };
        if let Some(signed) = self.cache.get(&key).filter(good) {
            return Some(signed.token.clone());
        }
        let iat = now.as_second();
        let token = signer.sign(&Claims {
            iss: format!("https://{host}"),
            aud: host,
            sub: &identity.user,
            name: identity.name.as_deref(),
            email: identity.email.as_deref(),
            groups: identity.groups().collect(),
            iat,
            exp: iat + LIFETIME.as_secs().cast_signed(),
        })?;
        let signed = Signed { identity: Arc::clone(identity), host: host.to_owned(), made: now, token: token.clone() };
        self.cache.insert(key, Arc::new(signed));
        Some(token)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use jsonwebtoken::{DecodingKey, Validation};
    use serde_json::Value;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn keys() -> Keys {
        Keys::default().planned(Timestamp::now(), DAY, KEY_LIFETIME, &[7; 32]).expect("a key")
    }

    fn signer() -> Signer {
        Signer::new(&keys(), Timestamp::now()).expect("a signer")
    }

    fn ada() -> Arc<Identity> {
        let mut ada = Identity::new("Ada", ["staff".to_owned(), "Köche".to_owned()]);
        ada.email = Some("ada@a.test".to_owned());
        Arc::new(ada)
    }

    /// As an upstream does it, with what is published.
    fn check(jwks: &str, token: &HeaderValue, host: &str) -> Option<HashMap<String, Value>> {
        let token = token.to_str().expect("text");
        let set: JwkSet = serde_json::from_str(jwks).expect("a key set");
        let kid = jsonwebtoken::decode_header(token).expect("a header").kid.expect("a key");
        let mut wanted = Validation::new(Algorithm::ES256);
        wanted.set_audience(&[host]);
        wanted.set_issuer(&[format!("https://{host}")]);
        wanted.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let key = DecodingKey::from_jwk(set.find(&kid)?).expect("a key");
        jsonwebtoken::decode(token, &key, &wanted).ok().map(|data| data.claims)
    }

    #[test]
    fn an_upstream_can_check_who_somebody_is() {
        let (signer, tokens, now) = (signer(), Tokens::default(), Timestamp::now());
        let token = tokens.get(&signer, &ada(), "a.test", now).expect("signed");
        let claims = check(signer.jwks(), &token, "a.test").expect("good");
        let wanted = serde_json::json!({
            "iss": "https://a.test", "aud": "a.test", "sub": "Ada", "email": "ada@a.test", "groups": ["Köche", "staff"],
            "iat": now.as_second(), "exp": now.as_second() + 300,
        });
        let claims: Value = claims.into_iter().collect();
        for (name, value) in wanted.as_object().expect("an object") {
            match value.as_array() {
                Some(list) => assert!(list.iter().all(|entry| claims[name].as_array().expect("a list").contains(entry))),
                None => assert_eq!(&claims[name], value, "{name}"),
            }
        }
        assert!(check(signer.jwks(), &token, "b.test").is_none(), "another host's");
        let stranger = Keys::default().planned(now, DAY, KEY_LIFETIME, &[8; 32]).expect("a key");
        let stranger = Signer::new(&stranger, now).expect("a signer");
        assert!(check(stranger.jwks(), &token, "a.test").is_none());
        let secret = base64::Engine::encode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, [7; 32]);
        assert!(!signer.jwks().contains(&secret) && !signer.jwks().contains("\"d\""), "{}", signer.jwks());
    }

    #[test]
    fn a_token_is_signed_once_for_many_requests() {
        let (signer, tokens, identity, now) = (signer(), Tokens::default(), ada(), Timestamp::now());
        let get = |identity: &Arc<Identity>, host: &str, seconds: u64| {
            tokens.get(&signer, identity, host, now + Duration::from_secs(seconds)).expect("signed")
        };
        let first = get(&identity, "a.test", 0);
        // Signatures are random, so that the same text is the same signing.
        assert_eq!(get(&identity, "a.test", 239), first);
        assert_ne!(get(&identity, "a.test", 240), first, "old");
        assert_ne!(get(&identity, "b.test", 0), first, "another host");
        assert_ne!(get(&ada(), "a.test", 0), first, "what the directory says was replaced");
    }

    #[test]
    fn keys_are_published_before_they_sign_and_after() {
        let now = Timestamp::now();
        let old = Keys::default().planned(now, DAY, KEY_LIFETIME, &[7; 32]).expect("a key");
        let both = old.planned(now + DAY, DAY, KEY_LIFETIME, &[8; 32]).expect("two keys");
        let sign = |keys: &Keys, time| {
            let signer = Signer::new(keys, time).expect("a signer");
            let token = Tokens::default().get(&signer, &ada(), "a.test", now).expect("signed");
            (signer, token)
        };
        let (before, early) = sign(&both, now + DAY);
        assert!(check(Signer::new(&old, now).expect("a signer").jwks(), &early, "a.test").is_some(), "the old key still signs");
        assert_eq!(serde_json::from_str::<JwkSet>(before.jwks()).expect("keys").keys.len(), 2);
        let (after, late) = sign(&both, now + DAY + SPREAD);
        assert!(check(before.jwks(), &late, "a.test").is_some(), "whoever read the keys an hour ago knows it");
        assert!(check(after.jwks(), &early, "a.test").is_some(), "what the old key signed is still good");
        let dropped = both.planned(now + DAY + 3 * SPREAD, DAY, KEY_LIFETIME, &[9; 32]).expect("one is dropped");
        assert!(check(Signer::new(&dropped, now + DAY + 3 * SPREAD).expect("a signer").jwks(), &early, "a.test").is_none());
    }

    #[test]
    fn what_is_no_key_does_not_sign() {
        // Not below the order of the curve.
        let keys = Keys::default().planned(Timestamp::now(), DAY, KEY_LIFETIME, &[0xff; 32]).expect("planned");
        assert!(Signer::new(&keys, Timestamp::now()).is_none());
        assert!(Signer::new(&Keys::default(), Timestamp::now()).is_none());
    }
}
