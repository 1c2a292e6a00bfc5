//! What a long command tells while it works: one line per stage, with the time since the start.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Time since the command began.
pub(crate) fn elapsed() -> Duration {
    START.elapsed()
}

/// Announces a stage, or what came of it.
pub(crate) fn say(text: impl std::fmt::Display) {
    eprintln!("[{:6.1}s] {text}", elapsed().as_secs_f64());
}
