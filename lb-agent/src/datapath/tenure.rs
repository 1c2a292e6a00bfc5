//! One process at a time changes a node's tables. Two agents would hand out the same blocks and ids, and lead clients of
//! one Service to pods of another.
//!
//! Who holds the lock (`flock(2)`) of our directory in the BPF file system may change them. A container sees the very
//! directory that the host sees, and the kernel takes the lock back when the process ends, however it ends.

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::pins::DIRECTORY;
use super::{Error, Result};
use crate::sys::mount;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// The right to change the tables below a BPF file system, until it is dropped.
#[derive(Debug)]
pub struct Tenure {
    directory: PathBuf,
    locked: File,
}

impl Tenure {
    /// Takes it, also where nothing of ours is there yet. Who holds it now may be about to end, so this waits, and says
    /// so.
    pub fn take(bpffs: &Path, patience: Duration) -> Result<Self> {
        mount::ensure_bpffs(bpffs).map_err(|e| Error::io("find a BPF file system", e))?;
        let directory = bpffs.join(DIRECTORY);
        let deadline = Instant::now() + patience;
        let mut told = false;
        loop {
            create(&directory)?;
            if let Some(tenure) = Self::of(&directory)? {
                return Ok(tenure);
            }
            if Instant::now() >= deadline {
                return Err(Error::Taken(directory));
            }
            if !told {
                tracing::warn!(
                    directory = %directory.display(),
                    "another agent of this node is running; waiting up to {} s for it to end",
                    patience.as_secs()
                );
                told = true;
            }
            thread::sleep(PAUSE);
        }
    }

    /// Takes it at once; `None` where nothing of ours is.
    pub fn take_if_present(bpffs: &Path) -> Result<Option<Self>> {
        let directory = bpffs.join(DIRECTORY);
        if !directory.exists() {
            return Ok(None);
        }
        Self::of(&directory)?
            .map(Some)
            .ok_or(Error::Taken(directory))
    }

    /// Somebody may have removed the directory, and the lock with it: takes that of the one that is there now. Fails if
    /// somebody else has that.
    pub fn keep(&mut self) -> Result<()> {
        if is_at(&self.locked, &self.directory) {
            return Ok(());
        }
        match create(&self.directory).and_then(|()| Self::of(&self.directory)) {
            Ok(Some(tenure)) => *self = tenure,
            Ok(None) => return Err(Error::Taken(self.directory.clone())),
            Err(error) => tracing::warn!(%error, "another agent could start; trying again"),
        }
        Ok(())
    }

    /// `None` while somebody else has it.
    fn of(directory: &Path) -> Result<Option<Self>> {
        let attempt = || format!("lock {}", directory.display());
        let locked = match File::open(directory) {
            Ok(locked) => locked,
            // It goes with a clean-up.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(attempt(), error)),
        };
        match locked.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(Error::io(attempt(), error)),
        }
        // Locked, but perhaps gone meanwhile.
        Ok(is_at(&locked, directory).then(|| Self {
            directory: directory.to_owned(),
            locked,
        }))
    }
}

/// For root alone, so that nobody else can hold the lock.
fn create(directory: &Path) -> Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
        .create(directory)
        .map_err(|e| Error::io(format!("create directory {}", directory.display()), e))
}

fn is_at(file: &File, path: &Path) -> bool {
    let of = |metadata: io::Result<std::fs::Metadata>| metadata.map(|m| (m.dev(), m.ino())).ok();
    let held = of(file.metadata());
    held.is_some() && held == of(path.metadata())
}
