//! Cgroups of the test's processes, in the machine's cgroup v2 hierarchy.
//!
//! The kernel judges a socket by the cgroup of the process that made it, so each node has a cgroup of its own
//! on which its agent puts the socket hooks. No controllers are used.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use anyhow::{Context as _, Result};

/// Where cgroup v2 is mounted: `/sys/fs/cgroup`, or a directory below it on hybrid hosts.
pub fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    let point = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let point = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(point))
    });
    point.context("cgroup v2 is mounted nowhere: `mount -t cgroup2 cgroup2 /sys/fs/cgroup`, or /sys/fs/cgroup/unified on a v1 host")
}

/// Creates a cgroup with the given children.
pub fn create(path: &Path, children: &[&str]) -> Result<()> {
    for child in children {
        let child = path.join(child);
        fs::create_dir_all(&child)
            .with_context(|| format!("creating the cgroup {}", child.display()))?;
    }
    Ok(())
}

/// Kills every process in and below a cgroup (`cgroup.kill`, Linux 5.14).
pub fn kill_all(path: &Path) -> Result<()> {
    match fs::write(path.join("cgroup.kill"), "1") {
        // ENODEV: it was removed between open and write.
        Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
            Err(error).with_context(|| format!("killing the processes in {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes a cgroup and those below it, once its last processes are gone.
pub fn remove_tree(path: &Path) -> Result<()> {
    let Ok(children) = fs::read_dir(path) else {
        return Ok(());
    };
    for child in children
        .filter_map(Result::ok)
        .filter(|child| child.path().is_dir())
    {
        remove_tree(&child.path())?;
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
            {
                thread::sleep(Duration::from_millis(2));
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("removing the cgroup {}", path.display()));
            }
        }
    }
}
