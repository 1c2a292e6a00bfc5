//! The programs: loaded and pinned, or adopted from an agent that loaded the very same object.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;

use aya::EbpfLoader;
use aya::programs::Program as AyaProgram;
use tracing::warn;

use super::object::{Definition, Definitions};
use super::pins::{Pins, check, list};
use super::refusal::readable;
use super::{Error, Result, xdp};
use crate::sys::bpf::{Map, MapKind, Program, WriteMode, pin};
use crate::sys::capability;

/// Runs the sweeper's timer; see `sweep_arm` in the object.
const SWEEP_ARM: &str = "sweep_arm";

/// Programs that are loaded at the same time, at most: each takes the verifier some megabytes, which count as ours.
const LOADERS: usize = 4;

/// A timer's memory is allocated without waiting (Linux 6.18), which fails now and then where CPUs compete for it.
const ARMING_TRIES: u32 = 20;

/// Every program of the object, pinned.
#[derive(Debug)]
pub struct Programs {
    programs: BTreeMap<String, Pinned>,
    /// Why the kernel did not take one that this node can do without; nothing is known of it once adopted.
    refused: BTreeMap<String, Error>,
    adopted: bool,
}

#[derive(Debug)]
struct Pinned {
    program: Program,
    id: u32,
}

impl Programs {
    /// Adopts the pinned programs if they come from this object, else loads and pins them. The tables are pinned
    /// already; programs that run keep running until their links are given the new ones.
    pub fn open(pins: &Pins, definitions: &Definitions, object: &[u8]) -> Result<Self> {
        let about = About::open(pins)?;
        let identity = identity(object);
        if about.read()? == identity
            && let Some(programs) = open_pinned(pins, definitions)?
        {
            tracing::info!(programs = programs.len(), "adopted the running programs");
            return Ok(Self {
                programs,
                refused: BTreeMap::new(),
                adopted: true,
            });
        }
        // A crash from here on leaves a record that equals no object.
        about.write([0; 2])?;
        let refused = load(pins, definitions, object)?;
        let programs = open_pinned(pins, definitions)?
            .ok_or_else(|| Error::Object("a program vanished right after it was pinned".into()))?;
        about.write(identity)?;
        remove_strangers(pins, definitions)?;
        tracing::info!(programs = programs.len(), "loaded the programs");
        Ok(Self {
            programs,
            refused,
            adopted: false,
        })
    }

    /// Whether they were there already.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// A program and its id.
    pub(super) fn get(&self, name: &str) -> Result<(&Program, u32)> {
        self.programs
            .get(name)
            .map(|pinned| (&pinned.program, pinned.id))
            .ok_or_else(|| Error::Object(format!("the eBPF object has no program {name}")))
    }

    /// A program and its id, if the kernel took it.
    pub(super) fn find(&self, name: &str) -> Option<(&Program, u32)> {
        let pinned = self.programs.get(name)?;
        Some((&pinned.program, pinned.id))
    }

    /// Why the kernel did not take a program, if this agent saw it refused.
    pub fn refusal(&self, name: &str) -> Option<&Error> {
        self.refused.get(name)
    }

