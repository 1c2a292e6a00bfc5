//! Starting programs in a network namespace and a cgroup, and running tools.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::ptr;

use anyhow::{Context as _, Result, ensure};

use crate::netns::Namespace;

/// Where a process runs.
#[derive(Clone, Debug)]
pub struct Place {
    pub namespace: Namespace,
    pub cgroup: PathBuf,
}

impl Place {
    /// A command that will run here.
    ///
    /// The child moves itself between fork and exec. `ip netns exec` would also remount `/sys` and so hide
    /// cgroups and bpffs.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let procs = self.cgroup.join("cgroup.procs");
        let mut procs = OpenOptions::new()
            .write(true)
            .open(&procs)
            .with_context(|| format!("opening {}", procs.display()))?;
        let namespace = self.namespace.open()?;
        let mut command = Command::new(program);
        // SAFETY: the closure only makes system calls, on descriptors it owns and a signal set of its own; it
        // allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(move || {
                procs.write_all(b"0")?;
                // A child inherits the mask, and the demo blocks the signals it waits for.
                let mut none = MaybeUninit::<libc::sigset_t>::uninit();
                libc::sigemptyset(none.as_mut_ptr());
                libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
                enter(&namespace)
            });
        }
        Ok(command)
    }
}

/// Moves the calling thread into a network namespace.
pub(crate) fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: setns takes a descriptor, which `namespace` keeps open, and a flag.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs `ip` over many commands at once, in a namespace or in ours.
pub fn ip_batch(namespace: Option<&str>, lines: &[String]) -> Result<()> {
    let mut ip = Command::new("ip");
    if let Some(namespace) = namespace {
        ip.args(["-n", namespace]);
    }
    ip.args(["-batch", "-"]);
    feed(&mut ip, &(lines.join("\n") + "\n")).with_context(|| {
        format!(
            "ip -batch in {} (it comes with iproute2)",
            namespace.unwrap_or("the root namespace")
        )
    })
}

/// Loads firewall rules into the calling thread's network namespace.
pub(crate) fn nft(rules: &str) -> Result<()> {
    feed(Command::new("nft").args(["-f", "-"]), rules).context("nft (it comes with nftables)")
}

/// Runs a command that reads `text`.
fn feed(command: &mut Command, text: &str) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("running {command:?}"))?;
    let mut input = child.stdin.take().context("the command's input")?;
    input
        .write_all(text.as_bytes())
        .context("writing to the command")?;
    drop(input);
    let output = child
        .wait_with_output()
        .context("waiting for the command")?;
    ensure!(
        output.status.success(),
        "{}\n{text}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Runs a prepared command to its end and returns what it printed; fails with its errors.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("running {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?} failed ({}): {}",
        output.status,
        errors.trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
