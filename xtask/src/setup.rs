//! Finds what the commands need, installs it where it may, and otherwise says how to get it.
//!
//! It installs packages only as root on a Debian system; everywhere else it names each missing thing with
//! the command that brings it, and stops before anything is half done.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};

use crate::linker;
use crate::progress::say;
use crate::toolchain;

/// What is going to be done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Build the object and the agent.
    Build,
    /// Run the checks.
    Check,
    /// Run nodes in network namespaces.
    Cluster,
    /// Boot other kernels.
    Guest,
}

impl Need {
    /// Everything that the tests of this machine need.
    pub(crate) const ALL: &[Need] = &[Need::Build, Need::Check, Need::Cluster];
}

/// Something that must be there.
struct Item {
    name: &'static str,
    why: &'static str,
    need: Need,
    probe: Probe,
    /// Debian packages that bring it.
    packages: &'static [&'static str],
    elsewhere: &'static str,
    /// Work can go on without it.
    optional: bool,
}

/// How to see whether something is there.
enum Probe {
    /// A program of this name can be found.
    Program(&'static str),
    /// This says so.
    Ask(fn() -> bool),
}

const ITEMS: &[Item] = &[
    Item {
        name: "a Rust compiler for eBPF",
        why: "builds the programs",
        need: Need::Build,
        probe: Probe::Ask(|| toolchain::find().is_ok()),
        packages: &["rustc-web", "libstd-rust-web-dev-bpf"],
        elsewhere: "rustup toolchain install nightly --component rust-src,clippy",
        optional: false,
    },
    Item {
        name: "LLVM 22 with its headers",
        why: "bpf-linker is built against it",
        need: Need::Build,
        probe: Probe::Ask(|| linker::find().is_some() || linker::llvm_prefix().is_some()),
        packages: &["llvm-22-dev"],
        elsewhere: "install it from your distribution or https://apt.llvm.org and set LLVM_PREFIX to its directory",
        optional: false,
    },
    Item {
        name: "clippy for the eBPF compiler",
        why: "lints the programs; without it they are held against the compiler's own warnings",
        need: Need::Check,
        probe: Probe::Ask(|| {
            toolchain::find().is_ok_and(|found| toolchain::clippy(&found).is_some())
        }),
        packages: &["rust-web-clippy"],
        elsewhere: "rustup component add clippy --toolchain nightly",
        optional: true,
    },
    Item {
        name: "rustfmt and clippy",
        why: "check the sources",
        need: Need::Check,
        probe: Probe::Ask(|| rustup_components() || add_rustup_components()),
        packages: &[],
        elsewhere: "rustup component add rustfmt clippy",
        optional: false,
    },
    program("ip", &["iproute2"], "builds namespaces, links and routes"),
    program("bpftool", &["bpftool"], "reads tables the way people do"),
    program("ethtool", &["ethtool"], "switches offloads on and off"),
    program(
        "nft",
        &["nftables"],
        "a neighbour whose rules must keep working",
    ),
    program(
        "iptables",
        &["iptables"],
        "a neighbour whose rules must keep working",
    ),
    program("conntrack", &["conntrack"], "shows what the kernel tracks"),
    program("curl", &["curl"], "dials services as people do"),
    program(
        "openssl",
        &["openssl"],
        "makes the test API server's certificates",
    ),
    Item {
        name: "qemu-system-x86_64",
        why: "boots other kernels",
        need: Need::Guest,
        probe: Probe::Program("qemu-system-x86_64"),
        packages: &["qemu-system-x86"],
        elsewhere: "install qemu's emulator of x86-64 machines from your distribution",
        optional: false,
    },
    Item {
        name: "xz",
        why: "unpacks kernel modules",
        need: Need::Guest,
        probe: Probe::Program("xz"),
        packages: &["xz-utils"],
        elsewhere: "install it from your distribution",
        optional: false,
    },
];

const fn program(name: &'static str, packages: &'static [&'static str], why: &'static str) -> Item {
    Item {
        name,
        why,
        need: Need::Cluster,
        probe: Probe::Program(name),
        packages,
        elsewhere: "install it from your distribution",
        optional: false,
    }
}

/// Makes sure that everything the needs ask for is there.
pub(crate) fn run(needs: &[Need]) -> Result<()> {
    if std::env::var_os(toolchain::OVERRIDE).is_some() {
        // The user chose: no package can help when that choice is wrong.
        toolchain::find()?;
    }
    let mut missing = missing(needs);
    let packages: Vec<&str> = missing
        .iter()
        .flat_map(|item| item.packages)
        .copied()
        .collect();
    if !packages.is_empty() && is_root() && has_apt() {
        say(format_args!("setup: installing {}", packages.join(" ")));
        if let Err(error) = install(&packages) {
            say(format_args!("setup: {error:#}"));
        }
        missing = self::missing(needs);
    }
    let (optional, required): (Vec<&Item>, Vec<&Item>) =
        missing.into_iter().partition(|item| item.optional);
    for item in optional {
        say(format_args!("setup: going on without {}", describe(item)));
    }
    if !required.is_empty() {
        let list: Vec<String> = required
            .into_iter()
            .map(|item| format!("- {}", describe(item)))
            .collect();
        let hint = if has_apt() && !is_root() {
            "\n(as root this command installs the packages itself)"
        } else {
            ""
        };
        bail!("missing:\n{}{hint}", list.join("\n"));
    }
    if needs.contains(&Need::Build) {
        ready_linker()?;
    }
    say("setup: everything is there");
    Ok(())
}

fn missing(needs: &[Need]) -> Vec<&'static Item> {
    let absent = |item: &&Item| match item.probe {
        Probe::Program(name) => find_program(name).is_none(),
        Probe::Ask(present) => !present(),
    };
    ITEMS
        .iter()
        .filter(|item| needs.contains(&item.need))
        .filter(absent)
        .collect()
}

fn describe(item: &Item) -> String {
    let debian = match item.packages {
        [] => String::new(),
        packages => format!("\n    Debian:    apt-get install {}", packages.join(" ")),
    };
    format!(
        "{} ({}){debian}\n    elsewhere: {}",
        item.name, item.why, item.elsewhere
    )
}

fn ready_linker() -> Result<()> {
    if linker::find().is_none() {
        say(format_args!(
            "setup: building bpf-linker {} (once, a minute or two)",
            linker::VERSION
        ));
        linker::install()?;
    }
    if let Some(llvm) = toolchain::llvm(&toolchain::find()?)
        && llvm > linker::LLVM
    {
        bail!(
            "the eBPF compiler writes LLVM {llvm} bitcode, which bpf-linker on LLVM {} cannot read; \
             choose another compiler with {}=/path/to/rustc",
            linker::LLVM,
            toolchain::OVERRIDE,
        );
    }
    Ok(())
}

/// Where programs are: the path, and what it lacks of the administrator's directories and Go's.
pub(crate) fn path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    for usual in ["/usr/sbin", "/sbin", "/usr/local/go/bin"].map(PathBuf::from) {
        if !places.contains(&usual) {
            places.push(usual);
        }
    }
    std::env::join_paths(places).unwrap_or(path)
}

