//! What the sign-in and sign-out forms are held to: sent by our own page, to the same host, in the browser that was given it, within an
//! hour. Else another site could sign its visitors in as somebody else, or out (CWE-352).

use std::borrow::Cow;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::header::{HeaderMap, HeaderName, ORIGIN, REFERER};
use http::{HeaderValue, Uri};
use jiff::Timestamp;
use percent_encoding::percent_decode;
use subtle::ConstantTimeEq;

use super::identity::Password;
use super::seal::{NONCE_BYTES, Purpose, Reader, Ring, Writer, age};
use super::session::SessionId;

/// Of a form's body, in bytes.
pub const MAX_BODY: usize = 8 * 1024;
/// A page is good for so long.
pub const LIFETIME: Duration = Duration::from_secs(3600);
/// More fields are not ours.
const MAX_FIELDS: usize = 32;
const NONCE: usize = 16;

/// What a browser holds in a cookie that others can neither read nor set, and that ties something else of ours to this browser.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Nonce([u8; NONCE]);

impl Nonce {
    pub fn new(random: [u8; NONCE]) -> Nonce {
        Nonce(random)
    }

    /// The cookie's value.
    pub fn text(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.0)
    }

    /// From a cookie's value.
    pub fn parse(text: &str) -> Option<Nonce> {
        let mut bytes = [0; NONCE];
        let length = BASE64_URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        (length == NONCE).then_some(Nonce(bytes))
    }

    /// What can be shown to others without telling it.
    pub fn hash(&self) -> [u8; 32] {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &self.0);
        let mut hash = [0; 32];
        hash.copy_from_slice(digest.as_ref());
        hash
    }
}

/// Which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    SignIn,
    SignOut(SessionId),
}

impl Form {
    fn purpose(self) -> Purpose {
        match self {
            Form::SignIn => Purpose::SignInForm,
            Form::SignOut(_) => Purpose::SignOutForm,
        }
    }

    fn session(self) -> [u8; SessionId::BYTES] {
        match self {
            Form::SignIn => [0; SessionId::BYTES],
            Form::SignOut(session) => session.0,
        }
    }

    /// The hidden `token` of the form on `host`, for the browser that holds `nonce`. `random` seals it.
    pub fn token(self, ring: &Ring, host: &str, nonce: &Nonce, now: Timestamp, random: [u8; NONCE_BYTES]) -> String {
        let plain = Writer::default().time(now).fixed(&nonce.0).fixed(&self.session()).0;
        ring.seal(self.purpose(), host, &plain, random)
    }

    /// Is `token` this form's, of this host, given to this browser not long ago?
    pub fn accepts(self, ring: &Ring, host: &str, nonce: &Nonce, token: &str, now: Timestamp) -> bool {
        let read = || {
            let plain = ring.open(self.purpose(), host, token)?;
            let mut reader = Reader(&plain);
            let fields = (reader.time()?, reader.fixed::<NONCE>()?, reader.fixed::<{ SessionId::BYTES }>()?);
            reader.end().map(|()| fields)
        };
        read().is_some_and(|(made, given, session)| {
            let same = given.ct_eq(&nonce.0) & session.ct_eq(&self.session());
            bool::from(same) && age(made, now) < LIFETIME && made <= now + LIFETIME
        })
    }
}

/// Does a request that changes something come from another site, as far as its browser says? `authority` is the host it was sent to, with
/// the port where there is one. Programs say nothing of it; a form's token tells of those.
pub fn is_cross_site(headers: &HeaderMap, authority: &str, secure: bool) -> bool {
    static SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
    let ours = |value: &HeaderValue| value.to_str().is_ok_and(|url| is_origin(url, authority, secure));
    let site = match only(headers, &SITE) {
        Err(Twice) => return true,
        Ok(site) => site.map(HeaderValue::as_bytes),
    };
    // Pages cannot write this one. `none`: the user's own doing.
    if site.is_some_and(|site| site != b"same-origin" && site != b"none") {
        return true;
    }
    match only(headers, &ORIGIN) {
        Err(Twice) => true,
        // A page that sends no referrer says `null` to its own host as well.
        Ok(Some(origin)) if origin == "null" => site.is_none(),
        Ok(Some(origin)) => !ours(origin),
        Ok(None) if site.is_some() => false,
        Ok(None) => match only(headers, &REFERER) {
            Err(Twice) => true,
            Ok(referer) => referer.is_some_and(|referer| !ours(referer)),
        },
    }
}

struct Twice;

fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Twice> {
    let mut values = headers.get_all(name).into_iter();
    let first = values.next();
    if values.next().is_some() { Err(Twice) } else { Ok(first) }
}

