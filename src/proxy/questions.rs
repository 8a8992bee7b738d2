//! What a decision waits for, on pingora's session: credentials that have to be verified, the route's authorizer, and the edge's own
//! addresses with their forms. Whatever fails on the way answers, and lets nobody in.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::{HeaderMap, Method, StatusCode, Uri, header};
use pingora_http::RequestHeader;
use pingora_proxy::Session;
use tokio::time::timeout;

use super::answer::Answer;
use super::authorize::Authorizers;
use super::exchange::Exchange;
use super::forwarded::Origin;
use super::{Question, Routed, secure, url};
use crate::auth::authorizer::{Asked, Word, question};
use crate::auth::entrance;
use crate::auth::entrant::{Entrant, Proof};
use crate::auth::gatekeeper::{Caller, Denied, Destination, Gatekeeper, Visit};
use crate::auth::passage::{Basic, Manner};
use crate::auth::{self, Verdict};
use crate::config::Config;
use crate::route::Head;
use crate::state::Route;

/// A form has so many bytes at most,
const LONGEST_FORM: usize = 8 * 1024;
/// and comes within this time.
const FORM_TIME: Duration = Duration::from_secs(10);

/// Who is asked.
pub(super) struct Questions {
    pub gatekeeper: Arc<dyn Gatekeeper>,
    pub authorizers: Arc<Authorizers>,
}

impl Questions {
    /// Finds an answer to `question`, and what becomes of the request with it.
    pub async fn ask(&self, session: &mut Session, ctx: &mut Exchange, route: Option<Arc<Route>>, question: Question) -> Routed {
        let answer = match (question, &route) {
            (Question::Verify(basic), Some(on)) => match self.verify(session, ctx, on, &basic).await {
                Ok(()) => return self.again(session, ctx),
                Err(answer) => answer,
            },
            (Question::Authorize(entrant), Some(on)) => match self.authorize(session, ctx, on, entrant).await {
                Ok(()) => return self.again(session, ctx),
                Err(answer) => answer,
            },
            (Question::Depart, Some(_)) => self.depart(session, ctx),
            (Question::Entrance(entrance), _) => self.receive(session, ctx, entrance).await,
            // Every other question is about a route.
            (Question::Verify(_) | Question::Authorize(_) | Question::Depart, None) => Answer::Closed,
        };
        Routed::Answer(route, answer)
    }

    /// The decision once more, by what was found out.
    fn again(&self, session: &Session, ctx: &mut Exchange) -> Routed {
        let request = session.req_header();
        ctx.route(&request.method, &request.headers, &*self.gatekeeper)
    }

    async fn verify(&self, session: &Session, ctx: &mut Exchange, route: &Route, basic: &Basic) -> Result<(), Answer> {
        let Some(caller) = caller(ctx, &session.req_header().headers) else { return Err(Answer::Closed) };
        let verified = self.gatekeeper.verify(&caller, &route.access, basic).await;
        match verified {
            Ok(entrant) => {
                ctx.proved.entrant = Some(entrant);
                Ok(())
            }
            // Who has sent credentials can send others.
            Err(Denied::Wrong) => Err(Answer::Unauthorized(Manner::Program, ctx.host.clone())),
            Err(Denied::Wait(seconds)) => Err(Answer::TooManyTries(seconds)),
            Err(Denied::Unavailable) => Err(Answer::NoDirectory),
        }
    }

    async fn authorize(&self, session: &Session, ctx: &mut Exchange, route: &Route, entrant: Option<Arc<Entrant>>) -> Result<(), Answer> {
        let (Some(url), Some(origin)) = (&route.access.forward_auth, &ctx.origin) else { return Err(Answer::Closed) };
        let request = session.req_header();
        let mark = if ctx.query.is_empty() { "" } else { "?" };
        let asked = Asked {
            method: &request.method,
            headers: &request.headers,
            // The one that is served, whatever a proxy in front lets its clients say.
            host: &ctx.host,
            target: &format!("{}{mark}{}", ctx.path, ctx.query),
            secure: origin.secure,
            chain: &origin.chain,
            request_id: &origin.request_id,
            told: entrant.as_ref().map_or(&[], |entrant| &entrant.visitor.fields),
            consumed: entrant.as_ref().is_some_and(|entrant| entrant.by_credentials()),
        };
        let auth = &ctx.state.config.auth;
        match self.authorizers.ask(url, question(&asked, auth), auth).await {
            Word::Pass { visitor, cookies } => {
                let by_it = |visitor| Arc::new(Entrant { visitor: Arc::new(visitor), proof: Proof::Authorizer, renewal: None });
                ctx.proved.entrant = entrant.or_else(|| visitor.map(by_it));
                ctx.proved.authorized = true;
                ctx.cookies = cookies;
                Ok(())
            }
            Word::Answer(reply) => Err(Answer::Sign(Arc::new(reply))),
            Word::Closed(why) => {
                ctx.failure = Some(format!("authorizer: {why}"));
                Err(Answer::Closed)
            }
        }
    }

