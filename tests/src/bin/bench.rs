//! `cargo xtask bench control`: see `lb_tests::bench`.

use std::env;

use clap::Parser;
use lb_tests::bench;

#[derive(Parser)]
#[command(name = "cargo xtask bench control")]
struct Arguments {
    #[command(flatten)]
    options: bench::Options,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().collect();
    match arguments.get(1) {
        Some(first) if first == bench::CLIENT_ARGUMENT => bench::client(&arguments[2..]),
        _ => bench::run(&Arguments::parse().options),
    }
}
