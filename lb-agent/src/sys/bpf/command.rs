//! The system call and its argument blocks.
//!
//! Blocks are prefixes of the kernel's `union bpf_attr` (include/uapi/linux/bpf.h): the kernel takes any
//! length and reads the rest as zeros. All padding is spelled out, so that every byte we pass is ours.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

/// `enum bpf_cmd`.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub(super) enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ObjectPin = 6,
    ObjectGet = 7,
    ProgramTestRun = 10,
    ProgramById = 13,
    ObjectInfo = 15,
    ProgramQuery = 16,
    BtfLoad = 18,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    MapDeleteBatch = 27,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct MapCreate {
    pub(super) kind: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) flags: u32,
    pub(super) inner_map_fd: u32,
    pub(super) numa_node: u32,
    pub(super) name: [u8; 16],
    pub(super) ifindex: u32,
    pub(super) btf_fd: u32,
    pub(super) btf_key_type: u32,
    pub(super) btf_value_type: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Element {
    pub(super) map_fd: u32,
    pub(super) zero: u32,
    pub(super) key: u64,
    /// Value, or where the next key goes.
    pub(super) value: u64,
    pub(super) flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Batch {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) keys: u64,
    pub(super) values: u64,
    pub(super) count: u32,
    pub(super) map_fd: u32,
    pub(super) element_flags: u64,
    pub(super) flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Object {
    pub(super) path: u64,
    pub(super) fd: u32,
    pub(super) flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Info {
    pub(super) fd: u32,
    pub(super) length: u32,
    pub(super) info: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct BtfLoad {
    pub(super) data: u64,
    pub(super) log: u64,
    pub(super) length: u32,
    pub(super) log_length: u32,
    pub(super) log_level: u32,
    pub(super) zero: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct LinkCreate {
    pub(super) program_fd: u32,
    /// Cgroup descriptor or interface index.
    pub(super) target: u32,
    pub(super) attach_type: u32,
    pub(super) flags: u32,
    /// tcx: program before or behind which to attach; 0 = all.
    pub(super) relative: u32,
    pub(super) zero: u32,
    /// tcx: 0 = any.
    pub(super) expected_revision: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct LinkUpdate {
    pub(super) link_fd: u32,
    pub(super) new_program_fd: u32,
    pub(super) flags: u32,
    pub(super) old_program_fd: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct ById {
    pub(super) id: u32,
    pub(super) next: u32,
    pub(super) flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct LinkDetach {
    pub(super) link_fd: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct ProgramQuery {
    pub(super) target: u32,
    pub(super) attach_type: u32,
    pub(super) query_flags: u32,
    pub(super) attach_flags: u32,
    pub(super) program_ids: u64,
    pub(super) count: u32,
    pub(super) zero: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct TestRun {
    pub(super) program_fd: u32,
    pub(super) verdict: u32,
    pub(super) data_in_length: u32,
    pub(super) data_out_length: u32,
    pub(super) data_in: u64,
    pub(super) data_out: u64,
    pub(super) repeat: u32,
    pub(super) duration: u32,
}

/// Marks the argument blocks above.
///
/// # Safety
/// The type is `repr(C)`, without implicit padding, and a prefix of `union bpf_attr`.
pub(super) unsafe trait Block {}

macro_rules! blocks {
    ($($ty:ty = $size:literal),+ $(,)?) => {
        $(
            // No implicit padding: the sum of the fields is the size.
            const _: () = assert!(size_of::<$ty>() == $size);
            // SAFETY: laid out after include/uapi/linux/bpf.h, size checked above.
            unsafe impl Block for $ty {}
        )+
    };
}

blocks!(
    MapCreate = 60,
    Element = 32,
    Batch = 56,
    Object = 16,
    Info = 16,
    BtfLoad = 32,
    LinkCreate = 32,
    LinkUpdate = 16,
    ById = 12,
    LinkDetach = 4,
    ProgramQuery = 32,
    TestRun = 40,
);

/// Calls `bpf(2)`.
///
/// # Safety
/// Every address in `block` must be valid for what `command` reads or writes there.
pub(super) unsafe fn call<B: Block>(command: Command, block: &mut B) -> io::Result<u32> {
    loop {
        // SAFETY: `block` lives through the call and has the given size; the addresses in it are the caller's promise.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command as libc::c_int,
                std::ptr::from_mut(block),
                size_of::<B>(),
            )
        };
        if answer >= 0 {
            return Ok(u32::try_from(answer).unwrap_or(0));
        }
        let error = io::Error::last_os_error();
        // Program loads alone answer EAGAIN; an interrupted test run or batch is safe to ask again.
        if error.raw_os_error() != Some(libc::EINTR) {
            return Err(error);
        }
    }
}

/// Calls `bpf(2)` where success is a new descriptor.
///
/// # Safety
/// As [`call`], and `command` must be one that answers with a descriptor.
pub(super) unsafe fn call_for_fd<B: Block>(command: Command, block: &mut B) -> io::Result<OwnedFd> {
    // SAFETY: passed on to the caller.
    let fd = unsafe { call(command, block)? };
    // SAFETY: the kernel just gave us this descriptor (close-on-exec, as all of bpf(2)'s) and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Asks for the description of an object and returns it; what an older kernel does not fill stays zero.
///
/// # Safety
/// `T` must be the kernel's info struct for the kind of object behind `fd`, and valid for any bytes.
pub(super) unsafe fn info<T: Copy>(fd: RawFd) -> io::Result<T> {
    // SAFETY: valid for any bytes, says the caller.
    let mut info: T = unsafe { std::mem::zeroed() };
    let mut block = Info {
        fd: fd as u32,
        length: size_of::<T>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: the kernel writes at most `length` bytes to `info`.
    unsafe { call(Command::ObjectInfo, &mut block)? };
    Ok(info)
}
