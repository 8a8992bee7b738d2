//! `skep run`: the edge in the foreground, until a signal ends it.
//! What is given on the command line outranks the environment and the file, at the start and at every reload.

use std::net::SocketAddr;
use std::path::PathBuf;

use tracing_subscriber::EnvFilter;

use crate::config::Config;
use crate::diagnostic::{Diagnostic, Severity};
use crate::server::{self, Options};

use super::settings::ConfigFile;
use super::{Failure, Outcome, Verdict, on_all_threads, output};

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,
    /// Also serve the services of this stack file, at their `skep.address` (repeatable; watched)
    #[arg(long, value_name = "STACK.yml")]
    file: Vec<PathBuf>,
    /// Listen here for HTTP instead of where the settings say (repeatable)
    #[arg(long, value_name = "ADDR")]
    http: Vec<SocketAddr>,
    /// Listen here for HTTPS (repeatable)
    #[arg(long, value_name = "ADDR")]
    https: Vec<SocketAddr>,
    /// Listen here for metrics, health and the other commands
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    /// Do not look for a Docker engine: serve stack files only
    #[arg(long)]
    no_docker: bool,
}

const EXAMPLES: &str = "\
Examples:
  skep run                                               the Docker socket, ports 80 and 443
  skep run --file stack.yml --no-docker --http 127.0.0.1:8080
  SKEP_LOG_FILTER=debug skep run --config skep.toml

SIGHUP reads the configuration again, SIGUSR2 starts the binary anew without a pause (see `skep upgrade`),
SIGTERM and Ctrl-C stop politely.";

impl Args {
    /// The settings with what was given on the command line.
    fn apply(&self, config: &mut Config) {
        if !self.http.is_empty() {
            config.http.listen.clone_from(&self.http);
        }
        if !self.https.is_empty() {
            config.https.listen.clone_from(&self.https);
        }
        config.admin.listen = self.admin.or(config.admin.listen);
        config.docker.enabled &= !self.no_docker;
    }

    /// The configuration as it is now on disk.
    fn reload(&self) -> Result<Config, Vec<Diagnostic>> {
        let (mut config, _) = self.config.read()?;
        self.apply(&mut config);
        Ok(config)
    }
}

pub(super) fn run(args: Args) -> Outcome {
    let mut config = args.config.read_telling(Severity::Info)?;
    args.apply(&mut config);
    if let Some(missing) = args.file.iter().find(|path| !path.is_file()) {
        return Err(Failure::said(format!("--file {}: there is no such file", missing.display())));
    }
    // HTTPS addresses are not listened on before TLS is built in.
    if config.http.listen.is_empty() {
        return Err(Failure::said("there is no address to listen on: give --http ADDR or [http] listen"));
    }
    start_log(&config.log.filter)?;
    server::secrecy::seal_memory();
    let files = args.file.clone();
    let options = Options { config, files, reload: Some(Box::new(move || args.reload())), demo: None };
    match on_all_threads(server::run(options, |_| {}))?.map_err(Failure::said)? {
        0 => Ok(Verdict::Fine),
        // What a successor ended with, when this was the first process of a container.
        code => std::process::exit(code.into()),
    }
}

/// The program's own log on standard error; what libraries log comes along. The proxy library is silent
/// unless it is asked for by name: it has a line for each client that breaks off, so strangers could fill the disk; the access log
/// tells of requests. So is the LDAP library, which has one for each connection that a server ends.
pub(super) fn start_log(filter: &str) -> Result<(), Failure> {
    const QUIET: [&str; 4] = ["pingora_core=off", "pingora_proxy=off", "pingora_pool=warn", "ldap3=off"];
    let named = |quiet: &&str| !filter.contains(quiet.split('=').next().unwrap_or(quiet));
    let full = QUIET.iter().filter(|quiet| named(quiet)).fold(filter.to_owned(), |all, quiet| format!("{all},{quiet}"));
    let layer = EnvFilter::try_new(&full)
        .map_err(|error| Failure::said(format!("log.filter `{filter}` cannot be read: {error}; write `info` or `skep=debug,info`")))?;
    let log = tracing_subscriber::fmt().with_env_filter(layer).with_writer(std::io::stderr).with_ansi(output::color_on_stderr());
    log.try_init().map_err(Failure::said)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn applied(words: &[&str]) -> Config {
        let mut config = Config::default();
        Line::parse_from(words).args.apply(&mut config);
        config
    }

    #[test]
    fn flags_outrank_settings() {
        assert_eq!(applied(&["run"]), Config::default());
        let config = applied(&["run", "--http", "127.0.0.1:1", "--http", "[::1]:2", "--admin", "127.0.0.1:3", "--no-docker"]);
        assert_eq!(config.http.listen, ["127.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap()]);
        assert_eq!((config.admin.listen, config.docker.enabled), (Some("127.0.0.1:3".parse().unwrap()), false));
        assert_eq!(config.https, Config::default().https);
    }
}
