//! `skep demo`: the edge in front of built-in services, on ports that are free.
//! It touches nothing else on the machine, so that it can be tried beside an edge that serves.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::config::{AccessLogFormat, Config, DefaultCertificate};
use crate::server::demo::{invitation, upstreams};
use crate::server::guests::Guests;
use crate::server::{self, Options};

use super::settings::ConfigFile;
use super::{Failure, Outcome, Verdict, on_all_threads, output, run};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  skep demo --http 127.0.0.1:8080 --access-log")]
pub(super) struct Args {
    /// Listen here for requests [default: a free port of 127.0.0.1]
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Listen here for requests over HTTPS [default: a free port of 127.0.0.1]
    #[arg(long, value_name = "ADDR")]
    https: Option<SocketAddr>,
    /// Listen here for metrics and the other commands [default: a free port of 127.0.0.1]
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    /// Print a line for each request
    #[arg(long)]
    access_log: bool,
    /// Do not look for a Docker engine
    #[arg(long)]
    no_docker: bool,
}

pub(super) fn run(args: Args) -> Outcome {
    let given = ConfigFile::default().read().map_err(Failure::Findings)?.0;
    let guests = Guests::invite().map_err(|error| Failure::said(format!("the demo's users cannot be written: {error}")))?;
    let mut config = config(&args, given);
    config.auth.users = Some(guests.file());
    run::start_log(&config.log.filter)?;
    server::secrecy::seal_memory();
    on_all_threads(serve(config, guests))?
}

/// The defaults, but nothing that another edge on this machine would miss: no well-known ports, no files but that of its users.
fn config(args: &Args, given: Config) -> Config {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut config = Config { docker: given.docker, log: given.log, ..Config::default() };
    config.http.listen = vec![args.http.unwrap_or(any)];
    config.https.listen = vec![args.https.unwrap_or(any)];
    config.certificates.default = DefaultCertificate::Internal;
    config.admin.listen = Some(args.admin.unwrap_or(any));
    config.docker.enabled &= !args.no_docker && may_answer(&config.docker.endpoint);
    config.state.directory = None;
    config.access_log.path = None;
    config.access_log.format = if args.access_log { AccessLogFormat::Common } else { AccessLogFormat::Off };
    config
}

/// Is anybody at this endpoint? Somewhere else on the network is taken for granted: whoever names it means it.
fn may_answer(endpoint: &str) -> bool {
    endpoint.strip_prefix("unix://").is_none_or(|path| UnixStream::connect(Path::new(path)).is_ok())
}

async fn serve(config: Config, guests: Guests) -> Outcome {
    let variables = upstreams().await.map_err(|error| Failure::said(format!("the demo's services do not start: {error}")))?;
    let docker = config.docker.enabled.then(|| config.docker.endpoint.clone());
    let options = Options { config, demo: Some(variables), ..Options::default() };
    let mut told = Ok(());
    let ran = server::run(options, |running| {
        if let Some(http) = running.http.first() {
            let (https, root) = (running.https.first().copied(), running.internal_root.as_deref());
            told = output::print(&invitation(*http, https, running.admin, root, &guests.people));
        }
        match &docker {
            Some(endpoint) => output::note(&format!("The services of Docker at {endpoint} are routed too.")),
            None => output::note("No Docker engine is asked; only the built-in services are routed."),
        }
    });
    ran.await.map_err(Failure::said)?;
    told.map(|()| Verdict::Fine)
}
