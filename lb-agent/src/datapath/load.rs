//! Programs on their way into the kernel: aya relocates them, the verifier reads them, and they are pinned.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::sync::{Mutex, PoisonError};
use std::thread;

use aya::EbpfLoader;
use aya::programs::Program as AyaProgram;

use super::object::Definitions;
use super::pins::Pins;
use super::refusal::readable;
use super::{Error, Result, joined};
use crate::sys::bpf::pin;
use crate::sys::capability;

/// Programs that are loaded at the same time, at most: each takes the verifier some megabytes, which count as ours.
const LOADERS: usize = 4;

/// Loads the programs that are wanted over our pinned tables and pins them; which ones the kernel did not take.
pub(super) fn load(
    pins: &Pins,
    definitions: &Definitions,
    object: &[u8],
    is_wanted: impl Fn(&str) -> bool,
) -> Result<BTreeMap<String, Error>> {
    let paths: Vec<(&str, std::path::PathBuf)> = definitions
        .tables()
        .map(|table| (table.name.as_str(), pins.map(&table.name)))
        .collect();
    let mut loader = EbpfLoader::new();
    // Nothing of the object depends on how this kernel lays out its own types: they need not be read.
    loader.btf(None);
    for (name, path) in &paths {
        loader.map_pin_path(name, path.as_path());
    }
    let mut object = loader
        .load(object)
        .map_err(|source| failed("the eBPF object", source))?;
    let mut wanted: Vec<_> = object
        .programs_mut()
        .filter(|(name, _)| is_wanted(name))
        .collect();
    // Those that take long are not begun last: the loaders end together.
    wanted.sort_by_key(|(_, program)| matches!(program, AyaProgram::SchedClassifier(_)));
    // The verifier reads one program on one processor.
    let loaders = thread::available_parallelism()
        .map_or(1, |processors| LOADERS.min(processors.get()))
        .min(wanted.len());
    let waiting = Mutex::new(wanted);
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let work = || {
        let mut refused = BTreeMap::new();
        while let Some((name, program)) = next() {
            if let Err(error) = load_one(pins, name, program)? {
                refused.insert(name.to_owned(), error);
            }
        }
        Ok(refused)
    };
    let results: Vec<Result<_>> = thread::scope(|scope| {
        let others: Vec<_> = (1..loaders).map(|_| scope.spawn(work)).collect();
        let own = work();
        others.into_iter().map(joined).chain([own]).collect()
    });
    let mut refused = BTreeMap::new();
    for result in results {
        refused.extend(result?);
    }
    Ok(refused)
}

/// Loads and pins a program; the inner error is the kernel's refusal.
fn load_one(
    pins: &Pins,
    name: &str,
    program: &mut AyaProgram,
) -> Result<std::result::Result<(), Error>> {
    let loaded = match program {
        AyaProgram::SchedClassifier(tc) => tc.load(),
        AyaProgram::CgroupSockAddr(socket) => socket.load(),
        AyaProgram::CgroupSock(socket) => socket.load(),
        AyaProgram::Xdp(xdp) => xdp.load(),
        _ => {
            return Err(Error::Object(format!(
                "program {name} is of a kind that the agent cannot load"
            )));
        }
    };
    if let Err(source) = loaded {
        return Ok(Err(failed(&refused(name), readable(source))));
    }
    let fd = program
        .fd()
        .map_err(|source| failed(&format!("program {name}"), source))?;
    pin::pin_over(fd.as_fd(), &pins.program(name))?;
    Ok(Ok(()))
}

/// What did not load, and what may help.
fn refused(name: &str) -> String {
    match capability::may_read_kernel_memory() {
        // Later verifiers put a barrier where they once gave up (mainline 6.17).
        Ok(false) => format!(
            "program {name} (before Linux 6.18 this takes CAP_PERFMON, which this process lacks, beside CAP_BPF \
             and CAP_NET_ADMIN: add it to the container's capabilities)"
        ),
        _ => format!("program {name}"),
    }
}

fn failed(what: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Load {
        what: what.to_owned(),
        source: source.into(),
    }
}
