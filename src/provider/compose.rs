//! A stack or compose file as a snapshot, so that the edge also stands in front of what no Docker engine knows.
//! What is wrong in one service is a finding with a caret and leaves the other services as they are.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use crate::diagnostic::{Diagnostic, Place};
use crate::provider::yaml::{self, Node, Value};
use crate::snapshot::{Labels, Origin, Service, Snapshot};

/// A stack file is a page or two; whatever is larger is another kind of file.
pub const MAX_BYTES: usize = 1 << 20;
/// Each finding carries the text that it points at, so their number is bounded.
const MAX_FINDINGS: usize = 100;

/// Reads a stack file. `None`: it is no stack file, and what was read from it before should stay in force.
/// `path` only names it in findings; `environment` answers for `${NAME}`.
pub fn parse(path: &str, text: &str, environment: &dyn Fn(&str) -> Option<String>) -> (Option<Snapshot>, Vec<Diagnostic>) {
    let mut reader = Reader { path, text, findings: Vec::new() };
    if text.len() > MAX_BYTES {
        let message = format!("the file has {} bytes; a stack file may have {MAX_BYTES}", text.len());
        return (None, vec![Diagnostic::error("stack-too-large", message).of(path)]);
    }
    let snapshot = match yaml::parse(text, environment) {
        Ok(root) => {
            reader.unset_variables(&root, environment);
            reader.stack(&root)
        }
        Err(yaml::Unreadable { message, span }) => {
            let place = Place::File { path: path.to_owned(), text: text.to_owned(), span };
            reader.findings.push(Diagnostic::error("stack-syntax", message).at(place).of(path));
            None
        }
    };
    (snapshot, reader.findings)
}

/// Host names that `address` labels of file services dial, each once: what has to be resolved into [`Snapshot::names`].
pub fn names(snapshot: &Snapshot) -> Vec<String> {
    let addresses = snapshot
        .services
        .iter()
        .filter(|service| service.origin == Origin::File)
        .flat_map(|service| service.labels.iter().filter(|(key, _)| key.starts_with("skep.") && key.ends_with(".address")));
    let hosts = addresses.flat_map(|(_, value)| value.split([',', ' ', '\t', '\n'])).filter_map(host_of);
    let mut hosts: Vec<String> = hosts.map(str::to_owned).collect();
    hosts.sort();
    hosts.dedup();
    hosts
}

/// The name in `name:port`; an address needs no resolving.
fn host_of(address: &str) -> Option<&str> {
    let (host, _) = address.rsplit_once(':')?;
    let is_name = !host.is_empty() && !host.starts_with('[') && host.parse::<IpAddr>().is_err();
    is_name.then_some(host)
}

/// The findings' collector, with the text that they point at.
struct Reader<'a> {
    path: &'a str,
    text: &'a str,
    findings: Vec<Diagnostic>,
}

/// What the whole file says about networks or volumes: key -> the name that Docker gives it.
type Names<'a> = BTreeMap<&'a str, String>;

