//! Programs that outlive the command that started them: found again by a file with their number.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::place;
use crate::setup;

const PATIENCE: Duration = Duration::from_secs(15);

/// A command in a network namespace.
pub(crate) fn in_network(namespace: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/run/netns/{namespace}"))
        .arg("--")
        .arg(program)
        .env("PATH", path());
    command
}

/// Ours first, then the system's.
pub(super) fn path() -> std::ffi::OsString {
    let own = [
        place::home().join("bin"),
        place::host_tools().join("usr/sbin"),
    ];
    let all = own
        .into_iter()
        .chain(std::env::split_paths(&setup::path()).collect::<Vec<_>>());
    std::env::join_paths(all).unwrap_or_else(|_| setup::path())
}

/// Runs a command; its output is only shown when it fails.
pub(super) fn run(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {shown}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{shown}: {}\n{}{}", output.status, said, complaint.trim());
    }
    Ok(said)
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ").chars().take(200).collect()
}

fn number_file(name: &str) -> PathBuf {
    place::state().join(format!("{name}.pid"))
}

/// Starts a command in a session of its own; its output goes to a log.
pub(super) fn start(name: &str, command: &mut Command) -> Result<()> {
    let log = place::log(name);
    let output = File::options().create(true).append(true).open(&log);
    let output = output.with_context(|| format!("opening {}", log.display()))?;
    let child = command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {}", shown(command)))?;
    fs::write(number_file(name), child.id().to_string()).context("keeping a process's number")
}

/// The process started under a name, if it still runs.
pub(super) fn number(name: &str) -> Option<u32> {
    let number = fs::read_to_string(number_file(name))
        .ok()?
        .trim()
        .parse()
        .ok()?;
    is_alive(number).then_some(number)
}

/// A process that ended and was not waited for does not count.
fn is_alive(number: u32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{number}/stat")) else {
        return false;
    };
    let state = status
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// The first child of a process.
pub(super) fn child(parent: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Ends the process started under a name and waits until it is gone.
pub(super) fn stop(name: &str) -> Result<()> {
    if let Some(number) = number(name) {
        end(number)?;
    }
    match fs::remove_file(number_file(name)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("forgetting a process")
        }
        _ => Ok(()),
    }
}

/// Kills a process and waits: nothing it has is needed any more, and an API server takes long to end in good order.
pub(super) fn end(number: u32) -> Result<()> {
    let mut kill = Command::new("kill");
    kill.args(["-s", "KILL", &number.to_string()]);
    // It may have ended meanwhile.
    kill.stderr(Stdio::null())
        .status()
        .context("starting kill")?;
    let begun = Instant::now();
    while is_alive(number) {
        ensure!(
            begun.elapsed() < PATIENCE,
            "process {number} does not end, not even killed"
        );
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Waits until something holds.
pub(super) fn wait_for(
    what: &str,
    log: &Path,
    time: Duration,
    mut holds: impl FnMut() -> bool,
) -> Result<()> {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > time {
            bail!(
                "{what}: not within {} s; its log is {}, and ends:\n{}",
                time.as_secs(),
                log.display(),
                end_of(log)
            );
        }
        sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn end_of(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