/// Is `url` one of this origin (RFC 6454, 4)? The scheme counts where we know that it was HTTPS: before us, a proxy may have ended TLS.
fn is_origin(url: &str, authority: &str, secure: bool) -> bool {
    let Ok(uri) = url.parse::<Uri>() else { return false };
    let (Some(scheme), Some(host)) = (uri.scheme_str(), uri.host()) else { return false };
    let https = scheme.eq_ignore_ascii_case("https");
    if !(https || !secure && scheme.eq_ignore_ascii_case("http")) || uri.authority().is_some_and(|own| own.as_str().contains('@')) {
        return false;
    }
    let default = if https { 443 } else { 80 };
    let Ok(wanted) = authority.parse::<http::uri::Authority>() else { return false };
    let wanted_default = if secure { 443 } else { default };
    host.eq_ignore_ascii_case(wanted.host()) && uri.port_u16().unwrap_or(default) == wanted.port_u16().unwrap_or(wanted_default)
}

/// What a form of ours can say.
#[derive(Debug, Default)]
pub struct Fields {
    pub user: Option<String>,
    pub password: Option<Password>,
    /// Where to go back to, as it was sent: see [`super::target`].
    pub to: Option<String>,
    pub token: Option<String>,
    /// What brought somebody here from another host: see [`super::code`].
    pub ticket: Option<String>,
    /// Sign out in all browsers.
    pub everywhere: bool,
}

/// Why a body is no form of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the form is longer than {MAX_BODY} bytes")]
    TooLong,
    #[error("the form has more than {MAX_FIELDS} fields")]
    TooMany,
    #[error("the form says a field twice")]
    Twice,
    #[error("the form is not UTF-8")]
    NotText,
}

impl Fields {
    /// Reads `application/x-www-form-urlencoded`. Fields that are not ours are passed over.
    ///
    /// # Errors
    /// It is no form that a page of ours sent.
    pub fn parse(body: &[u8]) -> Result<Fields, Malformed> {
        if body.len() > MAX_BODY {
            return Err(Malformed::TooLong);
        }
        let mut fields = Fields::default();
        let mut password = None;
        let mut everywhere = None;
        for (index, pair) in body.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()).enumerate() {
            if index >= MAX_FIELDS {
                return Err(Malformed::TooMany);
            }
            let equals = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            let slot = match decoded(&pair[..equals])?.as_str() {
                "user" => &mut fields.user,
                "password" => &mut password,
                "to" => &mut fields.to,
                "token" => &mut fields.token,
                "ticket" => &mut fields.ticket,
                "everywhere" => &mut everywhere,
                _ => continue,
            };
            if slot.replace(decoded(pair.get(equals + 1..).unwrap_or_default())?).is_some() {
                return Err(Malformed::Twice);
            }
        }
        fields.password = password.map(Password::new);
        fields.everywhere = everywhere.as_deref() == Some("1");
        Ok(fields)
    }
}