impl Reader<'_> {
    fn find(&mut self, node: &Node, finding: Diagnostic) {
        let place = Place::File { path: self.path.to_owned(), text: self.text.to_owned(), span: self.short(node) };
        let finding = finding.at(place);
        // What stands behind an anchor is read wherever it is used.
        if self.findings.len() < MAX_FINDINGS && !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// A value's first line; the rest of the line where the parser gives a point only.
    fn short(&self, node: &Node) -> std::ops::Range<usize> {
        let start = node.span.start;
        let end = if node.span.is_empty() { self.text.len() } else { node.span.end };
        let line = self.text[start..end].split('\n').next().unwrap_or_default();
        start..start + line.trim_end().len()
    }

    fn stack(&mut self, root: &Node) -> Option<Snapshot> {
        let Some(services) = root.get("services").filter(|services| services.pairs().is_some()) else {
            let help = "write the services under a top-level `services:` mapping, as for `docker stack deploy`";
            self.find(root, Diagnostic::error("stack-no-services", "the file names no services").of(self.path).help(help));
            return None;
        };
        if let Some(include) = root.get("include") {
            let help = "name the services in this file, or write `docker compose config` into one file";
            let message = "`include` is not followed: services of other files are not seen";
            self.find(include, Diagnostic::warning("stack-include", message).of(self.path).help(help));
        }
        let pairs = services.pairs().unwrap_or_default();
        let networks = real_names(root.get("networks"));
        let volumes = real_names(root.get("volumes"));
        // Only Swarm reads `deploy`; there, labels outside it stay on the container, where nobody looks for routes.
        let swarm = pairs.iter().any(|(_, service)| service.get("deploy").is_some());
        let mut count = HashMap::new();
        pairs.iter().filter_map(|(key, _)| key.text()).for_each(|name| *count.entry(name).or_insert(0) += 1);
        let mut snapshot = Snapshot::default();
        for (key, node) in pairs {
            let Some(name) = key.text() else { continue };
            let subject = format!("service {name}");
            let doubled = count.get(name).is_some_and(|count| *count > 1);
            if let Some(again) = doubled.then_some(key).or_else(|| node.doubled_key()) {
                let message = format!("`{}` stands twice in one mapping, so the service is left out", again.text().unwrap_or_default());
                let help = "remove one of the two; Docker refuses the file as well";
                self.find(again, Diagnostic::error("stack-doubled-key", message).of(subject).help(help));
                continue;
            }
            let mut service = Section { reader: self, subject: &subject }.service(node, &networks, &volumes, swarm);
            service.name = name.to_owned();
            service.id = name.to_owned();
            service.stack = root.get("name").and_then(Node::text).map(str::to_owned);
            snapshot.services.push(service);
        }
        Some(snapshot)
    }

    /// An unset variable becomes an empty text, as with Docker, but not silently.
    fn unset_variables(&mut self, node: &Node, environment: &dyn Fn(&str) -> Option<String>) {
        match &node.value {
            Value::Null => {}
            Value::Text(_) => {
                let unset: Vec<_> = yaml::variables(&self.text[node.span.clone()])
                    .filter(|variable| variable.bare && environment(variable.name).is_none())
                    .collect();
                for variable in unset {
                    let start = node.span.start + variable.at;
                    let place = Node { span: start..start + variable.name.len(), value: Value::Null };
                    let message = format!("the variable {} is not set, so nothing stands in its place", variable.name);
                    let help = format!("set it, write ${{{}:-a default}}, or $$ for a dollar sign", variable.name);
                    self.find(&place, Diagnostic::warning("stack-unset-variable", message).of(self.path).help(help));
                }
            }
            Value::List(items) => items.iter().for_each(|item| self.unset_variables(item, environment)),
            Value::Map(pairs) => pairs.iter().for_each(|(_, value)| self.unset_variables(value, environment)),
        }
    }
}

/// One service's part of the file.
struct Section<'a, 'b> {
    reader: &'a mut Reader<'b>,
    subject: &'a str,
}

impl Section<'_, '_> {
    fn wrong(&mut self, node: &Node, message: impl Into<String>, help: &str) {
        self.reader.find(node, Diagnostic::error("stack-value", message).of(self.subject).help(help));
    }

    fn service(&mut self, node: &Node, networks: &Names<'_>, volumes: &Names<'_>, swarm: bool) -> Service {
        if node.pairs().is_none() {
            self.wrong(node, "a service is a mapping", "write `image:`, `labels:` and so on, indented, below its name");
        }
        if let Some(extends) = node.get("extends") {
            let message = "`extends` is not followed: labels of the extended service are not seen";
            let help = "use a YAML anchor, or write the labels here";
            self.reader.find(extends, Diagnostic::warning("stack-extends", message).of(self.subject).help(help));
        }
        let deploy = node.get("deploy");
        let own = self.labels(node.get("labels"));
        let mut labels = own.clone();
        labels.extend(self.labels(deploy.and_then(|deploy| deploy.get("labels"))));
        Service {
            origin: Origin::File,
            image: node.get("image").and_then(Node::text).unwrap_or_default().to_owned(),
            labels,
            container_labels: if swarm { own } else { Labels::new() },
            networks: self.networks(node, networks),
            ports: self.ports(node),
            replicas: self.replicas(deploy),
            constraints: self.texts(deploy.and_then(|deploy| deploy.get("placement")?.get("constraints"))),
            volumes: self.volumes(node, volumes),
            ..Service::default()
        }
    }

