//! Where the agent's log lines go: standard error, filtered by `RUST_LOG`.

use std::io::{IsTerminal as _, stderr};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use crate::source::kubernetes;

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Starts logging, once a process; `info` and above unless `RUST_LOG` says otherwise.
pub fn start(format: LogFormat) {
    // Empty means nothing asked for, as with most programs.
    let asked = std::env::var("RUST_LOG").unwrap_or_default();
    let directives = match asked.trim() {
        "" => format!("info,{}", kubernetes::LOG_FILTER),
        asked => asked.to_owned(),
    };
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .parse_lossy(directives);
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal() && !no_colour);
    match format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
}
