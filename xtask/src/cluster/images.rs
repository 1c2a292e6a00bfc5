//! Container images, made on the spot from built programs and Debian packages: no registry is asked.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::archive::{Archive, Start};
use super::process::run;
use super::{place, programs, registry};
use crate::progress::say;

/// What one of upstream's images is here. Its name is as `e2e.test --list-images` prints it.
struct Substitute {
    name: &'static str,
    layers: &'static [&'static str],
    entrypoint: &'static [&'static str],
    command: &'static [&'static str],
}

const TOOLS: &[&str] = &["base", "agnhost", "coredns"];

const SUBSTITUTES: &[Substitute] = &[
    substitute("pause", &["pause"], &["/pause"], &[]),
    substitute("agnhost", TOOLS, &["/agnhost"], &["pause"]),
    substitute("busybox", &["busybox"], &[], &["sh"]),
    substitute("glibc-dns-testing", TOOLS, &[], &["/agnhost", "pause"]),
    substitute("distroless-iptables", &["base"], &[], &["sh"]),
    // The tests only need it to listen.
    substitute(
        "nginx",
        &["base", "agnhost"],
        &["/agnhost"],
        &["netexec", "--http-port=80"],
    ),
    substitute(
        "regression-issue-74839",
        &["regression"],
        &["/regression"],
        &[],
    ),
];

const fn substitute(
    name: &'static str,
    layers: &'static [&'static str],
    entrypoint: &'static [&'static str],
    command: &'static [&'static str],
) -> Substitute {
    Substitute {
        name,
        layers,
        entrypoint,
        command,
    }
}

/// Programs and the layers they are in.
const PROGRAM_LAYERS: &[(&str, &str)] = &[
    ("agnhost", "agnhost"),
    ("asker", "asker"),
    ("coredns", "coredns"),
    ("pause", "pause"),
    ("regression", "regression"),
];

/// What stands where upstream's images are not asked for by name.
pub(super) const COREDNS: &str = "localhost/coredns:cluster";
const TOOLBOX: &str = "localhost/tools:cluster";
pub(super) const PAUSE: &str = "localhost/pause:cluster";

pub(super) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The archive of everything but Beeline.
pub(super) fn archive() -> PathBuf {
    place::home().join("images.tar")
}

/// The archive of Beeline alone.
pub(super) fn beeline_archive() -> PathBuf {
    place::home().join("beeline.tar")
}

/// What came of building.
#[derive(PartialEq, Eq)]
pub(super) enum Made {
    Anew,
    Before,
}

/// Makes the archive of everything but Beeline, unless there is one younger than what goes into it.
pub(super) fn build() -> Result<Made> {
    let age = |path: &Path| {
        fs::metadata(path)
            .and_then(|metadata| metadata.modified())
            .ok()
    };
    let made = age(&archive());
    // The tests tell which names the images need.
    let programs = PROGRAM_LAYERS
        .iter()
        .map(|(_, program)| *program)
        .chain(["e2e.test"]);
    let newest = programs
        .filter_map(|program| age(&place::program(program)))
        .max();
    let roots = place::home().join("root");
    if made.is_some() && made >= newest && registry::is_in(&roots.join("agnhost")) {
        return Ok(Made::Before);
    }
    say("making images");
    let packages = programs::container_packages()?;
    base(&roots.join("base"), &packages)?;
    busybox(&roots.join("busybox"), &packages)?;
    for (layer, program) in PROGRAM_LAYERS {
        let directory = roots.join(layer);
        fs::create_dir_all(&directory)?;
        fs::copy(place::program(program), directory.join(program))?;
    }
    let start = |entrypoint, command| Start {
        entrypoint,
        command,
        environment: &[PATH],
    };
    agnhost(&roots.join("agnhost"))?;
    let pause = start(&["/pause"], &[]);
    registry::lay_out(&roots.join("agnhost"), &roots, "pause", &pause)?;

    let mut archive = Archive::new("images")?;
    for reference in upstream()? {
        let Some(what) = SUBSTITUTES
            .iter()
            .find(|what| reference.contains(&format!("/{}:", what.name)))
        else {
            continue;
        };
        archive.add(
            &reference,
            &roots,
            what.layers,
            &start(what.entrypoint, what.command),
        )?;
    }
    archive.add(COREDNS, &roots, &["coredns"], &start(&["/coredns"], &[]))?;
    archive.add(
        TOOLBOX,
        &roots,
        &[TOOLS, &["asker"]].concat(),
        &start(&["/agnhost"], &["pause"]),
    )?;
    archive.add(PAUSE, &roots, &["pause"], &pause)?;
    archive.finish(&self::archive())?;
    Ok(Made::Anew)
}

