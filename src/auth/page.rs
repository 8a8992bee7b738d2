//! placeholder
use http::StatusCode;

use super::gatekeeper::Denied;
use super::reply::Reply;

#[derive(Clone, Copy, Debug)]
pub enum Trouble {
    Wrong,
    Wait(u64),
    Unavailable,
    Expired,
}
impl Trouble {
    pub fn of(denied: Denied) -> Trouble {
        match denied {
            Denied::Wrong => Trouble::Wrong,
            Denied::Wait(s) => Trouble::Wait(s),
            Denied::Unavailable => Trouble::Unavailable,
        }
    }
}
pub struct SignIn<'a> {
    pub service: Option<&'a str>,
    pub host: &'a str,
    pub user: &'a str,
    pub trouble: Option<Trouble>,
    pub to: &'a str,
    pub ticket: Option<&'a str>,
    pub token: &'a str,
}
fn html(status: StatusCode, reason: &'static str, body: String) -> Reply {
    Reply::new(status, reason).with_body("text/html; charset=utf-8", body)
}
pub fn sign_in(p: &SignIn<'_>) -> Reply {
    let status = match p.trouble {
        None => StatusCode::OK,
        Some(Trouble::Wrong) => StatusCode::UNAUTHORIZED,
        Some(Trouble::Wait(_)) => StatusCode::TOO_MANY_REQUESTS,
        Some(Trouble::Unavailable) => StatusCode::SERVICE_UNAVAILABLE,
        Some(Trouble::Expired) => StatusCode::FORBIDDEN,
    };
    html(status, "sign-in", maud::html! { form method="post" action="/.skep/sign-in" { input name="user"; input name="password" type="password"; input type="hidden" name="to" value=(p.to); @if let Some(t) = p.ticket { input type="hidden" name="ticket" value=(t); } input type="hidden" name="token" value=(p.token); button { "Sign in" } } }.into_string())
}
pub fn signed_in(_host: &str, user: &str) -> Reply {
    html(StatusCode::OK, "signed in", format!("signed in as {user}"))
}
pub fn sign_out(_host: &str, _user: &str, token: &str) -> Reply {
    html(
        StatusCode::OK,
        "sign-out",
        maud::html! { form method="post" action="/.skep/sign-out" { input type="hidden" name="token" value=(token); button { "out" } } }
            .into_string(),
    )
}
pub fn signed_out(_host: &str) -> Reply {
    html(StatusCode::OK, "signed out", "signed out".into())
}
pub fn refused(_host: &str, _service: &str, _user: &str) -> Reply {
    html(StatusCode::FORBIDDEN, "refused", "refused".into())
}
pub fn unavailable(_host: &str) -> Reply {
    html(StatusCode::SERVICE_UNAVAILABLE, "no directory", "no directory".into())
}
pub fn bad_code(_host: &str) -> Reply {
    html(StatusCode::FORBIDDEN, "bad code", "bad code".into())
}
