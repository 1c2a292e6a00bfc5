//! Archives of container images, of the form that `docker save` writes, which containerd imports.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::place;
use super::process::run;

/// An archive while it is made.
pub(super) struct Archive {
    work: PathBuf,
    entries: Vec<String>,
}

/// What runs in an image.
pub(super) struct Start<'a> {
    pub(super) entrypoint: &'a [&'a str],
    pub(super) command: &'a [&'a str],
    pub(super) environment: &'a [&'a str],
}

impl Archive {
    pub(super) fn new(name: &str) -> Result<Self> {
        let work = place::home().join(name);
        if work.exists() {
            fs::remove_dir_all(&work)?;
        }
        fs::create_dir_all(&work)?;
        Ok(Self {
            work,
            entries: Vec::new(),
        })
    }

    /// Adds an image of some layers; directories of these names below `roots`.
    pub(super) fn add(
        &mut self,
        reference: &str,
        roots: &Path,
        layers: &[&str],
        start: &Start<'_>,
    ) -> Result<()> {
        let digests = layers
            .iter()
            .map(|layer| self.layer(roots, layer))
            .collect::<Result<Vec<_>>>()?;
        let files: Vec<String> = layers.iter().map(|layer| format!("{layer}.tar")).collect();
        let config = configuration(start, &digests);
        let name = format!("{}.json", reference.replace(['/', ':'], "_"));
        fs::write(self.work.join(&name), config)?;
        self.entries.push(format!(
            r#"{{"Config":"{name}","RepoTags":["{reference}"],"Layers":{files:?}}}"#
        ));
        Ok(())
    }

    /// Packs a layer, once, so that the same files give the same digest, and returns that.
    fn layer(&self, roots: &Path, name: &str) -> Result<String> {
        let file = self.work.join(format!("{name}.tar"));
        if !file.exists() {
            pack(&roots.join(name), &file)?;
        }
        digest(&file)
    }

    pub(super) fn finish(self, archive: &Path) -> Result<()> {
        let list = format!("[{}]", self.entries.join(","));
        fs::write(self.work.join("manifest.json"), list)?;
        let new = archive.with_extension("new");
        let mut tar = Command::new("tar");
        tar.args(["--create", "--file"]).arg(&new);
        run(tar.arg("--directory").arg(&self.work).arg("."))?;
        fs::rename(new, archive)?;
        fs::remove_dir_all(&self.work).context("tidying up after an archive")
    }
}

/// Packs a directory as a layer.
pub(super) fn pack(directory: &Path, file: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sort=name", "--mtime=@0", "--numeric-owner"]);
    tar.args(["--owner=0", "--group=0", "--file"]).arg(file);
    run(tar.arg("--directory").arg(directory).arg(".")).map(drop)
}

/// A file's digest, as images name it.
pub(super) fn digest(file: &Path) -> Result<String> {
    let sum = run(Command::new("sha256sum").arg(file))?;
    let digest = sum.split(' ').next().unwrap_or_default();
    Ok(format!("sha256:{digest}"))
}

/// The configuration of an image of layers with these digests.
pub(super) fn configuration(start: &Start<'_>, digests: &[impl std::fmt::Debug]) -> String {
    // Lists of plain words look the same in JSON as in Rust.
    format!(
        r#"{{"architecture":"{}","os":"linux","config":{{"Entrypoint":{:?},"Cmd":{:?},"Env":{:?}}},"rootfs":{{"type":"layers","diff_ids":{digests:?}}}}}"#,
        architecture(),
        start.entrypoint,
        start.command,
        start.environment,
    )
}

/// As image configurations call it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
