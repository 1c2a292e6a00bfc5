//! The programs: loaded and pinned, or adopted from an agent that loaded the very same object.
//!
//! The verifier reads for most of a first start. So programs for devices that few nodes have come later, see [`Late`].

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use tracing::info;

use super::late::{Late, is_late};
use super::load::load;
use super::object::{Definition, Definitions};
use super::pins::{Pins, check, list};
use super::{Error, Result};
use crate::sys::bpf::{Map, MapKind, Program, WriteMode, pin};

/// Runs the sweeper's timer; see `sweep_arm` in the object.
const SWEEP_ARM: &str = "sweep_arm";

/// A timer's memory is allocated without waiting (Linux 6.18), which fails now and then where CPUs compete for it.
const ARMING_TRIES: u32 = 20;

/// The object's programs, pinned.
#[derive(Debug)]
pub struct Programs {
    programs: BTreeMap<String, Pinned>,
    late: Arc<Late>,
    adopted: bool,
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
    pub fn open(
        pins: &Pins,
        definitions: &Arc<Definitions>,
        object: &'static [u8],
    ) -> Result<Self> {
        let about = About::open(pins)?;
        let identity = identity(object);
        let mut programs = Self {
            programs: BTreeMap::new(),
            late: Arc::new(Late::new(pins, definitions, object)),
            adopted: true,
        };
        if about.read()? == identity && programs.open_pinned(pins, definitions)? {
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
        let refused = load(pins, definitions, object, |name| !is_late(name))?;
        if let Some((_, error)) = refused.into_iter().next() {
            return Err(error);
        }
        if !programs.open_pinned(pins, definitions)? {
            return Err(Error::Object(
                "a program vanished right after it was pinned".into(),
            ));
        }
        about.write(identity)?;
        remove_strangers(pins, definitions)?;
        let count = programs.programs.len();
        info!(programs = count, "loaded the programs");
        Ok(programs)
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
    fn open_pinned(&mut self, pins: &Pins, definitions: &Definitions) -> Result<bool> {
        for name in definitions.programs() {
            match Pinned::open(pins, name)? {
                Some(pinned) => {
                    self.programs.insert(name.to_owned(), pinned);
                }
                None if is_late(name) => {}
                None => return Ok(false),
            }
        }
        Ok(true)
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
