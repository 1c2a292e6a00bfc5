//! Where the programs sit: cgroup hooks and packet hooks, each kept by a pinned link.
//!
//! A link that exists gets the new program put in place of the old one, in one step; nothing is detached before
//! its replacement is attached. Kernels without tcx (before 6.6) get classic filters, which last by themselves.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
    qdisc_detach_program,
};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use lb_ebpf::abi::device::{Device, LOOPBACK, POD, UPLINK};

use super::pins::Pins;
use super::programs::Programs;
use super::roles::Chosen;
use super::{Error, Result};
use crate::sys::bpf::{Attach, Link, LinkInfo, Position, Program, attached_programs, pin};
use crate::sys::cgroup;

/// Programs on the cgroup's hooks; pins of their links carry the same names.
pub const SOCKET_HOOKS: [(&str, Attach); 9] = [
    // First, and off last, as without it nobody gives back what the others take.
    ("released", Attach::SockRelease),
    // What shows the Service before what translates.
    ("recvmsg4", Attach::Recvmsg4),
    ("recvmsg6", Attach::Recvmsg6),
    ("peername4", Attach::Peername4),
    ("peername6", Attach::Peername6),
    ("connect4", Attach::Connect4),
    ("connect6", Attach::Connect6),
    ("sendmsg4", Attach::Sendmsg4),
    ("sendmsg6", Attach::Sendmsg6),
];

/// A direction of a packet hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    Ingress,
    Egress,
}

/// A packet program and the devices it is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PacketProgram {
    pub name: &'static str,
    pub direction: Direction,
    /// As `lb_ebpf::abi::device` has them.
    role: u32,
    /// Length of the link-layer header.
    header_length: u32,
}

const fn on(
    role: u32,
    header_length: u32,
    direction: Direction,
    name: &'static str,
) -> PacketProgram {
    PacketProgram {
        name,
        direction,
        role,
        header_length,
    }
}

/// Those for devices without a link-layer header.
pub(super) const L3_PROGRAMS: [&str; 2] = ["l3_ingress", "l3_egress"];

/// All of them.
pub const PACKET_PROGRAMS: [PacketProgram; 7] = [
    on(POD, 14, Direction::Ingress, "pod_ingress"),
    on(POD, 14, Direction::Egress, "pod_egress"),
    on(UPLINK, 14, Direction::Ingress, "out_ingress"),
    on(UPLINK, 14, Direction::Egress, "out_egress"),
    on(UPLINK, 0, Direction::Ingress, L3_PROGRAMS[0]),
    on(UPLINK, 0, Direction::Egress, L3_PROGRAMS[1]),
    on(LOOPBACK, 14, Direction::Egress, "lo_egress"),
];

impl PacketProgram {
    fn is_for(&self, device: &Device) -> bool {
        self.role == device.role && self.header_length == device.header_length
    }
}

/// How packet programs are attached on this kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PacketHook {
    /// Links, ordered first and last (Linux 6.6).
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

/// What attaching did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// The right program was there.
    None,
    /// Another program was replaced.
    Replaced,
    /// Nothing was there.
    Attached,
}

impl PacketHook {
    /// Asks the kernel rather than its version number: distributions backport tcx.
    pub fn probe() -> Self {
        // Every network namespace has a loopback device, index 1. A kernel without tcx does not know the attach
        // type; one with it has an answer or finds nothing there.
        match attached_programs(1, Attach::TcxIngress) {
            Err(error) if error.errno() == libc::EINVAL => Self::Clsact,
            _ => Self::Tcx,
        }
    }
}

/// Attaches the socket hooks to a cgroup. Returns how many changed.
pub fn attach_sockets(pins: &Pins, programs: &Programs, directory: &Path) -> Result<usize> {
    let opened = File::open(directory).and_then(|file| Ok((file, cgroup::id(directory)?)));
    let (file, id) =
        opened.map_err(|e| Error::io(format!("open cgroup {}", directory.display()), e))?;
    let mut changes = 0;
    for (name, attach) in SOCKET_HOOKS {
        let (program, program_id) = programs.get(name)?;
        let wanted = Wanted {
            pin: pins.link(name),
            program,
            program_id,
        };
        let change = wanted.ensure(
            |link| link.target == id as u32,
            || program.attach(file.as_raw_fd() as u32, attach, Position::Unordered),
        )?;
        changes += usize::from(change != Change::None);
    }
    Ok(changes)
}

