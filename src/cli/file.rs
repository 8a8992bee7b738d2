//! A stack file as it would be once deployed: what Swarm would see as labels of its services, and what is said of volumes.
//! `skep check` judges that, not what `skep run --file` would serve, unless a service names its own upstreams.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::diagnostic::Diagnostic;
use crate::provider::compose::{self, MAX_BYTES};
use crate::provider::yaml::{self, Node, Value};
use crate::snapshot::{Labels, Origin, Service};

use super::Failure;

/// What one file says.
#[derive(Debug, Default)]
pub(super) struct StackFile {
    pub path: String,
    /// The name under which it is deployed, where the file says it.
    pub stack: Option<String>,
    pub services: Vec<Service>,
    /// Volume -> its labels.
    pub volumes: BTreeMap<String, Labels>,
    pub findings: Vec<Diagnostic>,
}

/// Reads the file at `path`.
///
/// # Errors
/// When it cannot be opened. What it says wrong is among its findings.
pub(super) fn read(path: &Path) -> Result<StackFile, Failure> {
    let name = path.display().to_string();
    let unreadable = |why: String| Failure::said(format!("cannot read {name}: {why}"));
    let size = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
    if size > MAX_BYTES as u64 {
        return Err(unreadable(format!("it has {size} bytes, a stack file at most {MAX_BYTES}")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
    Ok(understand(&name, &text, &|variable| std::env::var(variable).ok()))
}

fn understand(path: &str, text: &str, environment: &dyn Fn(&str) -> Option<String>) -> StackFile {
    let (snapshot, findings) = compose::parse(path, text, environment);
    let mut file = StackFile { path: path.to_owned(), findings, ..StackFile::default() };
    // What cannot be read has its finding already.
    let (Some(snapshot), Ok(root)) = (snapshot, yaml::parse(text, environment)) else { return file };
    let sections: BTreeMap<&str, &Node> = named(root.get("services")).collect();
    let swarm = sections.values().any(|section| section.get("deploy").is_some());
    file.stack = root.get("name").and_then(Node::text).map(str::to_owned);
    file.services = snapshot
        .services
        .into_iter()
        .map(|service| match sections.get(service.name.as_str()) {
            Some(section) => as_deployed(service, section, swarm),
            None => service,
        })
        .collect();
    file.volumes = named(root.get("volumes"))
        .map(|(name, volume)| (name.to_owned(), pairs(volume.get("labels")).collect()))
        .filter(|(_, labels): &(String, Labels)| !labels.is_empty())
        .collect();
    file
}

fn as_deployed(mut service: Service, section: &Node, swarm: bool) -> Service {
    if service.labels.keys().any(|label| names_an_upstream(label)) {
        return service;
    }
    service.origin = if swarm { Origin::Swarm } else { Origin::Container };
    if swarm {
        let deployed: BTreeSet<String> = pairs(section.get("deploy").and_then(|deploy| deploy.get("labels"))).map(|(key, _)| key).collect();
        service.labels.retain(|label, _| deployed.contains(label));
    }
    service
}

fn names_an_upstream(label: &str) -> bool {
    let lower = label.to_ascii_lowercase();
    lower.starts_with("skep.") && lower.ends_with(".address")
}

/// The named sections of a mapping.
fn named(node: Option<&Node>) -> impl Iterator<Item = (&str, &Node)> {
    node.and_then(Node::pairs).unwrap_or_default().iter().filter_map(|(name, section)| Some((name.text()?, section)))
}

/// Labels, written as a mapping or as a list.
fn pairs(node: Option<&Node>) -> impl Iterator<Item = (String, String)> {
    let list = node.filter(|node| matches!(node.value, Value::List(_))).map(Node::items).unwrap_or_default();
    let listed = list.iter().filter_map(Node::text).map(|text| text.split_once('=').unwrap_or((text, "")));
    let mapped = named(node).map(|(key, value)| (key, value.text().unwrap_or_default()));
    listed.chain(mapped).map(|(key, value)| (key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> StackFile {
        understand("stack.yml", text, &|_| None)
    }

    #[test]
    fn only_the_labels_that_swarm_sees_count() {
        let file = file(
            "name: shop\nservices:\n  a:\n    labels: {skep.host: a.de, both: x}\n    deploy: {labels: [skep.port=80, both=x]}\n  b: {labels: {skep.host: b.de}}\n",
        );
        let seen: Vec<_> =
            file.services.iter().map(|one| (one.origin, one.labels.keys().map(String::as_str).collect::<Vec<_>>())).collect();
        assert_eq!(seen, [(Origin::Swarm, vec!["both", "skep.port"]), (Origin::Swarm, vec![])]);
        assert_eq!(file.stack.as_deref(), Some("shop"));
    }

    #[test]
    fn without_deploy_labels_are_the_containers_and_an_address_makes_it_a_file_of_the_edge() {
        let file = file("services:\n  a: {labels: {skep.host: a.de}}\n  b: {labels: {skep.host: b.de, Skep.api.address: '10.0.0.1:80'}}\n");
        let origins: Vec<_> = file.services.iter().map(|service| service.origin).collect();
        assert_eq!(origins, [Origin::Container, Origin::File]);
        assert!(file.services.iter().all(|service| service.labels.contains_key("skep.host")));
    }

    #[test]
    fn volumes_have_labels_too() {
        let file = file("services: {a: {}}\nvolumes:\n  data: {labels: {backup.enable: true}}\n  list: {labels: [x=1]}\n  bare:\n");
        assert_eq!(file.volumes.keys().map(String::as_str).collect::<Vec<_>>(), ["data", "list"]);
        assert_eq!(file.volumes["data"]["backup.enable"], "true");
    }

    #[test]
    fn what_is_no_stack_file_has_findings_only() {
        let file = file("services: [");
        assert!(file.services.is_empty() && !file.findings.is_empty());
    }
}
