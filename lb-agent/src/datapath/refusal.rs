//! What a kernel says of a program that it does not take, in the few lines that tell why.

use std::error::Error;
use std::fmt;

use aya::programs::ProgramError;

/// Lines kept of the verifier's log: the instruction it stumbled over, what it knew there, and its verdict. The way
/// there may be a hundred thousand lines, which no log of an agent should hold.
const KEPT: usize = 16;

/// A program that the kernel does not take.
#[derive(Debug)]
pub(super) struct Refusal {
    error: std::io::Error,
    verdict: String,
}

/// Makes an error that people can read of aya's.
pub(super) fn readable(error: ProgramError) -> Box<dyn Error + Send + Sync> {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => Box::new(Refusal {
            error: io_error,
            verdict: end(&verifier_log.to_string()),
        }),
        other => Box::new(other),
    }
}

/// The last lines of a log, and how many went before.
fn end(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let cut = lines.len().saturating_sub(KEPT);
    let kept = lines[cut..].join("\n");
    match cut {
        0 => kept,
        _ => format!("[{cut} lines before]\n{kept}"),
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the kernel does not take it: {}", self.error)?;
        if self.verdict.is_empty() {
            return Ok(());
        }
        write!(f, "; its verifier says:\n{}", self.verdict)
    }
}

impl Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_ends_in_what_matters() {
        let log: String = (0..100_000)
            .map(|line| format!("{line}: (b7) r0 = 0\n\n"))
            .collect();
        let text = end(&(log + "R1 invalid mem access 'scalar'\n"));
        assert_eq!(text.lines().count(), KEPT + 1);
        assert!(text.starts_with("[99985 lines before]\n99985: "), "{text}");
        assert!(text.ends_with("R1 invalid mem access 'scalar'"), "{text}");
    }

    #[test]
    fn a_short_log_is_whole() {
        assert_eq!(end("\nR0 !read_ok\n"), "R0 !read_ok");
        assert_eq!(end(""), "");
    }
}
