//! The test programs that need no more than a kernel, and what they need beside it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::progress::say;
use crate::runner::{Outcome, Report, program_name};
use crate::{build, setup};

/// Test targets by cargo's patterns: packet fixtures, the agent's dealings with the kernel, socket hooks.
const TARGETS: [&str; 6] = [
    "datapath_*",
    "flow_shards",
    "fuzz_regressions",
    "selection_oracle",
    "socket_hooks",
    "sys_bpf",
];
/// Programs that the tests start.
pub(super) const TOOLS: [&str; 7] = [
    "ip", "ethtool", "mount", "umount", "unshare", "sleep", "kill",
];

pub(super) struct Programs {
    /// As cargo announces each, and where it is.
    tests: Vec<(String, PathBuf)>,
    pub(super) guest: PathBuf,
    pub(super) peer: PathBuf,
    pub(super) agent: PathBuf,
}

/// Builds those of these patterns, or all, as `cargo xtask test` does, so that what it built serves here too.
pub(super) fn build(patterns: &[String]) -> Result<Programs> {
    say("test programs");
    let mut cargo = crate::cargo();
    cargo.args([
        "test",
        "--no-run",
        "--package=lb-agent",
        "--package=lb-tests",
    ]);
    let usual = TARGETS.map(str::to_owned);
    let patterns = if patterns.is_empty() {
        &usual
    } else {
        patterns
    };
    for pattern in patterns {
        cargo.args(["--test", pattern]);
    }
    // Named, so that a build of one of them alone cannot leave the others old.
    cargo.args(["--bin=guest", "--bin=peer"]);
    let built = cargo
        .env("CARGO_TERM_COLOR", "never")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .context("starting cargo test")?;
    let text = String::from_utf8_lossy(&built.stderr);
    ensure!(
        built.status.success(),
        "the test programs do not build:\n{text}"
    );
    let tests: Vec<(String, PathBuf)> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Executable "))
        .filter(|announced| announced.starts_with("tests/"))
        .filter_map(|announced| {
            let (_, path) = announced.strip_suffix(')')?.split_once(" (")?;
            Some((announced.to_owned(), crate::root().join(path)))
        })
        .collect();
    ensure!(!tests.is_empty(), "cargo names no test programs:\n{text}");
    // Those of the agent itself have its code in them.
    if tests.iter().any(|(_, path)| is_cluster(path)) {
        build::agent(&[])?;
    }
    let debug = crate::target().join("debug");
    Ok(Programs {
        tests,
        guest: debug.join("guest"),
        peer: debug.join("peer"),
        agent: crate::target().join("release/beeline"),
    })
}

impl Programs {
    /// Every test program and all it starts.
    pub(super) fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> = self.tests.iter().map(|(_, path)| path.clone()).collect();
        if files.iter().any(|path| is_cluster(path)) {
            files.extend([self.peer.clone(), self.agent.clone()]);
        }
        for tool in TOOLS {
            let tool = setup::find_program(tool).with_context(|| format!("{tool} is missing"))?;
            files.push(tool);
        }
        Ok(files)
    }

    /// For the first process of a guest: a line for each program, as cargo announces it.
    pub(super) fn list(&self) -> String {
        self.tests
            .iter()
            .fold(String::new(), |mut list, (announced, path)| {
                let _ = writeln!(list, "{}\t{announced}", path.display());
                list
            })
    }

    /// Names as in reports.
    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.tests
            .iter()
            .map(|(announced, _)| program_name(announced))
    }

    /// Counts programs that never came to run as failed; true if there are any.
    pub(super) fn complete(&self, outcome: &mut Outcome) -> bool {
        let mut any = false;
        for name in self.names() {
            if outcome.reports.iter().any(|report| report.name == name) {
                continue;
            }
            any = true;
            outcome.failures.push(format!("{name}: did not run"));
            outcome.reports.push(Report {
                name,
                failed: 1,
                ..Report::default()
            });
        }
        any
    }
}

/// Whether a test program starts agents, and peers to talk through them.
fn is_cluster(test: &Path) -> bool {
    let name = test.file_name().unwrap_or_default().to_string_lossy();
    ["socket_", "node_"]
        .iter()
        .any(|area| name.starts_with(area))
}

/// The shared libraries of a program, as its own loader finds them.
pub(super) fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = Command::new("ldd")
        .arg(program)
        .output()
        .context("running ldd")?;
    // A static program has none, to which ldd says so and fails.
    Ok(String::from_utf8_lossy(&listed.stdout)
        .lines()
        .filter_map(library)
        .map(PathBuf::from)
        .collect())
}

/// `libc.so.6 => /lib/libc.so.6 (0x7f00)` or, of the loader, `/lib64/ld.so (0x7f00)`.
fn library(line: &str) -> Option<&str> {
    let place = line.split("=> ").last()?.trim();
    let path = place.split(" (").next()?;
    path.starts_with('/').then_some(path)
}

#[cfg(test)]
mod tests {
    use super::library;

    #[test]
    fn libraries_are_read_from_each_kind_of_line() {
        assert_eq!(
            library("\tlibc.so.6 => /lib/libc.so.6 (0x7f00)"),
            Some("/lib/libc.so.6")
        );
        assert_eq!(
            library("\t/lib64/ld-linux-x86-64.so.2 (0x7f00)"),
            Some("/lib64/ld-linux-x86-64.so.2")
        );
        assert_eq!(library("\tlinux-vdso.so.1 (0x7f00)"), None);
        assert_eq!(library("\tstatically linked"), None);
    }
}
