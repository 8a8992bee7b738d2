//! Who uses the volumes of a node and what their labels say of them: services of a swarm, and plain containers.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::Config;
use crate::diagnostic::{Diagnostic, brief, nearest};
use crate::snapshot::{Condition, Labels, Origin, Service};

use super::Subject;
use super::inventory::{Container, Inventory, MountKind};
use super::label::{self, ServiceWishes, Wishes};

pub(super) const SWARM_SERVICE: &str = "com.docker.swarm.service.name";
pub(super) const STACK: &str = "com.docker.stack.namespace";
pub(super) const PROJECT: &str = "com.docker.compose.project";
const COMPOSE_SERVICE: &str = "com.docker.compose.service";

/// A service, or a plain container, that uses volumes of this node.
pub(super) struct User {
    pub name: String,
    /// `service shop_web`, `container web`: in findings.
    pub subject: String,
    pub stack: Option<String>,
    pub wishes: ServiceWishes,
    /// One of a swarm: its containers are not ours to stop.
    pub swarm: bool,
    /// Names of the volumes that it mounts, here or by its description.
    pub volumes: BTreeSet<String>,
    /// Containers of this node, by their place in the inventory.
    pub containers: Vec<usize>,
    /// It has tasks, and none of them is here.
    pub elsewhere: bool,
}

/// All that use volumes here, plain containers first, each by name.
pub(super) fn users(inventory: &Inventory, services: &[Service], config: &Config, findings: &mut Vec<Diagnostic>) -> Vec<User> {
    let mut users: BTreeMap<(bool, String), User> = BTreeMap::new();
    let mut unknown: BTreeSet<&str> = BTreeSet::new();
    for service in services.iter().filter(|service| service.origin == Origin::Swarm) {
        let runs = |task: &crate::snapshot::Task| matches!(task.condition, Condition::Healthy | Condition::Starting | Condition::Unhealthy);
        let mut user = User::new("service", &service.name, service.stack.clone().or_else(|| service.labels.get(STACK).cloned()), true);
        user.understand(&service.labels, config, findings);
        user.volumes = service.volumes.iter().cloned().collect();
        user.elsewhere = service.tasks.iter().any(runs);
        users.insert((true, service.name.clone()), user);
    }
    for (at, container) in inventory.containers.iter().enumerate() {
        let service = container.service.as_ref().or_else(|| container.labels.get(SWARM_SERVICE));
        let stack = container.stack.clone().or_else(|| [STACK, PROJECT].iter().find_map(|label| container.labels.get(*label).cloned()));
        let name = service.map_or_else(|| plain_name(container), Clone::clone);
        let user = users.entry((service.is_some(), name.clone())).or_insert_with(|| {
            let kind = if service.is_some() { "service" } else { "container" };
            let mut user = User::new(kind, &name, stack, service.is_some());
            match service {
                Some(service) => drop(unknown.insert(service.as_str())),
                None => user.understand(&container.labels, config, findings),
            }
            user
        });
        user.elsewhere = false;
        user.containers.push(at);
        user.volumes.extend(container.mounts.iter().filter(|mount| mount.kind == MountKind::Volume).map(|mount| mount.source.clone()));
    }
    // What a service mounts nothing in has no say either.
    unknown.retain(|name| users.get(&(true, (*name).to_owned())).is_some_and(|user| !user.volumes.is_empty()));
    if !services.iter().any(|service| service.origin == Origin::Swarm) && !unknown.is_empty() {
        findings.push(labels_unknown(&unknown));
    }
    users.into_values().collect()
}

/// Compose numbers the containers of a service, and gives them new names: their labels are one.
fn plain_name(container: &Container) -> String {
    match (container.labels.get(PROJECT), container.labels.get(COMPOSE_SERVICE)) {
        (Some(project), Some(service)) => format!("{project}-{service}"),
        _ => container.name.clone(),
    }
}