    /// Starts the timer that sweeps expired flows, or hands it to this object's code. From then on the pin of its
    /// table keeps it ticking.
    pub fn arm_sweeper(&self) -> Result<()> {
        let program = &self.get(SWEEP_ARM)?.0;
        let mut tries = ARMING_TRIES;
        loop {
            // The shortest frame that a test run takes.
            match program.run_once(&[0; 64])? {
                0 => return Ok(()),
                step if tries == 0 => {
                    return Err(Error::Object(format!(
                        "the sweep of expired flows does not start (step {step} of {SWEEP_ARM})"
                    )));
                }
                _ => tries -= 1,
            }
            thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// Programs that older kernels do not take, whose work others do as well.
fn optional(name: &str) -> bool {
    xdp::PROGRAMS.contains(&name)
}

/// Loads the object by aya over our pinned tables and pins its programs; which ones the kernel did not take, of those
/// that may be missing.
fn load(pins: &Pins, definitions: &Definitions, object: &[u8]) -> Result<BTreeMap<String, Error>> {
    let paths: Vec<(&str, std::path::PathBuf)> = definitions
        .tables()
        .map(|table| (table.name.as_str(), pins.map(&table.name)))
        .collect();
    let mut loader = EbpfLoader::new();
    for (name, path) in &paths {
        loader.map_pin_path(name, path.as_path());
    }
    let mut object = loader
        .load(object)
        .map_err(|source| failed("the eBPF object", source))?;
    // Nearly all of a first start is the verifier's, which reads one program on one processor.
    let loaders =
        thread::available_parallelism().map_or(1, |processors| LOADERS.min(processors.get()));
    let waiting = Mutex::new(object.programs_mut());
    let next = || {
        waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .next()
    };
    let work = || {
        let mut without = BTreeMap::new();
        while let Some((name, program)) = next() {
            if let Some(error) = load_one(pins, name, program)? {
                without.insert(name.to_owned(), error);
            }
        }
        Ok(without)
    };
    let results: Vec<Result<_>> = thread::scope(|scope| {
        let others: Vec<_> = (1..loaders).map(|_| scope.spawn(work)).collect();
        let own = work();
        let others = others.into_iter().map(|other| {
            other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        others.chain([own]).collect()
    });
    let mut without = BTreeMap::new();
    for result in results {
        without.extend(result?);
    }
    Ok(without)
}

/// Loads and pins a program; why the kernel does not take it, if this node can do without.
fn load_one(pins: &Pins, name: &str, program: &mut AyaProgram) -> Result<Option<Error>> {
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
        let error = failed(&refused(name), readable(source));
        if !optional(name) {
            return Err(error);
        }
        warn!(%error, "the kernel does not take a program that this node can do without");
        pin::remove(&pins.program(name))?;
        return Ok(Some(error));
    }
    let fd = program
        .fd()
        .map_err(|source| failed(&format!("program {name}"), source))?;
    pin::pin_over(fd.as_fd(), &pins.program(name))?;
    Ok(None)
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

/// The pinned programs, `None` if one is missing.
fn open_pinned(pins: &Pins, definitions: &Definitions) -> Result<Option<BTreeMap<String, Pinned>>> {
    let mut programs = BTreeMap::new();
    for name in definitions.programs() {
        let Some(fd) = pin::get_if_present(&pins.program(name))? else {
            if optional(name) {
                continue;
            }
            return Ok(None);
        };
        let program = Program::from_fd(fd);
        let id = program.info()?.id;
        programs.insert(name.to_owned(), Pinned { program, id });
    }
    Ok(Some(programs))
}

/// Removes pins of programs that this object does not have; links keep what is still attached.
fn remove_strangers(pins: &Pins, definitions: &Definitions) -> Result<()> {
    let paths = list(&pins.programs()).map_err(|e| Error::io("list pinned programs", e))?;
    let is_ours = |path: &Path| {
        definitions
            .programs()
            .any(|name| path.file_name() == Some(name.as_ref()))
    };
    for path in paths.iter().filter(|path| !is_ours(path)) {
        pin::remove(path)?;
    }
    Ok(())
}

fn failed(what: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Load {
        what: what.to_owned(),
        source: source.into(),
    }
}

/// A pinned record of which object the pinned programs come from.
#[derive(Debug)]
struct About {
    map: Map,
}

impl About {
    const NAME: &str = "about";

    fn open(pins: &Pins) -> Result<Self> {
        let definition = Definition::plain(Self::NAME, MapKind::Array, (4, 16), 1);
        let path = pins.map(Self::NAME);
        if let Some(fd) = pin::get_if_present(&path)? {
            let map = Map::from_fd(fd)?;
            check(&map, &definition, &path, false)?;
            return Ok(Self { map });
        }
        let map = Map::create(&definition.spec())?;
        pin::pin(map.as_fd(), &path)?;
        Ok(Self { map })
    }

    fn read(&self) -> Result<[u64; 2]> {
        let mut value = [0; 16];
        self.map.lookup_into(&[0; 4], &mut value)?;
        let (low, high) = value.split_at(8);
        let word = |bytes: &[u8]| {
            bytes
                .iter()
                .rev()
                .fold(0, |word, &byte| word << 8 | u64::from(byte))
        };
        Ok([word(low), word(high)])
    }

    fn write(&self, identity: [u64; 2]) -> Result<()> {
        let mut value = [0; 16];
        value[..8].copy_from_slice(&identity[0].to_le_bytes());
        value[8..].copy_from_slice(&identity[1].to_le_bytes());
        Ok(self.map.update(&[0; 4], &value, WriteMode::Any)?)
    }
}

/// Tells objects apart: length and FNV-1a over the object's words. Not against an adversary, who would have to be
/// root.
fn identity(object: &[u8]) -> [u64; 2] {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for chunk in object.chunks(8) {
        let word = chunk
            .iter()
            .rev()
            .fold(0, |word, &byte| word << 8 | u64::from(byte));
        hash = (hash ^ word).wrapping_mul(0x0100_0000_01b3);
        hash ^= hash >> 29;
    }
    [object.len() as u64, hash]
}

#[cfg(test)]
mod tests {
    use super::identity;

    #[test]
    fn one_changed_byte_makes_another_identity() {
        let object: Vec<u8> = (0..100).collect();
        for at in 0..object.len() {
            let mut other = object.clone();
            other[at] ^= 0x80;
            assert_ne!(identity(&object), identity(&other), "byte {at}");
        }
    }

    #[test]
    fn no_object_has_the_identity_of_an_empty_record() {
        assert_ne!(identity(&[]), [0; 2]);
        assert_ne!(identity(&[0]), [0; 2]);
    }
}
