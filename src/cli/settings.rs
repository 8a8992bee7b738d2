//! Where the settings of a command come from: a file, the environment, and what was given beside them on the command line.
//! The same reading serves the start, a reload and the commands that only look.

use std::path::{Path, PathBuf};

use crate::certificate::account;
use crate::config::{self, Config};
use crate::diagnostic::{Diagnostic, Severity, render};

use super::{Failure, output};

/// Read where nothing else is named; it need not exist.
const USUAL: &str = "/etc/skep/skep.toml";
/// A configuration is a page or two; whatever is larger is another kind of file.
const MAX_BYTES: u64 = 1 << 20;

/// The configuration file of a command.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct ConfigFile {
    /// Configuration file [default: /etc/skep/skep.toml if it exists, else every setting's default]
    #[arg(long, value_name = "FILE", env = "SKEP_CONFIG", global = true)]
    pub config: Option<PathBuf>,
}

impl ConfigFile {
    /// Reads file and environment. The second part is what does no harm but should be said.
    ///
    /// # Errors
    /// All findings, when one of them is an error or the file cannot be read.
    pub fn read(&self) -> Result<(Config, Vec<Diagnostic>), Vec<Diagnostic>> {
        let (path, text) = match &self.config {
            Some(path) => (path.clone(), text_of(path)?),
            None if Path::new(USUAL).exists() => (PathBuf::from(USUAL), text_of(Path::new(USUAL))?),
            None => (PathBuf::from("the defaults"), String::new()),
        };
        let environment: Vec<(String, String)> =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect();
        match config::parse(&path.to_string_lossy(), &text, &environment) {
            (Some(config), mut findings) => {
                // What is in other files keeps no edge from starting: it serves with the certificates that it has.
                let unusable = account::findings(&config).into_iter();
                findings.extend(unusable.map(|finding| Diagnostic { severity: Severity::Warning, ..finding }));
                Ok((config, findings))
            }
            (None, findings) => Err(findings),
        }
    }

    /// The same for a command beside the edge: warnings are told at once. What is merely worth knowing is for whoever starts the edge.
    pub fn read_aloud(&self) -> Result<Config, Failure> {
        self.read_telling(Severity::Warning)
    }

    /// The same, and findings are told from this weight on.
    pub fn read_telling(&self, least: Severity) -> Result<Config, Failure> {
        let (config, mut findings) = self.read().map_err(Failure::Findings)?;
        findings.retain(|finding| finding.severity >= least);
        if !findings.is_empty() {
            output::note(render(&findings, output::color_on_stderr()).trim_end());
        }
        Ok(config)
    }
}

fn text_of(path: &Path) -> Result<String, Vec<Diagnostic>> {
    let unreadable = |why: String| {
        let finding = Diagnostic::error("unreadable-file", format!("cannot be read: {why}")).of(path.display().to_string());
        vec![finding.help("name a configuration file with --config or SKEP_CONFIG, or leave both out for the defaults")]
    };
    let size = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
    if size > MAX_BYTES {
        return Err(unreadable(format!("it has {size} bytes, a configuration has at most {MAX_BYTES}")));
    }
    std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))
}
