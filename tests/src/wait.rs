//! Waiting for a condition, with a deadline and a readable complaint.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often conditions are looked at.
const PACE: Duration = Duration::from_millis(5);

/// Asks until the answer is there, and returns it. An error ends the wait at once.
pub fn eventually<T>(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("after {within:?} it is still not so that {what}");
        }
        thread::sleep(PACE);
    }
}