    /// `key: value` pairs or a list of `key=value`.
    fn labels(&mut self, node: Option<&Node>) -> Labels {
        let mut labels = Labels::new();
        let Some(node) = node else { return labels };
        let pair = "write `key: value`, or `- key=value`";
        match &node.value {
            Value::Null => {}
            Value::Map(pairs) => {
                for (key, value) in pairs {
                    match (key.text(), &value.value) {
                        (Some(key), Value::Text(text)) => drop(labels.insert(key.to_owned(), text.clone())),
                        (Some(key), Value::Null) => drop(labels.insert(key.to_owned(), String::new())),
                        (Some(key), _) => {
                            self.wrong(value, format!("the value of the label {key} is not a text"), pair);
                        }
                        (None, _) => self.wrong(key, "a label's key is a text", pair),
                    }
                }
            }
            Value::List(items) => {
                for item in items {
                    match item.text() {
                        Some(text) => {
                            let (key, value) = text.split_once('=').unwrap_or((text, ""));
                            if labels.insert(key.to_owned(), value.to_owned()).is_some() {
                                self.wrong(item, format!("the label {key} stands twice; the last one counts"), "remove one of the two");
                            }
                        }
                        None => self.wrong(item, "a label in a list is a text", "write `- key=value`, without a colon"),
                    }
                }
            }
            Value::Text(_) => self.wrong(node, "labels are a mapping or a list", pair),
        }
        labels
    }

    fn networks(&mut self, node: &Node, names: &Names<'_>) -> Vec<String> {
        let named = |key: &str| names.get(key).cloned().unwrap_or_else(|| key.to_owned());
        let mut networks: Vec<String> = match (node.get("network_mode").and_then(Node::text), node.get("networks")) {
            (Some(mode), _) => vec![mode.to_owned()],
            (None, Some(Node { value: Value::Map(pairs), .. })) => pairs.iter().filter_map(|(key, _)| key.text()).map(named).collect(),
            (None, list) => self.texts(list).iter().map(|key| named(key)).collect(),
        };
        if networks.is_empty() {
            networks.push(named("default"));
        }
        networks
    }

    /// Container ports of `ports` and `expose`; udp is no business of ours.
    fn ports(&mut self, node: &Node) -> Vec<u16> {
        let mut ports = Vec::new();
        let help = "write `- 80`, `- 8080:80` or `- target: 80`";
        for (key, item) in
            ["ports", "expose"].iter().flat_map(|key| node.get(key).into_iter().flat_map(Node::items).map(move |item| (key, item)))
        {
            let written = match &item.value {
                Value::Map(_) if item.get("protocol").and_then(Node::text) == Some("udp") => continue,
                Value::Map(_) => item.get("target").and_then(Node::text),
                _ => item.text(),
            };
            match written.and_then(target_ports) {
                Some(targets) => ports.extend(targets),
                None => self.wrong(item, format!("no port can be read from this entry of `{key}`"), help),
            }
        }
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// One when nothing is said; `None` for global services.
    fn replicas(&mut self, deploy: Option<&Node>) -> Option<u64> {
        let field = |key| deploy.and_then(|deploy| deploy.get(key));
        if field("mode").and_then(Node::text).is_some_and(|mode| mode.starts_with("global")) {
            return None;
        }
        let Some(node) = field("replicas") else { return Some(1) };
        let replicas = node.text().and_then(|text| text.parse().ok());
        if replicas.is_none() {
            self.wrong(node, "`replicas` is a whole number", "write `replicas: 2`");
        }
        replicas.or(Some(1))
    }

    /// Volumes mounted by name, not paths of the host and not anonymous ones.
    fn volumes(&mut self, node: &Node, names: &Names<'_>) -> Vec<String> {
        let mut volumes = Vec::new();
        for item in node.get("volumes").into_iter().flat_map(Node::items) {
            let source = match &item.value {
                Value::Map(_) if item.get("type").and_then(Node::text) == Some("volume") => item.get("source").and_then(Node::text),
                Value::Map(_) => None,
                _ => item.text().and_then(|text| text.split_once(':')).map(|(source, _)| source),
            };
            if let Some(source) = source.filter(|source| !source.is_empty() && !source.contains(['/', '\\', '~', '.'])) {
                volumes.push(names.get(source).cloned().unwrap_or_else(|| source.to_owned()));
            }
        }
        volumes.sort();
        volumes.dedup();
        volumes
    }

    /// A list of texts; what is none is a finding.
    fn texts(&mut self, node: Option<&Node>) -> Vec<String> {
        let mut texts = Vec::new();
        for item in node.into_iter().flat_map(Node::items) {
            match item.text() {
                Some(text) => texts.push(text.to_owned()),
                None => self.wrong(item, "an entry of this list is a text", "write `- name`"),
            }
        }
        texts
    }
}

/// `80`, `8080:80`, `127.0.0.1:8080:80/tcp`, `[::1]:80:80`, `8000-8002:80-82`. Empty for udp, `None` when it is no port.
fn target_ports(text: &str) -> Option<Vec<u16>> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let target = ports.rsplit_once(':').map_or(ports, |(_, target)| target);
    let (first, last) = target.split_once('-').unwrap_or((target, target));
    let (first, last) = (first.trim().parse::<u16>().ok()?, last.trim().parse::<u16>().ok()?);
    match protocol {
        "tcp" if first > 0 && first <= last => Some((first..=last).collect()),
        "udp" | "sctp" => Some(Vec::new()),
        _ => None,
    }
}

