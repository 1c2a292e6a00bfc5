//! Debian's kernels, by apt with a state of its own.
//!
//! The mirror is the one this machine uses; only the suites are ours. apt checks the archive's signature and the
//! packages' sums as it always does, and the machine's own lists and packages stay as they are.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::progress::say;
use crate::{execute, setup, toolchain};

/// Oldest first: where 6.1, 6.12 and the newest kernel come from.
const SUITES: [&str; 3] = ["bookworm", "bookworm-backports", "unstable"];
/// The cloud flavour has every device and filter we need, and a third of the bytes.
const FLAVOUR: &str = "-cloud-amd64";
/// A release may be spread over these; which, has changed over time.
const PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];
/// Debian's keys; where the file is missing apt goes by the keys it was told to trust.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

pub(super) struct Archive {
    state: PathBuf,
}

impl Archive {
    /// The archive with lists fetched just now.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let state = directory.join("apt");
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(state.join(part))?;
        }
        // apt wants to know what is installed: nothing.
        fs::write(state.join("status"), "")?;
        fs::write(state.join("sources.list"), sources(&mirror()?))?;
        let archive = Self { state };
        say("fetching the lists of Debian's kernels");
        execute(archive.apt("apt-get").args(["-qq", "update"]))?;
        Ok(archive)
    }

    /// The newest kernel release whose version begins with this, such as `6.1.0-50-cloud-amd64`.
    pub(super) fn newest(&self, version: &str) -> Result<String> {
        let names = toolchain::output(self.apt("apt-cache").args(["pkgnames", PARTS[0]]))
            .context("asking apt-cache for kernels")?;
        let releases: BTreeSet<(Vec<u32>, &str)> = names
            .lines()
            .filter_map(|name| name.strip_prefix(PARTS[0]))
            .filter(|release| release.ends_with(FLAVOUR))
            .filter(|release| release.starts_with(|first: char| first.is_ascii_digit()))
            .map(|release| (numbers(release), release))
            .collect();
        let wanted = numbers(version);
        let newest = releases
            .iter()
            .rfind(|(numbers, _)| numbers.starts_with(&wanted));
        let known = || {
            let known: Vec<&str> = releases.iter().map(|(_, release)| *release).collect();
            format!(
                "Debian has no kernel {version} for the cloud in {}; it has {}",
                SUITES.join(", "),
                known.join(", ")
            )
        };
        Ok(newest.with_context(known)?.1.to_owned())
    }

    /// Downloads a release's packages and unpacks them into a directory.
    pub(super) fn fetch(&self, release: &str, into: &Path) -> Result<()> {
        let packages: Vec<String> = PARTS
            .iter()
            .map(|part| format!("{part}{release}"))
            .filter(|package| {
                // A name that is unknown or only mentioned by others has no record.
                toolchain::output(self.apt("apt-cache").args(["show", package]))
                    .is_some_and(|record| !record.trim().is_empty())
            })
            .collect();
        say(format_args!("downloading {}", packages.join(" ")));
        let downloads = into.with_extension("download");
        for directory in [&downloads, &into.to_owned()] {
            let _ = fs::remove_dir_all(directory);
            fs::create_dir_all(directory)?;
        }
        execute(
            self.apt("apt-get")
                .current_dir(&downloads)
                .args(["-qq", "download"])
                .args(&packages),
        )?;
        for package in fs::read_dir(&downloads)? {
            let package = package?.path();
            execute(
                Command::new("dpkg-deb")
                    .arg("--extract")
                    .arg(&package)
                    .arg(into),
            )?;
        }
        fs::remove_dir_all(&downloads)?;
        Ok(())
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("PATH", setup::path()).env("LC_ALL", "C");
        let path = |name: &str| self.state.join(name).display().to_string();
        for setting in [
            format!("Dir::Etc::SourceList={}", path("sources.list")),
            "Dir::Etc::SourceParts=-".into(),
            format!("Dir::State={}", path("")),
            format!("Dir::State::Status={}", path("status")),
            format!("Dir::Cache={}", path("cache")),
            "APT::Architecture=amd64".into(),
            "APT::Architectures::=amd64".into(),
            // Only root could hand the directories to apt's own user.
            "APT::Sandbox::User=".into(),
            "Acquire::Languages=none".into(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
        ] {
            command.arg("-o").arg(setting);
        }
        command
    }
}

/// Where this machine gets Debian from.
fn mirror() -> Result<String> {
    let ask = || {
        let format = "$(LABEL) $(REPO_URI)";
        let targets = toolchain::output(Command::new("apt-get").args([
            "indextargets",
            "--format",
            format,
            "Created-By: Packages",
        ]))?;
        let mut mirrors = targets
            .lines()
            .filter_map(|target| target.strip_prefix("Debian "));
        mirrors.next().map(str::to_owned)
    };
    if let Some(mirror) = ask() {
        return Ok(mirror);
    }
    // The labels are known only once the lists have been read.
    if setup::is_root() {
        execute(Command::new("apt-get").args(["-qq", "update"]))?;
    }
    ask().context(
        "apt knows no mirror of Debian: kernels come from there, so this needs a Debian system whose package \
         lists were fetched (apt-get update)",
    )
}

fn sources(mirror: &str) -> String {
    let keys = if Path::new(KEYS).exists() {
        format!("[signed-by={KEYS}] ")
    } else {
        String::new()
    };
    SUITES
        .map(|suite| format!("deb {keys}{mirror} {suite} main\n"))
        .concat()
}

/// `6.12.90+deb12.1-cloud-amd64` → 6, 12, 90, 12, 1; the flavour does not count.
pub(super) fn numbers(release: &str) -> Vec<u32> {
    release
        .trim_end_matches(FLAVOUR)
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// Fails where apt cannot help.
pub(super) fn require_apt() -> Result<()> {
    let missing = ["apt-get", "apt-cache", "dpkg-deb"]
        .into_iter()
        .find(|name| setup::find_program(name).is_none());
    ensure!(
        missing.is_none(),
        "kernels come as Debian packages, for which {} is missing here; put an unpacked one into target/vm/kernels",
        missing.unwrap_or_default()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_ordered_by_their_numbers() {
        let mut releases = [
            "6.12.9+deb12",
            "6.12.90+deb12.1",
            "6.12.90+deb12",
            "6.1.0-50",
        ]
        .map(|release| format!("{release}{FLAVOUR}"));
        releases.sort_by_key(|release| numbers(release));
        assert_eq!(
            releases.map(|release| release.replace(FLAVOUR, "")),
            [
                "6.1.0-50",
                "6.12.9+deb12",
                "6.12.90+deb12",
                "6.12.90+deb12.1"
            ]
        );
    }

    #[test]
    fn a_version_is_no_mere_beginning_of_text() {
        assert!(!numbers("6.12.95+deb12-cloud-amd64").starts_with(&numbers("6.1")));
        assert!(numbers("6.1.0-50-cloud-amd64").starts_with(&numbers("6.1")));
    }
}
