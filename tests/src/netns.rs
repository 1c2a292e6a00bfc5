//! A network namespace with a name, visible to `ip netns`.

use std::fs::{self, File};
use std::panic;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result};

use crate::process::{enter, ip_batch, nft};

/// A named network namespace. The scope it was made in removes it, not this handle.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Creates namespaces, all in one go.
    pub fn create(names: &[String]) -> Result<()> {
        let lines: Vec<_> = names
            .iter()
            .map(|name| format!("netns add {name}"))
            .collect();
        ip_batch(None, &lines)
    }

    /// The namespace of that name.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// The name, as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A descriptor for `setns`.
    pub fn open(&self) -> Result<File> {
        let path = self.path();
        File::open(&path)
            .with_context(|| format!("opening the network namespace {}", path.display()))
    }

    /// Runs `work` on a thread of its own inside the namespace. The thread's sockets belong there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = self.open()?;
        let inside = || {
            enter(&namespace)
                .with_context(|| format!("entering the network namespace {}", self.name))?;
            work()
        };
        thread::scope(|scope| {
            scope
                .spawn(inside)
                .join()
                .unwrap_or_else(|payload| panic::resume_unwind(payload))
        })
    }

    /// Runs `ip` commands inside.
    pub fn ip(&self, lines: &[String]) -> Result<()> {
        ip_batch(Some(&self.name), lines)
    }

    /// Loads firewall rules inside.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.run(|| nft(rules))
    }

    /// Sets kernel settings below `/proc/sys/net`.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (name, value) in settings {
                // `/proc/sys/net` shows the namespace of the thread that opens it.
                let path = Path::new("/proc/sys/net").join(name);
                fs::write(&path, value)
                    .with_context(|| format!("writing {value} to {}", path.display()))?;
            }
            Ok(())
        })
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }
}
