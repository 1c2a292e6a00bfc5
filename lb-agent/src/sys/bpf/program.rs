//! Programs and links: what is loaded, where it is attached, and how one takes another's place.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use aya_obj::generated::{bpf_link_info, bpf_prog_info};

use super::command::{
    self, ById, Command, LinkCreate, LinkDetach, LinkUpdate, ProgramQuery, TestRun, call,
    call_for_fd,
};
use super::map::c_string;
use super::{Error, Result, pin};

/// Attach points we use (`enum bpf_attach_type`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Attach {
    Connect4 = 10,
    Connect6 = 11,
    Sendmsg4 = 14,
    Sendmsg6 = 15,
    Recvmsg4 = 19,
    Recvmsg6 = 20,
    Peername4 = 29,
    Peername6 = 30,
    SockRelease = 34,
    TcxIngress = 46,
    TcxEgress = 47,
}

/// Where among the programs of a tcx hook ours goes; a cgroup has no such choice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Position {
    First,
    Last,
    /// The hook's own order.
    Unordered,
}

/// How an XDP program gets at the frames of a device (`XDP_FLAGS_DRV_MODE`, `XDP_FLAGS_SKB_MODE`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum XdpMode {
    /// In the device's driver.
    Native = 1 << 2,
    /// In the kernel, on any device, after most of the work that XDP is there to save.
    Generic = 1 << 1,
}

/// `BPF_XDP` of `enum bpf_attach_type`.
const XDP: u32 = 37;

/// A loaded program.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
}

/// What the kernel says about a program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProgramInfo {
    /// `enum bpf_prog_type`.
    pub kind: u32,
    pub id: u32,
    /// SHA-1 of the instructions, cut to eight bytes.
    pub tag: [u8; 8],
    pub name: String,
    /// Instructions the verifier looked at; 0 before Linux 5.16.
    pub verified_instructions: u32,
}

/// A program's attachment, which lasts while its descriptor or a pin does.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
}

/// What the kernel says about a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkInfo {
    /// `enum bpf_link_type`.
    pub kind: u32,
    pub id: u32,
    pub program_id: u32,
    /// tcx and XDP: interface index, 0 once the interface has gone. Cgroup: low half of the cgroup's id.
    pub target: u32,
}

const CGROUP_LINK: u32 = 3;
const XDP_LINK: u32 = 6;
const TCX_LINK: u32 = 11;