/// Where a program is.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&path())
        .map(|entry| entry.join(name))
        .find(|file| file.is_file())
}

/// We run as root.
pub(crate) fn is_root() -> bool {
    Path::new("/proc/self")
        .metadata()
        .is_ok_and(|me| me.uid() == 0)
}

fn has_apt() -> bool {
    Path::new("/etc/debian_version").exists() && find_program("apt-get").is_some()
}

fn install(packages: &[&str]) -> Result<()> {
    let fresh = lists_are_fresh();
    if !fresh {
        apt_get(&["update"])?;
    }
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    match apt_get(&arguments) {
        // A mirror forgets old versions: lists that look fresh may still name files that are gone.
        Err(_) if fresh => apt_get(&["update"]).and_then(|()| apt_get(&arguments)),
        done => done,
    }
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .args([
            "-qq",
            "-o",
            "Dpkg::Use-Pty=0",
            "-o",
            "DPkg::Lock::Timeout=300",
        ])
        .args(arguments);
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    crate::execute(&mut command)
}

/// The package lists are there and younger than a day.
fn lists_are_fresh() -> bool {
    let Ok(entries) = Path::new("/var/lib/apt/lists").read_dir() else {
        return false;
    };
    let lists = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("_Packages"));
    let read = Path::new("/var/lib/apt/lists")
        .metadata()
        .and_then(|directory| directory.modified());
    let age = read.map(|then| SystemTime::now().duration_since(then).unwrap_or_default());
    lists.count() > 0 && age.is_ok_and(|age| age < Duration::from_secs(24 * 3600))
}

fn rustup_components() -> bool {
    ["fmt", "clippy"]
        .iter()
        .all(|part| toolchain::output(crate::cargo().args([part, "--version"])).is_some())
}

/// rustup's minimal profile comes without them; it adds them without asking for rights.
fn add_rustup_components() -> bool {
    let mut command = Command::new("rustup");
    command.args(["component", "add", "rustfmt", "clippy"]);
    crate::execute(&mut command).is_ok() && rustup_components()
}
