//! A node from outside: namespaces and control groups of its own, which begin and end as one.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::control_plane::kubectl;
use super::place::{self, PODS4, PODS6};
use super::process::{self, child, end, number, path, run, start, wait_for};
use super::settings::Settings;
use super::{cgroups, network};

/// Unpacking the images takes most of it.
const BOOT: Duration = Duration::from_secs(240);

/// Starts a node. It is not waited for.
pub(super) fn boot(settings: &Settings, number: u8) -> Result<()> {
    let name = place::node(number);
    fs::create_dir_all(place::disk(number))?;
    network::connect_node(settings, number)?;
    cgroups::create(&name)?;
    let this = std::env::current_exe().context("finding this program")?;
    // The groups first: the new cgroup namespace has its root where its first process is.
    let script = format!(
        "{}exec nsenter --net=/run/netns/{name} unshare --mount --uts --ipc --pid --cgroup --fork --mount-proc \
         --propagation private '{}' cluster node {number}",
        cgroups::join(&name)?,
        this.display()
    );
    let mut command = Command::new("sh");
    command.args(["-ec", &script]).env("PATH", path());
    start(&name, &mut command)
}

/// Waits until the node is there, and gives it its pods' prefixes.
pub(super) fn wait_registered(settings: &Settings, number: u8) -> Result<()> {
    let name = place::node(number);
    wait_for(
        &format!("{name} registers"),
        &place::log(&name),
        BOOT,
        || run(kubectl().args(["get", "node", &name])).is_ok(),
    )?;
    let v4 = format!("{PODS4}.{number}.0/24");
    let v6 = format!("{PODS6}:{number}::/64");
    let all = settings.both(&format!("\"{v4}\""), &format!("\"{v6}\""));
    let patch = format!(r#"{{"spec":{{"podCIDR":"{v4}","podCIDRs":[{all}]}}}}"#);
    run(kubectl().args(["patch", "node", &name, "--type=merge", "--patch", &patch])).map(drop)
}

/// Ends every process of a node, hard, and its namespaces with them. Its disk stays.
pub(super) fn halt(number: u8) -> Result<()> {
    let name = place::node(number);
    if let Some(outer) = process::number(&name) {
        // All other processes of the namespace end with its first.
        if let Some(first) = child(outer) {
            end(first)?;
        }
        process::stop(&name)?;
    }
    if network::namespaces().contains(&name) {
        network::disconnect_node(number)?;
    }
    cgroups::remove(&name)
}

/// The first process of a running node.
fn first_process(node: u8) -> Result<u32> {
    let name = place::node(node);
    let outer = number(&name).with_context(|| format!("{name} is not up"))?;
    child(outer).with_context(|| format!("{name} has no first process"))
}

/// A command inside of a node.
pub(crate) fn inside(number: u8, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
    let enter = format!(
        r#"{}exec nsenter --target {} --all -- "$@""#,
        cgroups::join(&place::node(number))?,
        first_process(number)?
    );
    let mut command = Command::new("sh");
    command
        .args(["-ec", &enter, "inside"])
        .arg(program)
        .env("PATH", path());
    Ok(command)
}

/// Has a node's container runtime know the images of an archive.
pub(super) fn import(number: u8, archive: &Path) -> Result<()> {
    let mut command = inside(number, place::program("ctr"))?;
    command.args(["--namespace=k8s.io", "images", "import", "--local"]);
    run(command.arg(archive)).map(drop)
}
