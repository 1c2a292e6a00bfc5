//! The control-plane fuzzer's loop: seeds one after the other, on every core.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Result, anyhow};

use super::run::{Done, Failure, run};
use super::script::Fixture;
use super::{generate, shrink};
use crate::fuzz::kernel::failures;

/// How many histories, and the seed of the first; each further one has the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    pub histories: u64,
    pub seed: u64,
    /// Failures after which the run ends.
    pub failures: usize,
}

/// What a campaign came to.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Report {
    pub histories: u64,
    pub done: Done,
    /// Where failing histories were written, and what failed.
    pub failures: Vec<(PathBuf, Failure)>,
}

/// Runs histories until there were enough of them, or of failures.
pub fn run_campaign(options: Options) -> Result<Report> {
    let start = Instant::now();
    let next = AtomicU64::new(0);
    let report = Mutex::new(Report::default());
    let threads = std::thread::available_parallelism()?.get();
    // A failure is told in full; the panic's own lines would be told for each attempt to shorten it.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let worked = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| work(options, &next, &report)))
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a worker panicked")))
        })
    });
    std::panic::set_hook(hook);
    worked?;
    let report = report
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    println!(
        "fuzz: {} histories in {:.1} s, {} steps, {} writes looked at, {} failures",
        report.histories,
        start.elapsed().as_secs_f64(),
        report.done.steps,
        report.done.writes,
        report.failures.len()
    );
    Ok(report)
}

fn work(options: Options, next: &AtomicU64, report: &Mutex<Report>) -> Result<()> {
    loop {
        let offset = next.fetch_add(1, Relaxed);
        let failed = |report: &Report| report.failures.len() >= options.failures;
        let lock = || {
            report
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
        };
        if offset >= options.histories || failed(&lock()) {
            return Ok(());
        }
        let seed = options.seed.wrapping_add(offset);
        let script = generate::script(seed);
        let outcome = run(&script);
        let kept = match &outcome {
            Ok(_) => None,
            Err(_) => keep(seed, &script)?,
        };
        let mut report = lock();
        report.histories += 1;
        if let Ok(done) = outcome {
            report.done.steps += done.steps;
            report.done.writes += done.writes;
        }
        report.failures.extend(kept);
    }
}

/// Shortens a failing history and writes it down.
fn keep(seed: u64, script: &super::script::Script) -> Result<Option<(PathBuf, Failure)>> {
    let Some((script, failure)) = shrink::shrink(script) else {
        return Ok(None);
    };
    let directory = failures();
    std::fs::create_dir_all(&directory)?;
    let path = directory.join(format!("control-{seed}.json"));
    let steps = script.steps.len();
    let about = failure.text.lines().map(str::to_owned).collect();
    std::fs::write(&path, Fixture { about, script }.text()?)?;
    println!(
        "fuzz: seed {seed} fails with {steps} steps, kept in {}\n{}",
        path.display(),
        failure.text
    );
    Ok(Some((path, failure)))
}
