//! Scripts as files: JSON with frames in hexadecimal, and a sentence about what they show.

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::script::Script;

/// A kept script.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Fixture {
    /// What went wrong, or what must hold.
    pub about: Vec<String>,
    pub script: Script,
}

/// A script as text.
pub fn text(script: &Script, about: &str) -> Result<String> {
    let fixture = Fixture {
        about: about.lines().map(str::to_owned).collect(),
        script: script.clone(),
    };
    Ok(serde_json::to_string_pretty(&fixture)? + "\n")
}

/// The script in a text.
pub fn read(text: &str) -> Result<Fixture> {
    serde_json::from_str(text).context("reading a fixture")
}
