//! Builds the cluster's programs from Go modules and fetches its Debian packages. Nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::place;
use super::process::run;
use crate::progress::say;
use crate::setup;

/// A Go program: its module below `tests/e2e`, its package, its name.
pub(super) struct Program {
    module: &'static str,
    package: &'static str,
    pub(super) name: &'static str,
}

const KUBERNETES: &str = "kubernetes";
const TESTS: &str = "k8s.io/kubernetes/test/e2e";

/// Enforces NetworkPolicy, where a cluster is to have that.
pub(super) const POLICY_ENGINE: Program = go(
    "network-policies",
    "sigs.k8s.io/kube-network-policies/cmd",
    "kube-network-policies",
);

/// The large ones last: a fault shows early.
const PROGRAMS: &[Program] = &[
    go(KUBERNETES, "./pause", "pause"),
    go(KUBERNETES, "./asker", "asker"),
    go(KUBERNETES, "./cloud", "cloud"),
    go(KUBERNETES, "github.com/onsi/ginkgo/v2/ginkgo", "ginkgo"),
    go(KUBERNETES, "k8s.io/kubernetes/cmd/kubectl", "kubectl"),
    go(
        KUBERNETES,
        "k8s.io/kubernetes/cmd/kube-scheduler",
        "kube-scheduler",
    ),
    go(
        KUBERNETES,
        "k8s.io/kubernetes/cmd/kube-apiserver",
        "kube-apiserver",
    ),
    go(
        KUBERNETES,
        "k8s.io/kubernetes/cmd/kube-controller-manager",
        "kube-controller-manager",
    ),
    go(KUBERNETES, "k8s.io/kubernetes/cmd/kube-proxy", "kube-proxy"),
    go(KUBERNETES, "k8s.io/kubernetes/cmd/kubelet", "kubelet"),
    go(
        KUBERNETES,
        "k8s.io/kubernetes/test/images/agnhost",
        "agnhost",
    ),
    go(
        KUBERNETES,
        "k8s.io/kubernetes/test/images/regression-issue-74839",
        "regression",
    ),
    go(
        "containerd",
        "github.com/containerd/containerd/v2/cmd/containerd",
        "containerd",
    ),
    go(
        "containerd",
        "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
        "containerd-shim-runc-v2",
    ),
    go(
        "containerd",
        "github.com/containerd/containerd/v2/cmd/ctr",
        "ctr",
    ),
    go("coredns", ".", "coredns"),
];

const fn go(module: &'static str, package: &'static str, name: &'static str) -> Program {
    Program {
        module,
        package,
        name,
    }
}

/// What a node takes from Debian.
const NODE_PACKAGES: &[&str] = &["runc", "containernetworking-plugins"];

/// What the tests call inside of containers. Upstream's images have Alpine's.
const CONTAINER_PACKAGES: &[&str] = &[
    "base-files",
    "base-passwd",
    "bash",
    "bind9-dnsutils",
    "busybox",
    "ca-certificates",
    "conntrack",
    "coreutils",
    "curl",
    "dash",
    "findutils",
    "grep",
    "hostname",
    "iperf",
    "iproute2",
    "iptables",
    "iputils-ping",
    "libc-bin",
    "mawk",
    "netbase",
    "netcat-openbsd",
    "nftables",
    "procps",
    "sed",
    "socat",
    "util-linux",
    "wget",
];

/// Makes sure that all is there.
pub(super) fn build() -> Result<()> {
    fs::create_dir_all(place::home().join("bin"))?;
    ensure!(
        setup::find_program("go").is_some(),
        "Go is missing: Kubernetes is built from source with it. Install Go 1.26 or newer (https://go.dev/dl/) and \
         put it on PATH"
    );
    for program in PROGRAMS {
        build_go(program)?;
    }
    build_etcd()?;
    unpack_host_tools()
}

/// Upstream's tests, which only `cargo xtask e2e` needs.
pub(crate) fn build_tests() -> Result<()> {
    let module = module(KUBERNETES);
    let output = place::program("e2e.test");
    if is_current(&output, &module, TESTS) {
        return Ok(());
    }
    say("building e2e.test (minutes the first time)");
    let mut command = go_command(&module);
    command.args(["test", "-c", "-vet=off", "-ldflags", &stamp(&module)?, "-o"]);
    run(command.arg(&output).arg(TESTS))?;
    touch(&output)
}

fn module(name: &str) -> PathBuf {
    crate::root().join("tests/e2e").join(name)
}

pub(super) fn build_go(program: &Program) -> Result<()> {
    let module = module(program.module);
    let output = place::program(program.name);
    if is_current(&output, &module, program.package) {
        return Ok(());
    }
    say(format_args!(
        "building {} (minutes the first time)",
        program.name
    ));
    let mut command = go_command(&module);
    command.args(["build", "-ldflags", &stamp(&module)?, "-o"]);
    run(command.arg(&output).arg(program.package))?;
    touch(&output)
}

/// The API server's storage, which other tests build too.
fn build_etcd() -> Result<()> {
    let tests = crate::root().join("tests/kubernetes");
    let built = crate::target().join("kubernetes/etcd");
    if !is_current(&built, &tests, "./etcd") {
        say("building etcd (a minute the first time)");
        run(Command::new(tests.join("build")).arg("etcd"))?;
    }
    let output = place::program("etcd");
    if !output.exists() {
        std::os::unix::fs::symlink(&built, &output).context("linking etcd")?;
    }
    Ok(())
}

fn go_command(module: &Path) -> Command {
    let mut command = Command::new("nice");
    command
        .args(["-n", "10", "go"])
        .current_dir(module)
        .env("PATH", setup::path())
        // Containers have no C library, or another one.
        .env("CGO_ENABLED", "0");
    command
}

