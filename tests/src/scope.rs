//! What belongs to one cluster of one test process, and how all of it is removed.
//!
//! Everything a cluster creates outside of this process carries the scope's name: network namespaces in
//! `/run/netns`, a directory with bpffs mounts below `/run/beeline-tests`, and a cgroup. Removal goes by
//! that name and not by remembered handles, so it serves three cases alike: a cluster that is dropped (also
//! while a panic unwinds), a demo that is interrupted, and the leftovers of a process that was killed.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{fs, io, process, thread};

use anyhow::{Context as _, Result, ensure};

use crate::cgroup;

const NETNS_DIR: &str = "/run/netns";
const FILES_DIR: &str = "/run";
/// How directories and cgroups are called; namespaces drop the "tests" for brevity.
const LABEL: &str = "beeline-tests-";

/// The name shared by everything one cluster creates: `beeline-<pid>-<number>`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scope {
    pid: u32,
    number: u32,
}

impl Scope {
    /// A scope of this process that nobody else uses. Removes what dead processes left behind first.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        require_root()?;
        sweep()?;
        Ok(Self {
            pid: process::id(),
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// The name of the namespace that plays `role`.
    pub fn namespace(&self, role: &str) -> String {
        format!("beeline-{}-{}-{role}", self.pid, self.number)
    }

    /// The directory for files and mounts.
    pub fn directory(&self) -> PathBuf {
        Path::new(FILES_DIR).join(self.label())
    }

    /// The cgroup above all processes of the cluster.
    pub fn cgroup(&self) -> Result<PathBuf> {
        Ok(cgroup::root()?.join(self.label()))
    }

    /// Namespaces, files and cgroups of this scope that exist, as readable names.
    pub fn remains(&self) -> Result<Vec<String>> {
        let namespaces = entries(NETNS_DIR)?
            .into_iter()
            .filter(|name| name.starts_with(&self.namespace("")));
        let files = entries(FILES_DIR)?
            .into_iter()
            .filter(|name| *name == self.label());
        let mut remains: Vec<String> = namespaces.chain(files).collect();
        if self.cgroup()?.exists() {
            remains.push(format!("cgroup {}", self.label()));
        }
        Ok(remains)
    }

    /// Ends every process of the scope and removes all it created. What is already gone is no error.
    pub fn remove(&self) -> Result<()> {
        cgroup::kill_all(&self.cgroup()?)?;
        unmount_below(&self.directory())?;
        remove_tree(&self.directory())?;
        let prefix = self.namespace("");
        for name in entries(NETNS_DIR)?
            .iter()
            .filter(|name| name.starts_with(&prefix))
        {
            remove_namespace(&Path::new(NETNS_DIR).join(name))?;
        }
        cgroup::remove_tree(&self.cgroup()?)
    }

    fn label(&self) -> String {
        format!("{LABEL}{}-{}", self.pid, self.number)
    }

    /// Reads `<pid>-<number>` and whatever follows it.
    fn parse(label: &str) -> Option<Self> {
        let mut parts = label.split('-');
        Some(Self {
            pid: parts.next()?.parse().ok()?,
            number: parts.next()?.parse().ok()?,
        })
    }
}

/// Removes every scope of this process: for a demo that is interrupted.
pub fn remove_own() -> Result<()> {
    remove_where(|scope| scope.pid == process::id())
}

/// Removes what processes that no longer run have left behind.
pub fn sweep() -> Result<()> {
    remove_where(|scope| !Path::new("/proc").join(scope.pid.to_string()).exists())
}

/// Namespaces, cgroups and BPF need root. A test that cannot run must fail and say so, never skip.
pub fn require_root() -> Result<()> {
    // SAFETY: geteuid has no arguments and cannot fail.
    let uid = unsafe { libc::geteuid() };
    ensure!(
        uid == 0,
        "this needs root (network namespaces, cgroups and BPF): run it as root, e.g. `sudo -E cargo xtask test`"
    );
    Ok(())
}

fn remove_where(wanted: impl Fn(&Scope) -> bool) -> Result<()> {
    let mut scopes: Vec<Scope> = Vec::new();
    let found = entries(NETNS_DIR)?
        .into_iter()
        .filter_map(|name| Scope::parse(name.strip_prefix("beeline-")?));
    let labelled = entries(FILES_DIR)?
        .into_iter()
        .chain(entries(cgroup::root()?)?);
    let found = found.chain(labelled.filter_map(|name| Scope::parse(name.strip_prefix(LABEL)?)));
    for scope in found.filter(wanted) {
        if !scopes.contains(&scope) {
            scopes.push(scope);
        }
    }
    scopes.iter().try_for_each(Scope::remove)
}

/// Names in a directory; none if it does not exist.
fn entries(directory: impl AsRef<Path>) -> Result<Vec<String>> {
    let directory = directory.as_ref();
    match fs::read_dir(directory) {
        Ok(entries) => Ok(entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("reading {}", directory.display())),
    }
}

fn unmount_below(directory: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    let points = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(Path::new);
    points
        .filter(|point| point.starts_with(directory))
        .try_for_each(unmount)
}

/// What `ip netns del` does, without its complaint when another test run was faster.
fn remove_namespace(path: &Path) -> Result<()> {
    unmount(path)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn unmount(point: &Path) -> Result<()> {
    let path = CString::new(point.as_os_str().as_encoded_bytes())?;
    // SAFETY: `path` is a valid C string that outlives the call.
    let result = unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    let error = io::Error::last_os_error();
    // Another test run may have unmounted it meanwhile.
    let gone = matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT));
    ensure!(
        result == 0 || gone,
        "unmounting {}: {error}",
        point.display()
    );
    Ok(())
}

fn remove_tree(directory: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match fs::remove_dir_all(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // A process that is just dying may still write its log.
            Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            Err(error) => {
                return Err(error).with_context(|| format!("removing {}", directory.display()));
            }
        }
    }
}
