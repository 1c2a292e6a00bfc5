//! `cargo xtask check`: formatting, lints for host and kernel, and the project's own rules.

use anyhow::{Result, bail};

use crate::progress::say;
use crate::setup::{self, Need};
use crate::{build_ebpf, conformance, manifests, tidy};

/// One check; the text is the fix.
struct Check {
    name: &'static str,
    fix: &'static str,
    run: fn() -> Result<()>,
}

const CHECKS: &[Check] = &[
    Check {
        name: "format",
        fix: "run `cargo fmt`",
        run: || crate::execute(crate::cargo().args(["fmt", "--check"])),
    },
    Check {
        name: "rules",
        fix: "see CONTRIBUTING.md",
        run: tidy::run,
    },
    Check {
        name: "manifests",
        fix: "see manifests/",
        run: manifests::run,
    },
    Check {
        name: "conformance",
        fix: "run `cargo xtask conformance`",
        run: conformance::check,
    },
    Check {
        name: "lints",
        fix: "fix what clippy names",
        run: host_lints,
    },
    Check {
        name: "eBPF lints",
        fix: "fix what clippy names",
        run: build_ebpf::lint,
    },
];

/// Sets up, builds the object (the agent does not compile without it) and checks the sources.
pub(crate) fn run() -> Result<()> {
    setup::run(&[Need::Build, Need::Check])?;
    build_ebpf::build()?;
    sources()
}

/// Runs every check and names all that failed.
pub(crate) fn sources() -> Result<()> {
    let mut failed = Vec::new();
    for check in CHECKS {
        say(format_args!("check: {}", check.name));
        if let Err(error) = (check.run)() {
            eprintln!("{error:#}");
            failed.push(format!("{} ({})", check.name, check.fix));
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("checks failed: {}", failed.join(", "))
}

fn host_lints() -> Result<()> {
    crate::execute(crate::cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-Dwarnings",
    ]))
}
