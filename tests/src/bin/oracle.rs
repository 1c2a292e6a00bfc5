//! Beeline beside the real kube-proxy, in twin clusters: see `lb_tests::twins`.

use anyhow::{Result, ensure};
use clap::Parser;
use lb_tests::twins::campaign::{Options, run};

/// Compares Beeline with the real kube-proxy.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn main() -> Result<()> {
    let report = run(&Arguments::parse().options)?;
    report.print();
    ensure!(
        report.failed.is_empty(),
        "{} states disagree with kube-proxy",
        report.failed.len()
    );
    ensure!(
        report.told.faults.is_empty(),
        "flows fare otherwise than with kube-proxy"
    );
    Ok(())
}