impl Program {
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Opens a pinned program.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self {
            fd: pin::get(path)?,
        })
    }

    pub fn info(&self) -> Result<ProgramInfo> {
        // SAFETY: `bpf_prog_info` is the kernel's struct for programs and holds integers alone; its addresses are 0.
        let info: bpf_prog_info = unsafe { command::info(self.fd.as_raw_fd()) }
            .map_err(|e| Error::new("describe a program", e))?;
        Ok(ProgramInfo {
            kind: info.type_,
            id: info.id,
            tag: info.tag,
            name: c_string(&info.name),
            verified_instructions: info.verified_insns,
        })
    }

    /// Attaches to a cgroup (its descriptor) or, for tcx, to an interface (its index).
    pub fn attach(&self, target: u32, attach: Attach, position: Position) -> Result<Link> {
        // BPF_F_BEFORE and BPF_F_AFTER without a neighbour mean the first and the last place.
        let flags = match position {
            Position::First => 1 << 3,
            Position::Last => 1 << 4,
            Position::Unordered => 0,
        };
        self.link(target, attach as u32, flags)
            .map_err(|e| Error::new(format!("attach to {attach:?} of {target}"), e))
    }

    /// Attaches an XDP program to an interface (its index).
    pub fn attach_xdp(&self, index: u32, mode: XdpMode) -> Result<Link> {
        self.link(index, XDP, mode as u32)
            .map_err(|e| Error::new(format!("attach to {mode:?} XDP of {index}"), e))
    }

    fn link(&self, target: u32, attach_type: u32, flags: u32) -> io::Result<Link> {
        let mut block = LinkCreate {
            program_fd: self.fd.as_raw_fd() as u32,
            target,
            attach_type,
            flags,
            ..LinkCreate::default()
        };
        // SAFETY: the block holds no addresses; the answer is a descriptor.
        let fd = unsafe { call_for_fd(Command::LinkCreate, &mut block) }?;
        Ok(Link { fd })
    }

    /// Runs the program once on `packet` and returns its verdict.
    pub fn run_once(&self, packet: &[u8]) -> Result<u32> {
        let mut block = TestRun {
            program_fd: self.fd.as_raw_fd() as u32,
            data_in_length: packet.len() as u32,
            data_in: packet.as_ptr() as u64,
            repeat: 1,
            ..TestRun::default()
        };
        // SAFETY: `packet` outlives the call and has the given length; nothing is written back to us.
        unsafe { call(Command::ProgramTestRun, &mut block) }
            .map_err(|e| Error::new("run a program once", e))?;
        Ok(block.verdict)
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Link {
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Opens a pinned link.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self {
            fd: pin::get(path)?,
        })
    }

    pub fn info(&self) -> Result<LinkInfo> {
        // SAFETY: `bpf_link_info` is the kernel's struct for links, a union of integers; its addresses are 0.
        let info: bpf_link_info = unsafe { command::info(self.fd.as_raw_fd()) }
            .map_err(|e| Error::new("describe a link", e))?;
        let target = match info.type_ {
            // SAFETY: the kind says which part of the union the kernel filled.
            CGROUP_LINK => unsafe { info.__bindgen_anon_1.cgroup.cgroup_id as u32 },
            // SAFETY: likewise.
            TCX_LINK => unsafe { info.__bindgen_anon_1.tcx.ifindex },
            // SAFETY: likewise.
            XDP_LINK => unsafe { info.__bindgen_anon_1.xdp.ifindex },
            _ => 0,
        };
        Ok(LinkInfo {
            kind: info.type_,
            id: info.id,
            program_id: info.prog_id,
            target,
        })
    }

    /// Puts another program in this one's place: each packet or call meets the old one or the new one.
    pub fn update(&self, program: &Program) -> Result<()> {
        let mut block = LinkUpdate {
            link_fd: self.fd.as_raw_fd() as u32,
            new_program_fd: program.fd.as_raw_fd() as u32,
            ..LinkUpdate::default()
        };
        // SAFETY: the block holds no addresses.
        unsafe { call(Command::LinkUpdate, &mut block) }
            .map_err(|e| Error::new("replace a link's program", e))?;
        Ok(())
    }

    /// Takes the program off its hook, whoever else holds the link.
    pub fn detach(&self) -> Result<()> {
        let mut block = LinkDetach {
            link_fd: self.fd.as_raw_fd() as u32,
        };
        // SAFETY: the block holds no addresses.
        unsafe { call(Command::LinkDetach, &mut block) }
            .map_err(|e| Error::new("detach a link", e))?;
        Ok(())
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The name of a loaded program. Asking by id takes CAP_SYS_ADMIN; `None` without it, and where the program has gone.
pub fn program_name(id: u32) -> Option<String> {
    let mut block = ById {
        id,
        ..ById::default()
    };
    // SAFETY: the block holds no addresses; the answer is a descriptor.
    let fd = unsafe { call_for_fd(Command::ProgramById, &mut block) }.ok()?;
    let name = Program::from_fd(fd).info().ok()?.name;
    (!name.is_empty()).then_some(name)
}

/// Ids of the programs attached to a cgroup (its descriptor) or an interface (its index), in their order.
pub fn attached_programs(target: u32, attach: Attach) -> Result<Vec<u32>> {
    let mut ids = vec![0u32; 64];
    let mut block = ProgramQuery {
        target,
        attach_type: attach as u32,
        program_ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        ..ProgramQuery::default()
    };
    // SAFETY: `ids` has room for `count` ids.
    unsafe { call(Command::ProgramQuery, &mut block) }
        .map_err(|e| Error::new(format!("ask what is attached to {attach:?} of {target}"), e))?;
    ids.truncate(block.count as usize);
    Ok(ids)
}
