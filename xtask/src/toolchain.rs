//! Which compiler builds the eBPF object.
//!
//! The object needs `core` for the target `bpfel-unknown-none`, which rustup does not ship. Debian does, for
//! its own compiler (`libstd-rust-web-dev-bpf`); a nightly compiler can build it from source (`rust-src`).
//! A prebuilt `core` loads only in the very compiler build that made it, so the two never mix.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

/// The object's target.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// Overrides the search.
pub(crate) const OVERRIDE: &str = "BPF_RUSTC";

/// A way to build the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Toolchain {
    /// A compiler whose sysroot has `core` for [`TARGET`].
    Prebuilt { rustc: PathBuf },
    /// rustup's nightly with `rust-src`: cargo builds `core` too.
    BuildStd,
}

/// Finds a toolchain: the override, a compiler that has the library, else nightly with its sources.
pub(crate) fn find() -> Result<Toolchain> {
    if let Some(rustc) = std::env::var_os(OVERRIDE) {
        let rustc = PathBuf::from(rustc);
        if !has_library(&rustc) {
            bail!(
                "{OVERRIDE}={} has no core library for {TARGET}; {HOW_TO}",
                rustc.display()
            );
        }
        return Ok(Toolchain::Prebuilt { rustc });
    }
    for rustc in candidates() {
        if has_library(&rustc) {
            return Ok(Toolchain::Prebuilt { rustc });
        }
    }
    if nightly_with_sources() {
        return Ok(Toolchain::BuildStd);
    }
    bail!("no compiler here can build for {TARGET}; {HOW_TO}")
}

/// The three ways out when there is no toolchain.
const HOW_TO: &str = "\
one of these helps:
  1. Debian 12 or newer: apt-get install rustc-web libstd-rust-web-dev-bpf
  2. rustup: rustup toolchain install nightly --component rust-src
  3. BPF_RUSTC=/path/to/rustc, a compiler whose sysroot has lib/rustlib/bpfel-unknown-none";

/// Where a distribution puts its compiler, and whatever is on the path.
fn candidates() -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/usr/bin/rustc")];
    found.extend(
        std::env::var_os("PATH")
            .iter()
            .flat_map(std::env::split_paths)
            .map(|entry| entry.join("rustc")),
    );
    found.retain(|rustc| rustc.is_file());
    found.dedup();
    found
}

/// The compiler can be started and brings `core` for [`TARGET`].
fn has_library(rustc: &Path) -> bool {
    let Some(sysroot) = output(Command::new(rustc).args(["--print", "sysroot"])) else {
        return false;
    };
    let libraries = Path::new(sysroot.trim())
        .join("lib/rustlib")
        .join(TARGET)
        .join("lib");
    let Ok(entries) = libraries.read_dir() else {
        return false;
    };
    entries
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

fn nightly_with_sources() -> bool {
    // `rustup which` answers without running (or installing) a toolchain.
    let Some(rustc) =
        output(Command::new("rustup").args(["which", "rustc", "--toolchain", "nightly"]))
    else {
        return false;
    };
    let Some(sysroot) = Path::new(rustc.trim()).parent().and_then(Path::parent) else {
        return false;
    };
    sysroot.join("lib/rustlib/src/rust/library/core").is_dir()
}

/// What a command prints, when it succeeds.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    if !output.status.success() {
        return None;
    }
    String::from_utf8(output.stdout).ok()
}

/// The lint driver that belongs to a compiler: `clippy` works only with the compiler build it was made for.
pub(crate) fn clippy(toolchain: &Toolchain) -> Option<PathBuf> {
    match toolchain {
        Toolchain::Prebuilt { rustc } => {
            let cargo_clippy = rustc.with_file_name("cargo-clippy");
            let version = output(Command::new(rustc).arg("--version"))?;
            let driver = output(
                Command::new(rustc.with_file_name("clippy-driver"))
                    .arg("--rustc")
                    .arg("--version"),
            )?;
            (cargo_clippy.is_file() && version == driver).then_some(cargo_clippy)
        }
        Toolchain::BuildStd => {
            let path = output(Command::new("rustup").args([
                "which",
                "cargo-clippy",
                "--toolchain",
                "nightly",
            ]))?;
            Some(PathBuf::from(path.trim()))
        }
    }
}

/// Major version of the LLVM in a compiler.
pub(crate) fn llvm(toolchain: &Toolchain) -> Option<u32> {
    let verbose = match toolchain {
        Toolchain::Prebuilt { rustc } => output(Command::new(rustc).arg("-vV"))?,
        Toolchain::BuildStd => {
            output(Command::new("rustup").args(["run", "nightly", "rustc", "-vV"]))?
        }
    };
    let version = verbose
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}