    fn depart(&self, session: &Session, ctx: &Exchange) -> Answer {
        let request = session.req_header();
        let to = match ctx.query.as_str() {
            "" => ctx.path.clone(),
            query => format!("{}?{query}", ctx.path),
        };
        let destination = destination(ctx, &request.headers);
        match visit(ctx, request, &[], &destination) {
            Some(visit) => Answer::Sign(Arc::new(self.gatekeeper.depart(&visit, &to))),
            None => Answer::Closed,
        }
    }

    async fn receive(&self, session: &mut Session, ctx: &Exchange, entrance: entrance::Entrance) -> Answer {
        let body = match session.req_header().method == Method::POST {
            true => match form(session).await {
                Ok(body) => body,
                Err(answer) => return answer,
            },
            false => BytesMut::new(),
        };
        let request = session.req_header();
        let destination = destination(ctx, &request.headers);
        match visit(ctx, request, &body, &destination) {
            Some(visit) => Answer::Sign(Arc::new(self.gatekeeper.receive(entrance, &visit).await)),
            None => Answer::Closed,
        }
    }
}

/// The body of a form, read to its end.
async fn form(session: &mut Session) -> Result<BytesMut, Answer> {
    let mut body = BytesMut::new();
    let read = async {
        while let Some(piece) = session.read_request_body().await? {
            if body.len() + piece.len() > LONGEST_FORM {
                return Ok::<_, Box<pingora_error::Error>>(Err(Answer::TooLarge));
            }
            body.extend_from_slice(&piece);
        }
        Ok(Ok(()))
    };
    match timeout(FORM_TIME, read).await {
        Ok(Ok(Ok(()))) => Ok(body),
        Ok(Ok(Err(answer))) => Err(answer),
        Ok(Err(_)) | Err(_) => Err(Answer::Refused(StatusCode::REQUEST_TIMEOUT, "The request's body did not arrive.")),
    }
}

fn caller<'a>(ctx: &'a Exchange, headers: &'a HeaderMap) -> Option<Caller<'a>> {
    let origin = ctx.origin.as_ref()?;
    let auth = &ctx.state.config.auth;
    Some(Caller { client: origin.client, host: &ctx.host, secure: origin.secure, headers, now: ctx.at, auth })
}

fn visit<'a>(
    ctx: &'a Exchange,
    request: &'a RequestHeader,
    body: &'a [u8],
    destination: &'a (dyn Fn(&str, &str) -> Option<Destination> + Sync),
) -> Option<Visit<'a>> {
    let origin = ctx.origin.as_ref()?;
    let (method, headers) = (&request.method, &request.headers);
    let host = || headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let authority_sent = request.uri.authority().map(|authority| authority.as_str()).or_else(host).unwrap_or_default();
    let config = &ctx.state.config;
    let home = config.auth.host.as_ref().filter(|_| ctx.state.sign_ins.names(&ctx.host)).map(|host| match config.https.listen.is_empty() {
        false => secure::https_url(config, host, "", ""),
        true => url(origin, host, "", ""),
    });
    let base = format!("{}://{}", if origin.secure { "https" } else { "http" }, authority(authority_sent, &ctx.host));
    let back = back(config, origin, &base, &ctx.host);
    Some(Visit { caller: caller(ctx, headers)?, method, query: &ctx.query, body, base, back, home, destination })
}

/// Where a browser is sent back to that comes from `base`: what listens at another port of this machine may be anybody, and would be
/// handed what signs somebody in.
fn back(config: &Config, origin: &Origin, base: &str, host: &str) -> String {
    let listen = config.http.listen.iter().chain(&config.https.listen);
    let ours = |port: u16| port == origin.port || port == config.https.port() || listen.clone().any(|address| address.port() == port);
    let port = base.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    if port.is_none_or(ours) { base.to_owned() } else { url(origin, host, "", "") }
}

/// The host with its port, as the client wrote them. What stands in a port's place and is none is dropped.
fn authority(sent: &str, host: &str) -> String {
    let port = sent
        .rsplit_once(':')
        .map(|(_, port)| port)
        .filter(|port| port.parse::<u16>().is_ok() && port.bytes().all(|byte| byte.is_ascii_digit()));
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    port.filter(|_| !sent.ends_with(']')).map_or_else(|| host.clone(), |port| format!("{host}:{port}"))
}

/// What the client of `ctx` finds at a host and a path, if somebody has to sign in for it and the client may come in at all.
fn destination<'a>(ctx: &'a Exchange, headers: &'a HeaderMap) -> impl Fn(&str, &str) -> Option<Destination> + Sync + 'a {
    move |host, target| {
        let uri = target.parse::<Uri>().ok()?;
        let path = crate::route::canonical_path(uri.path())?;
        let client = ctx.origin.as_ref()?.client;
        let head = Head { host, path: &path, query: uri.query().unwrap_or_default(), method: &Method::GET, headers, client };
        let route = ctx.state.table.find(&head)?;
        let fine = route.access.groups.is_some() && auth::admit(&route.access, client) == Verdict::Pass;
        fine.then(|| Destination { service: route.service.to_string(), access: route.access.clone() })
    }
}
