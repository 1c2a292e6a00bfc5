//! `cargo xtask bench …`: see `lb_tests::bench`.

use std::env;

use clap::Parser;
use lb_tests::bench;

#[derive(Parser)]
#[command(name = "cargo xtask bench")]
enum Arguments {
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
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().collect();
    if let Some(first) = arguments.get(1)
        && first == bench::CLIENT_ARGUMENT
    {
        return bench::client(&arguments[2..]);
    }
    match Arguments::parse() {
        Arguments::Control(options) => bench::run(&options),
        Arguments::Packet(options) => bench::packet::run(&options),
        Arguments::Lanes(options) => bench::lanes::run(&options),
        Arguments::Page(options) => bench::page::run(&options),
        Arguments::LaneClient(options) => bench::lanes::client(&options),
        Arguments::LaneServer(options) => bench::lanes::server(&options),
    }
}
