//! One of Debian's kernels: the image to boot and the modules that tests need, in the order to load them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use super::archive::{self, Archive};

/// What the tests and the agent use of the kernel beyond its image. A kernel may have some built in.
const MODULES: &[&str] = &[
    "veth",
    "bridge",
    "br_netfilter",
    "vxlan",
    "tun",
    "sch_ingress",
    "cls_bpf",
    "tcp_diag",
    "udp_diag",
    "af_packet_diag",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_tables",
    "nft_ct",
    "nft_masq",
    "nft_chain_nat",
    "nft_compat",
    "xt_conntrack",
    "xt_MASQUERADE",
];

pub(super) struct Kernel {
    pub(super) release: String,
    pub(super) image: PathBuf,
    modules: BTreeMap<String, PathBuf>,
}

impl Kernel {
    /// The newest kernel whose version begins with this: one that was fetched before, else one of the archive.
    pub(super) fn find(version: &str, newest: bool) -> Result<Self> {
        ensure!(
            !archive::numbers(version).is_empty(),
            "{version:?} is no version of Linux: give its beginning, such as 6.1"
        );
        let directory = super::directory()?;
        let kernels = directory.join("kernels");
        fs::create_dir_all(&kernels)?;
        let had = here(&kernels, version)?;
        let release = match had {
            Some(release) if !newest => release,
            _ => {
                archive::require_apt()?;
                let archive = Archive::open(&directory)?;
                let release = archive.newest(version)?;
                if !kernels.join(&release).exists() {
                    // Under its name only when it is whole.
                    let partial = kernels.join("partial");
                    archive.fetch(&release, &partial)?;
                    fs::rename(&partial, kernels.join(&release))?;
                }
                release
            }
        };
        Self::open(&kernels.join(&release), release)
    }

    fn open(directory: &Path, release: String) -> Result<Self> {
        let name = format!("vmlinuz-{release}");
        // Packages put the image into /boot or, lately, beside the modules.
        let mut files = Vec::new();
        collect(directory, &mut files)?;
        let image = files
            .iter()
            .find(|file| {
                file.file_name()
                    .is_some_and(|file| file == name.as_str() || file == "vmlinuz")
            })
            .with_context(|| format!("{} holds no {name}", directory.display()))?
            .clone();
        let modules = files
            .into_iter()
            .filter_map(|file| Some((module_name(file.file_name()?.to_str()?)?, file)))
            .collect();
        Ok(Self {
            release,
            image,
            modules,
        })
    }

    /// `6.1` and what follows up to the flavour, for people.
    pub(super) fn version(&self) -> &str {
        self.release
            .split_once("-cloud")
            .map_or(self.release.as_str(), |(version, _)| version)
    }

    /// Names and contents of the modules, each behind those it depends on.
    pub(super) fn modules(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut ordered = Vec::new();
        for name in MODULES {
            self.require(name, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn require(&self, name: &str, ordered: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        if ordered.iter().any(|(present, _)| present == name) {
            return Ok(());
        }
        // Built in, or not of this version: a test that needs it will say so.
        let Some(file) = self.modules.get(name) else {
            return Ok(());
        };
        let module = read(file)?;
        for dependency in dependencies(&module) {
            self.require(&dependency, ordered)?;
        }
        ordered.push((name.to_owned(), module));
        Ok(())
    }
}

/// The newest release of a version that was fetched before.
fn here(kernels: &Path, version: &str) -> Result<Option<String>> {
    let wanted = archive::numbers(version);
    Ok(fs::read_dir(kernels)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|release| archive::numbers(release).starts_with(&wanted))
        .max_by_key(|release| archive::numbers(release)))
}

/// `xt_nat.ko.xz` → `xt_nat`. Files write a dash where the kernel writes an underscore.
fn module_name(file: &str) -> Option<String> {
    let (name, rest) = file.split_once(".ko")?;
    ["", ".xz"].contains(&rest).then(|| name.replace('-', "_"))
}

fn read(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_some_and(|extension| extension == "xz") {
        let unpacked = Command::new("xz")
            .arg("-dc")
            .arg(file)
            .stderr(Stdio::inherit())
            .output()
            .context("running xz: install xz-utils")?;
        if !unpacked.status.success() {
            bail!("xz cannot unpack {}", file.display());
        }
        return Ok(unpacked.stdout);
    }
    fs::read(file).with_context(|| format!("reading {}", file.display()))
}

/// What a module says it needs: the string `depends=a,b` of its section `.modinfo`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|bytes| bytes == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..].split(|&byte| byte == 0).next();
    String::from_utf8_lossy(value.unwrap_or_default())
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in
        fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?
    {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_names_what_it_needs() {
        let module = b"\x7fELF\0license=GPL\0depends=stp,nf-tables\0retpoline=Y\0";
        assert_eq!(dependencies(module), ["stp", "nf_tables"]);
        assert_eq!(dependencies(b"\0depends=\0name=veth\0"), [""; 0]);
    }

    #[test]
    fn names_are_the_kernels() {
        assert_eq!(module_name("nf-nat.ko.xz").as_deref(), Some("nf_nat"));
        assert_eq!(module_name("veth.ko").as_deref(), Some("veth"));
        assert_eq!(module_name("modules.order"), None);
    }
}
