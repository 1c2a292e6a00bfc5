//! The XDP program of uplinks: a link of its own on each device that takes it, and what devices can send for it.
//!
//! No device needs it. Where it cannot sit, the tc programs do all of the work, and the reason is told. A program
//! of somebody else is never replaced.

use std::collections::BTreeMap;

use lb_ebpf::abi::device::{SENDS_BACK, TRANSMITS};

use super::attach::{Wanted, drop_link};
use super::pins::Pins;
use super::programs::Programs;
use super::roles::Chosen;
use super::{Error, Result};
use crate::sys::bpf::{self, XdpMode};
use crate::sys::netdev::{self, BASIC, TRANSMIT};

/// The programs, as the object names them. They differ in how the kernel hands them frames.
pub const PROGRAMS: [&str; 2] = ["out_xdp", "out_xdp_generic"];

/// Whether a device is to have the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    Mode(XdpMode),
    /// No, and why not.
    Not(&'static str),
}

/// Whether a device has the program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Seat {
    On(XdpMode),
    /// It is not to have it, and why not.
    Unwanted(&'static str),
    /// Somebody else's program sits there, as far as the kernel tells; it may go.
    Taken(String),
    /// The device refuses, for as long as it is what it is. Asking again and again might trouble its driver.
    Refused(String),
}

/// What the devices of this node say they can do; nothing where the kernel does not tell (before 6.3).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Abilities(Option<BTreeMap<u32, u64>>);

impl XdpMode {
    const ALL: [Self; 2] = [Self::Native, Self::Generic];

    pub(super) fn program(self) -> &'static str {
        match self {
            Self::Native => PROGRAMS[0],
            Self::Generic => PROGRAMS[1],
        }
    }

    /// As pins, status and logs call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

impl Seat {
    /// Why the program is not there, if it is not.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::On(_) => None,
            Self::Unwanted(reason) => Some(reason),
            Self::Taken(reason) | Self::Refused(reason) => Some(reason),
        }
    }
}

/// Makes a device have the program or not, as wished and as far as it can be.
pub fn follow(pins: &Pins, programs: &Programs, (index, chosen): (u32, &Chosen)) -> Result<Seat> {
    let mode = match chosen.xdp {
        Wish::Mode(mode) => mode,
        Wish::Not(reason) => {
            remove(pins, index)?;
            return Ok(Seat::Unwanted(reason));
        }
    };
    for other in XdpMode::ALL.into_iter().filter(|other| *other != mode) {
        drop_link(&pins.link(&link_name(index, other)))?;
    }
    let Some((program, program_id)) = programs.find(mode.program()) else {
        remove(pins, index)?;
        // The verifier's last word is its verdict.
        let verdict = programs.late().refusal(mode.program());
        let verdict = verdict.as_deref().and_then(|text| text.lines().last());
        let verdict = verdict.map_or(String::new(), |verdict| format!(": {verdict}"));
        return Ok(Seat::Refused(format!(
            "this kernel did not take the program, which needs Linux 5.18{verdict}; see the agent's log"
        )));
    };
    let wanted = Wanted {
        pin: pins.link(&link_name(index, mode)),
        program,
        program_id,
    };
    let attached = wanted.ensure(
        |link| link.target == index,
        || program.attach_xdp(index, mode),
    );
    match attached {
        Ok(_) => Ok(Seat::On(mode)),
        Err(Error::Kernel(error)) => Ok(explain(&error, mode)),
        Err(error) => Err(error),
    }
}

/// Takes the program off a device that may be gone already; how many links there were.
pub fn remove(pins: &Pins, index: u32) -> Result<usize> {
    let mut removed = 0;
    for mode in XdpMode::ALL {
        removed += usize::from(drop_link(&pins.link(&link_name(index, mode)))?);
    }
    Ok(removed)
}

fn link_name(index: u32, mode: XdpMode) -> String {
    format!("xdp-{index}-{}", mode.name())
}

/// The kernel's answer in words. Its own, more exact ones are not to be had through `bpf(2)`.
fn explain(error: &bpf::Error, mode: XdpMode) -> Seat {
    let meaning = match error.errno() {
        libc::EBUSY | libc::EEXIST => {
            return Seat::Taken("another XDP program sits on it, or on a device above it".into());
        }
        libc::EOPNOTSUPP => "its driver has no XDP",
        libc::EINVAL | libc::ERANGE | libc::EFBIG if mode == XdpMode::Native => {
            "its driver refuses: the MTU may be too large for XDP, or an offload (LRO) be in its way; see dmesg"
        }
        libc::ENOMEM => "its driver has no room for the queues that XDP needs",
        _ => return Seat::Refused(error.to_string()),
    };
    Seat::Refused(format!("{meaning} ({error})"))
}

impl Abilities {
    /// Asks the kernel.
    pub fn read() -> Self {
        Self(netdev::xdp_features().unwrap_or_else(|error| {
            tracing::debug!(%error, "could not ask what devices can do for XDP");
            None
        }))
    }

    /// Flags of a device's record: what it can be trusted to do with what XDP gives it. A device that cannot send
    /// drops it, and nobody knows.
    pub fn flags(&self, index: u32, chosen: &Chosen) -> u32 {
        let back = match (chosen.xdp, &self.0) {
            // Generic XDP sends as the kernel does.
            (Wish::Mode(XdpMode::Generic), _) => return SENDS_BACK | TRANSMITS,
            // Cards that have XDP at all send back. A veth needs a program at its other end for it, and tells nobody.
            (Wish::Mode(XdpMode::Native), None) => chosen.card,
            (Wish::Mode(XdpMode::Native), Some(all)) => {
                chosen.card && all.get(&index).is_some_and(|bits| bits & BASIC != 0)
            }
            (Wish::Not(_), _) => false,
        };
        let back = if back { SENDS_BACK } else { 0 };
        back | self.transmits(index)
    }

    fn transmits(&self, index: u32) -> u32 {
        let bits = self.0.as_ref().and_then(|all| all.get(&index));
        match bits {
            Some(bits) if bits & TRANSMIT != 0 => TRANSMITS,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_ebpf::abi::device::Device;

    use super::*;

    fn flags(bits: Option<u64>, card: bool, xdp: Wish) -> u32 {
        let chosen = Chosen {
            name: "eth0".into(),
            device: Device::default(),
            mac: None,
            card,
            xdp,
        };
        Abilities(bits.map(|bits| BTreeMap::from([(2, bits)]))).flags(2, &chosen)
    }

    #[test]
    fn only_what_a_device_surely_sends_is_given_to_it() {
        let (native, not) = (Wish::Mode(XdpMode::Native), Wish::Not("off"));
        let all = BASIC | TRANSMIT;
        for (bits, card, xdp, expected) in [
            (Some(all), true, native, SENDS_BACK | TRANSMITS),
            (Some(BASIC), true, native, SENDS_BACK),
            (Some(all), false, native, TRANSMITS),
            (Some(BASIC), false, native, 0),
            (Some(all), true, not, TRANSMITS),
            (Some(0), true, native, 0),
            (None, true, native, SENDS_BACK),
            (None, false, native, 0),
            (None, true, not, 0),
            (
                None,
                false,
                Wish::Mode(XdpMode::Generic),
                SENDS_BACK | TRANSMITS,
            ),
        ] {
            assert_eq!(flags(bits, card, xdp), expected, "{bits:?} {card} {xdp:?}");
        }
    }
}
