//! Every program verifies with the agent's capabilities, and costs what `budget.toml` says.

use std::path::Path;
use std::{env, fs};

use lb_tests::object::budget::{BPF, Cost, NET_ADMIN, PERFMON, kernel, load_with, read, write};

/// Set to have the file rewritten.
const UPDATE: &str = "BEELINE_UPDATE_BUDGET";
/// Instructions that no program may need on any kernel: a fifth of what verifiers take.
const CEILING: u32 = 200_000;
/// Change in percent that must be looked at.
const TOLERANCE: u64 = 5;

fn changed(tracked: u32, now: u32) -> bool {
    u64::from(tracked.abs_diff(now)) * 100 > u64::from(tracked) * TOLERANCE
}

/// Two capabilities, and one more where the verifier refuses what a mispredicted branch might do instead of putting a
/// barrier there.
fn capabilities(kernel: &str) -> &'static [u32] {
    if is_older_than(kernel, (6, 18)) {
        &[BPF, NET_ADMIN, PERFMON]
    } else {
        &[BPF, NET_ADMIN]
    }
}

fn is_older_than(kernel: &str, version: (u32, u32)) -> bool {
    let (major, minor) = kernel.split_once('.').expect("major.minor");
    let number = |text: &str| text.parse::<u32>().expect("a number");
    (number(major), number(minor)) < version
}

#[test]
fn a_kernel_that_asks_for_a_third_capability_is_told_of_by_name() {
    let kernel = kernel().expect("the kernel's release");
    // An older kernel is content, too, if it was booted with mitigations=off.
    if let Err(error) = load_with(&[BPF, NET_ADMIN]) {
        let error = format!("{error:#}");
        assert!(is_older_than(&kernel, (6, 18)), "{error}");
        assert!(error.contains("CAP_PERFMON"), "{error}");
    }
}

#[test]
fn every_program_loads_with_the_agents_capabilities_and_stays_in_its_budget() {
    let kernel = kernel().expect("the kernel's release");
    let costs = load_with(capabilities(&kernel)).unwrap_or_else(|error| panic!("{error:#}"));
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
