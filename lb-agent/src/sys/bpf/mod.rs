//! `bpf(2)`, as far as aya 0.14 has no call for it: batches, link updates, tables opened by pin and checked.
//!
//! | file | what it gives |
//! | --- | --- |
//! | [`command`](self) | the system call itself and its argument blocks (private) |
//! | [`pin`] | names in a BPF file system |
//! | [`Map`], [`MapSpec`], [`MapInfo`] | a table of bytes: create, describe, single and batch access |
//! | [`Table`], [`Counters`] | the same with types, checked against the kernel's sizes |
//! | [`Outer`] | a table of tables whose inner tables are replaced while programs run |
//! | [`Program`], [`Link`] | what is loaded and where it is attached |
//! | [`Btf`] | type information in the kernel |

mod btf;
mod command;
mod map;
mod memory;
mod outer;
pub mod pin;
mod program;
mod table;

use std::fmt;
use std::io;

pub use btf::Btf;
pub use map::{BATCH, Map, MapInfo, MapKind, MapSpec, NO_PREALLOC, Types, WriteError, WriteMode};
pub use outer::Outer;
pub(crate) use outer::inner_path;
pub use program::{
    Attach, Link, LinkInfo, Position, Program, ProgramInfo, XdpMode, attached_programs,
    program_name,
};
pub use table::{Counters, Table};

/// The kernel refused something: what was tried, on what, and its answer.
#[derive(Debug)]
pub struct Error {
    attempt: String,
    source: io::Error,
}

/// Result of this module's calls.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(attempt: impl Into<String>, source: io::Error) -> Self {
        Self {
            attempt: attempt.into(),
            source,
        }
    }

    /// A refusal of our own, before or after asking the kernel.
    pub(crate) fn refused(attempt: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(
            attempt,
            io::Error::new(io::ErrorKind::InvalidData, why.into()),
        )
    }

    /// A refusal of our own that callers treat as if the kernel had said it.
    pub(crate) fn from_errno(attempt: impl Into<String>, errno: i32) -> Self {
        Self::new(attempt, io::Error::from_raw_os_error(errno))
    }

    /// The kernel's error number, 0 for a refusal of our own.
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }

    /// No such file, entry or slot.
    pub fn is_absent(&self) -> bool {
        self.errno() == libc::ENOENT
    }

    /// The table has no room for another entry.
    pub fn is_full(&self) -> bool {
        matches!(self.errno(), libc::E2BIG | libc::ENOSPC)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.attempt, self.source)?;
        if self.errno() == libc::EPERM {
            f.write_str(" (needs CAP_BPF and CAP_NET_ADMIN in the host's user namespace)")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
