//! As much of a browser as signing in needs: a cookie jar that keeps the rules which protect cookies, redirects from host to host, forms
//! with their hidden fields. What no browser would take makes the test fail.

use std::net::SocketAddr;

use axum::body::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use url::Url;

use crate::harness::Reply;
use crate::secure::connect;

/// More redirects in a row are a circle.
const MOST_REDIRECTS: usize = 10;

/// Where all hosts are, and what is spoken there.
#[derive(Clone)]
pub struct Network {
    pub http: SocketAddr,
    /// With whom its certificates are trusted.
    pub https: Option<(SocketAddr, ClientConfig)>,
    pub http2: bool,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Network {
    async fn stream(&self, url: &Url) -> Box<dyn Stream> {
        if url.scheme() == "http" {
            return Box::new(TcpStream::connect(self.http).await.unwrap());
        }
        let (address, config) = self.https.clone().expect("HTTPS is served");
        let mut config = config;
        config.alpn_protocols = vec![if self.http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        Box::new(connect(address, url.host_str().unwrap(), config).await.unwrap())
    }

    /// One request, of which the answer is read to its end.
    pub async fn send(&self, url: &Url, asked: http::request::Builder, body: &[u8]) -> Reply {
        let stream = TokioIo::new(self.stream(url).await);
        let body = Full::new(Bytes::copy_from_slice(body));
        let response = match self.http2 {
            true => {
                let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
                tokio::spawn(connection);
                sender.send_request(asked.uri(url.as_str()).body(body).unwrap()).await.unwrap()
            }
            false => {
                let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
                tokio::spawn(connection);
                let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
                sender.send_request(asked.uri(target).header("host", authority(url)).body(body).unwrap()).await.unwrap()
            }
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Reply { status: head.status.as_u16(), headers: head.headers, body: String::from_utf8_lossy(&body).into_owned() }
    }
}

/// Host and port, as they stand in `url`.
pub fn authority(url: &Url) -> String {
    url.port().map_or_else(|| url.host_str().unwrap().to_owned(), |port| format!("{}:{port}", url.host_str().unwrap()))
}

#[derive(Clone, Debug, PartialEq)]
pub struct Cookie {
    pub host: String,
    pub name: String,
    pub value: String,
    secure: bool,
    path: String,
}

/// A form of a page.
#[derive(Clone, Debug)]
pub struct Form {
    pub action: Url,
    pub fields: Vec<(String, String)>,
}

impl Form {
    pub fn set(mut self, name: &str, value: &str) -> Form {
        self.fields.retain(|(known, _)| known != name);
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn field(&self, name: &str) -> &str {
        self.fields.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    pub fn body(&self) -> String {
        form_urlencoded::Serializer::new(String::new()).extend_pairs(&self.fields).finish()
    }
}

/// What the browser shows.
#[derive(Debug)]
pub struct Page {
    pub url: Url,
    pub reply: Reply,
    /// Redirects on the way, each as status and where to.
    pub way: Vec<(u16, String)>,
}

impl Page {
    pub fn status(&self) -> u16 {
        self.reply.status
    }

    /// Host, path and query, without the port.
    pub fn place(&self) -> String {
        format!("{}{}", self.url.host_str().unwrap(), &self.url[url::Position::BeforePath..url::Position::AfterQuery])
    }

    /// The form that goes to `path`.
    pub fn form(&self, path: &str) -> Form {
        let found = forms(&self.url, &self.reply.body).into_iter().find(|form| form.action.path() == path);
        found.unwrap_or_else(|| panic!("no form for {path}: {self:?}"))
    }

    /// Where the link or button with `text` leads.
    pub fn link(&self, text: &str) -> String {
        let (before, _) = self.reply.body.split_once(&format!(">{text}</a>")).unwrap_or_else(|| panic!("no link {text}: {self:?}"));
        let (_, href) = before.rsplit_once("href=\"").unwrap();
        href.split('"').next().unwrap().replace("&amp;", "&")
    }

    pub fn sign_in_form(&self) -> Form {
        self.form("/.skep/sign-in")
    }

    /// Is it a page on which one signs in?
    pub fn asks(&self) -> bool {
        forms(&self.url, &self.reply.body).iter().any(|form| form.action.path() == "/.skep/sign-in" && form.has_password())
    }

    /// Does it come from the service, and not from the edge?
    pub fn is_of_service(&self) -> bool {
        self.reply.headers.contains_key("x-upstream")
    }
}

impl Form {
    pub fn has_password(&self) -> bool {
        self.fields.iter().any(|(name, _)| name == "password")
    }
}

#[derive(Clone)]
pub struct Browser {
    pub network: Network,
    pub jar: Vec<Cookie>,
}

impl Browser {
    pub fn new(network: Network) -> Browser {
        Browser { network, jar: Vec::new() }
    }

    /// The value of the cookie `name` of `host`; empty: there is none.
    pub fn cookie(&self, host: &str, name: &str) -> &str {
        self.jar.iter().find(|cookie| cookie.host == host && cookie.name == name).map_or("", |cookie| &cookie.value)
    }

    /// As if somebody had put it there.
    pub fn plant(&mut self, host: &str, name: &str, value: &str) {
        self.jar.retain(|cookie| cookie.host != host || cookie.name != name);
        let secure = name.starts_with("__Host-");
        let (host, name, value) = (host.to_owned(), name.to_owned(), value.to_owned());
        self.jar.push(Cookie { host, name, value, secure, path: "/".to_owned() });
    }

    /// What it sends of its cookies to `url`.
    pub fn cookies_for(&self, url: &Url) -> String {
        let fits = |cookie: &&Cookie| {
            cookie.host == url.host_str().unwrap()
                && (!cookie.secure || url.scheme() == "https")
                && (url.path() == cookie.path || url.path().starts_with(&cookie.path) && cookie.path.ends_with('/'))
        };
        self.jar.iter().filter(fits).map(|cookie| format!("{}={}", cookie.name, cookie.value)).collect::<Vec<_>>().join("; ")
    }

    /// Takes the cookies of an answer as RFC 6265bis, 5.6 says.
    pub fn keep(&mut self, url: &Url, reply: &Reply) {
        for line in reply.headers.get_all("set-cookie") {
            let line = line.to_str().unwrap();
            let mut parts = line.split(';').map(str::trim);
            let (name, value) = parts.next().unwrap().split_once('=').expect("a name");
            let attributes: Vec<(String, &str)> = parts
                .map(|part| part.split_once('=').unwrap_or((part, "")))
                .map(|(key, value)| (key.to_ascii_lowercase(), value))
                .collect();
            let attribute = |key: &str| attributes.iter().find(|(known, _)| known == key).map(|(_, value)| *value);
            let (secure, path) = (attribute("secure").is_some(), attribute("path").unwrap_or("/").to_owned());
            assert!(!secure || url.scheme() == "https", "no browser takes this in clear: {line}");
            assert!(attribute("domain").is_none(), "for other hosts as well: {line}");
            if name.starts_with("__Host-") {
                assert!(secure && path == "/", "no browser takes this: {line}");
            }
            if name.trim_start_matches("__Host-").starts_with("skep") {
                assert!(attribute("httponly").is_some() && attribute("samesite") == Some("Lax"), "open to scripts or other sites: {line}");
                assert_eq!(secure, url.scheme() == "https", "{line}");
            }
            let host = url.host_str().unwrap().to_owned();
            self.jar.retain(|cookie| cookie.host != host || cookie.name != name);
            if attribute("max-age").is_none_or(|age| age.parse::<i64>().unwrap() > 0) {
                self.jar.push(Cookie { host, name: name.to_owned(), value: value.to_owned(), secure, path });
            }
        }
    }

    /// One request with this browser's cookies and no redirect followed. `more` replaces what a browser sends by itself; an empty value
    /// leaves it out.
    pub async fn ask(&mut self, method: &str, url: &str, more: &[(&str, &str)], body: &[u8]) -> Page {
        let url = Url::parse(url).unwrap();
        let cookies = self.cookies_for(&url);
        let mut fields = vec![
            ("user-agent", "Mozilla/5.0 (test)"),
            ("accept", "text/html,application/xhtml+xml,*/*;q=0.8"),
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "document"),
            ("cookie", &cookies),
        ];
        fields.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
        let mut asked = Request::builder().method(method);
        for (name, value) in fields.iter().chain(more).filter(|(_, value)| !value.is_empty()) {
            asked = asked.header(*name, *value);
        }
        let reply = self.network.send(&url, asked, body).await;
        self.keep(&url, &reply);
        Page { url, reply, way: Vec::new() }
    }

    /// Follows redirects from `page` on.
    pub async fn follow(&mut self, mut page: Page) -> Page {
        while page.status() / 100 == 3 {
            assert!(page.way.len() < MOST_REDIRECTS, "in a circle: {:?}", page.way);
            let to = page.url.join(page.reply.header("location")).unwrap();
            let mut way = page.way;
            way.push((page.reply.status, to.to_string()));
            page = self.ask("GET", to.as_str(), &[("sec-fetch-site", "cross-site")], b"").await;
            page.way = way;
        }
        page
    }

    /// As if `url` was typed.
    pub async fn open(&mut self, url: &str) -> Page {
        let page = self.ask("GET", url, &[("sec-fetch-site", "none")], b"").await;
        self.follow(page).await
    }

    /// Sends `form` from its own page, and follows no redirect.
    pub async fn post(&mut self, form: &Form) -> Page {
        let origin = form.action.origin().ascii_serialization();
        self.post_from(form, &[("origin", &origin), ("sec-fetch-site", "same-origin")]).await
    }

    /// Sends `form` with other fields than its own page's.
    pub async fn post_from(&mut self, form: &Form, more: &[(&str, &str)]) -> Page {
        let mut fields = vec![("content-type", "application/x-www-form-urlencoded")];
        fields.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
        fields.extend(more);
        self.ask("POST", form.action.as_str(), &fields, form.body().as_bytes()).await
    }

    pub async fn submit(&mut self, form: &Form) -> Page {
        let page = self.post(form).await;
        self.follow(page).await
    }

    /// Opens `url`, and signs in where that is asked for.
    pub async fn sign_in(&mut self, url: &str, user: &str, password: &str) -> Page {
        let page = self.open(url).await;
        let form = page.sign_in_form().set("user", user).set("password", password);
        self.submit(&form).await
    }

    /// The sign-out page of the host of `url`, with its form.
    pub async fn sign_out_form(&mut self, url: &str) -> Form {
        let url = Url::parse(url).unwrap().join("/.skep/sign-out").unwrap();
        self.open(url.as_str()).await.form("/.skep/sign-out")
    }
}

/// The forms in `html`, as written by this edge: attributes in double quotes.
fn forms(base: &Url, html: &str) -> Vec<Form> {
    let bodies = html.split("<form").skip(1).map(|rest| rest.split("</form>").next().unwrap());
    let form = |body: &str| {
        let (head, inside) = body.split_once('>').unwrap();
        let inputs = inside.split("<input").skip(1).map(|rest| rest.split('>').next().unwrap());
        let field = |input: &str| {
            let checkbox = attribute(input, "type").as_deref() == Some("checkbox");
            attribute(input, "name").filter(|_| !checkbox).map(|name| (name, attribute(input, "value").unwrap_or_default()))
        };
        let action = attribute(head, "action").unwrap_or_default();
        Form { action: base.join(&action).unwrap(), fields: inputs.filter_map(field).collect() }
    };
    bodies.map(form).collect()
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let (_, rest) = tag.split_once(&format!(" {name}=\""))?;
    let value = rest.split('"').next()?;
    Some(value.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&"))
}
