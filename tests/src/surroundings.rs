//! What hosts are like where a test says nothing about it: the same tests once more among hosts that do other things
//! with packets besides, as `cargo xtask test --surroundings` runs them.

use std::env;

use anyhow::{Result, bail};

use crate::guards::Guards;

/// Words with commas between them; see [`Surroundings::read`].
const VARIABLE: &str = "BEELINE_TEST_SURROUNDINGS";

/// What is assumed of hosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Surroundings {
    /// Whether senders leave checksums and segmentation to the device.
    pub(crate) offload: bool,
    pub(crate) guards: Guards,
}

impl Surroundings {
    /// Those the environment names.
    pub(crate) fn of_this_run() -> Result<Self> {
        Self::read(&env::var(VARIABLE).unwrap_or_default())
    }

    /// Plain hosts with these words' differences.
    fn read(words: &str) -> Result<Self> {
        let mut surroundings = Self {
            offload: true,
            guards: Guards::default(),
        };
        let Self { offload, guards } = &mut surroundings;
        for word in words.split(',').filter(|word| !word.is_empty()) {
            match word {
                "no-offload" => *offload = false,
                "bridge-firewall" => guards.bridge_firewall = Some(true),
                "no-bridge-firewall" => guards.bridge_firewall = Some(false),
                "strict" => guards.strict = true,
                other => bail!(
                    "{VARIABLE} has {other:?}; it knows no-offload, bridge-firewall, no-bridge-firewall and strict"
                ),
            }
        }
        Ok(surroundings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_add_up_and_unknown_ones_are_named() -> Result<()> {
        let plain = Surroundings::read("")?;
        assert_eq!((plain.offload, plain.guards), (true, Guards::default()));
        let all = Surroundings::read("no-offload,no-bridge-firewall,strict")?;
        let guards = Guards {
            bridge_firewall: Some(false),
            strict: true,
        };
        assert_eq!((all.offload, all.guards), (false, guards));
        let error = Surroundings::read("lenient").unwrap_err().to_string();
        assert!(error.contains("lenient"), "{error}");
        Ok(())
    }
}
