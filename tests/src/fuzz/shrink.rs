//! Makes a failing script short: steps go, endpoints and services go, as long as it still fails.

use anyhow::Result;

use super::kernel::Kernel;
use super::run::{Mismatch, run};
use super::script::{From, Script, Step};

/// Times a script is run: programs choose at random, so a failure may need some luck.
const TRIES: usize = 6;

/// The shortest script found that fails, and how; `None` if it does not fail again.
pub fn shrink(kernel: &mut Kernel, script: &Script) -> Result<Option<(Script, Mismatch)>> {
    let Some(mut mismatch) = fails(kernel, script)? else {
        return Ok(None);
    };
    let mut best = script.clone();
    if let Some(step) = mismatch.step {
        best.steps.truncate(step + 1);
    }
    let mut size = best.steps.len();
    while size > 0 {
        let mut at = 0;
        while at < best.steps.len() {
            let shorter = without(&best, at, size);
            match fails(kernel, &shorter)? {
                Some(again) => (best, mismatch) = (shorter, again),
                None => at += size,
            }
        }
        size /= 2;
    }
    for service in (0..best.tables.services.len()).rev() {
        let mut smaller = best.clone();
        smaller.tables.services.remove(service);
        // Changes name Services by their place.
        let changes = best
            .steps
            .iter()
            .any(|step| matches!(step, Step::Change(_)));
        if !changes && let Some(again) = fails(kernel, &smaller)? {
            (best, mismatch) = (smaller, again);
        }
    }
    Ok(Some((best, mismatch)))
}

fn fails(kernel: &mut Kernel, script: &Script) -> Result<Option<Mismatch>> {
    for _ in 0..TRIES {
        if let Err(mismatch) = run(kernel, script)? {
            return Ok(Some(mismatch));
        }
    }
    Ok(None)
}

/// Takes steps out, and those that need them.
fn without(script: &Script, first: usize, count: usize) -> Script {
    let gone = first..first + count;
    let mut places: Vec<Option<usize>> = Vec::new();
    let mut steps = Vec::new();
    for (at, step) in script.steps.iter().enumerate() {
        let moved = if gone.contains(&at) {
            None
        } else {
            renumbered(step, &places)
        };
        places.push(moved.is_some().then_some(steps.len()));
        steps.extend(moved);
    }
    Script {
        tables: script.tables.clone(),
        xdp: script.xdp,
        steps,
    }
}

fn renumbered(step: &Step, places: &[Option<usize>]) -> Option<Step> {
    let mut step = step.clone();
    if let Step::Frame { from, .. } = &mut step {
        match from {
            From::Bytes(_) => {}
            From::Onward(at) | From::Reply(at, _) | From::Again(at, _) | From::Complaint(at, _) => {
                *at = places.get(*at).copied().flatten()?;
            }
        }
    }
    Some(step)
}
