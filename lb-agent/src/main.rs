//! `beeline`: arguments, logging, run, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use lb_agent::cli::agent::AgentArgs;
use lb_agent::cli::{self, Cli, Command, Exit, logging};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let exit = match &cli.command {
        Command::Agent(args) => match agent(args) {
            Ok(()) => Exit::Fine,
            Err(error) => {
                eprintln!("beeline: {error:#}");
                Exit::Error
            }
        },
        command => cli::run(command),
    };
    ExitCode::from(exit as u8)
}

fn agent(args: &AgentArgs) -> anyhow::Result<()> {
    logging::start(args.log_format);
    lb_agent::sys::memory::keep_no_large_blocks();
    let config = args.config()?;
    if args.init_only {
        lb_agent::agent::initialise(&config);
        return Ok(());
    }
    // One thread: an update touches few records, and the kernel forwards without us.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(lb_agent::agent::run(config))
}
