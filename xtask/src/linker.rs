//! bpf-linker: turns the compiler's bitcode into the object, with LLVM of its own.
//!
//! Its LLVM must be at least as new as the compiler's, down to the patch level (bpf-linker issue 387), so
//! it is built here against the LLVM that the distribution ships beside the compiler.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::setup::find_program;
use crate::toolchain::output;

/// The release we build with.
pub(crate) const VERSION: &str = "0.13.0";

/// Major version of the LLVM it is built against.
pub(crate) const LLVM: u32 = 22;

/// An installed bpf-linker of the right version.
pub(crate) fn find() -> Option<PathBuf> {
    let mut places = vec![tools().join("bin")];
    places.extend(cargo_home().map(|home| home.join("bin")));
    places.extend(
        std::env::var_os("PATH")
            .iter()
            .flat_map(std::env::split_paths),
    );
    places
        .into_iter()
        .map(|place| place.join("bpf-linker"))
        .find(|linker| {
            linker.is_file()
                && version(linker)
                    .is_some_and(|found| found.split_whitespace().any(|word| word == VERSION))
        })
}

/// Installs bpf-linker where cargo puts programs, or below `target/` when another version is there already.
pub(crate) fn install() -> Result<()> {
    let prefix =
        llvm_prefix().with_context(|| format!("no LLVM {LLVM} development files found"))?;
    let mut command = crate::cargo();
    command.args(["install", "bpf-linker", "--version", VERSION, "--locked"]);
    command.args([
        "--no-default-features",
        "--features",
        &format!("llvm-{LLVM}"),
    ]);
    if cargo_home().is_none_or(|home| home.join("bin/bpf-linker").exists()) {
        command.arg("--root").arg(tools());
    }
    command
        .env("LLVM_PREFIX", prefix)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR");
    crate::execute(&mut command)?;
    find().context("bpf-linker was installed but does not start; see `bpf-linker --version`")?;
    Ok(())
}

/// Where LLVM's development files are: `LLVM_PREFIX`, else where Debian or Alpine put them.
pub(crate) fn llvm_prefix() -> Option<PathBuf> {
    let told = std::env::var_os("LLVM_PREFIX").map(PathBuf::from);
    let usual = [
        format!("/usr/lib/llvm-{LLVM}"),
        format!("/usr/lib/llvm{LLVM}"),
    ]
    .map(PathBuf::from);
    told.into_iter().chain(usual).find(|prefix| {
        let version = output(Command::new(prefix.join("bin/llvm-config")).arg("--version"));
        version.is_some_and(|version| version.starts_with(&format!("{LLVM}.")))
            && prefix.join("include/llvm-c/Core.h").is_file()
    })
}

/// A program of the LLVM that bpf-linker uses: beside its libraries, or on the path under a versioned name.
pub(crate) fn llvm_program(name: &str) -> Option<PathBuf> {
    let own = llvm_prefix().map(|prefix| prefix.join("bin").join(name));
    own.filter(|program| program.is_file())
        .or_else(|| find_program(&format!("{name}-{LLVM}")))
}

fn version(linker: &PathBuf) -> Option<String> {
    output(Command::new(linker).arg("--version"))
}

fn cargo_home() -> Option<PathBuf> {
    match std::env::var_os("CARGO_HOME") {
        Some(home) => Some(PathBuf::from(home)),
        None => std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")),
    }
}

fn tools() -> PathBuf {
    crate::target().join("tools")
}