/// Names of the images that upstream's tests ask for. Without the tests nobody asks.
fn upstream() -> Result<Vec<String>> {
    let tests = place::program("e2e.test");
    if !tests.exists() {
        return Ok(Vec::new());
    }
    let list = run(Command::new(tests).arg("--list-images"))?;
    // Those that need a password are for tests of passwords.
    let names = list.lines().filter(|name| !name.contains("authenticated"));
    Ok(names.map(|name| name.trim().to_owned()).collect())
}

/// A small Debian with the tools that tests call.
fn base(root: &Path, packages: &[PathBuf]) -> Result<()> {
    let done = root.with_extension("done");
    if done.exists() {
        return Ok(());
    }
    skeleton(root)?;
    for package in packages {
        programs::unpack(package, root)?;
    }
    let master = root.join("usr/share/base-passwd");
    for (table, line) in [
        // The tests look these up.
        ("passwd", "user-defined-in-image:x:1000:1000::/:/bin/sh\n"),
        (
            "group",
            "user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n",
        ),
    ] {
        let text = fs::read_to_string(master.join(format!("{table}.master")))?;
        fs::write(root.join("etc").join(table), text + line)?;
    }
    fs::write(
        root.join("etc/nsswitch.conf"),
        "passwd: files\ngroup: files\nhosts: files dns\n",
    )?;
    // As busybox's wget, which upstream's images have: it asks once.
    fs::write(root.join("etc/wgetrc"), "tries = 1\n")?;
    // Choices that Debian leaves to scripts at installation.
    for (name, choice) in [("awk", "mawk"), ("nc", "nc.openbsd"), ("sh", "dash")] {
        link(choice, &root.join("usr/bin").join(name))?;
    }
    for family in ["iptables", "ip6tables"] {
        for verb in ["", "-save", "-restore"] {
            link(
                "xtables-nft-multi",
                &root.join("usr/sbin").join(format!("{family}{verb}")),
            )?;
        }
    }
    busybox_links(root)?;
    for waste in ["doc", "man", "locale", "info", "perl5", "bash-completion"] {
        let _ = fs::remove_dir_all(root.join("usr/share").join(waste));
    }
    fs::write(done, "").context("noting that a layer is complete")
}

/// busybox with the C library it needs: a static one crashes on name look-ups.
fn busybox(root: &Path, packages: &[PathBuf]) -> Result<()> {
    let done = root.with_extension("done");
    if done.exists() {
        return Ok(());
    }
    skeleton(root)?;
    for package in packages {
        let name = package.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("busybox_") || name.starts_with("libc6_") {
            programs::unpack(package, root)?;
        }
    }
    let _ = fs::remove_dir_all(root.join("usr/share"));
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    fs::write(root.join("etc/nsswitch.conf"), "hosts: files dns\n")?;
    busybox_links(root)?;
    fs::write(done, "").context("noting that a layer is complete")
}

/// Directories of an empty system, `/bin` and the like as links into `/usr`.
fn skeleton(root: &Path) -> Result<()> {
    if root.exists() {
        fs::remove_dir_all(root)?;
    }
    for directory in [
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "tmp",
        "etc",
        "root",
        "var/tmp",
        "run",
        "dev",
        "proc",
        "sys",
        "results",
        "uploads",
    ] {
        fs::create_dir_all(root.join(directory))?;
    }
    for directory in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{directory}"), root.join(directory))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))
        .context("opening /tmp of an image to all")
}

/// busybox stands in for every tool that is not there.
fn busybox_links(root: &Path) -> Result<()> {
    let list = run(Command::new("chroot")
        .arg(root)
        .args(["/usr/bin/busybox", "--list"]))?;
    for tool in list.lines() {
        let taken = ["usr/bin", "usr/sbin"]
            .iter()
            .any(|place| root.join(place).join(tool).symlink_metadata().is_ok());
        if !taken {
            symlink("busybox", root.join("usr/bin").join(tool))?;
        }
    }
    Ok(())
}