/// Takes the socket hooks off. Returns how many there were.
pub fn detach_sockets(pins: &Pins) -> Result<usize> {
    let mut detached = 0;
    for (name, _) in SOCKET_HOOKS.into_iter().rev() {
        detached += usize::from(drop_link(&pins.link(name))?);
    }
    Ok(detached)
}

/// Names of the programs that a device's role asks for.
pub(super) fn programs_of(chosen: &Chosen) -> impl Iterator<Item = &'static str> {
    let all = PACKET_PROGRAMS.iter();
    all.filter(|program| program.is_for(&chosen.device))
        .map(|program| program.name)
}

/// Attaches the programs that a device's role asks for, in place of what a former agent attached.
pub fn attach_device(
    pins: &Pins,
    programs: &Programs,
    hook: PacketHook,
    device: (u32, &Chosen),
) -> Result<Change> {
    attach(pins, programs, hook, device, Existing::Replace)
}

/// As [`attach_device`], where this agent attached them already: filters that are there are taken for its own.
pub fn attach_missing(
    pins: &Pins,
    programs: &Programs,
    hook: PacketHook,
    device: (u32, &Chosen),
) -> Result<Change> {
    attach(pins, programs, hook, device, Existing::Keep)
}

/// What to do with a filter at our place, of which the kernel does not tell the program in the same call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Existing {
    Keep,
    Replace,
}

fn attach(
    pins: &Pins,
    programs: &Programs,
    hook: PacketHook,
    (index, chosen): (u32, &Chosen),
    existing: Existing,
) -> Result<Change> {
    let mut most = Change::None;
    for program in PACKET_PROGRAMS
        .iter()
        .filter(|program| program.is_for(&chosen.device))
    {
        let (direction, program_name) = (program.direction, program.name);
        let change = match hook {
            PacketHook::Tcx => {
                let (program, program_id) = programs.get(program_name)?;
                let (attach, position) = direction.tcx();
                Wanted {
                    pin: pins.link(&link_name(index, direction)),
                    program,
                    program_id,
                }
                .ensure(
                    |link| link.target == index,
                    || program.attach(index, attach, position),
                )?
            }
            PacketHook::Clsact => attach_filter(
                &pins.program(program_name),
                &chosen.name,
                direction,
                existing,
            )?,
        };
        if change != Change::None {
            most = change;
        }
    }
    Ok(most)
}

/// Takes our programs off a device that may be gone already.
pub fn detach_device(pins: &Pins, hook: PacketHook, device: (u32, &str)) -> Result<()> {
    let (index, name) = device;
    for PacketProgram {
        direction,
        name: program_name,
        ..
    } in PACKET_PROGRAMS
    {
        drop_link(&pins.link(&link_name(index, direction)))?;
        if hook == PacketHook::Clsact {
            detach_filter(name, direction, program_name)?;
        }
    }
    Ok(())
}

/// Indices of the devices that have a pinned link.
pub fn linked_devices(pins: &Pins) -> Result<Vec<u32>> {
    let paths = super::pins::list(&pins.links()).map_err(|e| Error::io("list pinned links", e))?;
    let mut indices: Vec<u32> = paths
        .iter()
        .filter_map(|path| {
            path.file_name()?
                .to_str()?
                .split_once('-')
                .filter(|(hook, _)| matches!(*hook, "tc" | "xdp"))?
                .1
                .split('-')
                .next()?
                .parse()
                .ok()
        })
        .collect();
    indices.sort_unstable();
    indices.dedup();
    Ok(indices)
}

/// Detaches a pinned link and removes its name; whether there was one.
pub fn drop_link(path: &Path) -> Result<bool> {
    let Some(fd) = pin::get_if_present(path)? else {
        return Ok(false);
    };
    // Others may hold the link open: a removed name alone would leave it attached. One whose device or cgroup has
    // gone is detached already.
    let detached = Link::from_fd(fd).detach();
    pin::remove(path)?;
    match detached {
        Err(error)
            if !matches!(
                error.errno(),
                libc::ENOLINK | libc::ENODEV | libc::EOPNOTSUPP
            ) =>
        {
            Err(error.into())
        }
        _ => Ok(true),
    }
}

/// Takes a filter of ours off a device; whether there was one. An absent device has none.
pub fn detach_filter(device: &str, direction: Direction, program: &str) -> Result<bool> {
    match qdisc_detach_program(device, direction.clsact(), program) {
        Ok(()) => Ok(true),
        // Without a clsact qdisc there is nothing to search in: EINVAL.
        Err(error) if matches!(errno(&error), libc::ENOENT | libc::ENODEV | libc::EINVAL) => {
            Ok(false)
        }
        Err(error) => Err(Error::io(
            format!("detach {program} from device {device}"),
            std::io::Error::other(error),
        )),
    }
}

