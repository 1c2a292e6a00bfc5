//! Names in a BPF file system: they keep maps, programs and links alive without us.

use std::ffi::CString;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::command::{Command, Object, call, call_for_fd};
use super::{Error, Result};

/// Only lookups and dumps are wanted of a map (`BPF_F_RDONLY`).
const READ_ONLY: u32 = 1 << 3;

/// Gives an object a name.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let name = c_path(path)?;
    let mut block = Object {
        path: name.as_ptr() as u64,
        fd: fd.as_raw_fd() as u32,
        flags: 0,
    };
    // SAFETY: `name` is a C string that outlives the call.
    unsafe { call(Command::ObjectPin, &mut block) }
        .map_err(|e| Error::new(format!("pin at {}", path.display()), e))?;
    Ok(())
}

/// Gives an object a name that may be another object's now: readers of the name see the one or the other.
pub fn pin_over(fd: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    // bpffs allows no dots in names, they are reserved.
    temporary.push("-new");
    let temporary = Path::new(&temporary);
    remove(temporary)?;
    pin(fd, temporary)?;
    std::fs::rename(temporary, path).map_err(|e| {
        Error::new(
            format!("rename pin {} to {}", temporary.display(), path.display()),
            e,
        )
    })
}

/// Opens a pinned object. The caller checks what it is.
pub fn get(path: &Path) -> Result<OwnedFd> {
    open(path, 0)
}

/// Opens a pinned map for reading alone.
pub fn get_read_only(path: &Path) -> Result<OwnedFd> {
    open(path, READ_ONLY)
}

/// As [`get`], `None` where there is no such name. A name that exists but cannot be opened is an error.
pub fn get_if_present(path: &Path) -> Result<Option<OwnedFd>> {
    match get(path) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a name; an absent one is fine.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::new(format!("remove pin {}", path.display()), e))
        }
        _ => Ok(()),
    }
}

fn open(path: &Path, flags: u32) -> Result<OwnedFd> {
    let name = c_path(path)?;
    let mut block = Object {
        path: name.as_ptr() as u64,
        fd: 0,
        flags,
    };
    // SAFETY: `name` is a C string that outlives the call; the answer is a descriptor.
    unsafe { call_for_fd(Command::ObjectGet, &mut block) }
        .map_err(|e| Error::new(format!("open pin {}", path.display()), e))
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::refused(format!("use path {path:?}"), "it contains a zero byte"))
}
