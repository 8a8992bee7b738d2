//! Which volumes of a node are saved and how, which are not and why: labels of services over those of volumes over the
//! configuration's defaults.

use std::collections::BTreeSet;

use crate::config::Config;
use crate::diagnostic::{Diagnostic, Severity, brief};
use crate::snapshot::Service;

use super::inventory::{Container, Inventory, MountKind, Volume};
use super::label::{self, Wishes};
use super::user::{PROJECT, STACK, User, users};
use super::{Keep, Mode, Settings, Subject};

/// What of a node is saved, and what is not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survey {
    /// By volume.
    pub subjects: Vec<Subject>,
    pub unprotected: Vec<Unprotected>,
    pub findings: Vec<Diagnostic>,
}

/// Something with data in it that is not saved.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Unprotected {
    /// `volume shop_data`, `directory /srv/data of service shop_web`.
    pub what: String,
    /// Why, and what to write to have it saved.
    pub why: String,
}

/// Looks through what a node has. `services` are those of the snapshot; a worker's engine knows none of the swarm's.
pub fn survey(inventory: &Inventory, services: &[Service], config: &Config) -> Survey {
    let mut survey = Survey::default();
    let users = users(inventory, services, config, &mut survey.findings);
    for volume in &inventory.volumes {
        Reading { inventory, config, users: &users, volume }.read(&mut survey);
    }
    users.iter().for_each(|user| user.idle(&survey.subjects).into_iter().for_each(|finding| survey.findings.push(finding)));
    directories(inventory, &users, &mut survey.unprotected);
    if config.backup.targets.is_empty() && !survey.subjects.is_empty() {
        let count = survey.subjects.len();
        let message =
            format!("nothing is saved: {count} volume{} to be, and there is no place for it", if count == 1 { " is" } else { "s are" });
        let finding = Diagnostic::error("no-target", message).of("skep.toml");
        survey.findings.push(finding.help("write targets = [\"/srv/backups\"] or [\"offsite=ssh://user@host/./skep\"] in [backup]"));
    }
    survey.subjects.sort_by(|one, other| one.volume.name.cmp(&other.volume.name));
    survey.unprotected.sort();
    survey.unprotected.dedup();
    survey
}

/// One volume, and all that has to do with it.
struct Reading<'a> {
    inventory: &'a Inventory,
    config: &'a Config,
    users: &'a [User],
    volume: &'a Volume,
}

impl<'a> Reading<'a> {
    fn read(&self, survey: &mut Survey) {
        let volume = self.volume;
        let subject = format!("volume {}", volume.name);
        let (own, owner, found) = label::of_volume(&volume.labels);
        let mut findings: Vec<Diagnostic> = found;
        // The order of their names decides; the newest word would change with each update.
        let users: Vec<&User> = self.users.iter().filter(|user| !user.elsewhere && user.volumes.contains(&volume.name)).collect();
        let elsewhere: Vec<&User> = self.users.iter().filter(|user| user.elsewhere && user.volumes.contains(&volume.name)).collect();
        let said: Vec<(&User, Wishes)> = users.iter().map(|user| (*user, user.wishes(&volume.name))).collect();
        let asked = said.iter().any(|(_, wishes)| wishes.enable == Some(true));
        let refused = said.iter().find(|(_, wishes)| wishes.enable == Some(false));
        let wanted = asked || (refused.is_none() && own.enable == Some(true));
        match self.unprotected(wanted, &own, refused.map(|(user, _)| *user), &users, &elsewhere) {
            Some(why) => survey.unprotected.push(Unprotected { what: self.called(), why }),
            None => {
                let merged = self.merged(&said, own.clone(), &mut findings);
                let owner = owner.or_else(|| users.iter().find_map(|user| user.wishes.owner.clone()));
                survey.subjects.push(self.subject(merged, owner, &users, &mut findings));
            }
        }
        if !wanted && !own.is_empty() && own.enable.is_none() && users.iter().all(|user| user.wishes.all.enable.is_none()) {
            let finding = Diagnostic::warning("backup-not-enabled", "its labels say how it is to be saved, and not that it is");
            findings.push(finding.help("add `backup.enable: true`"));
        }
        survey
            .findings
            .extend(findings.into_iter().map(|finding| if finding.subject.is_empty() { finding.of(subject.clone()) } else { finding }));
    }

