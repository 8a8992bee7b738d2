//! The pages by which people sign in and out, and are told that they may not enter. Everything that comes from users, labels or clients is
//! escaped by the template.

use http::StatusCode;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, REFERRER_POLICY, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use maud::{Markup, html};

use super::entrance;
use super::gatekeeper::Denied;
use super::reply::Reply;
use super::style;

/// Why a form is shown again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Wrong,
    /// Too many were wrong; seconds.
    Wait(u64),
    /// Whoever knows users gave no answer.
    Unavailable,
    /// The form is too old, or was not ours.
    Expired,
}

impl Trouble {
    pub fn of(denied: Denied) -> Trouble {
        match denied {
            Denied::Wrong => Trouble::Wrong,
            Denied::Wait(seconds) => Trouble::Wait(seconds),
            Denied::Unavailable => Trouble::Unavailable,
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Trouble::Wrong => StatusCode::UNAUTHORIZED,
            Trouble::Wait(_) => StatusCode::TOO_MANY_REQUESTS,
            Trouble::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Trouble::Expired => StatusCode::FORBIDDEN,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Trouble::Wrong => "wrong password",
            Trouble::Wait(_) => "too many failed sign-ins",
            Trouble::Unavailable => "no directory",
            Trouble::Expired => "form expired",
        }
    }

    fn sentence(self) -> String {
        match self {
            Trouble::Wrong => "This user name and password do not belong together.".to_owned(),
            Trouble::Wait(seconds) => format!("Too many sign-ins failed. Please wait {} and try again.", span(seconds)),
            Trouble::Unavailable => {
                "Nobody can sign in at the moment: the directory does not answer. Please try again in a minute.".to_owned()
            }
            Trouble::Expired => "This page was open for too long, or not opened from here. Please try again.".to_owned(),
        }
    }
}

fn span(seconds: u64) -> String {
    match seconds {
        0 | 1 => "a second".to_owned(),
        ..=90 => format!("{seconds} seconds"),
        _ => format!("{} minutes", seconds.div_ceil(60)),
    }
}

/// Seconds after which a directory may be tried again.
const AGAIN: u64 = 15;

/// The page with the form.
pub struct SignIn<'a> {
    /// Where somebody wants to go, as far as that is known.
    pub service: Option<&'a str>,
    pub host: &'a str,
    /// What was typed before.
    pub user: &'a str,
    pub trouble: Option<Trouble>,
    /// Back to this path afterwards,
    pub to: &'a str,
    /// or to where the ticket says.
    pub ticket: Option<&'a str>,
    pub token: &'a str,
}

pub fn sign_in(form: &SignIn<'_>) -> Reply {
    let SignIn { service, host, user, trouble, to, ticket, token } = form;
    let (status, reason) = trouble.map_or((StatusCode::OK, "sign-in page"), |trouble| (trouble.status(), trouble.reason()));
    let described = trouble.map(|_| "trouble");
    // What is no name that anybody has is not repeated.
    let user = if user.chars().any(char::is_control) { "" } else { user };
    let inside = html! {
        h1 { "Sign in" }
        p class="quiet" {
            @if let Some(service) = service { "to " strong { (service) } " at " }
            (host)
        }
        @if let Some(trouble) = trouble { p class="trouble" id="trouble" role="alert" { (trouble.sentence()) } }
        form method="post" action={ (entrance::PATH) "sign-in" } {
            label for="user" { "User name" }
            input id="user" name="user" type="text" value=(user) autocomplete="username" autocapitalize="none" spellcheck="false"
                required autofocus[user.is_empty()] aria-describedby=[described];
            label for="password" { "Password" }
            input id="password" name="password" type="password" autocomplete="current-password" required autofocus[!user.is_empty()]
                aria-describedby=[described];
            input type="hidden" name="to" value=(to);
            @if let Some(ticket) = ticket { input type="hidden" name="ticket" value=(ticket); }
            input type="hidden" name="token" value=(token);
            button type="submit" { "Sign in" }
        }
    };
    let reply = reply(status, reason, "Sign in", &inside);
    match trouble {
        Some(Trouble::Wrong) => reply.with(WWW_AUTHENTICATE, "Cookie realm=\"sign-in\""),
        Some(Trouble::Wait(seconds)) => reply.with(RETRY_AFTER, &seconds.to_string()),
        Some(Trouble::Unavailable) => reply.with(RETRY_AFTER, &AGAIN.to_string()),
        Some(Trouble::Expired) | None => reply,
    }
}