fn labels_unknown(services: &BTreeSet<&str>) -> Diagnostic {
    let some: Vec<String> = services.iter().take(3).map(|name| brief(name)).collect();
    let more = if services.len() > some.len() { ", ..." } else { "" };
    let message = format!("this engine does not tell the labels of services ({}{more}), as it is no manager of its swarm", some.join(", "));
    Diagnostic::warning("service-labels-unknown", message)
        .of("backups")
        .help("label the volumes themselves, or run Skep on a manager: only labels of volumes count here")
}

impl User {
    fn new(kind: &str, name: &str, stack: Option<String>, swarm: bool) -> User {
        User {
            name: name.to_owned(),
            subject: format!("{kind} {name}"),
            stack,
            wishes: ServiceWishes::default(),
            swarm,
            volumes: BTreeSet::new(),
            containers: Vec::new(),
            elsewhere: false,
        }
    }

    fn understand(&mut self, labels: &Labels, config: &Config, findings: &mut Vec<Diagnostic>) {
        let (wishes, found) = label::of_service(labels, config.labels.sismics_auth);
        self.wishes = wishes;
        findings.extend(found.into_iter().map(|finding| finding.of(self.subject.clone())));
    }

    /// Does `written` name the volume, with or without the stack in front?
    fn means(&self, written: &str, volume: &str) -> bool {
        let rest = self.stack.as_ref().and_then(|stack| volume.strip_prefix(stack.as_str())?.strip_prefix('_'));
        written == volume || rest == Some(written)
    }

    /// What it says of a volume: its words for that one over those for all.
    pub fn wishes(&self, volume: &str) -> Wishes {
        let own = self.wishes.volumes.iter().find(|(written, _)| self.means(written, volume));
        let own = own.map(|(_, wishes)| wishes.clone()).unwrap_or_default();
        own.over(self.wishes.all.clone())
    }

    /// Words of it that nothing comes of.
    pub fn idle(&self, subjects: &[Subject]) -> Vec<Diagnostic> {
        let mut findings = Vec::new();
        for written in self.wishes.volumes.keys().filter(|written| !self.volumes.iter().any(|volume| self.means(written, volume))) {
            let message = format!("`backup.volume.{}` is about a volume that it does not mount", brief(written));
            let finding = Diagnostic::error("unknown-volume", message).of(self.subject.clone());
            let short = |volume: &'_ String| {
                self.stack.as_ref().and_then(|stack| Some(volume.strip_prefix(stack.as_str())?.strip_prefix('_')?.to_owned()))
            };
            let names: Vec<String> = self.volumes.iter().map(|volume| short(volume).unwrap_or_else(|| volume.clone())).collect();
            findings.push(finding.help(match (nearest(written, names.iter().map(String::as_str)), names.as_slice()) {
                (Some(near), _) => format!("did you mean `backup.volume.{near}`?"),
                (None, []) => "it mounts no volume; remove the label".to_owned(),
                (None, names) => {
                    format!("it mounts {}", names.iter().take(5).map(|name| format!("`{}`", brief(name))).collect::<Vec<_>>().join(", "))
                }
            }));
        }
        let all = &self.wishes.all;
        let saved = subjects.iter().any(|subject| self.volumes.contains(&subject.volume.name));
        let (asks, says) = (all.enable == Some(true), !all.is_empty() && all.enable.is_none());
        if self.elsewhere || saved {
            return findings;
        }
        if asks {
            let message = "it asks for backups, and mounts no named volume that could be saved here";
            let help = "mount a named volume, as `data:/var/lib/app`; directories of the host and anonymous volumes are not saved";
            findings.push(Diagnostic::warning("nothing-to-save", message).of(self.subject.clone()).help(help));
        } else if says && self.wishes.volumes.values().all(|wishes| wishes.enable.is_none()) {
            let message = "it says how it is to be saved, and not that it is";
            findings.push(Diagnostic::warning("backup-not-enabled", message).of(self.subject.clone()).help("add `backup.enable: true`"));
        }
        findings
    }
}