fn link(to: &str, at: &Path) -> Result<()> {
    if at.symlink_metadata().is_ok() {
        fs::remove_file(at)?;
    }
    symlink(to, at).with_context(|| format!("linking {}", at.display()))
}

/// Files that agnhost looks for beside itself.
fn agnhost(root: &Path) -> Result<()> {
    link("agnhost", &root.join("agnhost-2"))?;
    let sources = programs::sources("kubernetes", "k8s.io/kubernetes")?;
    let porter = sources.join("test/images/agnhost/porter");
    for file in ["localhost.crt", "localhost.key"] {
        // Read and written: the module cache is read-only, and a copy would be too.
        fs::write(root.join(file), fs::read(porter.join(file))?)?;
    }
    Ok(())
}

/// Builds Beeline's image as `manifests/Containerfile` says and returns its name.
pub(super) fn build_beeline() -> Result<String> {
    let text = fs::read_to_string(crate::root().join("manifests/Containerfile"))?;
    let recipe = Recipe::read(&text).context("manifests/Containerfile")?;
    let roots = place::home().join("root");
    let layer = roots.join("beeline");
    if layer.exists() {
        fs::remove_dir_all(&layer)?;
    }
    for (from, to) in &recipe.copies {
        let target = layer.join(to.trim_start_matches('/'));
        fs::create_dir_all(target.parent().unwrap_or(&layer))?;
        let source = crate::target().join("static").join(from);
        fs::copy(&source, &target).with_context(|| format!("copying {}", source.display()))?;
    }
    let entrypoint: Vec<&str> = recipe.entrypoint.iter().map(String::as_str).collect();
    let environment: Vec<&str> = recipe.environment.iter().map(String::as_str).collect();
    let start = Start {
        entrypoint: &entrypoint,
        command: &[],
        environment: &environment,
    };
    let reference = format!("docker.io/library/beeline:v{}", env!("CARGO_PKG_VERSION"));
    let mut archive = Archive::new("image-of-beeline")?;
    archive.add(&reference, &roots, &["beeline"], &start)?;
    archive.finish(&beeline_archive())?;
    Ok(reference)
}

/// The instructions that our recipe uses, and no others.
#[derive(Default, PartialEq, Debug)]
struct Recipe {
    copies: Vec<(String, String)>,
    environment: Vec<String>,
    entrypoint: Vec<String>,
}

impl Recipe {
    fn read(text: &str) -> Result<Self> {
        let mut recipe = Self::default();
        let lines = text.lines().map(str::trim);
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (instruction, rest) = line.split_once(' ').unwrap_or((line, ""));
            let words: Vec<&str> = rest.split_whitespace().collect();
            match (instruction, words.as_slice()) {
                ("FROM", ["scratch"]) => {}
                ("COPY", [from, to]) => recipe.copies.push(((*from).into(), (*to).into())),
                ("ENV", [assignment]) if assignment.contains('=') => {
                    recipe.environment.push((*assignment).into());
                }
                ("ENTRYPOINT", _) => {
                    let list = rest
                        .strip_prefix('[')
                        .and_then(|rest| rest.strip_suffix(']'));
                    let list = list.context("ENTRYPOINT is no list")?.split(',');
                    recipe.entrypoint = list
                        .map(|word| word.trim().trim_matches('"').into())
                        .collect();
                }
                _ => bail!("`{line}` is an instruction that `cargo xtask cluster` cannot follow"),
            }
        }
        ensure!(
            !recipe.copies.is_empty(),
            "nothing is copied into the image"
        );
        Ok(recipe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_recipe_is_understood() {
        let text = fs::read_to_string(crate::root().join("manifests/Containerfile")).unwrap();
        let recipe = Recipe::read(&text).unwrap();
        assert_eq!(recipe.copies, [("beeline".into(), "/beeline".into())]);
        assert_eq!(recipe.entrypoint, ["/beeline"]);
        assert_eq!(recipe.environment, ["PATH=/"]);
    }

    #[test]
    fn what_cannot_be_followed_is_refused() {
        assert!(Recipe::read("FROM debian\nCOPY a /a\n").is_err());
        assert!(Recipe::read("FROM scratch\nRUN a\n").is_err());
        assert!(Recipe::read("FROM scratch\n").is_err());
    }
}
