//! Every program verifies with the agent's two capabilities, and costs what `budget.toml` says.

use std::path::Path;
use std::{env, fs};

use lb_tests::object::budget::{Cost, kernel, load_with_two_capabilities, read, write};

/// Set to have the file rewritten.
const UPDATE: &str = "BEELINE_UPDATE_BUDGET";
/// Instructions that no program may need on any kernel: a fifth of what verifiers take.
const CEILING: u32 = 200_000;
/// Change in percent that must be looked at.
const TOLERANCE: u64 = 5;

fn changed(tracked: u32, now: u32) -> bool {
    u64::from(tracked.abs_diff(now)) * 100 > u64::from(tracked) * TOLERANCE
}

#[test]
fn every_program_loads_with_two_capabilities_and_stays_in_its_budget() {
    let costs = load_with_two_capabilities().unwrap_or_else(|error| panic!("{error:#}"));
    let kernel = kernel().expect("the kernel's release");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("budget.toml");
    let text = fs::read_to_string(&path).expect("tests/budget.toml");
    if env::var_os(UPDATE).is_some() {
        fs::write(&path, write(&text, &kernel, &costs)).expect("written");
    }
    for (name, cost) in &costs {
        assert!(
            cost.verified <= CEILING,
            "{name} needs {} instructions to verify, more than {CEILING}",
            cost.verified
        );
    }
    let Some(tracked) = read(&text, &kernel).expect("tests/budget.toml") else {
        // Another kernel's verifier counts otherwise; the ceiling holds all the same.
        return;
    };
    let mut differences = Vec::new();
    for name in tracked
        .keys()
        .chain(costs.keys().filter(|name| !tracked.contains_key(*name)))
    {
        match (tracked.get(name), costs.get(name)) {
            (Some(before), Some(now))
                if !changed(before.verified, now.verified) && !changed(before.bytes, now.bytes) => {
            }
            (before, now) => {
                differences.push(format!("{name}: {} → {}", shown(before), shown(now)))
            }
        }
    }
    assert!(
        differences.is_empty() || env::var_os(UPDATE).is_some(),
        "programs cost more or less than tests/budget.toml says for Linux {kernel}:\n{}\n\
         If that is meant, say why in the commit and update the file:\n\
         {UPDATE}=1 cargo test -p lb-tests --test datapath_budget",
        differences.join("\n")
    );
}

fn shown(cost: Option<&Cost>) -> String {
    match cost {
        Some(Cost { verified, bytes }) => format!("{verified} instructions, {bytes} bytes"),
        None => "nothing".into(),
    }
}