/// Where the files of a Go module are that one of ours is made of.
pub(super) fn sources(ours: &str, name: &str) -> Result<PathBuf> {
    let mut go = Command::new("go");
    go.current_dir(module(ours)).env("PATH", setup::path());
    let place = run(go.args(["list", "-m", "-f", "{{.Dir}}", name]))?;
    Ok(PathBuf::from(place.trim()))
}

/// Upstream puts its version in at link time; without it the programs call themselves v0.0.0.
fn stamp(module: &Path) -> Result<String> {
    let text = fs::read_to_string(module.join("go.mod"))
        .with_context(|| format!("reading {}/go.mod", module.display()))?;
    let Some(version) = kubernetes_version(&text) else {
        return Ok("-s -w".into());
    };
    let minor = version.split('.').nth(1).unwrap_or_default();
    let variable = "-X k8s.io/component-base/version.";
    Ok(format!(
        "-s -w {variable}gitVersion={version} {variable}gitMajor=1 {variable}gitMinor={minor} \
         {variable}gitTreeState=clean"
    ))
}

fn kubernetes_version(module: &str) -> Option<&str> {
    module
        .lines()
        .find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "))
        .filter(|version| version.starts_with("v1."))
}

/// Kubernetes' version of the cluster.
pub(crate) fn version() -> Result<String> {
    let text = fs::read_to_string(module(KUBERNETES).join("go.mod"))?;
    let version = kubernetes_version(&text)
        .context("tests/e2e/kubernetes/go.mod names no k8s.io/kubernetes")?;
    Ok(version.to_owned())
}

/// Built after its module, and its own directory where it is ours, were last changed.
fn is_current(output: &Path, module: &Path, package: &str) -> bool {
    let changed = |path: &Path| {
        fs::metadata(path)
            .and_then(|metadata| metadata.modified())
            .ok()
    };
    let Some(built) = changed(output) else {
        return false;
    };
    let own = package.starts_with('.').then(|| module.join(package));
    let own = own.and_then(|directory| fs::read_dir(directory).ok());
    let files = own
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let described = ["go.mod", "go.sum"].map(|name| module.join(name));
    files
        .chain(described)
        .filter_map(|file| changed(&file))
        .all(|changed| changed <= built)
}

/// A program that needed no new link keeps its old time.
fn touch(file: &Path) -> Result<()> {
    let file = fs::File::options().append(true).open(file)?;
    file.set_modified(std::time::SystemTime::now())
        .context("noting when a program was built")
}

fn unpack_host_tools() -> Result<()> {
    let place = place::host_tools();
    if place.join("usr/sbin/runc").exists() {
        return Ok(());
    }
    say("fetching Debian packages for nodes");
    for package in fetch("host", NODE_PACKAGES)? {
        let name = package.file_name().unwrap_or_default().to_string_lossy();
        // Their libraries are the machine's.
        if NODE_PACKAGES
            .iter()
            .any(|wanted| name.starts_with(&format!("{wanted}_")))
        {
            unpack(&package, &place)?;
        }
    }
    Ok(())
}

/// Unpacks what containers take from Debian.
pub(super) fn container_packages() -> Result<Vec<PathBuf>> {
    fetch("container", CONTAINER_PACKAGES)
}

/// Downloads packages with everything they depend on, as if nothing was installed.
fn fetch(name: &str, packages: &[&str]) -> Result<Vec<PathBuf>> {
    let directory = place::home().join("debs").join(name);
    let done = directory.join("complete");
    if !done.exists() {
        fs::create_dir_all(directory.join("partial"))?;
        let nothing = directory.join("status");
        fs::write(&nothing, "")?;
        let mut command = Command::new("apt-get");
        command.args(["-qq", "--yes", "--no-install-recommends", "--download-only"]);
        let options = [
            format!("Dir::State::status={}", nothing.display()),
            format!("Dir::Cache::archives={}", directory.display()),
            "Dir::Cache::pkgcache=".into(),
            "Dir::Cache::srcpkgcache=".into(),
            // The unprivileged user apt fetches as may not write here.
            "APT::Sandbox::User=root".into(),
            "Debug::NoLocking=1".into(),
        ];
        for option in options {
            command.args(["-o", &option]);
        }
        run(command.arg("install").args(packages))
            .context("fetching Debian packages (a Debian machine with fresh package lists is needed: apt-get update)")?;
        fs::write(done, "")?;
    }
    let entries = fs::read_dir(&directory)?.flatten();
    let packages = entries.map(|entry| entry.path());
    Ok(packages
        .filter(|file| file.extension().is_some_and(|extension| extension == "deb"))
        .collect())
}

/// Unpacks a package over what is there. `/bin` and the like may be links into `/usr`, and stay so.
pub(super) fn unpack(package: &Path, place: &Path) -> Result<()> {
    fs::create_dir_all(place)?;
    let script =
        r#"dpkg-deb --fsys-tarfile "$1" | tar --extract --directory "$2" --keep-directory-symlink"#;
    run(Command::new("sh")
        .args(["-ec", script, "unpack"])
        .arg(package)
        .arg(place))
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_modules() {
        let module = "module x\n\nrequire (\n\tk8s.io/api v0.37.2\n\tk8s.io/kubernetes v1.37.2\n)\n\nreplace (\n\tk8s.io/kubernetes => x\n)";
        assert_eq!(kubernetes_version(module), Some("v1.37.2"));
        assert_eq!(kubernetes_version("module x\n"), None);
        assert!(version().is_ok_and(|version| version.starts_with("v1.")));
    }
}