/// Signed in, and on the way to nowhere.
pub fn signed_in(host: &str, user: &str) -> Reply {
    let inside = html! {
        h1 { "You are signed in" }
        p class="quiet" { "as " strong { (user) } " at " (host) }
        (sign_out_link("button"))
    };
    reply(StatusCode::OK, "signed in", "Signed in", &inside)
}

/// `expired`: the form is shown again, because what came was too old or not ours.
pub fn sign_out(host: &str, user: &str, token: &str, expired: bool) -> Reply {
    let inside = html! {
        h1 { "Sign out" }
        p class="quiet" { "You are signed in as " strong { (user) } " at " (host) "." }
        @if expired { p class="trouble" role="alert" { (Trouble::Expired.sentence()) } }
        form method="post" action={ (entrance::PATH) "sign-out" } {
            input type="hidden" name="token" value=(token);
            button type="submit" { "Sign out of this browser" }
            button class="second" type="submit" name="everywhere" value="1" { "Sign out everywhere" }
        }
    };
    let (status, reason) = if expired { (StatusCode::FORBIDDEN, Trouble::Expired.reason()) } else { (StatusCode::OK, "sign-out page") };
    reply(status, reason, "Sign out", &inside)
}

pub fn signed_out(host: &str) -> Reply {
    let inside = html! {
        h1 { "You are signed out" }
        p class="quiet" { "at " (host) }
        a class="button" href={ (entrance::PATH) "sign-in" } { "Sign in again" }
    };
    reply(StatusCode::OK, "signed out", "Signed out", &inside)
}

/// Signed in as `user`, who may not enter `service`. `again`: where to sign in as somebody else; `None`: not by a page.
pub fn refused(host: &str, service: Option<&str>, user: &str, again: Option<&str>) -> Reply {
    let inside = html! {
        h1 { "You may not enter here" }
        p class="quiet" {
            "You are signed in as " strong { (user) } ", who is in none of the groups that may enter "
            @if let Some(service) = service { strong { (service) } " at " }
            (host) "."
        }
        @if let Some(again) = again {
            a class="button" href=(again) { "Sign in as somebody else" }
            (sign_out_link("button second"))
        }
    };
    reply(StatusCode::FORBIDDEN, "not in a group that may enter", "No entry", &inside)
}

/// Nobody can sign in at the moment.
pub fn unavailable(host: &str) -> Reply {
    let inside = html! {
        h1 { "Please try again later" }
        p class="quiet" { "Nobody can sign in at " (host) " at the moment." }
    };
    reply(StatusCode::SERVICE_UNAVAILABLE, "no directory", "Please try again later", &inside).with(RETRY_AFTER, &AGAIN.to_string())
}

/// The way back from the host at which everybody signs in came to nothing.
pub fn bad_code(host: &str) -> Reply {
    let inside = html! {
        h1 { "This did not work" }
        p class="quiet" { "The way back to " (host) " is good once, for half a minute, in the browser in which it began." }
        a class="button" href="/" { "Try again" }
    };
    reply(StatusCode::FORBIDDEN, "bad code", "Please try again", &inside)
}

fn sign_out_link(class: &str) -> Markup {
    html! { a class=(class) href={ (entrance::PATH) "sign-out" } { "Sign out" } }
}

