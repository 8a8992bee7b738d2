//! What a route makes use of beside its own service: whom copies go to, where error pages come from.
//! Found out when the state is built, so that a name that leads nowhere is a finding and no request has to look.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Action;
use super::claim::{Claim, subject};
use crate::config::Config;
use crate::diagnostic::{Diagnostic, brief, nearest};
use crate::label::{Dialect, RouteSpec, Value};
use crate::snapshot::{Origin, Service, Snapshot};
use crate::traffic::PageSource;
use crate::upstream::{self, Group, Pool, Scheme};

/// Other services and files of one route.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Aside {
    pub mirror: Option<Arc<Pool>>,
    pub pages: Option<Pages>,
}

/// Where error pages come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Pages {
    File {
        /// `{status}` in it stands for the status.
        path: PathBuf,
        /// The file must really be below this directory, wherever links lead.
        within: Option<PathBuf>,
    },
    Service(Arc<Pool>),
}

/// Finds what each route's labels name.
pub(super) fn resolve(claims: &mut [Claim<'_>], config: &Config, snapshot: &Snapshot, findings: &mut Vec<Diagnostic>) {
    for index in 0..claims.len() {
        let limits = &claims[index].route.traffic.limits;
        if limits.mirror.is_none() && limits.error_page.is_none() {
            continue;
        }
        let (mirror, page) = (limits.mirror.clone(), limits.error_page.clone());
        let claim = &claims[index];
        let mut found = Vec::new();
        let mut service = |key, name: &str| match target(claims, claim, config, snapshot, name) {
            Ok(pool) => Some(Arc::new(pool)),
            Err(finding) => {
                found.push(point(claim, key, finding));
                None
            }
        };
        let mut aside = Aside { mirror: mirror.and_then(|mirror| service("mirror", &mirror.service)), pages: None };
        aside.pages = match page.map(|page| page.source) {
            Some(PageSource::Service(name)) => service("error-page", &name).map(Pages::Service),
            Some(PageSource::File(path)) => match file(claim.service, config, &path) {
                Ok(pages) => Some(pages),
                Err(finding) => {
                    found.push(point(claim, "error-page", finding));
                    None
                }
            },
            None => None,
        };
        findings.append(&mut found);
        claims[index].route.aside = aside;
    }
}

fn point(claim: &Claim<'_>, key: &str, finding: Diagnostic) -> Diagnostic {
    let finding = finding.of(subject(claim.service));
    claim.spec.get(key).map(Value::place).into_iter().fold(finding, Diagnostic::at)
}

/// The tasks of the service `name`: of its first route, or of the service as it is when it has none.
fn target(claims: &[Claim<'_>], asking: &Claim<'_>, config: &Config, snapshot: &Snapshot, name: &str) -> Result<Pool, Diagnostic> {
    let in_stack = asking.service.stack.as_ref().map(|stack| format!("{stack}_{name}"));
    let is_meant = |service: &Service| service.name == name || in_stack.as_ref() == Some(&service.name);
    let pool = match claims.iter().find(|claim| is_meant(claim.service)) {
        Some(claim) => {
            // What passes here never met the other route's guard.
            if claim.route.access != asking.route.access {
                let message = format!("service `{}` is protected otherwise than this route, and would be reached past that", brief(name));
                return Err(Diagnostic::error("protected-service", message).help("give both routes the same access labels"));
            }
            match &claim.route.action {
                Action::Forward { pool, .. } => Pool { sticky: None, ..pool.clone() },
                Action::RedirectHost(_) => return Err(unknown(snapshot, name)),
            }
        }
        None => {
            let service = snapshot.services.iter().find(|service| is_meant(service)).ok_or_else(|| unknown(snapshot, name))?;
            unrouted(service, config, snapshot)
        }
    };
    let schemes = pool.groups.iter().flat_map(|group| &group.backends).map(|backend| backend.scheme);
    if schemes.into_iter().any(|scheme| scheme.is_secure() || scheme == Scheme::Tcp) {
        let message = format!("service `{}` is spoken to over TLS", brief(name));
        return Err(Diagnostic::error("tls-aside", message).help("name a service that takes http or h2c on an internal network"));
    }
    Ok(pool)
}

fn unknown(snapshot: &Snapshot, name: &str) -> Diagnostic {
    let finding = Diagnostic::error("unknown-service", format!("there is no service `{}`", brief(name)));
    match nearest(name, snapshot.services.iter().map(|service| service.name.as_str())) {
        Some(near) => finding.help(format!("did you mean `{near}`?")),
        None => finding.help("write its name as `docker service ls` shows it, like `shop_web`"),
    }
}

/// The tasks of a service that has no route of its own.
fn unrouted(service: &Service, config: &Config, snapshot: &Snapshot) -> Pool {
    let spec = RouteSpec::new("", Dialect::Native);
    let (settings, _) = upstream::parse(&spec, &config.defaults);
    let (backends, _) = upstream::backends(service, &spec, &settings, &snapshot.engine.edge, &snapshot.names);
    let group = Group { service: Arc::from(service.name.as_str()), weight: 1, backends, check: None };
    Pool { groups: vec![group], balance: settings.balance, sticky: None }
}

/// A file of a stack file's author may be any; a label in Docker must not read the edge's files.
fn file(service: &Service, config: &Config, path: &str) -> Result<Pages, Diagnostic> {
    let path = PathBuf::from(path);
    if service.origin == Origin::File {
        return Ok(Pages::File { path, within: None });
    }
    match &config.proxy.error_pages {
        Some(directory) if below(&path, directory) => Ok(Pages::File { path, within: Some(directory.clone()) }),
        Some(directory) => Err(Diagnostic::error("file-refused", "labels in Docker may name error pages of one directory only")
            .help(format!("write a path below {}, or name a service", directory.display()))),
        None => Err(Diagnostic::error("file-refused", "labels in Docker cannot name files of the edge")
            .help("name a service instead, or set `proxy.error-pages` to the directory that holds such pages")),
    }
}

/// Does the text of `path` stay below `directory`? Links are looked at when the file is read.
fn below(path: &Path, directory: &Path) -> bool {
    path != directory && path.starts_with(directory) && !path.components().any(|part| part == std::path::Component::ParentDir)
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::super::tests::{build, codes, route, service};
    use super::*;

    fn aside(labels: &[(&str, &str)], others: Vec<Service>) -> (State, Aside) {
        let labels: Vec<_> = labels.iter().copied().chain([("skep.host", "a.de")]).collect();
        let state = build([vec![service("shop", 1, &labels)], others].concat());
        let aside = route(&state, "a.de/").expect("served").aside.clone();
        (state, aside)
    }

    fn address(pool: &Pool) -> String {
        pool.groups[0].backends[0].address.to_string()
    }

    #[test]
    fn a_service_is_found_with_and_without_a_route_and_by_its_short_name() {
        let mut stacked = service("web_next", 3, &[]);
        stacked.stack = Some("web".into());
        for (name, other, wanted) in [
            ("next", service("next", 2, &[("skep.host", "b.de"), ("skep.port", "81")]), "10.0.0.2:81"),
            ("next", service("next", 2, &[]), "10.0.0.2:8080"),
        ] {
            let (state, aside) = aside(&[("skep.mirror", name), ("skep.error-page", name)], vec![other]);
            assert_eq!(codes(&state, "shop"), Vec::<String>::new());
            let (Some(mirror), Some(Pages::Service(pages))) = (&aside.mirror, &aside.pages) else { panic!("{aside:?}") };
            assert_eq!((address(mirror).as_str(), address(pages).as_str()), (wanted, wanted));
        }
        let mut shop = service("web_shop", 1, &[("skep.host", "a.de"), ("skep.mirror", "next 5%")]);
        shop.stack = Some("web".into());
        let found = route(&build(vec![shop, stacked]), "a.de/").expect("served").aside.clone();
        assert_eq!(found.mirror.as_deref().map(address).as_deref(), Some("10.0.0.3:8080"));
    }

    #[test]
    fn what_leads_nowhere_is_a_finding_and_the_route_lives() {
        let guarded = service("next", 2, &[("skep.host", "b.de"), ("skep.allow", "10.0.0.0/8")]);
        let secure = service("next", 2, &[("skep.host", "b.de"), ("skep.scheme", "https")]);
        for (labels, others, code) in [
            ([("skep.mirror", "nxt")], vec![service("next", 2, &[])], "unknown-service"),
            ([("skep.error-page", "5xx next")], vec![], "unknown-service"),
            ([("skep.mirror", "next")], vec![guarded], "protected-service"),
            ([("skep.mirror", "next")], vec![secure], "tls-aside"),
            ([("skep.error-page", "/etc/passwd")], vec![], "file-refused"),
        ] {
            let (state, aside) = aside(&labels, others);
            assert_eq!((codes(&state, "shop"), aside), (vec![code.to_owned()], Aside::default()), "{labels:?}");
        }
    }

    #[test]
    fn files_are_for_stack_files_and_for_one_directory() {
        let directory = Some(PathBuf::from("/srv/pages"));
        let config = |directory: &Option<PathBuf>| {
            let mut config = Config::default();
            config.proxy.error_pages = directory.clone();
            config
        };
        let docker = service("shop", 1, &[]);
        for (path, fine) in [("/srv/pages/busy.html", true), ("/srv/pages", false), ("/srv/pagesx/a", false), ("/srv/pages/../x", false)] {
            assert_eq!(file(&docker, &config(&directory), path).is_ok(), fine, "{path}");
        }
        assert!(file(&docker, &config(&None), "/srv/pages/busy.html").is_err());
        let named = Service { origin: Origin::File, ..docker };
        assert!(file(&named, &config(&None), "/any/file.html").is_ok());
    }
}
