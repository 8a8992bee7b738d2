//! DNS-01 by OVHcloud's API: <https://help.ovhcloud.com/csm/en-api-getting-started-ovhcloud-api>, `/domain/zone`.

use std::fmt;

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use http::{HeaderMap, Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::api::{Api, Reply, escaped, header, same_value, secret_header};
use super::dns::{Error, Fault, Provider, Record, one_line, secret};
use super::record::Secret;
use crate::config;

/// The shortest that it takes, in seconds.
const SHORTEST_TTL: u32 = 60;
/// Records of one name that are looked through: each takes a request.
const MOST: usize = 50;

pub struct Ovh {
    api: Api,
    application: String,
    secret: Secret,
    consumer: Secret,
    ttl: u32,
}

impl fmt::Debug for Ovh {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Ovh({})", self.api.url(""))
    }
}

#[derive(Deserialize)]
struct Txt {
    target: String,
}

/// How it answers what it refuses.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Problem {
    message: String,
    error_code: String,
}

/// The address of an endpoint by name.
fn base(endpoint: &str) -> String {
    match endpoint {
        "ovh-eu" => "https://api.eu.ovhcloud.com/1.0".to_owned(),
        "ovh-ca" => "https://api.ca.ovhcloud.com/1.0".to_owned(),
        "ovh-us" => "https://api.us.ovhcloud.com/1.0".to_owned(),
        url => url.to_owned(),
    }
}

impl Ovh {
    pub fn from_config(dns: &config::Dns) -> Result<Ovh, Error> {
        let application = dns.ovh_application_key.clone();
        let application = application
            .ok_or_else(|| Error::new(Fault::Settings, "dns.ovh-application-key is not set", "write the key of your application"))?;
        let ovh = Ovh {
            api: Api::new("OVHcloud", base(&dns.ovh_endpoint))?,
            application,
            secret: secret("ovh-application-secret-file", dns.ovh_application_secret_file.as_deref())?,
            consumer: secret("ovh-consumer-key-file", dns.ovh_consumer_key_file.as_deref())?,
            ttl: dns.ttl.max(SHORTEST_TTL),
        };
        ovh.headers(&Method::GET, "", "", 0)?;
        Ok(ovh)
    }

    fn headers(&self, method: &Method, path: &str, body: &str, now: i64) -> Result<HeaderMap, Error> {
        let mut headers = HeaderMap::new();
        let signature = signature(&self.secret, &self.consumer, method.as_str(), &self.api.url(path), body, now);
        header(&mut headers, "x-ovh-application", &self.application, "ovh-application-key")?;
        secret_header(&mut headers, "x-ovh-consumer", "", &self.consumer, "ovh-consumer-key-file")?;
        header(&mut headers, "x-ovh-timestamp", &now.to_string(), "ovh-endpoint")?;
        header(&mut headers, "x-ovh-signature", &signature, "ovh-application-secret-file")?;
        Ok(headers)
    }

    /// Its clock: signatures are about it, and ours may be wrong.
    async fn time(&self) -> Result<i64, Error> {
        let reply = self.api.call(Method::GET, "/auth/time", HeaderMap::new(), String::new()).await?;
        read("GET /auth/time", &reply)
    }

    /// One signed request; `None` where nothing is there.
    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: String) -> Result<Option<T>, Error> {
        let what = format!("{method} {}", path.split('?').next().unwrap_or(path));
        let headers = self.headers(&method, path, &body, self.time().await?)?;
        let reply = self.api.call(method, path, headers, body).await?;
        if reply.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        read(&what, &reply).map(Some)
    }

    /// Changes are served once the zone is told to refresh.
    async fn refresh(&self, zone: &str) -> Result<(), Error> {
        self.call::<serde_json::Value>(Method::POST, &format!("/domain/zone/{zone}/refresh"), String::new()).await.map(drop)
    }
}

#[async_trait]
impl Provider for Ovh {
    async fn publish(&self, record: &Record) -> Result<(), Error> {
        let zone = record.zone()?;
        let below = below(&record.name, zone)?;
        let body = json!({ "fieldType": "TXT", "subDomain": below, "target": format!("\"{}\"", record.value), "ttl": self.ttl });
        let path = escaped(zone);
        let made: Option<serde_json::Value> = self.call(Method::POST, &format!("/domain/zone/{path}/record"), body.to_string()).await?;
        if made.is_none() {
            return Err(Error::new(
                Fault::Settings,
                format!("the OVHcloud account of these keys has no zone {zone}"),
                "use keys of the account that has it, if OVHcloud serves it; else delegate _acme-challenge by a CNAME to one that it serves",
            ));
        }
        // The keys may be allowed the one and not the other: then nothing may stay behind.
        let refreshed = self.refresh(&path).await;
        if refreshed.is_err() {
            self.remove(record).await.ok();
        }
        refreshed
    }

    async fn remove(&self, record: &Record) -> Result<(), Error> {
        let zone = record.zone()?;
        let path = escaped(zone);
        let list = format!("/domain/zone/{path}/record?fieldType=TXT&subDomain={}", escaped(below(&record.name, zone)?));
        let numbers: Vec<u64> = self.call(Method::GET, &list, String::new()).await?.unwrap_or_default();
        let mut removed = false;
        for number in numbers.into_iter().take(MOST) {
            let one = format!("/domain/zone/{path}/record/{number}");
            let txt: Option<Txt> = self.call(Method::GET, &one, String::new()).await?;
            if txt.is_some_and(|txt| same_value(&txt.target, &record.value)) {
                self.call::<serde_json::Value>(Method::DELETE, &one, String::new()).await?;
                removed = true;
            }
        }
        if removed { self.refresh(&path).await } else { Ok(()) }
    }
}