/// Referrers stay on the host: with none at all, browsers would send forms without saying where from.
fn reply(status: StatusCode, reason: &'static str, title: &str, inside: &Markup) -> Reply {
    Reply::new(status, reason)
        .with_body("text/html; charset=utf-8", style::page(title, inside))
        .with(CACHE_CONTROL, "no-store")
        .with(CONTENT_SECURITY_POLICY, style::policy())
        .with(X_FRAME_OPTIONS, "DENY")
        .with(X_CONTENT_TYPE_OPTIONS, "nosniff")
        .with(REFERRER_POLICY, "same-origin")
        .with(HeaderName::from_static("x-robots-tag"), "noindex")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn form<'a>(user: &'a str, trouble: Option<Trouble>) -> SignIn<'a> {
        SignIn { service: Some("shop"), host: "shop.test", user, trouble, to: "/x", ticket: None, token: "t" }
    }

    fn all(text: &str) -> Vec<Reply> {
        vec![
            sign_in(&SignIn {
                service: Some(text),
                host: text,
                user: text,
                trouble: Some(Trouble::Wrong),
                to: text,
                ticket: Some(text),
                token: text,
            }),
            signed_in(text, text),
            sign_out(text, text, text, true),
            signed_out(text),
            refused(text, Some(text), text, Some(text)),
            unavailable(text),
            bad_code(text),
        ]
    }

    #[test]
    fn the_form_is_one_that_people_and_their_tools_understand() {
        let page = sign_in(&form("", None)).body;
        for (id, fills) in [("user", "username"), ("password", "current-password")] {
            assert!(page.contains(&format!("<label for=\"{id}\"")) && page.contains(&format!(" id=\"{id}\" name=\"{id}\"")), "{page}");
            assert!(page.contains(&format!("autocomplete=\"{fills}\"")), "{page}");
        }
        assert!(page.contains("<strong>shop</strong> at shop.test") && page.contains("lang=\"en\"") && !page.contains("role=\"alert\""));
        let again = sign_in(&form("ada", Some(Trouble::Wrong)));
        assert!(
            again.body.contains("value=\"ada\"")
                && again.body.contains("role=\"alert\"")
                && again.body.contains("aria-describedby=\"trouble\"")
        );
    }

    #[test]
    fn each_trouble_has_its_status() {
        for (trouble, status, header) in [
            (None, 200, None),
            (Some(Trouble::Wrong), 401, Some("www-authenticate")),
            (Some(Trouble::Wait(7)), 429, Some("retry-after")),
            (Some(Trouble::Unavailable), 503, Some("retry-after")),
            (Some(Trouble::Expired), 403, None),
        ] {
            let reply = sign_in(&form("ada", trouble));
            assert_eq!(reply.status.as_u16(), status);
            assert!(header.is_none_or(|name| reply.headers.iter().any(|(known, _)| known == name)), "{trouble:?}");
        }
        assert_eq!([1, 7, 90, 91, 600].map(span), ["a second", "7 seconds", "90 seconds", "2 minutes", "10 minutes"]);
    }

    #[test]
    fn no_page_runs_or_loads_anything() {
        for reply in all("x") {
            for thing in ["<script", "src=", "url(", "@import", "style=\"", "onclick", "<link"] {
                assert!(!reply.body.contains(thing), "{thing}: {}", reply.body);
            }
            let value = |name: &str| reply.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.to_str().expect("text"));
            assert_eq!(value("content-security-policy"), Some(style::policy()));
            assert_eq!(
                (value("cache-control"), value("x-frame-options"), value("referrer-policy")),
                (Some("no-store"), Some("DENY"), Some("same-origin"))
            );
        }
    }

    proptest! {
        #[test]
        fn whatever_somebody_is_called_is_text(text in "[<>\"'&a-z=/ ]{1,20}") {
            let hostile = format!("\"><b>{text}");
            for reply in all(&hostile) {
                prop_assert!(!reply.body.contains("<b>") && !reply.body.contains("\"\">"), "{}", reply.body);
            }
        }
    }
}
