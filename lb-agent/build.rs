//! Finds the programs' object and hands it to `datapath::object` for embedding.
//!
//! The object needs another compiler target, so `cargo xtask build` makes it beforehand. Without it the crate
//! still compiles, for `cargo check` and clippy, and says at run time what is missing.

use std::path::PathBuf;
use std::{env, fs};

const OVERRIDE: &str = "BEELINE_BPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let built = manifest.join("../target/bpf/bpfel-unknown-none/bpf/lb.o");
    let object = env::var_os(OVERRIDE).map_or(built, PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    let bytes = fs::read(&object).unwrap_or_else(|error| {
        println!(
            "cargo::warning=no eBPF object at {} ({error}): run `cargo xtask build`",
            object.display()
        );
        Vec::new()
    });
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("lb.o");
    fs::write(&out, bytes).unwrap_or_else(|error| panic!("write {}: {error}", out.display()));
}
