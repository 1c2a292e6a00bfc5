//! Scripts on which programs and oracle once disagreed, and now must not. Needs root.

use std::path::Path;

use lb_tests::fuzz::kernel::{Kernel, isolated};
use lb_tests::fuzz::{fixture, run};

/// Runs of each script: programs choose at random.
const RUNS: usize = 4;

#[test]
fn programs_and_oracle_agree_on_every_kept_script() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/fuzz");
    let disagreements = isolated(move |bpffs| {
        let mut kernel = Kernel::load(bpffs)?;
        let mut disagreements = Vec::new();
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let kept = fixture::read(&std::fs::read_to_string(&path)?)?;
            for _ in 0..RUNS {
                if let Err(mismatch) = run::run(&mut kernel, &kept.script)? {
                    disagreements.push(format!("{}: {}", path.display(), mismatch.text));
                    break;
                }
            }
        }
        Ok(disagreements)
    })
    .unwrap_or_else(|error| panic!("{error:#}"));
    assert!(disagreements.is_empty(), "{}", disagreements.join("\n"));
}
