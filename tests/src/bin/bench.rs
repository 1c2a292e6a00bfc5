//! `cargo xtask bench …`: see `lb_tests::bench`.

use std::env;

use clap::{Parser, Subcommand};
use lb_tests::bench;

#[derive(Parser)]
#[command(name = "cargo xtask bench", args_conflicts_with_subcommands = true)]
struct Arguments {
    /// What to measure; nothing named: packet, lanes and control
    #[command(subcommand)]
    part: Option<Part>,
    /// Two minutes of it: fewer rounds, at most 1,000 Services, no control plane
    #[arg(long)]
    quick: bool,
}

#[derive(Subcommand)]
enum Part {
    /// How fast the agent follows a cluster, and its memory
    Control(bench::Options),
    /// What the packet programs cost
    Packet(bench::packet::Options),
    /// What clients get through Services, and without
    Lanes(bench::lanes::Options),
    /// The tables and plots of docs/benchmarks.md from what was measured last
    Page(bench::page::Options),
    /// A client of `lanes`
    #[command(hide = true)]
    LaneClient(bench::lanes::ClientOptions),
    /// A server of `lanes`
    #[command(hide = true)]
    LaneServer(bench::lanes::ServerOptions),
    /// A client of `control`
    #[command(hide = true)]
    ProbeClient(bench::beside::ClientOptions),
    /// A server of `control`
    #[command(hide = true)]
    ProbeServer(bench::beside::ServerOptions),
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().collect();
    if let Some(first) = arguments.get(1)
        && first == bench::CLIENT_ARGUMENT
    {
        return bench::client(&arguments[2..]);
    }
    let arguments = Arguments::parse();
    if let Some(part) = &arguments.part {
        return run(part);
    }
    let all: &[&[&str]] = if arguments.quick {
        &[&["packet", "--rounds", "3"], &["lanes", "--quick"]]
    } else {
        &[&["packet"], &["lanes"], &["control"]]
    };
    for words in all {
        let part = Arguments::parse_from([&["bench"], *words].concat()).part;
        part.iter().try_for_each(run)?;
    }
    Ok(())
}

fn run(part: &Part) -> anyhow::Result<()> {
    match part {
        Part::Control(options) => bench::run(options),
        Part::Packet(options) => bench::packet::run(options),
        Part::Lanes(options) => bench::lanes::run(options),
        Part::Page(options) => bench::page::run(options),
        Part::LaneClient(options) => bench::lanes::client(options),
        Part::LaneServer(options) => bench::lanes::server(options),
        Part::ProbeClient(options) => bench::beside::client(options),
        Part::ProbeServer(options) => bench::beside::server(options),
    }
}
