//! The kernel's tables, seen from outside the agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_agent::datapath::Reader;
use lb_agent::sys::bpf::{Map, Table};
use lb_ebpf::abi::ABI_VERSION;
use lb_ebpf::abi::family::V4;
use lb_ebpf::abi::frontend::{Frontend, FrontendKey};

use super::workload;

/// Time between two looks while a change is awaited. Spinning would take one of two cores from what is measured.
const LOOK: Duration = Duration::from_micros(50);
/// A change that is not there by then is an error of the agent, not a slow one.
const LOST: Duration = Duration::from_secs(20);

fn pins(bpffs: &Path) -> PathBuf {
    bpffs.join("beeline").join(format!("v{ABI_VERSION}"))
}

/// Bytes the kernel accounts for every pinned table, inner ones too.
pub(super) fn map_memory(bpffs: &Path) -> Result<u64> {
    let mut total = 0;
    for directory in ["maps", "inner"].map(|name| pins(bpffs).join(name)) {
        for entry in
            fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))?
        {
            total += Map::open_read_only(&entry?.path())?.memory()?;
        }
    }
    Ok(total)
}

/// Frontends, and endpoint records that these lead to.
pub(super) fn check(bpffs: &Path, services: usize) -> Result<()> {
    let frontends = Reader::open(bpffs)?.frontends4()?;
    ensure!(
        frontends.len() == services,
        "{} frontends, not {services}",
        frontends.len()
    );
    for (key, frontend) in frontends {
        ensure!(
            frontend.cluster_count as usize == workload::ENDPOINTS,
            "{key:?} has {} endpoints",
            frontend.cluster_count
        );
    }
    Ok(())
}

/// A change that somebody made, or is about to make.
struct Change {
    service: usize,
    before: Option<Frontend>,
    announced: Instant,
}

/// Watches frontends and tells when each was written.
pub(super) struct Watcher {
    changes: Sender<Change>,
    frontends: Table<FrontendKey<V4>, Frontend>,
    thread: JoinHandle<Result<Vec<(usize, Instant)>>>,
}

impl Watcher {
    /// Watches the table of this moment: it must not grow meanwhile.
    pub(super) fn start(bpffs: &Path) -> Result<Self> {
        let open = || Table::open_read_only(&pins(bpffs).join("inner").join("frontends4-0"));
        let (changes, announced) = channel();
        let table = open()?;
        Ok(Self {
            changes,
            frontends: open()?,
            thread: thread::spawn(move || watch(&table, &announced)),
        })
    }

    /// To be called before the Service is changed.
    pub(super) fn expect(&self, service: usize) -> Result<()> {
        let before = self.frontends.get(&workload::key(service))?;
        let change = Change {
            service,
            before,
            announced: Instant::now(),
        };
        self.changes
            .send(change)
            .ok()
            .context("the watcher ended early")
    }

    /// When each expected change was in the kernel, in the order of their coming.
    pub(super) fn finish(self) -> Result<Vec<(usize, Instant)>> {
        drop(self.changes);
        self.thread
            .join()
            .map_err(|_| anyhow::anyhow!("the watcher panicked"))?
    }
}

fn watch(
    frontends: &Table<FrontendKey<V4>, Frontend>,
    announced: &Receiver<Change>,
) -> Result<Vec<(usize, Instant)>> {
    let (mut awaited, mut seen) = (Vec::<Change>::new(), Vec::new());
    loop {
        if awaited.is_empty() {
            match announced.recv() {
                Ok(change) => awaited.push(change),
                Err(_) => return Ok(seen),
            }
        }
        awaited.extend(announced.try_iter());
        let mut error = Ok(());
        awaited.retain(
            |change| match frontends.get(&workload::key(change.service)) {
                Ok(now) if now == change.before => true,
                Ok(_) => {
                    seen.push((change.service, Instant::now()));
                    false
                }
                Err(refused) => {
                    error = Err(refused);
                    true
                }
            },
        );
        error?;
        if let Some(lost) = awaited
            .iter()
            .find(|change| change.announced.elapsed() > LOST)
        {
            anyhow::bail!(
                "a change of {} did not reach the kernel within {LOST:?}",
                workload::name(lost.service)
            );
        }
        thread::sleep(LOOK);
    }
}
