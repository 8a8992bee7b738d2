//! `skep backup notify`: do those who are to hear of backups hear anything? Better asked before the night in which it matters.

use jiff::Timestamp;

use crate::backup::courier::Courier;
use crate::backup::notice::trial;

use super::repositories::node;
use super::settings::ConfigFile;
use super::{Failure, Outcome, Verdict, on_all_threads, output};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Each receiver of [notify] is sent one notice that says that it is a trial. Those of `notify.ping` are not, as that would say that something was saved."
)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,
}

pub(super) fn run(args: &Args) -> Outcome {
    let config = args.config.read_aloud()?;
    if !config.notify.is_heard() {
        let help = "set notify.mail-to with notify.smtp, notify.webhooks, notify.slack or notify.ntfy";
        return Err(Failure::said(format!("nobody is to be told of backups\n  {help}")));
    }
    on_all_threads(async {
        let notice = trial(&node(&config).await, Timestamp::now());
        let tried = Courier::tried(&config.notify, &notice).await;
        let rows: Vec<Vec<String>> = tried
            .iter()
            .map(|(receiver, failure)| {
                let outcome = failure.as_ref().map_or_else(|| "delivered".to_owned(), |why| format!("FAILED: {why}"));
                vec![receiver.clone(), outcome]
            })
            .collect();
        output::print(&output::aligned(&rows, 0))?;
        Ok(if tried.iter().any(|(_, failure)| failure.is_some()) { Verdict::Wrong } else { Verdict::Fine })
    })?
}