/// Strictly: what is no UTF-8 is refused, where lenient decoding would let two passwords be one.
fn decoded(text: &[u8]) -> Result<String, Malformed> {
    let spaced: Cow<'_, [u8]> = match text.contains(&b'+') {
        true => text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect::<Vec<u8>>().into(),
        false => text.into(),
    };
    percent_decode(&spaced).decode_utf8().map(Cow::into_owned).map_err(|_| Malformed::NotText)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::seal::tests::{at, ring};
    use super::*;

    const SIGN_OUT: Form = Form::SignOut(SessionId([1; 16]));

    #[test]
    fn a_form_is_taken_from_the_browser_that_was_given_it() {
        let (nonce, other) = (Nonce::new([1; 16]), Nonce::new([2; 16]));
        assert_eq!(Nonce::parse(&nonce.text()).map(|read| read.0), Some(nonce.0));
        for form in [Form::SignIn, SIGN_OUT] {
            let token = form.token(&ring(), "a", &nonce, at(0), [3; 12]);
            let taken = |form: Form, host, nonce, token: &str, now| form.accepts(&ring(), host, nonce, token, at(now));
            assert!(taken(form, "a", &nonce, &token, 0) && taken(form, "a", &nonce, &token, 3599));
            assert!(!taken(form, "a", &nonce, &token, 3600), "old");
            assert!(!taken(form, "a", &nonce, &token, -3601), "of the future");
            assert!(!taken(form, "b", &nonce, &token, 0), "another host");
            assert!(!taken(form, "a", &other, &token, 0), "another browser");
            assert!(!taken(Form::SignOut(SessionId([9; 16])), "a", &nonce, &token, 0), "another session, or another form");
            assert!(!taken(form, "a", &nonce, "", 0), "none");
            for place in 0..token.len() {
                let mut changed = token.clone();
                changed.replace_range(place..=place, if &token[place..=place] == "A" { "B" } else { "A" });
                assert!(!taken(form, "a", &nonce, &changed, 0), "changed at {place}");
            }
        }
        let sign_in = Form::SignIn.token(&ring(), "a", &nonce, at(0), [3; 12]);
        assert!(!Form::SignOut(SessionId([0; 16])).accepts(&ring(), "a", &nonce, &sign_in, at(0)));
    }

    #[test]
    fn what_another_site_sends_is_known() {
        let judged = |lines: &[(&'static str, &'static str)], secure| {
            let lines = lines.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            let mut headers = HeaderMap::new();
            lines.for_each(|(name, value)| _ = headers.append(name, value));
            is_cross_site(&headers, "a.test", secure)
        };
        let (site, origin, referer) = ("sec-fetch-site", "origin", "referer");
        for (lines, cross) in [
            (&[][..], false),
            (&[(site, "same-origin"), (origin, "https://a.test")], false),
            (&[(site, "same-origin"), (origin, "null")], false),
            (&[(site, "none")], false),
            (&[(origin, "https://a.test:443")], false),
            (&[(origin, "https://A.test")], false),
            (&[(referer, "https://a.test/.skep/sign-in?to=/")], false),
            (&[(site, "cross-site")], true),
            (&[(site, "same-site"), (origin, "https://b.a.test")], true),
            (&[(site, "same-site"), (origin, "https://a.test")], true),
            (&[(site, "Same-Origin")], true),
            (&[(site, "same-origin"), (site, "cross-site")], true),
            (&[(site, "same-origin"), (origin, "https://evil.test")], true),
            (&[(origin, "null")], true),
            (&[(origin, "http://a.test")], true),
            (&[(origin, "https://a.test:8443")], true),
            (&[(origin, "https://a.test.evil")], true),
            (&[(origin, "https://a.test@evil.test")], true),
            (&[(origin, "https://evil.test@a.test")], true),
            (&[(origin, "a.test")], true),
            (&[(origin, "")], true),
            (&[(origin, "https://a.test"), (origin, "https://evil.test")], true),
            (&[(referer, "https://evil.test/https://a.test/")], true),
            (&[(referer, "https://a.test/"), (referer, "https://evil.test/")], true),
        ] {
            assert_eq!(judged(lines, true), cross, "{lines:?}");
        }
        assert!(!judged(&[(origin, "http://a.test")], false) && !judged(&[(origin, "https://a.test")], false));
        let ported = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static("http://a.test:8080"))]);
        assert!(!is_cross_site(&ported, "a.test:8080", false) && is_cross_site(&ported, "a.test", false));
    }

    #[test]
    fn a_form_is_read_strictly() {
        let fields = Fields::parse(b"user=ada+l%C3%B6&password=a%26b%3D%2B+c&to=%2Fx%3Fy&x=1&x=2&token=t&&ticket").expect("a form");
        assert_eq!(fields.user.as_deref(), Some("ada lö"));
        assert_eq!(fields.password.as_ref().map(Password::reveal), Some("a&b=+ c"));
        assert_eq!((fields.to.as_deref(), fields.token.as_deref(), fields.ticket.as_deref()), (Some("/x?y"), Some("t"), Some("")));
        assert!(!fields.everywhere && !format!("{fields:?}").contains("a&b"));
        for (body, everywhere) in [("everywhere=1", true), ("everywhere=0", false), ("everywhere", false)] {
            assert_eq!(Fields::parse(body.as_bytes()).expect("a form").everywhere, everywhere);
        }
        for (body, why) in [
            (&b"user=a&user=b"[..], Malformed::Twice),
            (b"user=a&us%65r=b", Malformed::Twice),
            (b"user=%ff", Malformed::NotText),
            (b"user=\xff", Malformed::NotText),
            (b"\xff=1", Malformed::NotText),
            (&[b'a'; MAX_BODY + 1], Malformed::TooLong),
            (&b"a&".repeat(MAX_FIELDS + 1), Malformed::TooMany),
        ] {
            assert_eq!(Fields::parse(body).expect_err("refused"), why);
        }
    }

    proptest! {
        #[test]
        fn what_a_browser_encodes_reads_back(user in "\\PC{0,30}", password in "\\PC{0,30}") {
            let body: String = url::form_urlencoded::Serializer::new(String::new()).append_pair("user", &user).append_pair("password", &password).finish();
            let fields = Fields::parse(body.as_bytes()).expect("a form");
            prop_assert_eq!(fields.user, Some(user));
            prop_assert_eq!(fields.password.as_ref().map(Password::reveal), Some(password.as_str()));
        }

        #[test]
        fn any_body_is_survived(body in proptest::collection::vec(any::<u8>(), 0..300), nonce in "\\PC{0,40}") {
            let _ = Fields::parse(&body);
            let _ = Nonce::parse(&nonce);
        }

        #[test]
        fn any_origin_is_survived(origin in proptest::collection::vec(32u8.., 0..60)) {
            if let Ok(value) = HeaderValue::from_bytes(&origin) {
                let cross = is_cross_site(&HeaderMap::from_iter([(ORIGIN, value)]), "a.test", true);
                prop_assert!(cross || origin.eq_ignore_ascii_case(b"https://a.test"));
            }
        }
    }
}
