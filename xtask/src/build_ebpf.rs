//! Builds and lints the eBPF object.
//!
//! The flags go through `CARGO_ENCODED_RUSTFLAGS` and a target directory of their own, so that no host
//! crate ever sees them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::toolchain::{self, TARGET, Toolchain};
use crate::{linker, object, progress};

/// The crate that needs unstable features for this target, and our binary (atomics, in one file).
const UNSTABLE: &str = "aya_ebpf,lb";

/// What cargo leaves.
fn linked() -> PathBuf {
    crate::root().join("target/bpf").join(TARGET).join("bpf/lb")
}

/// Where the object to embed is; `lb-agent/build.rs` looks there.
fn path() -> PathBuf {
    linked().with_extension("o")
}

/// Builds the object and inspects it.
pub(crate) fn build() -> Result<()> {
    let toolchain = toolchain::find()?;
    progress::say(format_args!("eBPF object: {}", describe(&toolchain)));
    crate::execute(cargo(&toolchain, "build", "")?.args(PACKAGE))
        .context("building the eBPF object")?;
    strip()?;
    object::inspect(&path())
}

/// Leaves out DWARF, nine tenths of the file: the linker needs it to write BTF, after that nobody does, and
/// the agent holds the whole object in memory while it loads it.
fn strip() -> Result<()> {
    let strip = linker::llvm_program("llvm-strip").with_context(|| {
        format!(
            "llvm-strip of LLVM {} is missing; run `cargo xtask setup`",
            linker::LLVM
        )
    })?;
    // In a file of its own first: equal ones are left alone, so that the agent is not built anew.
    let stripped = linked().with_extension("new");
    let mut command = Command::new(strip);
    command
        .arg("--strip-debug")
        .arg("-o")
        .args([&stripped, &linked()]);
    crate::execute(&mut command).context("stripping the eBPF object")?;
    if std::fs::read(&stripped).ok() == std::fs::read(path()).ok() {
        std::fs::remove_file(&stripped)
    } else {
        std::fs::rename(&stripped, path())
    }
    .with_context(|| format!("writing {}", path().display()))
}

/// Lints the programs as the kernel's target sees them, with warnings as errors.
pub(crate) fn lint() -> Result<()> {
    let toolchain = toolchain::find()?;
    let Some(clippy) = toolchain::clippy(&toolchain) else {
        return crate::execute(cargo(&toolchain, "check", "-Dwarnings")?.args(PACKAGE));
    };
    let flags = cargo(&toolchain, "clippy", "")?;
    let mut command = Command::new(clippy);
    command.current_dir(crate::root()).arg("clippy");
    if toolchain == Toolchain::BuildStd {
        command.arg("-Zbuild-std=core");
    }
    // cargo-clippy runs the cargo it is told of, with its neighbour clippy-driver for our crates.
    command.env("CARGO", flags.get_program());
    for (name, value) in flags.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    crate::execute(command.args(PACKAGE).args(["--", "-Dwarnings"]))
}

/// What is built, and how.
const PACKAGE: &[&str] = &[
    "--package=lb-ebpf",
    "--bin=lb",
    "--features=bpf",
    "--profile=bpf",
    "--target=bpfel-unknown-none",
    "--target-dir=target/bpf",
];

fn describe(toolchain: &Toolchain) -> String {
    match toolchain {
        Toolchain::Prebuilt { rustc } => format!("compiled by {}", rustc.display()),
        Toolchain::BuildStd => "compiled by rustup's nightly, with core from source".to_owned(),
    }
}

/// A cargo command that compiles for the kernel.
fn cargo(toolchain: &Toolchain, verb: &str, extra: &str) -> Result<Command> {
    let mut command = match toolchain {
        Toolchain::Prebuilt { rustc } => {
            let mut command = crate::cargo();
            command
                .arg(verb)
                .env("RUSTC", rustc)
                .env("RUSTC_BOOTSTRAP", UNSTABLE);
            command
        }
        Toolchain::BuildStd => {
            let found = toolchain::output(Command::new("rustup").args([
                "which",
                "cargo",
                "--toolchain",
                "nightly",
            ]))
            .context("asking rustup for the nightly cargo")?;
            let cargo = PathBuf::from(found.trim());
            let mut command = Command::new(&cargo);
            command
                .current_dir(crate::root())
                .args([verb, "-Zbuild-std=core"]);
            command.env("RUSTC", cargo.with_file_name("rustc"));
            command
        }
    };
    command.env("CARGO_ENCODED_RUSTFLAGS", flags(extra)?.join("\x1f"));
    // Set for a host build, these would break this one. The library path is the host compiler's.
    for name in [
        "RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_BUILD_TARGET",
        "LD_LIBRARY_PATH",
    ] {
        command.env_remove(name);
    }
    Ok(command)
}

fn flags(extra: &str) -> Result<Vec<String>> {
    ensure!(
        cfg!(target_endian = "little"),
        "only little-endian hosts are supported"
    );
    let linker = linker::find().context("bpf-linker is missing; run `cargo xtask setup`")?;
    let mut flags = vec![
        // The registers that a probe's arguments are in; aya-ebpf asks for it.
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        // Not v3: with 32-bit registers LLVM spills four bytes over a slot that held a pointer, which the
        // verifier refuses to a loader without CAP_PERFMON.
        "-Ctarget-cpu=v2".to_owned(),
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".to_owned(),
        // Without it, struct copies become byte loops, 2 to 10 times slower. Its companion
        // `--cpu-features=+allows-misaligned-mem-access` is not for us: LLVM then also writes misaligned
        // words to the stack, and there every verifier refuses them ("misaligned stack access").
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
    ];
    if !extra.is_empty() {
        flags.push(extra.to_owned());
    }
    Ok(flags)
}
