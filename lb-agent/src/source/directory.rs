//! The cluster as a directory of manifests shows it: for demos, bare metal and tests.
//!
//! Follows edits, editors' atomic saves, and ConfigMap volumes (whose `..data` link is swapped). A directory that
//! is away is waited for; its objects stay meanwhile, as those of an unreachable API server do (J3). A link to
//! a file elsewhere is followed, but edits of that file are noticed only when its directory entry here changes.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use super::catalog::{Catalog, Dirty, is_manifest_name};
use super::convert::Options;
use super::{Refused, Source};
use crate::snapshot::Event;

/// Changes this close together are taken as one. An editor's save is several.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// How often to check that the directory is still the one we watch: a renamed grandparent sends no event.
const RECHECK: Duration = Duration::from_secs(1);

/// A source that follows a directory.
pub struct DirectorySource {
    directory: PathBuf,
    catalog: Catalog,
}

impl DirectorySource {
    /// A source of the manifests in `directory`, which may not exist yet. `node_name` picks our own Node.
    pub fn new(
        directory: PathBuf,
        node_name: String,
        options: Options,
        refused: Arc<Refused>,
    ) -> Self {
        // `inotify` needs the parent's name, which a relative path may lack.
        let directory = std::path::absolute(&directory).unwrap_or(directory);
        let catalog = Catalog::new(directory.clone(), node_name, options, refused);
        Self { directory, catalog }
    }
}

impl Source for DirectorySource {
    async fn run(self, events: mpsc::Sender<Event>) -> anyhow::Result<()> {
        let Self {
            directory,
            mut catalog,
        } = self;
        let mut watch = Watch::new(directory.clone())?;
        watch.arm();
        let mut dirty = Dirty::All;
        let mut away = false;
        loop {
            // Parsing a large file takes longer than a task may hold its thread.
            let scan = tokio::task::spawn_blocking(move || {
                let result = catalog.scan(&dirty);
                (catalog, result)
            });
            let result;
            (catalog, result) = scan.await.context("reading the manifests failed")?;
            match result {
                Ok(found) => {
                    if std::mem::take(&mut away) {
                        info!(directory = %directory.display(), "found the manifests again");
                    }
                    for event in found {
                        if events.send(event).await.is_err() {
                            return Ok(());
                        }
                    }
                }
                Err(error) if !away => {
                    away = true;
                    warn!(directory = %directory.display(), %error, "lost the manifests, the last known state stays: restore the directory");
                }
                Err(_) => {}
            }
            dirty = tokio::select! {
                dirty = watch.next() => dirty,
                () = events.closed() => return Ok(()),
            };
            if away {
                dirty = Dirty::All;
            }
        }
    }
}

/// Tells which files of a directory changed, and when it becomes another directory.
struct Watch {
    directory: PathBuf,
    stream: EventStream<[u8; 4096]>,
    watches: Watches,
    inner: Option<WatchDescriptor>,
    /// Its parent, or the nearest ancestor that exists.
    outer: Option<WatchDescriptor>,
}

impl Watch {
    fn new(directory: PathBuf) -> anyhow::Result<Self> {
        let stream = Inotify::init()
            .and_then(|inotify| inotify.into_event_stream([0; 4096]))
            .context(
                "cannot watch the manifests: raise the sysctl fs.inotify.max_user_instances",
            )?;
        let watches = stream.watches();
        Ok(Self {
            directory,
            stream,
            watches,
            inner: None,
            outer: None,
        })
    }

    /// Watches what the path leads to now. Returns whether that is another directory than before.
    fn arm(&mut self) -> bool {
        let entries =
            WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE;
        let itself = WatchMask::DELETE_SELF | WatchMask::MOVE_SELF | WatchMask::ONLYDIR;
        let inner = self
            .watches
            .add(&self.directory, entries | itself | WatchMask::CLOSE_WRITE)
            .ok();
        let mut ancestors = self.directory.ancestors().skip(1);
        let outer =
            ancestors.find_map(|ancestor| self.watches.add(ancestor, entries | itself).ok());

        let changed = inner != self.inner;
        for (old, new) in [(&mut self.inner, inner), (&mut self.outer, outer)] {
            if *old != new
                && let Some(old) = std::mem::replace(old, new)
            {
                // Fails when the directory is gone: then the watch is, too.
                let _gone = self.watches.remove(old);
            }
        }
        changed
    }

    /// Waits for a change and until it is over.
    async fn next(&mut self) -> Dirty {
        let mut dirty = Dirty::Files(HashSet::new());
        loop {
            match timeout(RECHECK, self.stream.next()).await {
                Ok(event) => self.take(event, &mut dirty),
                Err(_) if self.arm() => return Dirty::All,
                Err(_) => {}
            }
            if !matches!(&dirty, Dirty::Files(names) if names.is_empty()) {
                break;
            }
        }
        let end = Instant::now() + DEBOUNCE;
        while let Ok(event) = timeout_at(end, self.stream.next()).await {
            self.take(event, &mut dirty);
        }
        if self.arm() { Dirty::All } else { dirty }
    }

    fn take(&self, event: Option<io::Result<EventOwned>>, dirty: &mut Dirty) {
        match event {
            Some(Ok(event)) => match (self.changed(&event), &mut *dirty) {
                (Changed::File(name), Dirty::Files(names)) => {
                    names.insert(name);
                }
                (Changed::Anything, _) => *dirty = Dirty::All,
                (Changed::File(_) | Changed::Nothing, _) => {}
            },
            // The queue overflowed, or cannot be read.
            Some(Err(_)) | None => *dirty = Dirty::All,
        }
    }

    fn changed(&self, event: &EventOwned) -> Changed {
        let about_itself = EventMask::Q_OVERFLOW
            | EventMask::DELETE_SELF
            | EventMask::MOVE_SELF
            | EventMask::UNMOUNT;
        if event.mask.intersects(about_itself) {
            return Changed::Anything;
        }
        let Some(name) = &event.name else {
            return Changed::Nothing;
        };
        if Some(&event.wd) == self.inner.as_ref() {
            if is_manifest_name(name) {
                let is_being_written =
                    event.mask.contains(EventMask::CREATE) && !self.is_whole(name);
                return if is_being_written {
                    Changed::Nothing
                } else {
                    Changed::File(name.clone())
                };
            }
            // kubelet swaps the link `..data`, and all files change with it.
            let is_volume = name.as_encoded_bytes().starts_with(b"..");
            return if is_volume {
                Changed::Anything
            } else {
                Changed::Nothing
            };
        }
        let is_ancestor = Some(&event.wd) == self.outer.as_ref();
        let leads_here = self
            .directory
            .components()
            .any(|component| component.as_os_str() == name);
        if is_ancestor && leads_here {
            Changed::Anything
        } else {
            Changed::Nothing
        }
    }

    /// A new entry that holds all its content: a link. A new file is closed by its writer later on.
    fn is_whole(&self, name: &OsStr) -> bool {
        std::fs::symlink_metadata(Path::new(&self.directory).join(name))
            .is_ok_and(|metadata| metadata.is_symlink() || metadata.nlink() > 1)
    }
}

enum Changed {
    Nothing,
    File(OsString),
    Anything,
}

#[cfg(test)]
mod tests;
