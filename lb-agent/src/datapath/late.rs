//! Programs for devices that few nodes have, without a link-layer header or with XDP: a first start does not wait for
//! them.
//!
//! They are loaded when such a device comes. Those that a device cannot do without are loaded before, too, once the
//! node is served: a tunnel that is set up later does not wait either.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{info, warn};

use super::attach::L3_PROGRAMS;
use super::load::load;
use super::object::{self, Definitions};
use super::pins::Pins;
use super::{Error, Result, xdp};
use crate::sys::memory;

/// What it takes to load them.
#[derive(Debug)]
pub struct Late {
    pins: Pins,
    definitions: Arc<Definitions>,
    object: &'static [u8],
    /// Why the kernel did not take one: it is not asked twice. Held while it is asked.
    refused: Mutex<BTreeMap<String, Error>>,
}

/// Whether a program may come later.
pub(super) fn is_late(name: &str) -> bool {
    xdp::PROGRAMS.contains(&name) || L3_PROGRAMS.contains(&name)
}

impl Late {
    pub(super) fn new(pins: &Pins, definitions: &Arc<Definitions>, object: &'static [u8]) -> Self {
        Self {
            pins: pins.clone(),
            definitions: definitions.clone(),
            object,
            refused: Mutex::default(),
        }
    }

    pub(super) fn pins(&self) -> &Pins {
        &self.pins
    }

    pub(super) fn definitions(&self) -> &Definitions {
        &self.definitions
    }

    pub(super) fn object(&self) -> &'static [u8] {
        self.object
    }

    /// Loads and pins those that are wanted; which ones the kernel did not take.
    pub(super) fn load_all(
        &self,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<BTreeMap<String, Error>> {
        let refused = load(&self.pins, &self.definitions, self.object, is_wanted)?;
        object::forget();
        // What loading takes is many times what stays.
        memory::give_back();
        Ok(refused)
    }

    /// Loads and pins one, if that was not done yet.
    pub(super) fn load(&self, name: &str) -> Result<()> {
        let mut refused = self.refused();
        if refused.contains_key(name) || self.pins.program(name).exists() {
            return Ok(());
        }
        let refusals = self.load_all(|other| other == name)?;
        if refusals.is_empty() {
            info!(
                program = name,
                "loaded a program for devices that come later"
            );
        }
        for (program, error) in refusals {
            warn!(%error, "the kernel does not take a program: devices that need it are not served, those that could \
                           have XDP are served without");
            refused.insert(program, error);
        }
        Ok(())
    }

    /// Loads those that a device cannot do without.
    pub fn prepare(&self) {
        for program in L3_PROGRAMS {
            if let Err(error) = self.load(program) {
                warn!(%error, program, "could not load a program beforehand; a device that needs it will ask again");
            }
        }
    }

    /// Why the kernel did not take a program, if it was asked.
    pub(super) fn refusal(&self, name: &str) -> Option<String> {
        self.refused().get(name).map(Error::to_string)
    }

    fn refused(&self) -> MutexGuard<'_, BTreeMap<String, Error>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
