//! Runs `cargo test` and sums what the test programs report.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// A test program that says nothing for so long hangs: the slowest test takes a minute.
const SILENCE: Duration = Duration::from_secs(420);

/// What one test program reported.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Report {
    pub(crate) name: String,
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) ignored: u32,
    pub(crate) time: Duration,
}

/// What a whole run came to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) reports: Vec<Report>,
    pub(crate) failures: Vec<String>,
    /// Cargo was content with the run.
    pub(crate) success: bool,
}

/// Runs a `cargo test` command, passes on what it prints, and reads the results from it.
pub(crate) fn run(mut command: Command) -> Result<Outcome> {
    // One pipe for both streams keeps "Running …" in front of what that program prints.
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    command
        .env("CARGO_TERM_COLOR", "never")
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = command.spawn().context("starting cargo test")?;
    // Our copies of the pipe's end must go, else the pipe never ends.
    drop(command);
    let (lines, arriving) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(reader)
            .split(b'\n')
            .map_while(std::result::Result::ok)
        {
            if lines
                .send(String::from_utf8_lossy(&line).into_owned())
                .is_err()
            {
                return;
            }
        }
    });
    let mut transcript = Transcript::default();
    follow(&mut child, &arriving, &mut transcript);
    let success = child.wait().context("waiting for cargo test")?.success();
    Ok(transcript.finish(success))
}

fn follow(child: &mut Child, lines: &Receiver<String>, transcript: &mut Transcript) {
    loop {
        match lines.recv_timeout(SILENCE) {
            Ok(line) => {
                let mut out = std::io::stdout().lock();
                // A reader that went away must not stop the tests half way.
                let _ = writeln!(out, "{line}").and_then(|()| out.flush());
                transcript.line(&line);
            }
            Err(RecvTimeoutError::Timeout) => {
                transcript.hung();
                kill_tree(child.id());
                return;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Reads the output line by line.
#[derive(Default)]
struct Transcript {
    outcome: Outcome,
    current: Option<(String, Instant)>,
}

impl Transcript {
    fn line(&mut self, line: &str) {
        let trimmed = line.trim();
        if let Some(rest) = trimmed
            .strip_prefix("Running ")
            .filter(|rest| rest.ends_with(')'))
        {
            self.begin(program_name(rest));
        } else if let Some(name) = trimmed.strip_prefix("Doc-tests ") {
            self.begin(format!("{name} (documentation)"));
        } else if let Some(result) = trimmed.strip_prefix("test result: ") {
            self.result(result);
        } else if let Some(test) = failed_test(trimmed) {
            let program = self.current.as_ref().map_or("", |(name, _)| name.as_str());
            self.outcome.failures.push(format!("{program}: {test}"));
        }
    }

    fn begin(&mut self, name: String) {
        self.lost("ended without a result");
        self.current = Some((name, Instant::now()));
    }

    fn result(&mut self, result: &str) {
        let (name, since) = self
            .current
            .take()
            .unwrap_or_else(|| ("?".to_owned(), Instant::now()));
        let count = |what: &str| {
            let field = result
                .split(['.', ';'])
                .find_map(|field| field.trim().strip_suffix(what));
            field
                .and_then(|number| number.trim().parse().ok())
                .unwrap_or(0)
        };
        self.outcome.reports.push(Report {
            name,
            passed: count(" passed"),
            failed: count(" failed"),
            ignored: count(" ignored"),
            time: since.elapsed(),
        });
    }

    fn hung(&mut self) {
        self.lost(&format!(
            "said nothing for {} s and was killed",
            SILENCE.as_secs()
        ));
    }

    /// The current program will not report any more: that is one failure.
    fn lost(&mut self, how: &str) {
        if let Some((name, since)) = self.current.take() {
            self.outcome.failures.push(format!("{name}: {how}"));
            self.outcome.reports.push(Report {
                name,
                failed: 1,
                time: since.elapsed(),
                ..Report::default()
            });
        }
    }

    fn finish(mut self, success: bool) -> Outcome {
        self.lost("ended without a result");
        self.outcome.success = success;
        self.outcome
    }
}

/// `unittests src/lib.rs (target/debug/deps/lb_agent-0123)` → `lb_agent: src/lib.rs`.
pub(crate) fn program_name(running: &str) -> String {
    let (source, file) = running
        .trim_end_matches(')')
        .split_once(" (")
        .unwrap_or((running, ""));
    let program = file.rsplit('/').next().unwrap_or(file);
    let name = program.rsplit_once('-').map_or(program, |(name, _)| name);
    let source = source.trim_start_matches("unittests ");
    match source.strip_prefix("tests/") {
        Some(_) => name.to_owned(),
        None => format!("{name} ({source})"),
    }
}

/// `test model::works ... FAILED` → `model::works`.
fn failed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

/// Kills a process and everything it started, children first known, so that none is left in a namespace.
fn kill_tree(process: u32) {
    let mut victims = vec![process];
    let mut next = 0;
    while let Some(&parent) = victims.get(next) {
        next += 1;
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))
            .unwrap_or_default();
        victims.extend(
            children
                .split_whitespace()
                .filter_map(|child| child.parse::<u32>().ok()),
        );
    }
    let victims = victims.iter().map(u32::to_string);
    // Best effort: those that ended meanwhile are no trouble.
    let _ = Command::new("kill").arg("-KILL").args(victims).status();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Outcome {
        let mut transcript = Transcript::default();
        text.lines().for_each(|line| transcript.line(line));
        transcript.finish(true)
    }

    #[test]
    fn results_are_summed_by_program() {
        let outcome = read(
            "     Running unittests src/lib.rs (target/debug/deps/lb_agent-0a1b)\n\
             test model::a ... ok\n\
             test model::b ... FAILED\n\
             test result: FAILED. 1 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
             \x20    Running tests/node_pods.rs (target/debug/deps/node_pods-77)\n\
             test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.10s\n",
        );
        let counts: Vec<_> = outcome
            .reports
            .iter()
            .map(|r| (r.name.as_str(), r.passed, r.failed, r.ignored))
            .collect();
        assert_eq!(
            counts,
            [("lb_agent (src/lib.rs)", 1, 1, 2), ("node_pods", 12, 0, 0)]
        );
        assert_eq!(outcome.failures, ["lb_agent (src/lib.rs): model::b"]);
    }

    #[test]
    fn a_program_that_dies_counts_as_a_failure() {
        let outcome = read("     Running tests/a.rs (target/debug/deps/a-1)\ntest x ... ok\n");
        assert_eq!(outcome.reports.len(), 1);
        assert_eq!(outcome.reports[0].failed, 1);
        assert_eq!(outcome.failures, ["a: ended without a result"]);
    }
}