/// `$1$` and the SHA-1 of all that matters in a request.
fn signature(secret: &Secret, consumer: &Secret, method: &str, url: &str, body: &str, now: i64) -> String {
    let text = zeroize::Zeroizing::new(format!("{}+{}+{method}+{url}+{body}+{now}", secret.reveal(), consumer.reveal()));
    let hex: String = digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("$1${hex}")
}

/// `name` without its zone.
fn below<'a>(name: &'a str, zone: &str) -> Result<&'a str, Error> {
    let rest = name.strip_suffix(zone).and_then(|rest| if rest.is_empty() { Some(rest) } else { rest.strip_suffix('.') });
    rest.ok_or_else(|| Error::new(Fault::Zone, format!("{name} is not in the zone {zone}"), "remove it by hand"))
}

fn read<T: DeserializeOwned>(what: &str, reply: &Reply) -> Result<T, Error> {
    let status = reply.status;
    if status.is_success() {
        // A change that has nothing to tell is answered with nothing.
        let body: &[u8] = if reply.body.is_empty() { b"null" } else { &reply.body };
        return serde_json::from_slice(body).map_err(|error| {
            Error::new(Fault::Provider, format!("OVHcloud answers {what} with something else ({error})"), "check dns.ovh-endpoint")
        });
    }
    let problem: Problem = serde_json::from_slice(&reply.body).unwrap_or_default();
    let said = [status.to_string(), one_line(problem.message.as_bytes()), one_line(problem.error_code.as_bytes())];
    let said = said.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(", ");
    let (fault, help) = match (status.as_u16(), problem.error_code.as_str()) {
        (401 | 403, "NOT_GRANTED_CALL") => (Fault::Settings, "give the consumer key GET, POST and DELETE on /domain/zone/*"),
        (401 | 403, _) => {
            (Fault::Settings, "check the application key, its secret and the consumer key: they belong together, and keys expire")
        }
        (400, _) if problem.message.to_ascii_lowercase().contains("signature") => {
            (Fault::Settings, "put the secret of this application into dns.ovh-application-secret-file")
        }
        (429 | 500.., _) => (Fault::Provider, "it is tried again"),
        _ => (Fault::Provider, "check the zone in its control panel"),
    };
    Err(Error::new(fault, format!("OVHcloud refuses {what}: {said}"), help))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn signatures_are_those_of_their_own_clients() {
        // Revoked keys with the signatures that OVHcloud's client for Go is tested by.
        let (secret, consumer) =
            (Secret::new("9ufkBmLaTQ9nz5yMUlg79taH0GNnzDjk".into()), Secret::new("5mBuy6SUQcRw2ZUxg0cG68BoDKpED4KY".into()));
        for (method, body, expected) in [
            ("GET", "", "$1$52992e595b398f6aba591ee5925b379081614ced"),
            ("DELETE", "", "$1$f685c165fa9da88b294b5fd2504588588105f994"),
            ("POST", r#"{"a":"b","c":"d"}"#, "$1$ea0e0d82447373a3ddf5947065f1d519ca0bcaf2"),
        ] {
            assert_eq!(signature(&secret, &consumer, method, "https://api.eu.ovhcloud.com/1.0/auth", body, 1_457_018_875), expected);
        }
    }

    #[test]
    fn records_are_named_below_their_zone() {
        assert_eq!(below("_acme-challenge.a.example.com", "example.com").unwrap(), "_acme-challenge.a");
        assert_eq!(below("example.com", "example.com").unwrap(), "");
        for (name, zone) in [("_acme-challenge.badexample.com", "example.com"), ("x.example.net", "example.com")] {
            assert!(below(name, zone).is_err(), "{name}");
        }
    }

    #[test]
    fn each_refusal_says_what_to_do() {
        let of = |status: u16, body: &str| {
            let reply = Reply { status: StatusCode::from_u16(status).unwrap(), body: body.to_owned().into() };
            read::<serde_json::Value>("POST /domain/zone/example.com/record", &reply).unwrap_err()
        };
        for (status, body, fault, said) in [
            (
                403,
                r#"{"message":"This call has not been granted","errorCode":"NOT_GRANTED_CALL"}"#,
                Fault::Settings,
                "DELETE on /domain/zone",
            ),
            (
                403,
                r#"{"message":"This credential is not valid","errorCode":"INVALID_CREDENTIAL"}"#,
                Fault::Settings,
                "This credential is not valid",
            ),
            (400, r#"{"message":"Invalid signature","errorCode":"INVALID_SIGNATURE"}"#, Fault::Settings, "ovh-application-secret-file"),
            (400, r#"{"message":"Invalid\u0007 ttl"}"#, Fault::Provider, "Invalid ttl"),
            (503, "<html>", Fault::Provider, "503"),
            (200, "<html>", Fault::Provider, "something else"),
        ] {
            let error = of(status, body);
            assert!(error.fault == fault && error.to_string().contains(said), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_a_result_or_an_error(status in 200_u16..600, body: Vec<u8>) {
            let reply = Reply { status: StatusCode::from_u16(status).unwrap(), body: body.into() };
            if let Err(error) = read::<Vec<u64>>("GET /x", &reply) {
                prop_assert!(error.to_string().chars().all(|letter| !letter.is_control()));
            }
        }
    }
}