    fn called(&self) -> String {
        match self.volume.anonymous {
            true => format!("anonymous volume {}", self.volume.name.chars().take(12).collect::<String>()),
            false => format!("volume {}", self.volume.name),
        }
    }

    /// Why the volume is not saved, if it is not.
    fn unprotected(&self, wanted: bool, own: &Wishes, refused: Option<&User>, users: &[&User], elsewhere: &[&User]) -> Option<String> {
        let volume = self.volume;
        if volume.anonymous && own.enable != Some(true) {
            return Some(match users.first() {
                Some(user) => format!(
                    "it has no name, and each new container of {} begins with an empty one: mount a named volume there, as `data:/path`",
                    user.name
                ),
                None => "it has no name, and no container uses it".to_owned(),
            });
        }
        if wanted && volume.driver != "local" && volume.path.as_os_str().is_empty() {
            return Some(format!(
                "its driver `{}` does not say where its files are, so they cannot be read from here",
                brief(&volume.driver)
            ));
        }
        if wanted {
            return None;
        }
        let label = format!("`backup.volume.{}.enable: true`", volume.name);
        Some(match (refused, users, elsewhere) {
            (Some(user), ..) => format!("{} says `backup.enable: false`", user.subject),
            (None, [], []) if own.enable == Some(false) => "its label says `backup.enable: false`".to_owned(),
            (None, [], []) => "no container uses it, and no label asks for it".to_owned(),
            (None, [], [user, ..]) => format!("{} runs on another node: this is a copy that it left behind", user.subject),
            (None, _, _) if own.enable == Some(false) => "its label says `backup.enable: false`".to_owned(),
            (None, [user, ..], _) => {
                format!("no label asks for it: write `backup.enable: true` on {}, or {label} for this one alone", user.subject)
            }
        })
    }

    /// What all services say, one after the other by name, over what the volume says.
    fn merged(&self, said: &[(&User, Wishes)], own: Wishes, findings: &mut Vec<Diagnostic>) -> Wishes {
        let mut merged = Wishes::default();
        let mut first: Option<&User> = None;
        for (user, wishes) in said.iter().filter(|(_, wishes)| !wishes.is_empty()) {
            let mut rest = wishes.clone();
            rest.enable = None;
            if let Some(first) = first {
                let both = merged.clone().over(rest.clone());
                if both != rest.clone().over(merged.clone()) {
                    let message =
                        format!("{} and {} say different things about its backups; the first counts", first.subject, user.subject);
                    findings.push(Diagnostic::warning("services-disagree", message).help("say it on one of them, or on the volume"));
                }
                merged = both;
            } else {
                merged = rest;
                first = Some(user);
            }
        }
        let [yes, no] = [Some(true), Some(false)].map(|wanted| said.iter().find(|(_, wishes)| wishes.enable == wanted));
        if let (Some((yes, _)), Some((no, _))) = (yes, no) {
            let message = format!("{} wants it saved and {} does not: it is saved", yes.subject, no.subject);
            findings.push(Diagnostic::warning("services-disagree", message).help("say it on one of them"));
        }
        merged.over(own)
    }

