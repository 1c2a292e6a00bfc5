//! Keeps what is pinned, should somebody else remove its name (spec J5).
//!
//! A table without a name lives on as long as a program uses it, but the next agent would not find it and begin with
//! empty ones: every translated connection would end. So this one holds a descriptor of all that has a name, and gives
//! it that name again. Links are not kept: without their names they end, and are made anew where they are missing.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use super::pins::{Pins, list};
use super::{Error, Result};
use crate::sys::bpf::pin;

/// What had names when last looked at.
#[derive(Debug, Default)]
pub struct Keeper {
    kept: BTreeMap<PathBuf, Kept>,
}

#[derive(Debug)]
struct Kept {
    fd: OwnedFd,
    /// Of the name: another object under the same name has another.
    inode: u64,
}

impl Keeper {
    /// In directories that are there, gives names back that were taken away, and looks at what has one now. Returns how
    /// many were given back.
    ///
    /// Inner tables and programs also lose their names where they are replaced. Tables do not while an agent runs: one
    /// without a name tells that somebody was at it.
    pub fn look(&mut self, pins: &Pins) -> Result<usize> {
        let maps = pins.maps();
        let robbed = self
            .kept
            .keys()
            .any(|path| path.starts_with(&maps) && is_absent(path));
        let restored = if robbed { self.restore()? } else { 0 };
        self.note(pins)?;
        Ok(restored)
    }

    fn restore(&self) -> Result<usize> {
        let mut restored = 0;
        for (path, kept) in self.kept.iter().filter(|(path, _)| is_absent(path)) {
            pin::pin(kept.fd.as_fd(), path)?;
            restored += 1;
        }
        Ok(restored)
    }

    fn note(&mut self, pins: &Pins) -> Result<()> {
        let mut now = BTreeMap::new();
        for directory in [pins.maps(), pins.inner(), pins.programs()] {
            let paths = list(&directory)
                .map_err(|e| Error::io(format!("list {}", directory.display()), e))?;
            for path in paths {
                // One that goes meanwhile was about to.
                let Ok(metadata) = fs::symlink_metadata(&path) else {
                    continue;
                };
                let inode = metadata.ino();
                let known = self.kept.remove(&path).filter(|kept| kept.inode == inode);
                let kept = match known {
                    Some(kept) => Some(kept),
                    None => pin::get_if_present(&path)?.map(|fd| Kept { fd, inode }),
                };
                if let Some(kept) = kept {
                    now.insert(path, kept);
                }
            }
        }
        self.kept = now;
        Ok(())
    }
}

/// Whether there is no such name, beyond doubt.
fn is_absent(path: &std::path::Path) -> bool {
    matches!(fs::symlink_metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound)
}
