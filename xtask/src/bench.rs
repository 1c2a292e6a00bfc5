//! `cargo xtask bench …`: builds what is measured and hands over to the program that measures.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::progress::say;
use crate::setup::{self, Need};
use crate::{build, build_ebpf, demo};

/// What to measure, as that program takes it.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// Passed on: --help shows them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds for release and measures.
pub(crate) fn run(Options { arguments }: &Options) -> Result<()> {
    ensure!(
        setup::is_root(),
        "the benchmark makes network namespaces and loads programs, so it needs root: {}",
        demo::as_root("bench")
    );
    setup::run(Need::ALL)?;
    build_ebpf::build()?;
    let beeline = build::agent(&["--package=lb-tests", "--bin=bench"])?;
    say(format_args!("bench {}", arguments.join(" ")));
    let mut bench = Command::new(beeline.with_file_name("bench"));
    crate::execute(
        bench
            .current_dir(crate::root())
            .args(arguments)
            .env("BEELINE", &beeline)
            .env("PATH", setup::path()),
    )
}
