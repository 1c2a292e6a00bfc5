//! Results of all kernels side by side.

use super::Run;
use super::programs::Programs;
use crate::progress::elapsed;

/// Prints a row for each test program and a column for each kernel; true when nothing failed.
pub(super) fn print(runs: &[Run], programs: &Programs, filtered: bool) -> bool {
    let mut head = format!("\n{:<28}", "");
    for run in runs {
        head += &format!(" {:>16}", run.kernel);
    }
    println!("{head}");
    for name in programs.names() {
        let cells: Vec<String> = runs.iter().map(|run| cell(run, &name)).collect();
        // A filter leaves most programs without a test.
        if filtered && cells.iter().all(|cell| cell == "0") {
            continue;
        }
        println!("{name:<28}{}", row(&cells));
    }
    let all = |count: fn(&Run) -> u32| -> Vec<String> {
        runs.iter().map(|run| count(run).to_string()).collect()
    };
    let seconds = |run: &Run| {
        let time: f64 = run
            .outcome
            .reports
            .iter()
            .map(|report| report.time.as_secs_f64())
            .sum();
        format!("{time:.0}")
    };
    let times: Vec<String> = runs.iter().map(seconds).collect();
    println!("{:<28}{}", "seconds", row(&times));
    println!("{:<28}{}", "passed", row(&all(passed)));
    println!("{:<28}{}", "failed", row(&all(failed)));
    for run in runs {
        for failure in &run.outcome.failures {
            println!("FAILED  Linux {}: {failure}", run.kernel);
        }
    }
    let (passed, failed) = (
        runs.iter().map(passed).sum::<u32>(),
        runs.iter().map(failed).sum::<u32>(),
    );
    println!(
        "{:.0} s\n{passed} passed, {failed} failed",
        elapsed().as_secs_f64()
    );
    failed == 0 && passed > 0
}

fn row(cells: &[String]) -> String {
    cells.iter().map(|cell| format!(" {cell:>16}")).collect()
}

fn cell(run: &Run, name: &str) -> String {
    let reports = run
        .outcome
        .reports
        .iter()
        .filter(|report| report.name == name);
    let (passed, failed) = reports.fold((0, 0), |(passed, failed), report| {
        (passed + report.passed, failed + report.failed)
    });
    match failed {
        0 => passed.to_string(),
        _ => format!("{passed}, {failed} failed"),
    }
}

fn passed(run: &Run) -> u32 {
    run.outcome.reports.iter().map(|report| report.passed).sum()
}

fn failed(run: &Run) -> u32 {
    run.outcome.reports.iter().map(|report| report.failed).sum()
}
