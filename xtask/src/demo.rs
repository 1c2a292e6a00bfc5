//! `cargo xtask demo`: builds what the demo needs and hands over to it.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::progress::say;
use crate::setup::{self, Need};
use crate::{build, build_ebpf};

/// Runs the demo of the crate `lb-tests`.
pub(crate) fn run() -> Result<()> {
    ensure!(
        setup::is_root(),
        "the demo makes network namespaces and loads programs, so it needs root: {}",
        as_root("demo")
    );
    setup::run(&[Need::Build, Need::Cluster])?;
    build_ebpf::build()?;
    // One cargo run for both, so that the demo's harness uses the agent's dependencies as they are.
    let beeline = build::agent(&["--package=lb-tests", "--bin=demo"])?;
    say("demo");
    let mut demo = Command::new(beeline.with_file_name("demo"));
    crate::execute(
        demo.current_dir(crate::root())
            .env("BEELINE", &beeline)
            .env("PATH", setup::path()),
    )
}

/// The command line that repeats a command as root with the same toolchain.
pub(crate) fn as_root(command: &str) -> String {
    format!(
        "sudo --preserve-env=HOME,CARGO_HOME,RUSTUP_HOME env \"PATH=$PATH\" cargo xtask {command}"
    )
}