    fn subject(&self, wishes: Wishes, owner: Option<String>, users: &[&'a User], findings: &mut Vec<Diagnostic>) -> Subject {
        let volume = self.volume;
        let containers: BTreeSet<usize> = users.iter().flat_map(|user| user.containers.iter().copied()).collect();
        let containers: Vec<Container> = containers
            .into_iter()
            .map(|at| &self.inventory.containers[at])
            .filter(|container| container.mount(&volume.name).is_some())
            .cloned()
            .collect();
        let first = users.first();
        let mut settings = self.settings(wishes);
        if users.is_empty() {
            findings.push(
                Diagnostic::info("unused-volume", "no container uses it; it is saved as its label says")
                    .help("remove it once nobody needs it"),
            );
        }
        if let Some(user) = users.iter().find(|user| user.swarm).filter(|_| settings.mode == Mode::Stop) {
            settings.mode = Mode::Pause;
            let message = format!(
                "{} is one of a swarm, which would start another task in place of a stopped one: its containers are paused",
                user.subject
            );
            findings.push(Diagnostic::error("stop-in-swarm", message).help("write `backup.mode: pause`, or `backup.dump` for a database"));
        }
        let needs = match (&settings.mode, &settings.pre, &settings.post) {
            (Mode::Dump(_), ..) => Some("the dump"),
            (_, Some(_), _) | (_, _, Some(_)) => Some("its commands"),
            _ => None,
        };
        if let Some(needs) = needs.filter(|_| !containers.iter().any(Container::is_running)) {
            let message = format!("no running container mounts it, so that {needs} cannot be made: runs fail until one does");
            findings.push(Diagnostic::new(Severity::Warning, "nobody-to-ask", message).help("start the service, or remove the label"));
        }
        if let Some(kind) = network_kind(volume) {
            let message = format!("its files are on a server ({kind}): each node that has it saves all of them");
            findings
                .push(Diagnostic::info("shared-volume", message).help("label it on one node only, until shared volumes are saved once"));
        }
        Subject {
            volume: volume.clone(),
            node: self.inventory.node.clone(),
            service: first.map(|user| user.name.clone()),
            stack: first
                .and_then(|user| user.stack.clone())
                .or_else(|| [STACK, PROJECT].iter().find_map(|label| volume.labels.get(*label).cloned())),
            owner,
            settings,
            containers,
        }
    }

    fn settings(&self, wishes: Wishes) -> Settings {
        let defaults = &self.config.backup;
        let mode = match defaults.mode.as_str() {
            "pause" => Mode::Pause,
            "stop" => Mode::Stop,
            _ => Mode::Hot,
        };
        Settings {
            schedule: wishes.schedule.unwrap_or_else(|| defaults.schedule.clone()),
            // The configuration was read with the same grammar.
            keep: wishes.keep.or_else(|| Keep::parse(&defaults.keep).ok()).unwrap_or(Keep {
                daily: 7,
                weekly: 4,
                monthly: 36,
                ..Keep::default()
            }),
            exclude: wishes.exclude.unwrap_or_else(|| defaults.exclude.clone()),
            mode: wishes.mode.unwrap_or(mode),
            pre: wishes.pre,
            post: wishes.post,
            timeout: wishes.timeout.unwrap_or(defaults.timeout),
            on_error: wishes.on_error.unwrap_or_default(),
        }
    }
}

/// What kind of server a volume's files are on, if they are.
fn network_kind(volume: &Volume) -> Option<&str> {
    let kind = volume.options.get("type")?.as_str();
    ["nfs", "nfs4", "cifs", "smb3", "smbfs"].contains(&kind).then_some(kind)
}

/// Directories of the host that services write to which ask for backups: those are not saved.
fn directories(inventory: &Inventory, users: &[User], unprotected: &mut Vec<Unprotected>) {
    let asks = |user: &&User| user.wishes.all.enable == Some(true);
    for user in users.iter().filter(asks) {
        for mount in user.containers.iter().flat_map(|at| &inventory.containers[*at].mounts) {
            // Sockets are no data.
            if mount.kind == MountKind::Bind && mount.writable && !mount.source.ends_with(".sock") {
                let what = format!("directory {} of {}", mount.source, user.subject);
                let why = format!("directories of the host are not saved: mount a named volume at {}", mount.destination.display());
                unprotected.push(Unprotected { what, why });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::inventory::Mount;
    use super::super::user::SWARM_SERVICE;
    use super::super::{Database, OnError};
    use super::*;
    use crate::config::backup::Target;
    use crate::snapshot::{Condition, Labels, Task};

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(label, value)| (label.to_string(), value.to_string())).collect()
    }

    fn volume(name: &str, pairs: &[(&str, &str)]) -> Volume {
        Volume { name: name.to_owned(), driver: "local".to_owned(), labels: labels(pairs), ..Volume::default() }
    }

    /// A running container; with a service it is a task of that.
    fn container(name: &str, service: Option<&str>, volumes: &[&str], pairs: &[(&str, &str)]) -> Container {
        let mount = |source: &&str| Mount { source: (*source).to_owned(), writable: true, ..Mount::default() };
        Container {
            name: name.to_owned(),
            state: "running".to_owned(),
            service: service.map(str::to_owned),
            stack: service.and_then(|service| service.split_once('_')).map(|(stack, _)| stack.to_owned()),
            mounts: volumes.iter().map(mount).collect(),
            labels: labels(pairs),
            ..Container::default()
        }
    }

    fn service(name: &str, volumes: &[&str], pairs: &[(&str, &str)]) -> Service {
        Service {
            name: name.to_owned(),
            stack: name.split_once('_').map(|(stack, _)| stack.to_owned()),
            volumes: volumes.iter().map(|volume| (*volume).to_owned()).collect(),
            labels: labels(pairs),
            ..Service::default()
        }
    }

    fn config() -> Config {
        let mut config = Config::default();
        config.backup.targets = vec![Target { name: "b".to_owned(), location: "/srv/b".to_owned() }];
        config
    }

    fn look(volumes: Vec<Volume>, containers: Vec<Container>, services: &[Service]) -> Survey {
        survey(&Inventory { node: "node1".to_owned(), volumes, containers }, services, &config())
    }

    fn names(survey: &Survey) -> Vec<&str> {
        survey.subjects.iter().map(|subject| subject.volume.name.as_str()).collect()
    }

    fn codes(survey: &Survey) -> Vec<&str> {
        assert!(survey.findings.iter().all(|finding| finding.help.is_some() && !finding.subject.is_empty()), "{:?}", survey.findings);
        survey.findings.iter().map(|finding| finding.code.as_str()).collect()
    }

    const YES: (&str, &str) = ("backup.enable", "true");
    const NO: (&str, &str) = ("backup.enable", "false");

    #[test]
    fn a_label_of_a_volume_a_service_or_a_container_has_it_saved() {
        let seen = look(
            vec![volume("own", &[YES]), volume("shop_data", &[]), volume("web", &[]), volume("other", &[])],
            vec![
                container("1", None, &["own"], &[]),
                container("shop_db.1", Some("shop_db"), &["shop_data"], &[]),
                container("web", None, &["web"], &[YES]),
                container("other", None, &["other"], &[]),
            ],
            &[service("shop_db", &["shop_data"], &[YES])],
        );
        assert_eq!((names(&seen), codes(&seen)), (vec!["own", "shop_data", "web"], vec![]));
        let shop = &seen.subjects[1];
        assert_eq!((shop.service.as_deref(), shop.stack.as_deref(), shop.node.as_str()), (Some("shop_db"), Some("shop"), "node1"));
        assert_eq!(shop.containers.len(), 1);
        assert_eq!(
            shop.settings,
            Settings {
                schedule: "0 2 * * *".to_owned(),
                keep: Keep { daily: 7, weekly: 4, monthly: 36, ..Keep::default() },
                exclude: Vec::new(),
                mode: Mode::Hot,
                pre: None,
                post: None,
                timeout: std::time::Duration::from_secs(6 * 3600),
                on_error: OnError::Fail,
            }
        );
        let why = "no label asks for it: write `backup.enable: true` on container other, or `backup.volume.other.enable: true` for this one alone";
        assert_eq!(seen.unprotected, [Unprotected { what: "volume other".to_owned(), why: why.to_owned() }]);
    }

    #[test]
    fn the_service_outranks_the_volume_and_its_word_for_one_volume_that_for_all() {
        let seen = look(
            vec![
                volume("shop_data", &[YES, ("backup.keep", "1d"), ("backup.schedule", "@weekly"), ("backup.exclude", "a")]),
                volume("shop_tmp", &[YES]),
            ],
            vec![container("shop_db.1", Some("shop_db"), &["shop_data", "shop_tmp"], &[])],
            &[service(
                "shop_db",
                &["shop_data", "shop_tmp"],
                &[
                    ("backup.keep", "2d"),
                    ("backup.schedule", "@daily"),
                    ("backup.volume.data.keep", "3d"),
                    ("backup.volume.data.dump", "postgres"),
                    ("backup.volume.shop_tmp.enable", "no"),
                ],
            )],
        );
        assert_eq!((names(&seen), codes(&seen)), (vec!["shop_data"], vec![]));
        let settings = &seen.subjects[0].settings;
        assert_eq!((settings.keep.daily, settings.schedule.as_str(), settings.exclude.join(",")), (3, "@daily", "a".to_owned()));
        assert_eq!(settings.mode, Mode::Dump(Database::Postgres));
        assert_eq!(seen.unprotected[0].why, "service shop_db says `backup.enable: false`");
    }

    #[test]
    fn what_is_not_saved_is_listed_with_its_reason() {
        let mut inventory = vec![
            volume("unused", &[]),
            volume("refused", &[NO]),
            volume("shop_data", &[]),
            Volume { anonymous: true, ..volume(&"a".repeat(64), &[]) },
            Volume { anonymous: true, ..volume(&"b".repeat(64), &[]) },
            Volume { driver: "rexray".to_owned(), ..volume("far", &[YES]) },
        ];
        let mut web = container("web", None, &[&"b".repeat(64)], &[YES]);
        let bind =
            |source: &str, writable| Mount { kind: MountKind::Bind, source: source.to_owned(), destination: "/data".into(), writable };
        web.mounts.extend([bind("/srv/data", true), bind("/etc/web.conf", false), bind("/var/run/docker.sock", true)]);
        let task = Task { condition: Condition::Healthy, ..Task::default() };
        let services = [Service { tasks: vec![task], ..service("shop_db", &["shop_data"], &[YES]) }];
        let seen = look(inventory.clone(), vec![web], &services);
        assert_eq!(names(&seen), [""; 0]);
        let said: Vec<_> = seen.unprotected.iter().map(|one| (one.what.as_str(), one.why.as_str())).collect();
        for (one, (what, why)) in said.iter().zip([
            ("anonymous volume aaaaaaaaaaaa", "it has no name, and no container uses it"),
            ("anonymous volume bbbbbbbbbbbb", "mount a named volume there"),
            ("directory /srv/data of container web", "mount a named volume at /data"),
            ("volume far", "its driver `rexray` does not say where its files are"),
            ("volume refused", "its label says `backup.enable: false`"),
            ("volume shop_data", "service shop_db runs on another node"),
            ("volume unused", "no container uses it, and no label asks for it"),
        ]) {
            assert!(one.0 == what && one.1.contains(why), "{one:?}: {what}: {why}");
        }
        assert_eq!((said.len(), codes(&seen)), (7, vec!["nothing-to-save"]));
        // A service without named volumes is asked for its directories, too.
        let mut task = container("shop_web.1", Some("shop_web"), &[], &[]);
        task.mounts.push(bind("/srv/web", true));
        let seen = look(vec![], vec![task], &[service("shop_web", &[], &[YES])]);
        assert_eq!((seen.unprotected[0].what.as_str(), codes(&seen)), ("directory /srv/web of service shop_web", vec!["nothing-to-save"]));
        // With its service scaled to nothing, the volume is where it was.
        inventory.retain(|volume| volume.name == "shop_data");
        let seen = look(inventory, vec![], &[service("shop_db", &["shop_data"], &[YES])]);
        assert_eq!((names(&seen), seen.subjects[0].service.as_deref()), (vec!["shop_data"], Some("shop_db")));
    }

    #[test]
    fn several_that_mount_one_volume_are_heard_in_order_and_the_one_that_wants_it_saved_wins() {
        let seen = look(
            vec![volume("data", &[])],
            vec![
                container("b", None, &["data"], &[YES, ("backup.keep", "2d"), ("backup.mode", "pause")]),
                container("a", None, &["data"], &[NO, ("backup.keep", "1d")]),
            ],
            &[],
        );
        assert_eq!((names(&seen), codes(&seen)), (vec!["data"], vec!["services-disagree", "services-disagree"]));
        let subject = &seen.subjects[0];
        assert_eq!((subject.settings.keep.daily, &subject.settings.mode, subject.containers.len()), (1, &Mode::Pause, 2));
        assert_eq!(subject.service.as_deref(), Some("a"));
        // Two that write one volume and agree are fine.
        let both = [container("a", None, &["data"], &[YES]), container("b", None, &["data"], &[])];
        assert_eq!(codes(&look(vec![volume("data", &[])], both.to_vec(), &[])), [""; 0]);
    }

    #[test]
    fn owners_are_the_volumes_and_else_the_services() {
        let group = |name| ("com.sismics.docker.auth", name);
        for (of_volume, of_service, owner) in
            [(Some("staff"), Some("shop"), Some("staff")), (None, Some("shop"), Some("shop")), (None, None, None)]
        {
            let own: Vec<_> = of_volume.map(group).into_iter().chain([YES]).collect();
            let services: Vec<_> = of_service.map(group).into_iter().collect();
            let seen = look(
                vec![volume("shop_data", &own)],
                vec![container("1", Some("shop_db"), &["shop_data"], &[])],
                &[service("shop_db", &["shop_data"], &services)],
            );
            assert_eq!((seen.subjects[0].owner.as_deref(), codes(&seen)), (owner, vec![]));
        }
    }

    #[test]
    fn on_a_worker_only_labels_of_volumes_count_and_that_is_told() {
        let task = container("shop_db.1", None, &["shop_data", "shop_more"], &[(SWARM_SERVICE, "shop_db"), (STACK, "shop")]);
        let seen = look(vec![volume("shop_data", &[YES]), volume("shop_more", &[])], vec![task], &[]);
        assert_eq!((names(&seen), codes(&seen)), (vec!["shop_data"], vec!["service-labels-unknown"]));
        let subject = &seen.subjects[0];
        assert_eq!((subject.service.as_deref(), subject.stack.as_deref()), (Some("shop_db"), Some("shop")));
    }

    #[test]
    fn what_cannot_be_done_as_written_is_told_and_the_volume_is_saved() {
        let of_service = |pairs: &[(&str, &str)], state: &str| {
            let written: Vec<_> = [YES].into_iter().chain(pairs.iter().copied()).collect();
            let task = Container { state: state.to_owned(), ..container("shop_db.1", Some("shop_db"), &["shop_data"], &[]) };
            look(vec![volume("shop_data", &[])], vec![task], &[service("shop_db", &["shop_data"], &written)])
        };
        for (pairs, state, mode, found) in [
            (&[("backup.mode", "stop")][..], "running", Mode::Pause, &["stop-in-swarm"][..]),
            (&[("backup.mode", "scale")], "running", Mode::Hot, &["bad-mode"]),
            (&[("backup.dump", "postgre")], "running", Mode::Hot, &["bad-dump"]),
            (&[("backup.dump", "postgres")], "exited", Mode::Dump(Database::Postgres), &["nobody-to-ask"]),
            (&[("backup.pre", "sync")], "exited", Mode::Hot, &["nobody-to-ask"]),
            (&[("backup.keep", "x")], "running", Mode::Hot, &["bad-keep"]),
            (&[("backup.shedule", "@daily")], "running", Mode::Hot, &["unknown-key"]),
            (&[("backup.volume.dat.keep", "7d")], "running", Mode::Hot, &["unknown-volume"]),
        ] {
            let seen = of_service(pairs, state);
            assert_eq!((&seen.subjects[0].settings.mode, codes(&seen)), (&mode, found.to_vec()), "{pairs:?}");
        }
        let stop = container("web", None, &["data"], &[YES, ("backup.mode", "stop")]);
        let seen = look(vec![volume("data", &[])], vec![stop], &[]);
        assert_eq!((&seen.subjects[0].settings.mode, codes(&seen)), (&Mode::Stop, vec![]));
    }

    #[test]
    fn labels_that_come_to_nothing_say_so() {
        let shared = Volume { options: labels(&[("type", "nfs"), ("o", "addr=nas")]), ..volume("shared", &[YES]) };
        for (volumes, containers, found) in [
            (vec![volume("data", &[])], vec![container("web", None, &["data"], &[("backup.keep", "7d")])], &["backup-not-enabled"][..]),
            (vec![volume("data", &[("backup.keep", "7d")])], vec![], &["backup-not-enabled"]),
            (vec![], vec![container("web", None, &[], &[YES])], &["nothing-to-save"]),
            (vec![volume("data", &[YES])], vec![], &["unused-volume"]),
            (vec![shared], vec![container("web", None, &["shared"], &[])], &["shared-volume"]),
        ] {
            assert_eq!(codes(&look(volumes, containers, &[])), found);
        }
        let nowhere = survey(
            &Inventory {
                volumes: vec![volume("data", &[YES])],
                containers: vec![container("a", None, &["data"], &[])],
                ..Inventory::default()
            },
            &[],
            &Config::default(),
        );
        assert_eq!((names(&nowhere), codes(&nowhere)), (vec!["data"], vec!["no-target"]));
    }
}
