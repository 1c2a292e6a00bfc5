//! `cargo xtask build`: the object, then the agent that embeds it.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::progress::say;
use crate::setup::{self, Need};
use crate::{build_ebpf, toolchain};

#[derive(Args)]
pub(crate) struct Options {
    /// Build the agent without optimisation: `target/debug/beeline`.
    #[arg(long)]
    debug: bool,
    /// Build a static binary for containers: `target/static/beeline`.
    #[arg(long = "static", conflicts_with = "debug")]
    no_libraries: bool,
}

/// Builds what the options ask for and says where it is.
pub(crate) fn run(options: Options) -> Result<()> {
    setup::run(&[Need::Build])?;
    build_ebpf::build()?;
    let binary = match options {
        Options {
            no_libraries: true, ..
        } => static_agent()?,
        Options { debug: true, .. } => {
            crate::execute(crate::cargo().args(["build", "--package=lb-agent"]))?;
            crate::target().join("debug/beeline")
        }
        Options { .. } => agent(&[])?,
    };
    say(format_args!("built {}", binary.display()));
    Ok(())
}

/// Builds the release binary, and further targets with it so that they share its dependencies.
pub(crate) fn agent(further: &[&str]) -> Result<PathBuf> {
    say("agent: release build");
    let mut command = crate::cargo();
    command
        .args(["build", "--release", "--package=lb-agent", "--bin=beeline"])
        .args(further);
    crate::execute(&mut command)?;
    Ok(crate::target().join("release/beeline"))
}

/// glibc linked in: the musl target is not everywhere, and since glibc 2.34 name resolution through files
/// and DNS works without loading a library.
pub(crate) fn static_agent() -> Result<PathBuf> {
    say("agent: static release build");
    let verbose = toolchain::output(std::process::Command::new("rustc").arg("-vV"))
        .context("asking rustc for its host")?;
    let host = verbose
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc names no host")?;
    let flags = format!(
        "CARGO_TARGET_{}_RUSTFLAGS",
        host.to_uppercase().replace('-', "_")
    );
    let mut command = crate::cargo();
    // With a target named, the flag stays away from build scripts and procedural macros.
    command.args(["build", "--release", "--package=lb-agent", "--target", host]);
    crate::execute(
        command
            .env(flags, "-Ctarget-feature=+crt-static")
            .env_remove("RUSTFLAGS"),
    )?;
    let built = crate::target().join(host).join("release/beeline");
    let binary = crate::target().join("static/beeline");
    std::fs::create_dir_all(crate::target().join("static"))?;
    std::fs::copy(&built, &binary).with_context(|| format!("copying {}", built.display()))?;
    Ok(binary)
}
