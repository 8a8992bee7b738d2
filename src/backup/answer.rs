//! What the engine answers about volumes and containers, and the inventory made of it. States are text and every field may be missing, so
//! that an engine that is older or newer than this code is understood.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};

use super::inventory::{self, MountKind};
use crate::snapshot::Labels;

const SERVICE: &str = "com.docker.swarm.service.name";
const STACK: &str = "com.docker.stack.namespace";
const PROJECT: &str = "com.docker.compose.project";
const ANONYMOUS: &str = "com.docker.volume.anonymous";
/// Of a container's environment only these are looked at: where a database keeps its files, and as whom it is asked.
const ENVIRONMENT: [&str; 4] = ["PGDATA", "POSTGRES_USER", "POSTGRES_DB", "MYSQL_DATABASE"];

/// The engine writes `null` where a list or a map is empty.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Types that are read from the API: every field may be missing or null.
macro_rules! answers {
    ($($(#[$about:meta])* $name:ident { $($field:ident $($key:literal)? : $kind:ty,)* })*) => {$(
        $(#[$about])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        pub struct $name {
            $($(#[serde(rename = $key)])? #[serde(deserialize_with = "nullable")] pub $field: $kind,)*
        }
    )*};
}

answers! {
    /// `/info`.
    Info { name: String, docker_root_dir: PathBuf, }
    /// `/volumes`.
    Volumes { volumes: Vec<Volume>, }
    /// `/volumes/{name}`.
    Volume { name: String, driver: String, mountpoint: PathBuf, created_at: String, labels: Labels, options: Labels, }
    /// One of `/containers/json`.
    Listed {
        id "Id": String, names: Vec<String>, image: String, image_id "ImageID": String, state: String, labels: Labels, mounts: Vec<Mount>,
    }
    Mount { kind "Type": String, name: String, source: String, destination: PathBuf, writable "RW": bool, }
    /// `/containers/{id}/json`.
    Inspected { id "Id": String, state: State, config: Config, host_config: HostConfig, }
    State { status: String, exit_code: i64, }
    Config { env: Vec<String>, stop_timeout: Option<u32>, }
    HostConfig { auto_remove: bool, }
    /// `/exec/{id}/json`.
    Exec { running: bool, exit_code: Option<i64>, }
}

impl Info {
    /// Where the engine keeps the files of its own volumes.
    pub fn volumes(&self) -> PathBuf {
        self.docker_root_dir.join("volumes")
    }
}

impl Volume {
    /// `root` is the engine's volumes directory, `here` where this process finds it.
    pub fn known(self, root: &Path, here: Option<&Path>) -> inventory::Volume {
        let path = match (self.mountpoint.strip_prefix(root), here) {
            (Ok(rest), Some(here)) => here.join(rest),
            _ => self.mountpoint,
        };
        inventory::Volume {
            path,
            // Engines before 23 do not mark what they named themselves.
            anonymous: self.labels.contains_key(ANONYMOUS) || is_identity(&self.name),
            created: self.created_at.parse::<Timestamp>().ok(),
            name: self.name,
            driver: self.driver,
            labels: self.labels,
            options: self.options,
        }
    }
}

impl Listed {
    pub fn known(self) -> inventory::Container {
        inventory::Container {
            id: self.id,
            name: self.names.first().map(|name| name.trim_start_matches('/').to_owned()).unwrap_or_default(),
            image: self.image,
            digest: self.image_id,
            state: self.state,
            service: self.labels.get(SERVICE).cloned(),
            stack: self.labels.get(STACK).or_else(|| self.labels.get(PROJECT)).cloned(),
            mounts: self.mounts.into_iter().map(Mount::known).collect(),
            labels: self.labels,
            environment: BTreeMap::new(),
        }
    }
}

impl Mount {
    fn known(self) -> inventory::Mount {
        let (kind, source) = match self.kind.as_str() {
            "volume" => (MountKind::Volume, self.name),
            "bind" => (MountKind::Bind, self.source),
            _ => (MountKind::Other, self.source),
        };
        inventory::Mount { kind, source, destination: self.destination, writable: self.writable }
    }
}

impl Config {
    /// What is harmless of it.
    pub fn environment(&self) -> BTreeMap<String, String> {
        let pairs = self.env.iter().filter_map(|line| line.split_once('='));
        pairs.filter(|(name, _)| ENVIRONMENT.contains(name)).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

/// 64 hexadecimal digits, as the engine names what nobody named.
pub fn is_identity(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_found_where_this_process_sees_them() {
        let read = |json: &str, here: Option<&str>| {
            let volume: Volume = serde_json::from_str(json).expect("JSON");
            volume.known(Path::new("/var/lib/docker/volumes"), here.map(Path::new))
        };
        let own = r#"{"Name":"shop_data","Driver":"local","Mountpoint":"/var/lib/docker/volumes/shop_data/_data","Labels":null,
            "CreatedAt":"2026-11-23T02:00:07Z","Options":{"type":"nfs"}}"#;
        let volume = read(own, None);
        assert_eq!(volume.path, Path::new("/var/lib/docker/volumes/shop_data/_data"));
        assert_eq!((volume.options["type"].as_str(), volume.created.is_some(), volume.anonymous), ("nfs", true, false));
        assert_eq!(read(own, Some("/host/volumes")).path, Path::new("/host/volumes/shop_data/_data"));
        let plugged = r#"{"Name":"x","Driver":"rexray","Mountpoint":"/mnt/x"}"#;
        assert_eq!(read(plugged, Some("/host/volumes")).path, Path::new("/mnt/x"), "another driver keeps its place");
        assert!(read(&format!(r#"{{"Name":"{}"}}"#, "0a".repeat(32)), None).anonymous);
    }

    #[test]
    fn a_container_is_read_without_its_secrets() {
        let listed: Listed = serde_json::from_str(
            r#"{"Id":"1","Names":["/shop_db.1.x"],"Image":"postgres:16","ImageID":"sha256:aa","State":"something-new",
            "Labels":{"com.docker.swarm.service.name":"shop_db","com.docker.stack.namespace":"shop"},
            "Mounts":[{"Type":"volume","Name":"shop_pg","Source":"/x","Destination":"/var/lib/postgresql/data","RW":true},
            {"Type":"bind","Source":"/etc/x","Destination":"/x"},{"Type":"tmpfs","Destination":"/t"}]}"#,
        )
        .expect("JSON");
        let container = listed.known();
        assert_eq!((container.name.as_str(), container.state.as_str()), ("shop_db.1.x", "something-new"));
        assert_eq!((container.service.as_deref(), container.stack.as_deref()), (Some("shop_db"), Some("shop")));
        assert_eq!(container.mount("shop_pg").expect("mounted").destination, Path::new("/var/lib/postgresql/data"));
        assert_eq!(container.mounts[1].kind, MountKind::Bind);
        assert_eq!(container.mounts[2].kind, MountKind::Other);
        let config = Config { env: vec!["PGDATA=/pg=1".into(), "POSTGRES_PASSWORD=hush".into(), "odd".into()], stop_timeout: None };
        assert_eq!(config.environment(), BTreeMap::from([("PGDATA".to_owned(), "/pg=1".to_owned())]));
    }

    proptest::proptest! {
        #[test]
        fn any_json_is_read_or_refused(text in ".{0,200}") {
            _ = serde_json::from_str::<Listed>(&text);
            _ = serde_json::from_str::<Volume>(&text).map(|volume| volume.known(Path::new("/"), None));
        }
    }
}
