//! The kernel's side: load, pin, attach, adopt, and carry out plans. All aya calls are below this module.

pub mod addresses;
pub mod apply;
pub mod attach;
mod dump;
pub mod engine;
pub mod entries;
pub mod flows;
mod follow_flows;
pub mod grace;
pub mod growing;
pub mod interfaces;
pub mod keeper;
mod late;
mod load;
pub mod newcomers;
mod node_ports;
pub mod object;
pub mod pins;
pub mod programs;
pub mod read;
mod refusal;
pub mod roles;
pub mod segments;
pub mod shards;
mod stage;
pub mod tables;
mod tenure;
pub mod xdp;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::thread::ScopedJoinHandle;

use crate::sys::bpf;

pub use apply::{Applied, Failure};
pub use engine::{Config, Datapath, DeviceChanges, Restored};
pub use follow_flows::Follower;
pub use grace::Grace;
pub use interfaces::{Interfaces, Picture};
pub use late::Late;
pub use read::{KernelState, Reader};
pub use roles::{Choice, OwnTraffic, PodDevices, Selection, is_unroutable};
pub use stage::{Placed, Progress, Step, steps};
pub use tenure::Tenure;
pub use xdp::Seat;

/// What went wrong on the kernel's side, and what to do about it.
#[derive(Debug)]
pub enum Error {
    /// The embedded object is missing or not what we expect.
    Object(String),
    /// `bpf(2)` refused.
    Kernel(bpf::Error),
    /// A pinned table is laid out otherwise.
    Layout { path: PathBuf, mismatch: String },
    /// aya could not load the object or a program of it.
    Load {
        what: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another system call refused.
    Io { attempt: String, source: io::Error },
    /// Another process may change what is pinned in this directory.
    Taken(PathBuf),
    /// The node lacks something.
    Environment(String),
}

/// Result of this module's calls.
pub type Result<T> = std::result::Result<T, Error>;

/// What a thread came to.
fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    let outcome = thread.join();
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl Error {
    pub(crate) fn io(attempt: impl Into<String>, source: io::Error) -> Self {
        Self::Io {
            attempt: attempt.into(),
            source,
        }
    }
}

impl From<bpf::Error> for Error {
    fn from(error: bpf::Error) -> Self {
        Self::Kernel(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(text) | Self::Environment(text) => f.write_str(text),
            Self::Kernel(error) => error.fmt(f),
            Self::Layout { path, mismatch } => write!(
                f,
                "the table pinned at {} is laid out otherwise ({mismatch}): it was made by another build; \
                 run `beeline cleanup` and start again",
                path.display()
            ),
            Self::Taken(directory) => write!(
                f,
                "an agent of this node is running already: it holds the lock of {}, and two would spoil each other's \
                 tables; find it with `pgrep -af 'beeline agent'` or `kubectl get pods -A -o wide | grep beeline`, and \
                 stop it or go on with it",
                directory.display()
            ),
            Self::Load { what, source } => write!(f, "load {what}: {source}"),
            Self::Io { attempt, source } => write!(f, "{attempt}: {source}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Kernel(error) => Some(error),
            // Its own text is part of ours.
            Self::Load { source, .. } => source.source(),
            Self::Io { source, .. } => Some(source),
            Self::Object(_) | Self::Environment(_) | Self::Taken(_) | Self::Layout { .. } => None,
        }
    }
}
