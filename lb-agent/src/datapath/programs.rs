//! The programs: loaded and pinned, or adopted from an agent that loaded the very same object.
//!
//! The verifier reads for most of a first start. So sockets are served before the programs that see packets are there,
//! see [`Programs::begin`], and those for devices that few nodes have come later still, see [`Late`].

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use tracing::{info, warn};

use super::attach::PACKET_PROGRAMS;
use super::late::{Late, is_late};
use super::load::load;
use super::object::{Definition, Definitions};
use super::pins::{Pins, check, list};
use super::{Error, Result};
use crate::sys::bpf::{Map, MapKind, Program, WriteMode, pin};
use crate::sys::priority;

/// Runs the sweeper's timer; see `sweep_arm` in the object.
const SWEEP_ARM: &str = "sweep_arm";

/// A timer's memory is allocated without waiting (Linux 6.18), which fails now and then where CPUs compete for it.
const ARMING_TRIES: u32 = 20;

/// By how much reading the cluster goes before programs that see packets, which take processors at the same time.
const NICENESS: i32 = 5;

/// The object's programs, pinned.
#[derive(Debug)]
pub struct Programs {
    programs: BTreeMap<String, Pinned>,
    late: Arc<Late>,
    adopted: bool,
    /// Loads those that see packets; which ones the kernel did not take.
    coming: Option<JoinHandle<Result<BTreeMap<String, Error>>>>,
}

#[derive(Debug)]
struct Pinned {
    program: Program,
    id: u32,
}

impl Programs {
    /// Adopts the pinned programs if they come from this object, else loads and pins them, but for those that wait for
    /// their device. The tables are pinned already; programs that run keep running until their links are given the new
    /// ones.
    ///
    /// Where none are pinned, those that see packets are still on their way then, until [`Programs::finish`].
    pub fn begin(
        pins: &Pins,
        definitions: &Arc<Definitions>,
        object: &'static [u8],
    ) -> Result<Self> {
        let about = About::open(pins)?;
        let mut programs = Self {
            programs: BTreeMap::new(),
            late: Arc::new(Late::new(pins, definitions, object)),
            adopted: true,
            coming: None,
        };
        if about.read()? == identity(object) && programs.open_pinned()? {
            let count = programs.programs.len();
            info!(programs = count, "adopted the running programs");
            return Ok(programs);
        }
        programs.adopted = false;
        // A crash from here on leaves a record that equals no object.
        about.write([0; 2])?;
        for late in definitions.programs().filter(|name| is_late(name)) {
            // Another object's: where it is attached it runs on.
            pin::remove(&pins.program(late))?;
        }
        let is_first = list(&pins.programs()).is_ok_and(|pinned| pinned.is_empty());
        let waits = |name: &str| is_first && sees_packets(name);
        all_taken(load(pins, definitions, object, |name| {
            !is_late(name) && !waits(name)
        })?)?;
        if is_first {
            programs.open_pinned()?;
            programs.coming = Some(programs.load_the_rest()?);
        } else {
            programs.settle()?;
        }
        Ok(programs)
    }

    /// Loads those that see packets, in a thread of its own.
    fn load_the_rest(&self) -> Result<JoinHandle<Result<BTreeMap<String, Error>>>> {
        let late = Arc::clone(&self.late);
        let load_them = move || {
            if let Err(error) = priority::yield_to_others(NICENESS) {
                warn!(%error, "could not let other work go before loading programs");
            }
            late.load_all(|name| !is_late(name) && sees_packets(name))
        };
        let thread = thread::Builder::new().name("load".to_owned());
        thread
            .spawn(load_them)
            .map_err(|e| Error::io("start a thread that loads programs", e))
    }

    /// Whether programs that see packets are still being loaded.
    pub fn are_coming(&self) -> bool {
        let coming = self.coming.as_ref();
        coming.is_some_and(|loading| !loading.is_finished())
    }

    /// Waits for programs that are still on their way.
    pub fn finish(&mut self) -> Result<()> {
        let Some(loading) = self.coming.take() else {
            return Ok(());
        };
        let loaded = loading
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        all_taken(loaded?)?;
        self.settle()
    }

    /// All are pinned, and no other object's.
    fn settle(&mut self) -> Result<()> {
        if !self.open_pinned()? {
            return Err(Error::Object(
                "a program vanished right after it was pinned".into(),
            ));
        }
        let late = Arc::clone(&self.late);
        About::open(late.pins())?.write(identity(late.object()))?;
        remove_strangers(late.pins(), late.definitions())?;
        let count = self.programs.len();
        info!(programs = count, "loaded the programs");
        Ok(())
    }

    /// Sees to it that a program that may come later is there; one that the kernel does not take is told by
    /// [`Late::refusal`].
    pub(super) fn provide(&mut self, name: &str) -> Result<()> {
        if !is_late(name) || self.programs.contains_key(name) {
            return Ok(());
        }
        self.late.load(name)?;
        if let Some(pinned) = Pinned::open(self.late.pins(), name)? {
            self.programs.insert(name.to_owned(), pinned);
        }
        Ok(())
    }

    /// The programs that come later, for whoever loads them meanwhile.
    pub(super) fn late(&self) -> &Arc<Late> {
        &self.late
    }

    /// Opens what is pinned; whether nothing is missing.
    fn open_pinned(&mut self) -> Result<bool> {
        let late = Arc::clone(&self.late);
        let mut is_complete = true;
        for name in late.definitions().programs() {
            match Pinned::open(late.pins(), name)? {
                Some(pinned) => {
                    self.programs.insert(name.to_owned(), pinned);
                }
                None => is_complete &= is_late(name),
            }
        }
        Ok(is_complete)
    }

    /// Whether they were there already.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// A program and its id.
    pub(super) fn get(&self, name: &str) -> Result<(&Program, u32)> {
        self.find(name).ok_or_else(|| {
            let refusal = self.late.refusal(name);
            Error::Object(refusal.unwrap_or(format!("the eBPF object has no program {name}")))
        })
    }

    /// A program and its id, if it was asked for and the kernel took it.
    pub(super) fn find(&self, name: &str) -> Option<(&Program, u32)> {
        let pinned = self.programs.get(name)?;
        Some((&pinned.program, pinned.id))
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

impl Pinned {
    /// `None` if it is not pinned.
    fn open(pins: &Pins, name: &str) -> Result<Option<Self>> {
        let Some(fd) = pin::get_if_present(&pins.program(name))? else {
            return Ok(None);
        };
        let program = Program::from_fd(fd);
        let id = program.info()?.id;
        Ok(Some(Self { program, id }))
    }
}

/// Whether devices have it. Sockets are served without.
fn sees_packets(name: &str) -> bool {
    PACKET_PROGRAMS.iter().any(|program| program.name == name)
}

fn all_taken(refused: BTreeMap<String, Error>) -> Result<()> {
    refused.into_values().next().map_or(Ok(()), Err)
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
