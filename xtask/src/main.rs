//! Beeline's own commands: `cargo xtask demo`, `cargo xtask test` and the steps they are made of.
//!
//! Everything continuous integration does is one of these commands, so a contributor can run the same
//! thing. A command first makes sure that what it needs is there (see [`setup`]).

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod build;
mod build_ebpf;
mod check;
mod cluster;
mod conformance;
mod demo;
mod e2e;
mod fuzz;
mod linker;
mod manifests;
mod object;
mod oracle;
mod progress;
mod runner;
mod setup;
mod test;
mod tidy;
mod toolchain;
mod vm;

/// Beeline's build, demo and test commands.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install everything the other commands need.
    Setup,
    /// Build the eBPF object and the release binary `target/release/beeline`.
    Build(build::Options),
    /// Run a cluster made of network namespaces and watch Beeline serve it. Needs root.
    Demo,
    /// Run a Kubernetes cluster with Beeline on this machine. Needs root.
    #[command(subcommand)]
    Cluster(cluster::Cluster),
    /// Have upstream's own end-to-end tests judge Beeline on such a cluster. Needs root.
    E2e(e2e::Options),
    /// Measure: see docs/benchmarks.md. Needs root.
    Bench(bench::Options),
    /// Run every check and every test. Needs root.
    Test {
        /// Run only the tests whose names contain this, and leave out the checks.
        filter: Option<String>,
        /// Instead, run the live tests of the packet path among hosts of other kinds: without offload, with and without
        /// the firewall on bridges, with strict checks of sources and of invalid packets. An hour.
        #[arg(long)]
        surroundings: bool,
    },
    /// Send random packets through the loaded programs and compare with an independent oracle. Needs root.
    Fuzz(fuzz::Options),
    /// Run the tests of programs and agent on Debian's kernels under emulation, and on this machine's.
    Vm(vm::Options),
    /// Run Beeline beside the real kube-proxy on generated clusters and compare what clients meet. Needs root.
    Oracle(oracle::Options),
    /// Write docs/conformance.md: every rule of a service proxy, and the tests that hold it.
    Conformance,
    /// Check formatting, lints (host and eBPF), the object and the project's rules.
    Check,
}

fn main() -> ExitCode {
    let passed = match Arguments::parse().command {
        Command::Setup => setup::run(setup::Need::ALL).map(|()| true),
        Command::Build(options) => build::run(options).map(|()| true),
        Command::Demo => demo::run().map(|()| true),
        Command::Cluster(cluster) => cluster::run(&cluster).map(|()| true),
        Command::E2e(options) => e2e::run(&options),
        Command::Bench(bench) => bench::run(&bench).map(|()| true),
        Command::Test {
            filter,
            surroundings,
        } => {
            if surroundings {
                test::run_in_surroundings(filter.as_deref())
            } else {
                test::run(filter.as_deref())
            }
        }
        Command::Fuzz(options) => fuzz::run(options).map(|()| true),
        Command::Vm(options) => vm::run(&options),
        Command::Oracle(options) => oracle::run(&options).map(|()| true),
        Command::Conformance => conformance::run().map(|()| true),
        Command::Check => check::run().map(|()| true),
    };
    match passed {
        Ok(true) => ExitCode::SUCCESS,
        // The closing line of the tests has said it.
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's directory.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask/ lies in the workspace")
}

/// Where cargo puts what it builds for the host.
fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => root().join(directory),
        None => root().join("target"),
    }
}

/// The cargo that runs us, so that one toolchain serves a whole run.
fn cargo() -> std::process::Command {
    let mut command =
        std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command to its end; its output is the user's.
fn execute(command: &mut std::process::Command) -> Result<()> {
    use anyhow::Context as _;
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    anyhow::ensure!(
        status.success(),
        "{program} failed ({status}); its message is above"
    );
    Ok(())
}
