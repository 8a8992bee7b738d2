//! TCP routes: the keys under `skep.tcp.`, and what they mean. A connection to a port of the edge is carried to a task as it is, so
//! only what needs no request can be said of it.

use std::time::Duration;

use super::{Balance, Scheme, Settings, settings};
use crate::config::Defaults;
use crate::diagnostic::{Diagnostic, brief};
use crate::label::{Key, RouteSpec, Value};

/// Sessions of databases and shells are silent for long; a peer that is gone is found out by TCP itself.
pub const SILENCE: Duration = Duration::from_secs(3600);

/// The keys of TCP routes.
pub const KEYS: &[Key] = &[
    Key::stream("tcp.listen", "port", "required", "The edge's port whose connections go to the service; `tcp.ports` must allow it."),
    Key::stream("tcp.port", "container port", "the same as tcp.listen", "The container's port that connections go to."),
    Key::stream("tcp.allow", "10.0.0.0/8, 192.0.2.7", "any address", "Networks whose clients may connect; others are closed at once.")
        .guarding(),
    Key::stream("tcp.proxy-protocol", "v1, v2", "off", "A PROXY header in front of each connection tells the task who the client is."),
    Key::stream("tcp.balance", "p2c, round-robin, least, hash:ip", "p2c", "How a task is chosen for a connection."),
    Key::stream("tcp.retries", "0 to 10", "2", "Attempts on other tasks after a connect failed."),
    Key::stream("tcp.timeout-connect", "duration", "2s", "Until a connection to a task stands."),
    Key::stream("tcp.timeout-idle", "duration", "1h", "A connection on which neither side says anything for so long is closed."),
    Key::stream("tcp.network", "name of a network", "the one shared with the edge", "Which network's address to dial."),
    Key::stream("tcp.address", "host:port, host:port", "", "Upstreams outside Docker; only in a stack file that is given with --file."),
];

/// The port of the edge and the upstream keys of one TCP route. No port: the route has no meaning, and a finding says why.
pub fn parse_stream(spec: &RouteSpec, defaults: &Defaults) -> (Option<u16>, Settings, Vec<Diagnostic>) {
    let (mut settings, mut findings) = settings::parse(spec, defaults);
    let listen = match spec.get("listen").map(settings::port) {
        Some(Ok(port)) => Some(port),
        Some(Err(finding)) => {
            findings.push(Diagnostic { help: Some("write one port of the edge, 1 to 65535, e.g. `5432`".to_owned()), ..finding });
            None
        }
        None => {
            let finding = Diagnostic::error("tcp-without-listen", "the TCP route does not say on which port of the edge it is");
            let place = spec.values.values().next().map(Value::key_place);
            findings.push(place.into_iter().fold(finding, Diagnostic::at).help(format!("add `{}listen: 5432`", prefix(&spec.name))));
            None
        }
    };
    if let (true, Some(value)) = (settings.balance.needs_a_request(), spec.get("balance")) {
        findings.push(
            Diagnostic::error("bad-balance", format!("`{}` needs a request, and a TCP route has connections only", brief(&value.text)))
                .at(value.place())
                .help("write `p2c`, `round-robin`, `least` or `hash:ip`"),
        );
        settings.balance = Balance::default();
    }
    if spec.get("timeout-idle").is_none() {
        settings.timeouts.idle = SILENCE;
    }
    settings.port = settings.port.or(listen);
    settings.scheme = Scheme::Tcp;
    (listen, settings, findings)
}

/// What the labels of the TCP route `name` begin with.
pub fn prefix(name: &str) -> String {
    if name.is_empty() { "skep.tcp.".to_owned() } else { format!("skep.tcp.{name}.") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;
    use crate::label::Dialect;

    fn read(pairs: &[(&'static str, &str)]) -> (Option<u16>, Settings, Vec<String>) {
        let mut spec = RouteSpec::new("db", Dialect::Native);
        for (key, text) in pairs {
            spec.values.extend(Value::new(&format!("skep.tcp.db.{key}"), text).map(|value| (*key, value)));
        }
        let (listen, settings, findings) = parse_stream(&spec, &Config::default().defaults);
        (listen, settings, findings.into_iter().map(|finding| finding.code).collect())
    }

    #[test]
    fn the_containers_port_is_the_edges_unless_it_is_said() {
        for (pairs, listen, port, codes) in [
            (&[("listen", "5432")][..], Some(5432), Some(5432), &[][..]),
            (&[("listen", "15432"), ("port", "5432")], Some(15432), Some(5432), &[]),
            (&[("listen", "0")], None, None, &["bad-port"]),
            (&[("listen", "5432-5440")], None, None, &["bad-port"]),
            (&[("port", "5432")], None, Some(5432), &["tcp-without-listen"]),
        ] {
            let (seen, settings, found) = read(pairs);
            assert_eq!((seen, settings.port, found), (listen, port, codes.iter().map(|code| code.to_string()).collect()), "{pairs:?}");
        }
    }

    #[test]
    fn what_needs_a_request_is_refused_and_silence_is_long() {
        let (_, settings, found) = read(&[("listen", "1"), ("balance", "hash:header:x")]);
        assert_eq!((settings.balance, found), (Balance::PowerOfTwo, vec!["bad-balance".to_owned()]));
        assert_eq!((settings.timeouts.idle, settings.scheme), (SILENCE, Scheme::Tcp));
        assert_eq!(read(&[("listen", "1"), ("timeout-idle", "60s")]).1.timeouts.idle, Duration::from_secs(60));
        assert_eq!(read(&[("listen", "1"), ("balance", "hash:ip")]).1.balance, Balance::HashIp);
    }

    proptest! {
        #[test]
        fn any_port_is_survived(text in "\\PC{0,12}") {
            let (listen, _, found) = read(&[("listen", &text)]);
            prop_assert_eq!(listen.is_none(), !found.is_empty());
        }
    }
}