/// Names that top-level `networks` or `volumes` give to their keys: `name: x`, `external: {name: x}`.
fn real_names(node: Option<&Node>) -> Names<'_> {
    let pairs = node.and_then(Node::pairs).unwrap_or_default();
    let named = pairs.iter().filter_map(|(key, value)| {
        let external = value.get("external").and_then(|external| external.get("name"));
        let name = value.get("name").or(external).and_then(Node::text)?;
        Some((key.text()?, name.to_owned()))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Option<Snapshot>, Vec<Diagnostic>) {
        parse("stack.yml", text, &|name| (name == "HOST").then(|| "a.example".to_owned()))
    }

    fn clean(text: &str) -> Snapshot {
        let (snapshot, findings) = read(text);
        assert_eq!(findings, []);
        snapshot.expect("a snapshot")
    }

    fn service(body: &str) -> Service {
        clean(&format!("services:\n  web:\n    image: x\n{body}\n")).services.remove(0)
    }

    #[test]
    fn a_whole_stack_file() {
        let snapshot = clean(
            r#"
name: shop
x-common: &common
  backup.enable: true
services:
  web:
    image: registry/web:${TAG:-latest}
    networks: [edge, inner]
    ports: ["8080:80"]
    volumes: [data:/data, ./conf:/conf:ro, /srv:/srv]
    deploy:
      replicas: 3
      labels:
        <<: *common
        haproxy.virtual_host_secure: ${HOST}
        haproxy.virtual_host_port: 8080
        note: costs $$5
      placement:
        constraints: [node.labels.region == eu]
networks:
  edge: {external: true, name: public}
  inner:
volumes:
  data: {name: shop_data}
"#,
        );
        let web = &snapshot.services[0];
        assert_eq!((web.name.as_str(), web.stack.as_deref(), web.origin), ("web", Some("shop"), Origin::File));
        assert_eq!(web.image, "registry/web:latest");
        let labels: Vec<_> = web.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(
            labels,
            [
                ("backup.enable", "true"),
                ("haproxy.virtual_host_port", "8080"),
                ("haproxy.virtual_host_secure", "a.example"),
                ("note", "costs $5"),
            ]
        );
        assert_eq!(web.networks, ["public", "inner"]);
        assert_eq!(web.ports, [80]);
        assert_eq!(web.volumes, ["shop_data"]);
        assert_eq!(web.replicas, Some(3));
        assert_eq!(web.constraints, ["node.labels.region == eu"]);
        assert!(web.container_labels.is_empty() && web.tasks.is_empty());
    }

    #[test]
    fn labels_outside_deploy_count_and_are_remembered_in_a_stack_file() {
        let compose = service("    labels: {skep.host: a}");
        assert_eq!((compose.labels.len(), compose.container_labels.len()), (1, 0));
        let stack = service("    labels: {skep.host: a}\n    deploy: {labels: [skep.port=81]}");
        assert_eq!((stack.labels.len(), stack.container_labels.len()), (2, 1));
        let both = service("    labels: {skep.host: a}\n    deploy: {labels: {skep.host: b}}");
        assert_eq!(both.labels["skep.host"], "b");
    }

    #[test]
    fn ports_of_every_spelling() {
        for (written, ports) in [
            ("ports: [80]", vec![80]),
            ("ports: ['8080:80']", vec![80]),
            ("ports: ['127.0.0.1:8080:80/tcp', '[::1]:81:81']", vec![80, 81]),
            ("ports: ['9000-9002:90-92']", vec![90, 91, 92]),
            ("ports: ['53:53/udp', {target: 54, protocol: udp}]", vec![]),
            ("ports: [{target: 80, published: 8080, mode: host}]", vec![80]),
            ("expose: [8080, '90']", vec![90, 8080]),
        ] {
            assert_eq!(service(&format!("    {written}")).ports, ports, "{written}");
        }
    }

    #[test]
    fn networks_of_every_spelling() {
        for (written, networks) in [
            ("image: x", vec!["default"]),
            ("networks: [a, b]", vec!["a", "b"]),
            ("networks: {a: {aliases: [x]}, b: }", vec!["a", "b"]),
            ("network_mode: host", vec!["host"]),
        ] {
            let written = written.replace("image: x", "init: true");
            assert_eq!(service(&format!("    {written}")).networks, networks, "{written}");
        }
    }

    #[test]
    fn replicas_of_every_spelling() {
        for (written, replicas) in [("init: true", Some(1)), ("deploy: {replicas: 0}", Some(0)), ("deploy: {mode: global}", None)] {
            assert_eq!(service(&format!("    {written}")).replicas, replicas, "{written}");
        }
    }

    #[test]
    fn mistakes_are_findings_with_a_place_and_leave_the_neighbour() {
        let neighbour = "  good: {labels: {skep.host: good.example}}\n";
        for (body, code, under) in [
            ("  bad: {labels: {skep.host: [a]}}", "stack-value", "["),
            ("  bad: {labels: 5}", "stack-value", "5"),
            ("  bad: {labels: [{a: b}]}", "stack-value", "{"),
            ("  bad: {labels: [a=1, a=2]}", "stack-value", "a=2"),
            ("  bad: {ports: [x]}", "stack-value", "x"),
            ("  bad: {ports: [70000]}", "stack-value", "70000"),
            ("  bad: {deploy: {replicas: many}}", "stack-value", "many"),
            ("  bad: 5", "stack-value", "5"),
            ("  bad: {labels: {a: 1, a: 2}}", "stack-doubled-key", "a"),
            ("  bad: {extends: base}", "stack-extends", "base"),
            ("  bad: {labels: {a: '${NONE}'}}", "stack-unset-variable", "NONE"),
        ] {
            let (snapshot, findings) = read(&format!("services:\n{body}\n{neighbour}"));
            let codes: Vec<_> = findings.iter().map(|finding| finding.code.as_str()).collect();
            assert_eq!(codes, [code], "{body}");
            let Some(Place::File { text, span, .. }) = &findings[0].place else { panic!("{body}: no place") };
            assert_eq!(&text[span.clone()], under, "{body}");
            let services = snapshot.expect(body).services;
            assert!(services.iter().any(|service| service.labels.contains_key("skep.host")), "{body}");
        }
    }

    #[test]
    fn a_doubled_key_leaves_its_service_out() {
        let (snapshot, _) = read("services:\n  a: {labels: {skep.auth: x, skep.auth: ''}}\n  b: {}\n  c: {}\n  c: {}\n");
        let names: Vec<_> = snapshot.expect("a snapshot").services.into_iter().map(|service| service.name).collect();
        assert_eq!(names, ["b"]);
    }

    #[test]
    fn what_is_no_stack_file_gives_no_snapshot() {
        for (text, code) in [
            ("", "stack-no-services"),
            ("# nothing\n", "stack-no-services"),
            ("services: []", "stack-no-services"),
            ("5", "stack-no-services"),
            ("services: {a: [}", "stack-syntax"),
            ("services:\n  a:\n  labels:\n x", "stack-syntax"),
        ] {
            let (snapshot, findings) = read(text);
            assert_eq!((snapshot, findings[0].code.as_str()), (None, code), "{text}");
        }
        assert_eq!(clean("services: {}").services, []);
        assert_eq!(read(&" ".repeat(MAX_BYTES + 1)).1[0].code, "stack-too-large");
    }

    #[test]
    fn names_are_the_hosts_of_address_labels() {
        let snapshot = clean(
            "services:\n  a: {labels: {skep.address: 'db.lan:80, 10.0.0.1:80 [::1]:80', skep.api.address: 'x:1', skep.host: y:2}}\n  b: {labels: {skep.address: db.lan:81}}\n",
        );
        assert_eq!(names(&snapshot), ["db.lan", "x"]);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "(services:\n  a: )?[ -~\n\tü]{0,120}") {
            let (_, findings) = read(&text);
            for finding in findings {
                if let Some(Place::File { text, span, .. }) = finding.place {
                    proptest::prop_assert!(text.get(span).is_some());
                }
            }
        }

        #[test]
        fn any_service_body_is_read_without_panic(body in "(labels|ports|deploy|networks|volumes|expose|extends|image): [\\[\\]{}a-z0-9:,/.'$&* -]{0,60}") {
            read(&format!("services:\n  web:\n    {body}\n"));
        }
    }
}
