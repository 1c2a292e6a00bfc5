//! `cargo xtask oracle`: Beeline beside the real kube-proxy, the same cluster, the same packets.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::progress::say;
use crate::setup::{self, Need};
use crate::{build, build_ebpf, demo};

/// How much, where to begin, and what else the comparison takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Generated cases: Services with their slices, and what clients ask about each.
    #[arg(long, default_value_t = 200)]
    cases: usize,
    /// The same seed gives the same cases.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Further arguments, after `--`; `-- --help` lists them.
    #[arg(last = true)]
    further: Vec<String>,
}

/// Builds what the comparison needs, kube-proxy included, and hands over to it.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(
        setup::is_root(),
        "the comparison makes network namespaces and loads programs, so it needs root: {}",
        demo::as_root("oracle")
    );
    setup::run(&[Need::Build, Need::Cluster])?;
    build_ebpf::build()?;
    upstream()?;
    let mut arguments = vec![
        format!("--cases={}", options.cases),
        format!("--seed={}", options.seed),
    ];
    arguments.extend(options.further.iter().cloned());
    campaign(&arguments)
}

/// Builds the control plane and kube-proxy: minutes the first time.
pub(crate) fn upstream() -> Result<()> {
    let mut build = Command::new(crate::root().join("tests/kubernetes/build"));
    crate::execute(
        build
            .args([
                "kube-apiserver",
                "etcd",
                "kube-proxy",
                "kube-controller-manager",
            ])
            .env("PATH", setup::path()),
    )
}

/// Builds the comparison and runs it. Disagreeing states are kept in `target/oracle`.
pub(crate) fn campaign(arguments: &[String]) -> Result<()> {
    let beeline = build::agent(&["--package=lb-tests", "--bin=oracle", "--bin=peer"])?;
    say(format_args!("oracle: {}", arguments.join(" ")));
    crate::execute(
        Command::new(beeline.with_file_name("oracle"))
            .current_dir(crate::root())
            .env("BEELINE", &beeline)
            .env("PATH", setup::path())
            .args(arguments),
    )
}
