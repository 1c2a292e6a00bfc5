//! The grace period: when may what no frontend names any more be overwritten?
//!
//! A program that read the old frontend may still be reading the old block. Setting a slot of a table of tables
//! makes the kernel wait until every program that was running then has ended (about 10 ms), which is exactly
//! that. It happens on a thread of its own, once for everything retired meanwhile, never on the event path; and not at
//! once, as nobody waits for the room: change after change would wake two threads for nothing.

use std::os::fd::AsFd as _;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc as report;

use super::Result;
use super::object::Definition;
use crate::sys::bpf::{Map, MapKind, MapSpec, Outer};

/// How long what is retired waits for more.
const TOGETHER: Duration = Duration::from_millis(100);

/// Waits for running programs on behalf of retired things of type `T`.
#[derive(Debug)]
pub struct Grace<T> {
    retired: mpsc::Sender<T>,
}

impl<T: Send + 'static> Grace<T> {
    /// Starts the thread; what comes out of the receiver may be reused. It ends with this value.
    pub fn start() -> Result<(Self, report::UnboundedReceiver<T>)> {
        let barrier = Barrier::new()?;
        let (retired, pending) = mpsc::channel::<T>();
        let (reusable, reports) = report::unbounded_channel();
        thread::Builder::new()
            .name("grace".into())
            .spawn(move || {
                while let Ok(first) = pending.recv() {
                    thread::sleep(TOGETHER);
                    let mut batch = vec![first];
                    batch.extend(pending.try_iter());
                    if let Err(error) = barrier.wait() {
                        // Nothing of this batch may be reused: memory is lost, correctness is not.
                        tracing::error!(%error, retired = batch.len(), "could not wait for running programs");
                        continue;
                    }
                    if batch.into_iter().any(|retired| reusable.send(retired).is_err()) {
                        return;
                    }
                }
            })
            .map_err(|e| super::Error::io("start the grace thread", e))?;
        Ok((Self { retired }, reports))
    }

    /// Hands over what no frontend in the kernel names any more. Call after the frontends were written.
    pub fn retire(&self, retired: T) {
        // The thread ends only after this sender or the receiver of its reports.
        let _ = self.retired.send(retired);
    }
}

/// A table of tables that no program uses: setting its slot waits all the same.
struct Barrier {
    outer: Outer,
    inner: Map,
}

impl Barrier {
    fn new() -> Result<Self> {
        let inner =
            Map::create(&Definition::plain("grace_inner", MapKind::Array, (4, 4), 1).spec())?;
        let outer = Definition::plain("grace", MapKind::ArrayOfMaps, (4, 4), 1);
        let outer = Map::create(&MapSpec {
            inner: Some(inner.as_fd()),
            ..outer.spec()
        })?;
        // Never pinned, so where inner maps would be pinned does not matter.
        Ok(Self {
            outer: Outer::new(outer, std::path::Path::new(""))?,
            inner,
        })
    }

    fn wait(&self) -> crate::sys::bpf::Result<()> {
        self.outer.set_unpinned(0, self.inner.as_fd())
    }
}
