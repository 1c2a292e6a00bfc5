//! A few lines of eBPF put together by hand: what the harness itself runs in the kernel.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// Commands of `enum bpf_cmd`.
const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP: libc::c_long = 1;
const MAP_UPDATE: libc::c_long = 2;
const PROGRAM_LOAD: libc::c_long = 5;

/// `BPF_PROG_TYPE_SCHED_CLS` and `BPF_PROG_TYPE_XDP`.
const CLASSIFIER: u32 = 3;
const XDP: u32 = 6;

/// `enum bpf_map_type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Array = 2,
    Programs = 3,
}

/// A program in the making.
#[derive(Default)]
pub(super) struct Code(Vec<u8>);

/// Names of registers say what is in them; 1 to 5 are a call's arguments, 0 is its result.
type Register = u8;

impl Code {
    fn push(&mut self, code: u8, to: Register, from: Register, offset: i16, value: i32) {
        self.0.extend([code, from << 4 | to]);
        self.0.extend(offset.to_ne_bytes());
        self.0.extend(value.to_ne_bytes());
    }

    pub(super) fn set(&mut self, to: Register, value: i32) {
        self.push(0xb7, to, 0, 0, value);
    }

    pub(super) fn copy(&mut self, to: Register, from: Register) {
        self.push(0xbf, to, from, 0, 0);
    }

    pub(super) fn add(&mut self, to: Register, value: i32) {
        self.push(0x07, to, 0, 0, value);
    }

    pub(super) fn add_register(&mut self, to: Register, from: Register) {
        self.push(0x0f, to, from, 0, 0);
    }

    pub(super) fn and(&mut self, to: Register, value: i32) {
        self.push(0x57, to, 0, 0, value);
    }

    pub(super) fn shift_left(&mut self, to: Register, bits: i32) {
        self.push(0x67, to, 0, 0, bits);
    }

    pub(super) fn load_long(&mut self, to: Register, from: Register, offset: i16) {
        self.push(0x79, to, from, offset, 0);
    }

    pub(super) fn load_word(&mut self, to: Register, from: Register, offset: i16) {
        self.push(0x61, to, from, offset, 0);
    }

    pub(super) fn store_long(&mut self, to: Register, offset: i16, from: Register) {
        self.push(0x7b, to, from, offset, 0);
    }

    pub(super) fn store_half(&mut self, to: Register, offset: i16, from: Register) {
        self.push(0x6b, to, from, offset, 0);
    }

    pub(super) fn store_word(&mut self, to: Register, offset: i16, value: i32) {
        self.push(0x62, to, 0, offset, value);
    }

    /// Leaves out so many instructions if the first is above the second.
    pub(super) fn skip_if_above(&mut self, first: Register, second: Register, instructions: i16) {
        self.push(0x2d, first, second, instructions, 0);
    }

    pub(super) fn shift_right(&mut self, to: Register, bits: i32) {
        self.push(0x77, to, 0, 0, bits);
    }

    /// The address of the only value of an array.
    pub(super) fn value_of(&mut self, to: Register, map: &OwnedFd) {
        self.push(0x18, to, 2, 0, map.as_raw_fd());
        self.push(0, 0, 0, 0, 0);
    }

    pub(super) fn map(&mut self, to: Register, map: &OwnedFd) {
        self.push(0x18, to, 1, 0, map.as_raw_fd());
        self.push(0, 0, 0, 0, 0);
    }

    /// Calls a helper by its number.
    pub(super) fn call(&mut self, helper: i32) {
        self.push(0x85, 0, 0, 0, helper);
    }

    pub(super) fn exit(&mut self) {
        self.push(0x95, 0, 0, 0, 0);
    }

    /// Loads the program, for tc.
    pub(super) fn load(self) -> io::Result<OwnedFd> {
        self.load_as(CLASSIFIER)
    }

    /// Loads the program, for XDP.
    pub(super) fn load_xdp(self) -> io::Result<OwnedFd> {
        self.load_as(XDP)
    }

    fn load_as(self, kind: u32) -> io::Result<OwnedFd> {
        /// What `union bpf_attr` has for this command, as far as it is used.
        #[repr(C)]
        struct Attributes {
            kind: u32,
            instructions: u32,
            code: u64,
            license: u64,
            log: [u32; 2],
            log_at: u64,
        }
        let mut log = vec![0u8; 1 << 16];
        let attributes = Attributes {
            kind,
            instructions: (self.0.len() / 8) as u32,
            code: self.0.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log: [1, log.len() as u32],
            log_at: log.as_mut_ptr() as u64,
        };
        // SAFETY: every address in the attributes is that of a buffer that outlives the call.
        unsafe { call(PROGRAM_LOAD, &attributes) }.map_err(|error| {
            let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
            let log = String::from_utf8_lossy(&log[..end]);
            io::Error::other(format!("{error}; the verifier says\n{log}"))
        })
    }
}

/// A map with one entry.
pub(super) fn create(kind: Kind, value_bytes: u32) -> io::Result<OwnedFd> {
    let attributes: [u32; 5] = [kind as u32, 4, value_bytes, 1, 0];
    // SAFETY: there are no addresses in the attributes.
    unsafe { call(MAP_CREATE, &attributes) }
}

/// Writes the only entry of a map.
pub(super) fn put(map: &OwnedFd, value: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel only reads the value, which outlives the call.
    unsafe { entry(MAP_UPDATE, map, value.as_ptr() as u64) }
}

/// Reads the only entry of a map.
pub(super) fn get(map: &OwnedFd, value: &mut [u8]) -> io::Result<()> {
    // SAFETY: the value may be written, and outlives the call.
    unsafe { entry(MAP_LOOKUP, map, value.as_mut_ptr() as u64) }
}

/// # Safety
/// `value` is the address of as many bytes as the map's values have, to be written where the command does.
unsafe fn entry(command: libc::c_long, map: &OwnedFd, value: u64) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        map: u32,
        zero: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let key = 0u32;
    let mut attributes = Attributes {
        map: map.as_raw_fd() as u32,
        zero: 0,
        key: (&raw const key) as u64,
        value,
        flags: 0,
    };
    // SAFETY: the key has four bytes and outlives the call; the value is the caller's promise.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw mut attributes,
            size_of::<Attributes>(),
        )
    };
    match answer {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Writes a program into the only entry of a map.
pub(super) fn put_program(map: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<()> {
    put(map, &program.as_raw_fd().to_ne_bytes())
}

/// Calls `bpf(2)` where success is a new descriptor.
///
/// # Safety
/// Every address in the attributes must be valid for what the command does there.
unsafe fn call<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the attributes have the given size; the rest is the caller's promise.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(answer as i32) })
}
