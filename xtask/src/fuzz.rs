//! `cargo xtask fuzz`: random packets through the loaded programs, or random histories of a cluster through the
//! agent's pure parts, and the oracles of `lb-tests`.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::progress::say;
use crate::setup::{self, Need};
use crate::{build, build_ebpf, demo};

/// How much, and where to begin.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Packets to send.
    #[arg(long, default_value_t = 1_000_000)]
    packets: u64,
    /// Instead of packets, run this many histories of Services, slices and Nodes through the agent's pure parts.
    #[arg(long, value_name = "HISTORIES", conflicts_with = "packets")]
    control: Option<u64>,
    /// Seed of the first script; the same seed gives the same packets, or histories.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Builds what the fuzzer needs and hands over to it. Failing scripts are kept in `target/fuzz`.
pub(crate) fn run(options: Options) -> Result<()> {
    if let Some(histories) = options.control {
        setup::run(&[Need::Build])?;
        build_ebpf::build()?;
        return control(histories, options.seed);
    }
    ensure!(
        setup::is_root(),
        "the fuzzer loads programs, so it needs root: {}",
        demo::as_root("fuzz")
    );
    setup::run(&[Need::Build, Need::Cluster])?;
    build_ebpf::build()?;
    campaign(options.packets, options.seed)
}

/// Packets through the loaded programs.
pub(crate) fn campaign(packets: u64, seed: u64) -> Result<()> {
    hand_over("fuzz", "packets", packets, seed)
}

/// Histories through the agent's pure parts: no root, no kernel.
pub(crate) fn control(histories: u64, seed: u64) -> Result<()> {
    hand_over("fuzz-control", "histories", histories, seed)
}

/// Builds a fuzzer in release, as a million packets take minutes without, and runs it on so many of what it counts.
fn hand_over(program: &str, what: &str, number: u64, seed: u64) -> Result<()> {
    let beeline = build::agent(&["--package=lb-tests", &format!("--bin={program}")])?;
    say(format_args!("fuzz: {number} {what} from seed {seed}"));
    crate::execute(
        Command::new(beeline.with_file_name(program))
            .current_dir(crate::root())
            .args([
                &format!("--{what}"),
                &number.to_string(),
                "--seed",
                &seed.to_string(),
            ]),
    )
}
