//! `cargo xtask bench page`: raw results become the tables and plots of `docs/benchmarks.md`.
//!
//! What stands between the markers of a table is replaced, all else is left as it is. The raw results are kept beside
//! the page, so that every figure can be looked up.

mod control;
mod lanes;
mod packet;
mod plot;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::Value;

use super::record::DIRECTORY;

/// Settings of a run.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The page
    #[arg(long, default_value = "docs/benchmarks.md")]
    page: PathBuf,
}

/// A table's text from the lines of its raw results, and the plots that go with it: file name and content.
type Table = fn(&[Value]) -> (String, Vec<(String, String)>);

const TABLES: [(&str, Table); 3] = [
    ("packet", packet::table),
    ("lanes", lanes::table),
    ("control", control::table),
];

/// Rewrites the page from what was measured last.
pub fn run(options: &Options) -> Result<()> {
    let mut text = fs::read_to_string(&options.page)
        .with_context(|| format!("read {}", options.page.display()))?;
    let beside = options.page.with_extension("");
    for (name, table) in TABLES {
        let raw = Path::new(DIRECTORY).join(format!("{name}.jsonl"));
        let Ok(content) = fs::read_to_string(&raw) else {
            eprintln!("{} is not there: its table stays", raw.display());
            continue;
        };
        let lines = content
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<Vec<Value>, _>>()
            .with_context(|| format!("understand {}", raw.display()))?;
        let (table, plots) = table(&lines);
        let facts = lines.first().map(facts).unwrap_or_default();
        text = replaced(&text, name, &format!("{facts}\n\n{table}"))?;
        fs::create_dir_all(&beside)?;
        for (file, plot) in plots {
            fs::write(beside.join(file), plot)?;
        }
        fs::copy(&raw, beside.join(format!("{name}.jsonl")))
            .with_context(|| format!("keep {}", raw.display()))?;
    }
    fs::write(&options.page, text).with_context(|| format!("write {}", options.page.display()))
}

/// The machine's facts in a line.
fn facts(line: &Value) -> String {
    let text = |name: &str| line[name].as_str().unwrap_or("?").to_owned();
    format!(
        "{}, Linux {}, {} processors ({}), load {} before.",
        text("date"),
        text("kernel"),
        line["cores"],
        text("processor"),
        text("load before")
    )
}

/// The page with another text between the markers of a table.
fn replaced(page: &str, name: &str, table: &str) -> Result<String> {
    let (begin, end) = (
        format!("<!-- begin: {name} -->"),
        format!("<!-- end: {name} -->"),
    );
    let (before, rest) = page
        .split_once(&begin)
        .with_context(|| format!("the page has no {begin}"))?;
    let (_, after) = rest
        .split_once(&end)
        .with_context(|| format!("the page has no {end}"))?;
    Ok(format!("{before}{begin}\n{table}\n{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::replaced;

    #[test]
    fn only_what_is_between_the_markers_is_replaced() {
        let page = "a\n<!-- begin: x -->\nold\n<!-- end: x -->\nb\n";
        let wanted = "a\n<!-- begin: x -->\nnew\n<!-- end: x -->\nb\n";
        assert_eq!(replaced(page, "x", "new").unwrap(), wanted);
        assert!(replaced(page, "y", "new").is_err());
    }
}
