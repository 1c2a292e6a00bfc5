//! Raw results: one JSON object per line, the machine's facts first. They are kept whatever is printed.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Output;
use super::report::facts;

/// Where raw results go, below the directory that a run starts in.
pub(super) const DIRECTORY: &str = "target/bench";

/// A file of raw results in the making.
pub(super) struct Record {
    file: File,
    path: PathBuf,
    output: Output,
}

impl Record {
    pub(super) fn create(name: &str, output: Output) -> Result<Self> {
        fs::create_dir_all(DIRECTORY).with_context(|| format!("create {DIRECTORY}"))?;
        let path = PathBuf::from(DIRECTORY).join(format!("{name}.jsonl"));
        let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        let mut record = Self { file, path, output };
        record.line(&Value::Object(facts()))?;
        Ok(record)
    }

    pub(super) fn line(&mut self, line: &Value) -> Result<()> {
        if self.output == Output::Json {
            println!("{line}");
        }
        writeln!(self.file, "{line}").with_context(|| format!("write {}", self.path.display()))
    }

    /// Says something to people.
    pub(super) fn tell(&self, text: std::fmt::Arguments<'_>) {
        if self.output == Output::Table {
            println!("{text}");
        }
    }

    pub(super) fn finish(self) -> Result<()> {
        eprintln!("raw results: {}", self.path.display());
        Ok(())
    }
}
