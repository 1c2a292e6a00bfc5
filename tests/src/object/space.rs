//! A place in the kernel of a test program's own: network and mount namespaces with a BPF file system.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Where the private BPF file system is mounted, over the host's.
pub(super) const BPFFS: &str = "/sys/fs/bpf";

/// The namespaces. They last as long as this or a thread in them, and leave nothing behind.
#[derive(Debug)]
pub(super) struct Space {
    network: File,
    mounts: File,
}

impl Space {
    /// Moves the calling thread into new namespaces with an empty BPF file system.
    pub(super) fn create() -> io::Result<Self> {
        let space = Self::unshare()?;
        mount(c"bpf", Some(c"bpf"), 0)?;
        Ok(space)
    }

    /// The same, with what other test programs have left in a directory of a BPF file system.
    pub(super) fn over(directory: &Path) -> io::Result<Self> {
        let space = Self::unshare()?;
        let directory = CString::new(directory.as_os_str().as_bytes())?;
        mount(&directory, None, libc::MS_BIND)?;
        Ok(space)
    }

    fn unshare() -> io::Result<Self> {
        // SAFETY: takes no addresses; only this thread leaves its namespaces.
        let answer = unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWNET) };
        succeeded(answer)?;
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        // SAFETY: all three are C strings that live for ever; no data.
        succeeded(unsafe {
            libc::mount(
                c"none".as_ptr(),
                c"/".as_ptr(),
                c"none".as_ptr(),
                flags,
                std::ptr::null(),
            )
        })?;
        let own = Path::new("/proc/thread-self/ns");
        Ok(Self {
            network: File::open(own.join("net"))?,
            mounts: File::open(own.join("mnt"))?,
        })
    }

    /// Moves the calling thread into these namespaces.
    pub(super) fn enter(&self) -> io::Result<()> {
        // SAFETY: takes no addresses. A thread that shares its working directory may not change its mounts.
        succeeded(unsafe { libc::unshare(libc::CLONE_FS) })?;
        for (file, kind) in [
            (&self.network, libc::CLONE_NEWNET),
            (&self.mounts, libc::CLONE_NEWNS),
        ] {
            // SAFETY: the descriptor is open; no addresses.
            succeeded(unsafe { libc::setns(file.as_raw_fd(), kind) })?;
        }
        Ok(())
    }
}

/// Mounts something on [`BPFFS`].
fn mount(what: &CStr, kind: Option<&CStr>, flags: libc::c_ulong) -> io::Result<()> {
    let kind = kind.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: strings that outlive the call, the last that of `BPFFS`; no kind for what has one, and no data.
    succeeded(unsafe {
        libc::mount(
            what.as_ptr(),
            c"/sys/fs/bpf".as_ptr(),
            kind,
            flags,
            std::ptr::null(),
        )
    })
}

fn succeeded(answer: libc::c_int) -> io::Result<()> {
    match answer {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
