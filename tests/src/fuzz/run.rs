//! Runs a script through programs and oracle side by side.

use anyhow::Result;
use lb_ebpf::abi::counter;

use super::compare;
use super::frames;
use super::kernel::{Kernel, Ran};
use super::script::{From, Script, Step};
use crate::oracle::packet::{Hook, Oracle, REDIRECT, hex};

/// Programs and oracle disagree.
#[derive(Clone, PartialEq, Debug)]
pub struct Mismatch {
    /// The step, or `None` for what only the end showed.
    pub step: Option<usize>,
    pub text: String,
}

/// What a run without mismatch did.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Done {
    pub packets: u64,
    /// Packets that were not passed as they came.
    pub handled: u64,
}

impl Done {
    pub fn add(&mut self, more: Self) {
        self.packets += more.packets;
        self.handled += more.handled;
    }
}

/// Counters that depend on what the oracle leaves to the programs.
const LOOSE: [u32; 5] = [
    counter::FRAGMENT_UNKNOWN,
    counter::MALFORMED,
    counter::FLOW_EXPIRED,
    counter::FRONTEND_RETRY,
    counter::REPLY_CONFLICT,
];

/// Runs a script. The outer error is the kernel's, the inner a mismatch.
pub fn run(kernel: &mut Kernel, script: &Script) -> Result<Result<Done, Mismatch>> {
    kernel.start(&script.tables)?;
    let before = kernel.counters()?;
    let mut oracle = Oracle {
        tables: script.tables.clone(),
        ..Oracle::default()
    };
    let mut done = Done::default();
    let mut seen: Vec<Option<(Vec<u8>, Ran)>> = Vec::new();
    for (at, step) in script.steps.iter().enumerate() {
        let mut outcome = None;
        match step {
            Step::Wait(seconds) => {
                oracle.wait(*seconds);
                kernel.wait(*seconds as u32)?;
            }
            Step::Change(change) => {
                change.apply(&mut oracle.tables);
                kernel.change(&oracle.tables)?;
            }
            Step::Frame { hook, from, edits } => {
                if let Some((frame, mark)) = source(from, &seen, *hook) {
                    let frame = frames::edited(frame, edits);
                    let ran = if script.xdp {
                        kernel.run_early(*hook, mark, &frame)?
                    } else {
                        kernel.run(*hook, mark, &frame)?
                    };
                    if let Some(ran) = ran {
                        done.packets += 1;
                        done.handled += u64::from(ran.seen.action != -1 || ran.seen.frame != frame);
                        let ours = mark != 0 && !hook.is_ingress();
                        if let Err(why) = oracle.judge(*hook, ours, &frame, &ran.seen) {
                            let text = format!(
                                "{} on {}\n  gave action {} and {}\n  but {why}",
                                hook.program(),
                                hex(&frame),
                                ran.seen.action,
                                hex(&ran.seen.frame)
                            );
                            return Ok(Err(Mismatch {
                                step: Some(at),
                                text,
                            }));
                        }
                        if let Err(why) = compare::learn_ports(kernel, &mut oracle)? {
                            let text = format!("{} on {}: {why}", hook.program(), hex(&frame));
                            return Ok(Err(Mismatch {
                                step: Some(at),
                                text,
                            }));
                        }
                        outcome = Some((frame, ran));
                    }
                }
            }
        }
        seen.push(outcome);
    }
    let after = kernel.counters()?;
    for (number, label, _) in counter::ALL {
        let got = after[*number as usize] - before[*number as usize];
        let wanted = oracle.counted.get(number).copied().unwrap_or(0);
        if got != wanted && !LOOSE.contains(number) {
            return Ok(Err(Mismatch {
                step: None,
                text: format!("{label} rose by {got}, not by {wanted}"),
            }));
        }
    }
    if let Err(text) = compare::flows(kernel, &oracle)? {
        return Ok(Err(Mismatch { step: None, text }));
    }
    Ok(Ok(done))
}

/// The frame of a step, and the mark it carries.
fn source(from: &From, seen: &[Option<(Vec<u8>, Ran)>], hook: Hook) -> Option<(Vec<u8>, u32)> {
    let of = |step: &usize| seen.get(*step).and_then(Option::as_ref);
    let out = |step: &usize| of(step).filter(|(_, ran)| ran.seen.action != 2);
    let frame = match from {
        From::Bytes(bytes) => bytes.clone(),
        From::Onward(step) => {
            let (_, ran) = out(step)?;
            let back = ran.seen.action == REDIRECT && !hook.is_ingress();
            let mark = if back { ran.mark } else { 0 };
            return Some((ran.seen.frame.clone(), mark));
        }
        From::Reply(step, speech) => frames::reply(&out(step)?.1.seen.frame, speech)?,
        From::Again(step, speech) => frames::again(&of(step)?.0, speech)?,
        From::Complaint(step, complaint) => frames::complaint(&out(step)?.1.seen.frame, complaint)?,
    };
    let made = !matches!(from, From::Bytes(_));
    if made && hook.is_ingress() {
        return Some((frames::delivered(hook.side(), frame), 0));
    }
    Some((frame, 0))
}
