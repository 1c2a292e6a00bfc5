//! `cargo xtask test`: every check and every test, with a summary at the end.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::progress::{elapsed, say};
use crate::runner::{self, Outcome};
use crate::setup::{self, Need};
use crate::{build, build_ebpf, check, demo, fuzz, oracle};

/// What a stage came to.
struct Stage {
    name: &'static str,
    time: Duration,
    failure: Option<String>,
}

/// Runs everything, or, with a filter, only the tests whose names contain it.
///
/// A failing check does not stop the tests: one run tells everything that is wrong. True when nothing is.
pub(crate) fn run(filter: Option<&str>) -> Result<bool> {
    ensure!(
        setup::is_root(),
        "the tests make network namespaces and load programs, so they need root: {}",
        demo::as_root("test")
    );
    let mut stages = Vec::new();
    let mut stage = |name: &'static str, work: &mut dyn FnMut() -> Result<()>| {
        say(format_args!("{name} …"));
        let start = Instant::now();
        let failure = work().err().map(|error| format!("{error:#}"));
        if let Some(failure) = &failure {
            say(format_args!("{name} failed: {failure}"));
        }
        let passed = failure.is_none();
        stages.push(Stage {
            name,
            time: start.elapsed(),
            failure,
        });
        passed
    };

    let mut outcome = Outcome::default();
    if stage("setup", &mut || setup::run(Need::ALL)) && stage("object", &mut build_ebpf::build) {
        // The checks come after the object as the agent does not compile without it.
        if filter.is_none() {
            stage("check", &mut check::sources);
        }
        stage("agent", &mut || build::agent(&[]).map(drop));
        if filter.is_none() {
            stage("fuzz", &mut || {
                fuzz::campaign(1_000_000, 1)?;
                fuzz::control(10_000, 1)
            });
        }
        let upstream = stage("kubernetes", &mut oracle::upstream);
        if filter.is_none() && upstream {
            // Two minutes at most on two cores, with all stories; `cargo xtask oracle` does as many cases as one likes.
            let few = ["--cases=24".into(), "--seed=1".into()];
            stage("oracle", &mut || oracle::campaign(&few));
        }
        stage("tests", &mut || {
            outcome = runner::run(cargo_test(&["--workspace"], filter))?;
            ensure!(outcome.success, "{} failed", outcome.failures.len());
            Ok(())
        });
    }
    Ok(report(&stages, &outcome))
}

/// Kinds of hosts, in words of `tests/src/surroundings.rs`.
const SURROUNDINGS: &[&str] = &[
    "no-offload,no-bridge-firewall",
    "bridge-firewall",
    "strict,no-bridge-firewall",
    "no-offload,bridge-firewall,strict",
];

/// Runs the tests that have clusters of network namespaces once more for each kind of hosts.
pub(crate) fn run_in_surroundings(filter: Option<&str>) -> Result<bool> {
    ensure!(
        setup::is_root(),
        "the tests make network namespaces and load programs, so they need root: {}",
        demo::as_root("test --surroundings")
    );
    setup::run(Need::ALL)?;
    build_ebpf::build()?;
    build::agent(&[])?;
    let (mut outcome, mut stages) = (Outcome::default(), Vec::new());
    for &surroundings in SURROUNDINGS {
        say(format_args!("hosts: {surroundings}"));
        let start = Instant::now();
        let mut command = cargo_test(&["--package=lb-tests", "--test=node_*"], filter);
        command.env("BEELINE_TEST_SURROUNDINGS", surroundings);
        let run = runner::run(command)?;
        let named = |text: String| format!("{surroundings}: {text}");
        let compiled = run.success || !run.failures.is_empty();
        let failure = (!compiled).then(|| format!("{surroundings}: no test ran"));
        stages.push(Stage {
            name: surroundings,
            time: start.elapsed(),
            failure,
        });
        outcome.reports.extend(run.reports);
        outcome.failures.extend(run.failures.into_iter().map(named));
    }
    Ok(report(&stages, &outcome))
}

/// Tests at a time, for every two processors: those with namespaces wait half of their time.
const AT_A_TIME: usize = 3;

fn cargo_test(which: &[&str], filter: Option<&str>) -> Command {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = (processors * AT_A_TIME).div_ceil(2);
    let mut command = crate::cargo();
    command
        .arg("test")
        .args(which)
        .arg("--no-fail-fast")
        .args(filter);
    command
        .env("BEELINE", crate::target().join("release/beeline"))
        .env("PATH", setup::path())
        .env("RUST_TEST_THREADS", threads.to_string());
    command
}

/// Prints the summary; true when nothing failed.
fn report(stages: &[Stage], outcome: &Outcome) -> bool {
    println!(
        "\n{:<44} {:>7} {:>7} {:>8} {:>9}",
        "", "passed", "failed", "ignored", "time"
    );
    for report in outcome
        .reports
        .iter()
        .filter(|report| report.passed + report.failed > 0)
    {
        let time = report.time.as_secs_f64();
        println!(
            "{:<44} {:>7} {:>7} {:>8} {time:>8.1}s",
            report.name, report.passed, report.failed, report.ignored
        );
    }
    println!();
    for stage in stages {
        let result = if stage.failure.is_some() {
            "failed"
        } else {
            "done"
        };
        println!(
            "{:<44} {result:>7} {:>26.1}s",
            stage.name,
            stage.time.as_secs_f64()
        );
    }
    for failure in &outcome.failures {
        println!("FAILED  {failure}");
    }
    let broken = stages
        .iter()
        .filter(|stage| stage.name != "tests" && stage.failure.is_some());
    for failure in broken.clone().filter_map(|stage| stage.failure.as_deref()) {
        println!("FAILED  {failure}");
    }
    let passed: u32 = outcome.reports.iter().map(|report| report.passed).sum();
    let mut failed: u32 = outcome.reports.iter().map(|report| report.failed).sum();
    failed += broken.count() as u32;
    // A test program that does not compile reports nothing, yet the run has failed.
    if failed == 0 && stages.iter().any(|stage| stage.failure.is_some()) {
        failed = 1;
    }
    println!(
        "{:.0} s\n{passed} passed, {failed} failed",
        elapsed().as_secs_f64()
    );
    failed == 0
}
