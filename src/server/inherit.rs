//! The successor's side of an upgrade: a starting edge asks the running one for its listening sockets, and tells it when it serves.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, UnixListener};

use super::Error;
use super::handover::network;
use super::listener::{self, BindError};
use super::talk::{PROMPT, Talk};
use crate::config::Config;
use crate::handover::{Answer, Ask};

/// What a start finds at the upgrade socket.
pub struct Inherited {
    path: Option<PathBuf>,
    /// The running edge, until it lets go.
    elder: Option<Elder>,
    listeners: Vec<(SocketAddr, StdListener)>,
}

struct Elder {
    talk: Talk,
    pid: u32,
    /// The upgrade socket itself: it goes on answering while its owner changes.
    socket: StdUnixListener,
}

impl Inherited {
    /// Asks at the socket that `config` names. Whatever goes wrong is said, and nothing is inherited.
    pub async fn ask(config: &Config) -> Inherited {
        let path = config.upgrade_socket();
        let mut inherited = Inherited { path, elder: None, listeners: Vec::new() };
        let Some(path) = &inherited.path else { return inherited };
        match take(path, &config.listen()).await {
            Ok(Some((elder, listeners))) => {
                tracing::info!(pid = elder.pid, "a running edge hands its listening sockets over");
                (inherited.elder, inherited.listeners) = (Some(elder), listeners);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(
                    socket = %path.display(), %error,
                    "nothing is taken over, and there are no upgrades; beside another edge, set upgrade.socket or state.directory to a place of its own"
                );
                inherited.path = None;
            }
        }
        inherited
    }

    /// Is there an edge that goes on serving if this one does not start?
    pub fn is_upgrade(&self) -> bool {
        self.elder.is_some()
    }

    /// Was this process started by the edge that it follows?
    pub fn follows_its_parent(&self) -> bool {
        self.elder.as_ref().is_some_and(|elder| elder.pid == std::os::unix::process::parent_id())
    }

    /// The listener for `address`: the running edge's, or a new one.
    ///
    /// # Errors
    /// As [`listener::bind`].
    pub fn listener(&mut self, address: SocketAddr) -> Result<TcpListener, BindError> {
        let found = self.listeners.iter().position(|(given, _)| *given == address);
        let Some((_, taken)) = found.map(|index| self.listeners.swap_remove(index)) else { return listener::bind(address) };
        let adopted = taken.set_nonblocking(true).and_then(|()| TcpListener::from_std(taken));
        adopted.map_err(|source| BindError {
            address,
            advice: "it came from the running edge: stop that and start this".to_owned(),
            source,
        })
    }

    /// Tells the running edge that this one serves, and waits until it has let go. What comes back is the upgrade socket to
    /// answer at from now on.
    ///
    /// # Errors
    /// The running edge lives and did not let go: two of them would serve.
    pub async fn ready(self) -> Result<Option<(UnixListener, PathBuf)>, Error> {
        let Some(path) = self.path else { return Ok(None) };
        if let Some(mut elder) = self.elder {
            match let_go(&mut elder.talk).await {
                Ok(drain) => {
                    tracing::info!(pid = elder.pid, drain_seconds = drain, "took over; the old edge finishes what it has");
                    return adopt(elder.socket).map(|socket| Some((socket, path))).map_err(|error| Error::Start(error.to_string()));
                }
                Err(error) if Talk::connect(&path).await.is_ok() => {
                    return Err(Error::Start(format!("the running edge (pid {}) does not let go: {error}; it goes on", elder.pid)));
                }
                Err(_) => tracing::warn!(pid = elder.pid, "the running edge ended by itself during the upgrade"),
            }
        }
        if !path.parent().is_some_and(Path::is_dir) {
            tracing::info!(socket = %path.display(), "no upgrade without a pause: there is no directory for the upgrade socket");
            return Ok(None);
        }
        match bind(&path) {
            Ok(socket) => Ok(Some((socket, path))),
            Err(error) => {
                tracing::warn!(socket = %path.display(), %error, "no upgrade without a pause: the upgrade socket cannot be made");
                Ok(None)
            }
        }
    }
}

type Taken = (Elder, Vec<(SocketAddr, StdListener)>);

/// `None`: nobody serves there.
async fn take(path: &Path, listen: &[SocketAddr]) -> io::Result<Option<Taken>> {
    let mut talk = match Talk::connect(path).await {
        Ok(talk) => talk,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(None),
        Err(error) => return Err(error),
    };
    talk.say(&Ask::Take { listen: listen.to_vec(), network: network() }, &[]).await?;
    let (given, pid) = match talk.hear(PROMPT).await? {
        Answer::Listeners { listeners, pid } => (listeners, pid),
        other => return Err(unexpected(other)),
    };
    let mut descriptors = talk.descriptors().into_iter();
    let socket = descriptors.next().map(StdUnixListener::from).ok_or_else(|| io::Error::from(ErrorKind::InvalidData))?;
    let listeners: Vec<_> = given.into_iter().zip(descriptors.map(StdListener::from)).collect();
    for (_, listener) in &listeners {
        if !rustix::net::sockopt::socket_acceptconn(listener)? {
            return Err(io::Error::new(ErrorKind::InvalidData, "what it gave does not listen"));
        }
    }
    Ok(Some((Elder { talk, pid, socket }, listeners)))
}

async fn let_go(talk: &mut Talk) -> io::Result<u64> {
    talk.say(&Ask::Ready { pid: std::process::id() }, &[]).await?;
    match talk.hear(PROMPT).await? {
        Answer::Released { drain_seconds } => Ok(drain_seconds),
        other => Err(unexpected(other)),
    }
}

fn unexpected(answer: Answer) -> io::Error {
    match answer {
        Answer::Refused { reason } => io::Error::other(reason),
        other => io::Error::new(ErrorKind::InvalidData, format!("an answer to another question: {other:?}")),
    }
}

/// Whoever listens is whom the kernel names to those that connect: so that is done again, in this process's name.
fn adopt(socket: StdUnixListener) -> io::Result<UnixListener> {
    rustix::net::listen(&socket, 128)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket)
}

/// Makes the socket for this user only. It appears under its name in one step, in the place of what a crash left.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(name);
    let made = UnixListener::bind(&new).and_then(|socket| {
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&new, path)?;
        Ok(socket)
    });
    if made.is_err() {
        // There may be none; the error of interest is the one above.
        _ = std::fs::remove_file(&new);
    }
    made
}
