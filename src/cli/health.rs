//! `skep health`: one question to the edge on this machine, for Docker's HEALTHCHECK and for people.
//! It asks as little as possible, because it is asked every few seconds.

use std::net::SocketAddr;
use std::time::Duration;

use super::settings::ConfigFile;
use super::{Failure, Outcome, Verdict, ask, output};

/// Shorter than any sane HEALTHCHECK timeout, so that the reason is said before we are killed.
const LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 it serves, 1 it does not, 2 the question makes no sense (no admin address).")]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,
    /// The edge's admin address [default: as the settings say]
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    /// Also ask whether it has heard from Docker, so that it knows where requests go
    #[arg(long)]
    ready: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Outcome {
    let address = match args.admin {
        Some(address) => address,
        None => {
            let (config, _) = args.config.read().map_err(Failure::Findings)?;
            config.admin.listen.ok_or_else(|| Failure::said("the admin listener is switched off in the settings: give --admin ADDR"))?
        }
    };
    let path = if args.ready { "/ready" } else { "/health" };
    let (healthy, said) = match ask::get(address, path, LIMIT) {
        Ok((status, body)) => (status == 200, String::from_utf8_lossy(&body).trim().to_owned()),
        Err(error) => (false, error.to_string()),
    };
    if args.json {
        output::json(&serde_json::json!({ "healthy": healthy, "admin": address, "said": said }))?;
    } else {
        output::print(&format!("{}: {}", if healthy { "healthy" } else { "not healthy" }, output::harmless(&said)))?;
    }
    if !healthy && !args.json {
        output::note(&format!("skep: asked http://{address}{path}"));
    }
    Ok(if healthy { Verdict::Fine } else { Verdict::Wrong })
}
