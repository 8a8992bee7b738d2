//! DNS-01 by Cloudflare's API, version 4: <https://developers.cloudflare.com/api/resources/dns/subresources/records/>.

use async_trait::async_trait;
use http::{HeaderMap, Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::api::{Api, Reply, escaped, same_value, secret_header};
use super::dns::{Error, Fault, Provider, Record, one_line, secret};
use super::record::Secret;
use crate::config;

/// The shortest that all plans take, in seconds.
const SHORTEST_TTL: u32 = 60;
/// Records of one name that are looked through.
const MOST: usize = 100;
/// "An identical record already exists": what we wanted.
const IDENTICAL: [i64; 2] = [81057, 81058];

#[derive(Debug)]
pub struct Cloudflare {
    api: Api,
    token: Secret,
    ttl: u32,
}

/// Every answer comes in one: <https://developers.cloudflare.com/fundamentals/api/how-to/make-api-calls/>.
#[derive(Deserialize)]
struct Envelope<T> {
    success: bool,
    #[serde(default = "Vec::new")]
    errors: Vec<Problem>,
    result: Option<T>,
}

#[derive(Debug, Deserialize)]
struct Problem {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct Zone {
    id: String,
}

#[derive(Deserialize)]
struct Txt {
    id: String,
    #[serde(default)]
    content: String,
}

/// What went wrong, with the codes that some callers know how to live with.
struct Refused {
    error: Error,
    codes: Vec<i64>,
    status: StatusCode,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Refused {
        Refused { error, codes: Vec::new(), status: StatusCode::OK }
    }
}

impl Cloudflare {
    pub fn from_config(dns: &config::Dns) -> Result<Cloudflare, Error> {
        let token = secret("cloudflare-token-file", dns.cloudflare_token_file.as_deref())?;
        let cloudflare = Cloudflare { api: Api::new("Cloudflare", dns.cloudflare_api.clone())?, token, ttl: dns.ttl.max(SHORTEST_TTL) };
        cloudflare.headers()?;
        Ok(cloudflare)
    }

    fn headers(&self) -> Result<HeaderMap, Error> {
        let mut headers = HeaderMap::new();
        secret_header(&mut headers, "authorization", "Bearer ", &self.token, "cloudflare-token-file")?;
        Ok(headers)
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: String) -> Result<Option<T>, Refused> {
        let what = format!("{method} {}", path.split('?').next().unwrap_or(path));
        let reply = self.api.call(method, path, self.headers()?, body).await?;
        read(&what, &reply)
    }

    async fn zone(&self, name: &str) -> Result<String, Error> {
        let zones: Option<Vec<Zone>> =
            self.call(Method::GET, &format!("/zones?name={}", escaped(name)), String::new()).await.map_err(|refused| refused.error)?;
        let zone = zones.unwrap_or_default().into_iter().next().ok_or_else(|| {
            Error::new(
                Fault::Settings,
                format!("the Cloudflare token sees no zone {name}"),
                "give it Zone:Read and DNS:Edit on that zone, if Cloudflare serves it; else delegate _acme-challenge by a CNAME to one that it serves",
            )
        })?;
        Ok(escaped(&zone.id))
    }
}

#[async_trait]
impl Provider for Cloudflare {
    async fn publish(&self, record: &Record) -> Result<(), Error> {
        let zone = self.zone(record.zone()?).await?;
        let content = format!("\"{}\"", record.value);
        let body = json!({ "type": "TXT", "name": record.name, "content": content, "ttl": self.ttl, "comment": "DNS-01, by Skep" });
        match self.call::<Txt>(Method::POST, &format!("/zones/{zone}/dns_records"), body.to_string()).await {
            Err(refused) if refused.codes.iter().any(|code| IDENTICAL.contains(code)) => Ok(()),
            outcome => outcome.map(drop).map_err(|refused| refused.error),
        }
    }

    async fn remove(&self, record: &Record) -> Result<(), Error> {
        let zone = self.zone(record.zone()?).await?;
        let list = format!("/zones/{zone}/dns_records?type=TXT&name={}&per_page={MOST}", escaped(&record.name));
        let found: Option<Vec<Txt>> = self.call(Method::GET, &list, String::new()).await.map_err(|refused| refused.error)?;
        for txt in found.unwrap_or_default().iter().filter(|txt| same_value(&txt.content, &record.value)) {
            let path = format!("/zones/{zone}/dns_records/{}", escaped(&txt.id));
            match self.call::<serde_json::Value>(Method::DELETE, &path, String::new()).await {
                Err(refused) if refused.status != StatusCode::NOT_FOUND => return Err(refused.error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The result of an answer, or what Cloudflare has against `what`.
fn read<T: DeserializeOwned>(what: &str, reply: &Reply) -> Result<Option<T>, Refused> {
    let status = reply.status;
    match serde_json::from_slice::<Envelope<T>>(&reply.body) {
        Ok(envelope) if envelope.success && status.is_success() => Ok(envelope.result),
        Ok(envelope) => Err(refused(what, status, &envelope.errors)),
        // Refusals may carry a result of another shape, and what stands in front of the API answers with pages.
        Err(_) => match serde_json::from_slice::<Envelope<serde_json::Value>>(&reply.body) {
            Ok(envelope) if !envelope.success => Err(refused(what, status, &envelope.errors)),
            _ => Err(refused(what, status, &[])),
        },
    }
}

fn refused(what: &str, status: StatusCode, problems: &[Problem]) -> Refused {
    let said: Vec<String> = problems.iter().map(|problem| format!("{} ({})", one_line(problem.message.as_bytes()), problem.code)).collect();
    let said = if said.is_empty() { status.to_string() } else { format!("{status}, {}", said.join(", ")) };
    let codes: Vec<i64> = problems.iter().map(|problem| problem.code).collect();
    let error = match status.as_u16() {
        // 6003: invalid request headers, which is how a token that is none shows.
        401 | 403 => token(what, &said),
        400 if codes.contains(&6003) => token(what, &said),
        429 => Error::new(Fault::Provider, format!("Cloudflare is asked too often: {what} is answered {said}"), "it is tried again later"),
        500.. => Error::new(Fault::Provider, format!("Cloudflare fails: {what} is answered {said}"), "it is tried again"),
        _ => Error::new(Fault::Provider, format!("Cloudflare refuses {what}: {said}"), "check the zone in its dashboard"),
    };
    Refused { error, codes, status }
}

fn token(what: &str, said: &str) -> Error {
    Error::new(
        Fault::Settings,
        format!("Cloudflare does not let the token do {what}: {said}"),
        "put an API token (no global key) with Zone:Read and DNS:Edit on the zone into dns.cloudflare-token-file",
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reply(status: u16, body: &str) -> Reply {
        Reply { status: StatusCode::from_u16(status).unwrap(), body: body.to_owned().into() }
    }

    #[test]
    fn each_refusal_says_what_to_do() {
        let of = |status, body: &str| read::<Vec<Zone>>("GET /zones", &reply(status, body)).err().unwrap().error;
        for (status, body, fault, said) in [
            (
                403,
                r#"{"success":false,"errors":[{"code":9109,"message":"Invalid access token"}],"result":null}"#,
                Fault::Settings,
                "Invalid access token (9109)",
            ),
            (
                400,
                r#"{"success":false,"errors":[{"code":6003,"message":"Invalid request headers"}]}"#,
                Fault::Settings,
                "does not let the token",
            ),
            (400, r#"{"success":false,"errors":[{"code":9005,"message":"no\u001b[31m"}],"result":{}}"#, Fault::Provider, "no [31m (9005)"),
            (429, r#"{"success":false,"errors":[{"code":971,"message":"slow"}]}"#, Fault::Provider, "too often"),
            (502, "<html>Bad gateway</html>", Fault::Provider, "Cloudflare fails: GET /zones is answered 502"),
            (200, "<html>", Fault::Provider, "refuses GET /zones: 200 OK"),
            (200, r#"{"success":false,"errors":[]}"#, Fault::Provider, "refuses"),
        ] {
            let error = of(status, body);
            assert!(error.fault == fault && error.what.contains(said), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_a_result_or_an_error(status in 200_u16..600, body: Vec<u8>) {
            let reply = Reply { status: StatusCode::from_u16(status).unwrap(), body: body.into() };
            if let Err(refused) = read::<Vec<Zone>>("GET /zones", &reply) {
                prop_assert!(refused.error.to_string().chars().all(|letter| !letter.is_control()));
            }
        }
    }
}
