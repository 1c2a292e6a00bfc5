//! `cargo xtask bench …`: builds what is measured and hands over to the program that measures.

use std::process::Command;

use anyhow::{Result, ensure};
use clap::Subcommand;

use crate::progress::say;
use crate::setup::{self, Need};
use crate::{build, build_ebpf, demo};

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// How fast the agent follows a cluster, and its memory: see docs/benchmarks.md. Needs root.
    #[command(disable_help_flag = true)]
    Control {
        /// Passed on: --help shows them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// Builds for release and measures.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    let Bench::Control { arguments } = bench;
    ensure!(
        setup::is_root(),
        "the benchmark makes network namespaces and loads programs, so it needs root: {}",
        demo::as_root("bench control")
    );
    setup::run(Need::ALL)?;
    build_ebpf::build()?;
    let beeline = build::agent(&["--package=lb-tests", "--bin=bench"])?;
    say("bench control");
    let mut bench = Command::new(beeline.with_file_name("bench"));
    crate::execute(
        bench
            .current_dir(crate::root())
            .args(arguments)
            .env("BEELINE", &beeline)
            .env("PATH", setup::path()),
    )
}
