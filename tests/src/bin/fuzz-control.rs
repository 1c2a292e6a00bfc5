//! Random histories of a cluster through the agent's pure parts: see `lb_tests::history`.

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::history::campaign::{Options, run_campaign};

fn main() -> Result<()> {
    let report = run_campaign(options(std::env::args().skip(1))?)?;
    ensure!(
        report.failures.is_empty(),
        "{} histories in which the tables and the oracle disagree",
        report.failures.len()
    );
    Ok(())
}

/// Reads `--histories N`, `--seed S` and `--failures N`.
fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options {
        histories: 10_000,
        seed: 1,
        failures: 10,
    };
    while let Some(name) = arguments.next() {
        let value = arguments.next();
        let number = value.as_deref().and_then(|value| value.parse().ok());
        let number: u64 = number.with_context(|| format!("{name} needs a number"))?;
        match name.as_str() {
            "--histories" => options.histories = number,
            "--seed" => options.seed = number,
            "--failures" => options.failures = number as usize,
            _ => bail!("unknown option {name}; known are --histories, --seed and --failures"),
        }
    }
    Ok(options)
}
