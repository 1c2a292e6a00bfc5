//! A place of a test's own in the kernel: a BPF file system and a network namespace that only its thread sees.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a test on a thread with its own mount and network namespace and an empty BPF file system. All of it
/// goes with the thread and the directory, also after a panic. Needs root and says so.
pub(crate) fn run(name: &str, test: impl FnOnce(&Path) + Send + 'static) {
    let directory = std::env::temp_dir().join(format!("bl-dp-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a temporary directory");
    let bpffs = directory.clone();
    let outcome = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            enter(&bpffs);
            test(&bpffs);
        })
        .expect("a thread")
        .join();
    std::fs::remove_dir(&directory).expect("the mount is gone with its namespace");
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn enter(bpffs: &Path) {
    // SAFETY: takes no addresses; only this thread leaves its namespaces.
    let answer = unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWNET) };
    assert_eq!(
        answer,
        0,
        "this test needs root: {}",
        std::io::Error::last_os_error()
    );
    mount(
        "none",
        Path::new("/"),
        "none",
        libc::MS_REC | libc::MS_PRIVATE,
    );
    mount("bpf", bpffs, "bpf", 0);
}

fn mount(source: &str, target: &Path, kind: &str, flags: libc::c_ulong) {
    let text = |s: &str| CString::new(s).expect("no zero byte");
    let (source, kind) = (text(source), text(kind));
    let target = text(target.to_str().expect("UTF-8"));
    // SAFETY: all are C strings that outlive the call.
    let answer = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            std::ptr::null(),
        )
    };
    assert_eq!(answer, 0, "mount: {}", std::io::Error::last_os_error());
}

/// Runs `ip` in the calling thread's network namespace.
#[allow(dead_code, reason = "each test binary uses its part of this module")]
pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .expect("`ip` is installed");
    assert!(status.success(), "ip {arguments}");
}

/// Leaves the calling thread exactly CAP_NET_ADMIN and CAP_BPF, as the agent's container has them.
#[allow(dead_code, reason = "each test binary uses its part of this module")]
pub(crate) fn drop_privileges() {
    /// `_LINUX_CAPABILITY_VERSION_3` of include/uapi/linux/capability.h.
    const VERSION: u32 = 0x2008_0522;
    const NET_ADMIN: u32 = 12;
    const BPF: u32 = 39;
    let header = [VERSION, 0];
    // Effective, permitted and inheritable; the low 32 capabilities, then the high ones.
    let (low, high) = (1 << NET_ADMIN, 1 << (BPF - 32));
    let data: [u32; 6] = [low, low, 0, high, high, 0];
    // SAFETY: both are laid out as capset(2) says and outlive the call.
    let answer = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    assert_eq!(answer, 0, "capset: {}", std::io::Error::last_os_error());
}

/// A cgroup of the test's own, removed on drop.
#[allow(dead_code, reason = "each test binary uses its part of this module")]
pub(crate) struct Cgroup(pub(crate) PathBuf);

#[allow(dead_code, reason = "each test binary uses its part of this module")]
impl Cgroup {
    pub(crate) fn new(name: &str) -> Self {
        let root = lb_agent::sys::cgroup::root().expect("cgroup v2");
        let path = root.join(format!("bl-dp-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).expect("this test needs root");
        Self(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}
