//! The fuzzer's loop: seeds one after the other, until enough packets have passed.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::kernel::{Kernel, failures};
use super::run::{Done, Mismatch, run};
use super::script::Script;
use super::{fixture, generate, shrink};

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    pub packets: u64,
    /// Seed of the first script; each further one has the next.
    pub seed: u64,
    /// Mismatches after which the run ends.
    pub failures: usize,
}

impl Options {
    /// Reads `--packets N`, `--seed S` and `--failures N`.
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            packets: 1_000_000,
            seed: 1,
            failures: 10,
        };
        while let Some(name) = arguments.next() {
            let value = arguments
                .next()
                .with_context(|| format!("{name} needs a number"))?;
            let number: u64 = value
                .parse()
                .with_context(|| format!("{name} needs a number, not {value}"))?;
            match name.as_str() {
                "--packets" => options.packets = number,
                "--seed" => options.seed = number,
                "--failures" => options.failures = number as usize,
                _ => bail!("unknown option {name}; known are --packets, --seed and --failures"),
            }
        }
        Ok(options)
    }
}

/// What a campaign came to.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Report {
    pub done: Done,
    /// Where failing scripts were written, and what failed.
    pub mismatches: Vec<(PathBuf, Mismatch)>,
}

/// Runs scripts until enough packets have passed or enough has failed. The calling thread is isolated.
pub fn run_campaign(kernel: &mut Kernel, options: Options) -> Result<Report> {
    let mut report = Report::default();
    let (start, mut said) = (Instant::now(), Instant::now());
    let mut seed = options.seed;
    while report.done.packets < options.packets && report.mismatches.len() < options.failures {
        let script = generate::script(seed);
        match run(kernel, &script)? {
            Ok(done) => report.done.add(done),
            Err(mismatch) => report
                .mismatches
                .extend(keep(kernel, seed, &script, mismatch)?),
        }
        seed += 1;
        if said.elapsed().as_secs() >= 5 {
            said = Instant::now();
            say(&report, options, start);
        }
    }
    say(&report, options, start);
    Ok(report)
}

fn say(report: &Report, options: Options, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "fuzz: {} of {} packets, {:.0} a second, {} handled, {} mismatches",
        report.done.packets,
        options.packets,
        report.done.packets as f64 / seconds,
        report.done.handled,
        report.mismatches.len()
    );
}

/// Shrinks a failing script and writes it down.
fn keep(
    kernel: &mut Kernel,
    seed: u64,
    script: &Script,
    first: Mismatch,
) -> Result<Option<(PathBuf, Mismatch)>> {
    let Some((script, mismatch)) = shrink::shrink(kernel, script)? else {
        println!(
            "fuzz: seed {seed} failed once and never again: {}",
            first.text
        );
        return Ok(Some((PathBuf::from(format!("seed {seed}")), first)));
    };
    let directory = failures();
    std::fs::create_dir_all(&directory)?;
    let path = directory.join(format!("seed-{seed}.json"));
    std::fs::write(&path, fixture::text(&script, &mismatch.text)?)?;
    println!(
        "fuzz: seed {seed} fails with {} steps, kept in {}\n{}",
        script.steps.len(),
        path.display(),
        mismatch.text
    );
    Ok(Some((path, mismatch)))
}
