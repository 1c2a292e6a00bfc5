//! `cargo xtask vm`: the programs and the agent's code on other kernels.
//!
//! Each kernel is one of Debian's, booted by qemu in software emulation with nothing but an initramfs: the very
//! test programs that `cargo xtask test` runs, the libraries and tools they need, and a first process
//! (`guest` of `lb-tests`) that runs them one by one. What they print comes back by a serial line and is read as from
//! `cargo test`. Nothing of this machine is touched, so no root is needed, but for `native`.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::progress::say;
use crate::runner::{self, Outcome};
use crate::setup::{self, Need};
use crate::{build_ebpf, demo};

mod archive;
mod image;
mod kernel;
mod programs;
mod table;

use image::Image;
use kernel::Kernel;
use programs::Programs;

/// What is asked for when nothing is: the oldest Debian kernel still in use, a recent one, the newest, and ours.
const USUAL: [&str; 4] = ["6.1", "6.12", "7", NATIVE];
/// The running kernel instead of a guest's.
const NATIVE: &str = "native";
/// The file that a guest may rewrite, below the workspace.
const BUDGET: &str = "tests/budget.toml";

/// Which kernels and which tests.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Kernels as the beginning of their version (6.1, 7), or `native` for this machine's.
    #[arg(value_name = "VERSION")]
    versions: Vec<String>,
    /// Run only the tests whose names contain this.
    #[arg(long, value_name = "F")]
    filter: Option<String>,
    /// Run only the test programs that cargo knows by this pattern, such as `datapath_*`.
    #[arg(long, value_name = "PATTERN")]
    test: Vec<String>,
    /// Look for newer kernels than those in `target/vm`.
    #[arg(long)]
    newest: bool,
    /// Write what the programs cost on these kernels into `tests/budget.toml`.
    #[arg(long)]
    update_budget: bool,
}

/// How often a kernel is booted until the first test runs: emulators have their faults.
const BOOTS: u32 = 12;

/// One kernel's results.
struct Run {
    kernel: String,
    outcome: Outcome,
}

/// Runs the tests on every kernel asked for; true when nothing failed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let usual = USUAL.map(str::to_owned);
    let versions: &[String] = match options.versions.as_slice() {
        [] => &usual,
        versions => versions,
    };
    ensure!(
        setup::is_root() || !versions.iter().any(|version| version == NATIVE),
        "tests on this machine's own kernel need root: {}, or name other kernels",
        demo::as_root("vm")
    );
    setup::run(&[Need::Build, Need::Cluster, Need::Guest])?;
    build_ebpf::build()?;
    let programs = programs::build(&options.test)?;
    let mut runs = Vec::new();
    for version in versions {
        let run = if version == NATIVE {
            natively(&programs, options)
        } else {
            in_a_guest(version, &programs, options)
        };
        runs.push(run.with_context(|| format!("Linux {version}"))?);
    }
    Ok(table::print(&runs, &programs, options.filter.is_some()))
}

fn in_a_guest(version: &str, programs: &Programs, options: &Options) -> Result<Run> {
    let kernel = Kernel::find(version, options.newest)?;
    let directory = directory()?.join(&kernel.release);
    let initramfs = directory.join("initramfs");
    let (console, budget) = (directory.join("console"), directory.join("budget"));
    let mut image = Image::default();
    image.add_programs(programs, options.filter.as_deref())?;
    image.add_modules(&kernel)?;
    let size = image.write(&initramfs)?;
    say(format_args!(
        "Linux {}: booting, {} MiB of tests",
        kernel.release,
        size >> 20
    ));
    // What the kernel does not know it hands to its first process as a variable.
    let mut boot = format!(
        "console=ttyS0 quiet panic=-1 HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin BEELINE={}",
        programs.agent.display()
    );
    if options.update_budget {
        boot += " BEELINE_UPDATE_BUDGET=1";
    }
    let boot_once = || {
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.env("PATH", setup::path())
            .args(["-accel", "tcg", "-cpu", processor(&kernel)])
            .args(["-m", &((size >> 20) + 1536).to_string()])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(&initramfs)
            .args(["-append", &boot])
            // The kernel's messages, the tests' lines, a file that comes back: each has its own line.
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio", "-serial"])
            .arg(format!("file:{}", budget.display()))
            .stdin(Stdio::null());
        runner::run(qemu)
    };
    let mut outcome = boot_once()?;
    for _ in 1..BOOTS {
        if !outcome.reports.is_empty() {
            break;
        }
        say(format_args!("Linux {}: booting again", kernel.release));
        outcome = boot_once()?;
    }
    if programs.complete(&mut outcome) {
        let messages = std::fs::read_to_string(&console).unwrap_or_default();
        let last: Vec<&str> = messages.lines().rev().take(20).collect();
        for line in last.iter().rev() {
            eprintln!("    {line}");
        }
        say(format_args!(
            "Linux {}: the guest ended early; its last messages are above, all of them in {}",
            kernel.release,
            console.display()
        ));
    } else if options.update_budget {
        take_over(&budget)?;
    }
    let _ = std::fs::remove_file(&initramfs);
    Ok(Run {
        kernel: kernel.version().to_owned(),
        outcome,
    })
}

/// `max` has everything that can be emulated; five-level page tables would only be slower.
///
/// qemu 7.2 now and then spoils the flags behind cmpxchg16b, which the allocator of memory uses. Without it newer
/// kernels have no timers for programs ("the sweep does not start"): since 6.18 their memory comes that way alone.
fn processor(kernel: &Kernel) -> &'static str {
    if archive::numbers(kernel.version()) < archive::numbers("6.18") {
        "max,la57=off,cx16=off"
    } else {
        "max,la57=off"
    }
}

/// Replaces the tracked file by what came out of the guest, if anything did.
fn take_over(budget: &std::path::Path) -> Result<()> {
    let text = std::fs::read_to_string(budget)?.replace('\r', "");
    if !text.trim().is_empty() {
        std::fs::write(crate::root().join(BUDGET), text).context(BUDGET)?;
        say(format_args!("rewrote {BUDGET}"));
    }
    Ok(())
}

fn natively(programs: &Programs, options: &Options) -> Result<Run> {
    let directory = directory()?.join(NATIVE);
    std::fs::create_dir_all(&directory)?;
    let list = directory.join("programs");
    std::fs::write(&list, programs.list())?;
    say("this machine");
    let mut guest = Command::new(&programs.guest);
    guest
        .current_dir(crate::root())
        .env("BEELINE", &programs.agent)
        .env("PATH", setup::path())
        .arg(&list)
        .args(&options.filter);
    if options.update_budget {
        guest.env("BEELINE_UPDATE_BUDGET", "1");
    }
    let mut outcome = runner::run(guest)?;
    programs.complete(&mut outcome);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = release.split('-').next().unwrap_or_default().trim();
    Ok(Run {
        kernel: version.to_owned(),
        outcome,
    })
}

/// Where everything is kept that can be had again.
fn directory() -> Result<PathBuf> {
    let directory = crate::target().join("vm");
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("making {}", directory.display()))?;
    Ok(directory)
}
