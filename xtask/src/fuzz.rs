//! `cargo xtask fuzz`: random packets through the loaded programs and the oracle of `lb-tests`.

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
    /// Seed of the first script; the same seed gives the same packets.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Builds what the fuzzer needs and hands over to it. Failing scripts are kept in `target/fuzz`.
pub(crate) fn run(options: Options) -> Result<()> {
    ensure!(
        setup::is_root(),
        "the fuzzer loads programs, so it needs root: {}",
        demo::as_root("fuzz")
    );
    setup::run(&[Need::Build, Need::Cluster])?;
    build_ebpf::build()?;
    campaign(options.packets, options.seed)
}

/// Builds the fuzzer in release, as a million packets take minutes without, and runs it.
pub(crate) fn campaign(packets: u64, seed: u64) -> Result<()> {
    let beeline = build::agent(&["--package=lb-tests", "--bin=fuzz"])?;
    say(format_args!("fuzz: {packets} packets from seed {seed}"));
    crate::execute(
        Command::new(beeline.with_file_name("fuzz"))
            .current_dir(crate::root())
            .args([
                "--packets",
                &packets.to_string(),
                "--seed",
                &seed.to_string(),
            ]),
    )
}