/// A program that is to sit behind a pinned link.
pub(super) struct Wanted<'a> {
    pub(super) pin: std::path::PathBuf,
    pub(super) program: &'a Program,
    pub(super) program_id: u32,
}

impl Wanted<'_> {
    /// Makes the pinned link run the program; `fits` tells whether an existing link sits at the right place.
    pub(super) fn ensure(
        &self,
        fits: impl Fn(&LinkInfo) -> bool,
        attach: impl FnOnce() -> crate::sys::bpf::Result<Link>,
    ) -> Result<Change> {
        if let Some(fd) = pin::get_if_present(&self.pin)? {
            let link = Link::from_fd(fd);
            let info = link.info()?;
            if fits(&info) {
                if info.program_id == self.program_id {
                    return Ok(Change::None);
                }
                link.update(self.program)?;
                return Ok(Change::Replaced);
            }
        }
        let link = attach()?;
        pin::pin_over(link.as_fd(), &self.pin)?;
        Ok(Change::Attached)
    }
}

impl Direction {
    /// Ingress before and egress behind the CNI's programs, which so see what the pod and the endpoint see of
    /// each other (mechanics §7).
    fn tcx(self) -> (Attach, Position) {
        match self {
            Self::Ingress => (Attach::TcxIngress, Position::First),
            Self::Egress => (Attach::TcxEgress, Position::Last),
        }
    }

    fn clsact(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    /// Filters run in order of their priority, 1 first.
    fn filter_options(self) -> NlOptions {
        let priority = match self {
            Self::Ingress => 1,
            Self::Egress => 0xc000,
        };
        // A handle of our own, so that a replacement meets our filter and nobody else's.
        NlOptions {
            priority,
            handle: TcHandle::new(0, FILTER_HANDLE),
            classid: None,
        }
    }
}

/// Handle of our filters within their priority.
const FILTER_HANDLE: u16 = 0xbee1;

fn attach_filter(
    pin: &Path,
    device: &str,
    direction: Direction,
    existing: Existing,
) -> Result<Change> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Load {
        what: format!("a {direction:?} filter of device {device}"),
        source,
    };
    match qdisc_add_clsact(device) {
        Err(error) if errno(&error) != libc::EEXIST => return Err(failed(Box::new(error))),
        _ => {}
    }
    let mut program = SchedClassifier::from_pin(pin).map_err(|e| failed(Box::new(e)))?;
    let options = direction.filter_options();
    let (priority, handle) = (options.priority, options.handle);
    let attached = program.attach_with_options(
        device,
        direction.clsact(),
        TcAttachOptions::Netlink(options),
    );
    let (id, change) = match attached {
        Ok(id) => (id, Change::Attached),
        Err(ProgramError::TcError(error)) if errno(&error) == libc::EEXIST => {
            if existing == Existing::Keep {
                return Ok(Change::None);
            }
            let filter =
                SchedClassifierLink::attached(device, direction.clsact(), priority, handle, None)
                    .map_err(|e| failed(Box::new(e)))?;
            (
                program
                    .attach_to_link(filter)
                    .map_err(|e| failed(Box::new(e)))?,
                Change::Replaced,
            )
        }
        Err(error) => return Err(failed(Box::new(error))),
    };
    let link = program.take_link(id).map_err(|e| failed(Box::new(e)))?;
    // The filter is to outlast this process; dropping aya's link would remove it.
    let _ = std::mem::ManuallyDrop::new(link);
    Ok(change)
}

/// The kernel's answer within aya's errors, which do not chain it.
fn errno(error: &TcError) -> i32 {
    match error {
        TcError::NetlinkError(error) => error.raw_os_error().unwrap_or(0),
        // aya reports a search without result as an error of its own of this kind.
        TcError::IoError(error) if error.kind() == std::io::ErrorKind::NotFound => libc::ENOENT,
        TcError::IoError(error) => error.raw_os_error().unwrap_or(0),
        TcError::NulError(_)
        | TcError::AlreadyAttached
        | TcError::InvalidTcxAttach(_)
        | TcError::InvalidLinkOperation => 0,
    }
}

fn link_name(index: u32, direction: Direction) -> String {
    match direction {
        Direction::Ingress => format!("tc-{index}-ingress"),
        Direction::Egress => format!("tc-{index}-egress"),
    }
}
