//! Another's program on a device: it counts what it sees and passes everything on.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use lb_agent::sys::bpf::{Map, Program};

use super::instructions::{Code, Kind, create};

/// The program, and what it counted.
#[derive(Debug)]
pub struct Bystander {
    pub program: Program,
    counter: OwnedFd,
}

impl Bystander {
    /// Loads one, to be attached where the test wants it.
    pub fn load() -> Result<Self> {
        let counter = create(Kind::Array, 8).context("making a counter")?;
        let mut code = Code::default();
        let (result, at, count) = (0, 1, 2);
        code.value_of(at, &counter);
        code.load_long(count, at, 0);
        code.add(count, 1);
        code.store_long(at, 0, count);
        // `TCX_NEXT`, and `TC_ACT_UNSPEC` of a filter.
        code.set(result, -1);
        code.exit();
        let program = code.load().context("loading a program")?;
        Ok(Self {
            program: Program::from_fd(program),
            counter,
        })
    }

    /// Packets seen so far.
    pub fn seen(&self) -> Result<u64> {
        let map = Map::from_fd(self.counter.as_fd().try_clone_to_owned()?)?;
        let mut value = [0; 8];
        map.lookup_into(&[0; 4], &mut value)?;
        Ok(u64::from_ne_bytes(value))
    }
}
