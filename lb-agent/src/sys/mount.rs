//! The BPF file system, which keeps our maps and links alive without us.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// `BPF_FS_MAGIC` of include/uapi/linux/magic.h.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Makes sure that `directory` lies in a BPF file system; mounts one there if not and if we may.
pub fn ensure_bpffs(directory: &Path) -> io::Result<()> {
    if is_bpffs(directory)? {
        return Ok(());
    }
    fs::create_dir_all(directory)?;
    let target = c_path(directory)?;
    // SAFETY: all three are C strings that outlive the call; the kind of file system takes no further data.
    let answer = unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            target.as_ptr(),
            c"bpf".as_ptr(),
            libc::MS_NOSUID | libc::MS_NOEXEC,
            std::ptr::null(),
        )
    };
    if answer == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(io::Error::new(
        error.kind(),
        format!(
            "no BPF file system at {0} and we may not mount one ({error}): mount it on the host \
             (`mount -t bpf bpf {0}`) or in an init container with Bidirectional mount propagation",
            directory.display()
        ),
    ))
}

/// Whether a directory lies in a BPF file system; `false` if it does not exist.
pub fn is_bpffs(directory: &Path) -> io::Result<bool> {
    let path = c_path(directory)?;
    // SAFETY: integers alone, zero is valid.
    let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is a C string and `answer` a place for the answer.
    if unsafe { libc::statfs(path.as_ptr(), &mut answer) } == 0 {
        return Ok(answer.f_type as i64 == BPF_FS_MAGIC);
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::NotFound {
        Ok(false)
    } else {
        Err(error)
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}
