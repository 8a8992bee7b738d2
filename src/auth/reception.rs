//! The edge's own addresses: the forms by which people sign in and out, and the way over the host at which everybody signs in.

use std::sync::Arc;

use http::header::{ALLOW, HOST, SET_COOKIE};
use http::{HeaderValue, Method, StatusCode};

use super::accounts::Live;
use super::browser::Browser;
use super::code::{Code, Ticket};
use super::cookie::Cookie;
use super::entrance::{self, Entrance};
use super::form::{Fields, Form, Nonce, is_cross_site};
use super::gate::{Event, Gate};
use super::gatekeeper::{Denied, Destination, Visit};
use super::identity::Password;
use super::page::{self, Trouble};
use super::passage::{Basic, can_be_asked_again, may_enter};
use super::reply::Reply;
use super::seal::Ring;
use super::session::SessionId;
use super::target::target;

/// Where somebody is going who signs in.
enum Bound {
    /// Back to a path of this host.
    Here(String),
    /// Over to another host, which sent them here.
    There(Ticket, String),
}

impl Gate {
    pub(super) async fn reception(&self, entrance: Entrance, visit: &Visit<'_>) -> Reply {
        let Some(ring) = self.roster.ring.load_full() else { return page::unavailable(visit.caller.host) };
        let asks = can_be_asked_again(visit.method);
        match entrance {
            Entrance::SignIn if asks => self.sign_in_page(&ring, visit, None),
            Entrance::SignIn if visit.method == Method::POST => self.sign_in(&ring, visit).await,
            Entrance::SignOut if asks => self.sign_out_page(&ring, visit),
            Entrance::SignOut if visit.method == Method::POST => self.sign_out(&ring, visit),
            Entrance::Enter if asks => self.enter(&ring, visit),
            Entrance::Keys if asks => self.keys(),
            Entrance::SignIn | Entrance::SignOut => Reply::new(StatusCode::METHOD_NOT_ALLOWED, "refused").with(ALLOW, "GET, HEAD, POST"),
            Entrance::Enter | Entrance::Keys => Reply::new(StatusCode::METHOD_NOT_ALLOWED, "refused").with(ALLOW, "GET, HEAD"),
        }
    }
}
