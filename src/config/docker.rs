//! How the engine is to be reached, as `[docker]` says it: read in one place by all that talk to it.

use std::path::PathBuf;

use super::Docker;

/// A way to the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dial<'a> {
    /// The path of a socket.
    Socket(&'a str),
    /// The endpoint over TLS, with the files of a client.
    Tls { key: PathBuf, certificate: PathBuf, authority: PathBuf },
    /// The endpoint as it is.
    Plain,
}

/// Why there is no way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoWay {
    #[error("docker.endpoint `{0}` is none of unix:///path, tcp://host:port, https://host:port")]
    Endpoint(String),
    #[error("docker.endpoint `{0}` wants docker.tls: the directory with ca.pem, cert.pem and key.pem")]
    NoKeys(String),
}

impl Docker {
    /// # Errors
    /// The endpoint is none, or keys are missing.
    pub fn dial(&self) -> Result<Dial<'_>, NoWay> {
        match (self.endpoint.split_once("://"), &self.tls) {
            (Some(("unix", path)), _) => Ok(Dial::Socket(path)),
            (Some(("tcp" | "https", _)), Some(pems)) => {
                let pem = |name: &str| pems.join(name);
                Ok(Dial::Tls { key: pem("key.pem"), certificate: pem("cert.pem"), authority: pem("ca.pem") })
            }
            (Some(("tcp" | "http", _)), None) => Ok(Dial::Plain),
            (Some(("https", _)), None) => Err(NoWay::NoKeys(self.endpoint.clone())),
            _ => Err(NoWay::Endpoint(self.endpoint.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_to_an_engine() {
        let pems = || Some(PathBuf::from("/p"));
        let tls = Dial::Tls { key: "/p/key.pem".into(), certificate: "/p/cert.pem".into(), authority: "/p/ca.pem".into() };
        for (endpoint, keys, wanted) in [
            ("unix:///run/docker.sock", None, Ok(Dial::Socket("/run/docker.sock"))),
            ("tcp://h:2375", None, Ok(Dial::Plain)),
            ("http://h:2375", None, Ok(Dial::Plain)),
            ("tcp://h:2376", pems(), Ok(tls.clone())),
            ("https://h:2376", pems(), Ok(tls)),
            ("https://h:2376", None, Err(NoWay::NoKeys("https://h:2376".into()))),
            ("ssh://h", None, Err(NoWay::Endpoint("ssh://h".into()))),
            ("/run/docker.sock", None, Err(NoWay::Endpoint("/run/docker.sock".into()))),
        ] {
            let docker = Docker { endpoint: endpoint.to_owned(), tls: keys, ..crate::config::Config::default().docker };
            assert_eq!(docker.dial(), wanted, "{endpoint}");
        }
    }
}
