//! Runs test programs one by one, in a guest of `cargo xtask vm` or on this machine.
//!
//! In a guest it is the first process and so does first what a distribution would: mounts, modules, devices. It
//! prints what `cargo test` would print, and switches the guest off when it is done, come what may. The directory
//! `/guest` tells it what to do: `programs` (a path and cargo's words for it, by line), `filter`, `modules/` and
//! `returned`, the path of a file that goes back to the host. Variables come by the kernel's command line.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::ptr;

use anyhow::{Context as _, Result, bail};

/// Where the host has put what a guest needs to know.
const ORDERS: &str = "/guest";
/// Serial lines of the tests and of the file that goes back; the first line has the kernel's own messages.
const LINE: &str = "/dev/ttyS1";
const RETURN: &str = "/dev/ttyS2";
/// Set by the kernel's command line when the host wants the file back.
const WANTED: &str = "BEELINE_UPDATE_BUDGET";

const MOUNTS: [(&str, &str); 6] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
    ("tmpfs", "/run"),
];
/// Where the packet fixtures find the programs that the first of them has loaded.
const PINS: &str = "/sys/fs/bpf/fixtures";

/// `guest LIST [FILTER]`, or, as a machine's first process, what `/guest` says.
fn main() -> Result<()> {
    if process::id() == 1 {
        if let Err(error) = boot().and_then(|()| work()) {
            eprintln!("the guest gives up: {error:#}");
        }
        return switch_off().context("switching off");
    }
    let mut arguments = std::env::args().skip(1);
    let Some(list) = arguments.next() else {
        bail!("usage: guest LIST [FILTER]");
    };
    run_all(Path::new(&list), arguments.next().as_deref())
}

/// Makes the machine usable.
fn boot() -> Result<()> {
    for (kind, at) in MOUNTS {
        mount(kind, Path::new(at)).with_context(|| format!("mounting {at}"))?;
    }
    talk_to(LINE)?;
    let mut modules: Vec<PathBuf> = match fs::read_dir(Path::new(ORDERS).join("modules")) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<_>>()?,
        Err(_) => Vec::new(),
    };
    modules.sort();
    for module in &modules {
        load(module).with_context(|| format!("loading {}", module.display()))?;
    }
    lb_tests::process::ip_batch(None, &["link set lo up".to_owned()])
}

fn work() -> Result<()> {
    let order =
        |name: &str| fs::read_to_string(Path::new(ORDERS).join(name)).context(name.to_owned());
    let filter = order("filter")?;
    let filter = Some(filter.as_str()).filter(|filter| !filter.is_empty());
    fs::create_dir(PINS).context("making room for the programs")?;
    // SAFETY: no other thread is there yet.
    unsafe { std::env::set_var(lb_tests::object::SHARED, PINS) };
    run_all(&Path::new(ORDERS).join("programs"), filter)?;
    if std::env::var_os(WANTED).is_some() {
        let text = fs::read(order("returned")?)?;
        let mut line = OpenOptions::new().write(true).open(RETURN)?;
        io::Write::write_all(&mut line, &text).context("sending the file back")?;
        // SAFETY: the descriptor is open.
        unsafe { libc::tcdrain(line.as_raw_fd()) };
    }
    Ok(())
}

fn run_all(list: &Path, filter: Option<&str>) -> Result<()> {
    let list = fs::read_to_string(list).with_context(|| format!("reading {}", list.display()))?;
    for line in list.lines() {
        let (program, announced) = line.split_once('\t').context("a program and its name")?;
        println!("     Running {announced}");
        let status = Command::new(program)
            .args(filter)
            .stdin(Stdio::null())
            .status();
        match status {
            // What tests failed it has printed itself.
            Ok(status) if status.code().is_some() => {}
            Ok(status) => println!("{program}: {status}"),
            Err(error) => println!("{program}: {error}"),
        }
        reap();
    }
    Ok(())
}

/// Orphans are the first process's.
fn reap() {
    // SAFETY: no status is asked for; children that are waited for elsewhere have ended by now.
    while unsafe { libc::waitpid(-1, ptr::null_mut(), libc::WNOHANG) } > 0 {}
}

fn mount(kind: &str, at: &Path) -> Result<()> {
    let (kind, path) = (
        CString::new(kind)?,
        CString::new(at.as_os_str().as_encoded_bytes())?,
    );
    // SAFETY: all are C strings that outlive the call; no data.
    let answer =
        unsafe { libc::mount(kind.as_ptr(), path.as_ptr(), kind.as_ptr(), 0, ptr::null()) };
    Ok(succeeded(answer)?)
}

/// Makes a serial line this process's output, and that of all it starts.
fn talk_to(line: &str) -> Result<()> {
    let line = OpenOptions::new()
        .write(true)
        .open(line)
        .with_context(|| format!("opening {line}"))?;
    for stream in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: both descriptors are open.
        let answer = unsafe { libc::dup2(line.as_raw_fd(), stream) };
        succeeded(answer.min(0))?;
    }
    Ok(())
}

/// Loads a kernel module.
fn load(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    // SAFETY: the descriptor is open and the string of parameters lives for ever.
    let answer =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    match succeeded(answer as libc::c_int) {
        // Another name of what is there, or built in.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        done => Ok(done?),
    }
}

fn switch_off() -> io::Result<()> {
    // SAFETY: takes no addresses. Nothing is lost: there is no disk.
    succeeded(unsafe { libc::reboot(libc::RB_POWER_OFF) })
}

fn succeeded(answer: libc::c_int) -> io::Result<()> {
    match answer {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
