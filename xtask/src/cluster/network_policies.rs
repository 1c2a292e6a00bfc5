//! Puts upstream's kube-network-policies on the cluster, with its own manifest as it is.
//!
//! It decides in user space about the first packet of each conversation, which nftables' `queue` hands to it. Where
//! the kernel has no such expression, its rules cannot be loaded; iptables' NFQUEUE takes their place then.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::archive::{Archive, Start};
use super::control_plane::kubectl;
use super::place::{self, PODS4, PODS6};
use super::process::run;
use super::programs::{self, POLICY_ENGINE};
use super::settings::Settings;
use super::{images, node};
use crate::progress::say;

const SOURCES: &str = "sigs.k8s.io/kube-network-policies";

/// Where its manifest expects the program.
const PROGRAM: &str = "bin/netpol";

/// The queue it listens to, by the flag in its manifest.
const QUEUE: &str = "98";

fn archive() -> PathBuf {
    place::home().join("network-policies.tar")
}

fn manifest() -> Result<PathBuf> {
    Ok(programs::sources("network-policies", SOURCES)?.join("install.yaml"))
}

/// Builds the engine, in an image of the name that its manifest asks for.
pub(super) fn build_image() -> Result<()> {
    programs::build_go(&POLICY_ENGINE)?;
    let file = manifest()?;
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    ensure!(
        text.contains(&format!("--nfqueue-id={QUEUE}")),
        "{}: the engine no longer listens to queue {QUEUE}, as our rules for it say",
        file.display()
    );
    let reference =
        image(&text).with_context(|| format!("{}: it names no single image", file.display()))?;
    let roots = place::home().join("root");
    let layer = roots.join("network-policies");
    let program = layer.join(PROGRAM);
    fs::create_dir_all(program.parent().unwrap_or(&layer))?;
    fs::copy(place::program(POLICY_ENGINE.name), program).context("filling an image")?;
    let start = Start {
        entrypoint: &[],
        command: &["/bin/netpol"],
        environment: &[images::PATH],
    };
    let mut archive = Archive::new("image-of-network-policies")?;
    archive.add(reference, &roots, &["network-policies"], &start)?;
    archive.finish(&self::archive())
}

/// The only image that a manifest names.
fn image(manifest: &str) -> Option<&str> {
    let mut names = manifest
        .lines()
        .filter_map(|line| line.trim_start_matches([' ', '-']).strip_prefix("image: "));
    match (names.next(), names.next()) {
        (Some(name), None) => Some(name.trim()),
        _ => None,
    }
}

/// Has the engine run on every node.
pub(super) fn deploy(settings: &Settings) -> Result<()> {
    for number in settings.numbers() {
        node::import(number, &archive())?;
    }
    run(kubectl().args(["apply", "-f"]).arg(manifest()?))?;
    let status = "-n kube-system rollout status daemonset/kube-network-policies --timeout=120s";
    run(kubectl().args(status.split(' '))).context(
        "kube-network-policies does not run: cargo xtask cluster kubectl -n kube-system logs ds/kube-network-policies",
    )?;
    say("network policies are enforced");
    Ok(())
}

/// In a booting node: makes up for what this kernel's nftables cannot do.
pub(super) fn prepare_kernel(number: u8) -> Result<()> {
    if nftables_can_queue()? {
        return Ok(());
    }
    let families = [
        ("iptables", format!("{PODS4}.{number}.0/24")),
        ("ip6tables", format!("{PODS6}:{number}::/64")),
    ];
    for (program, pods) in &families {
        for rule in rules(pods) {
            let mut command = Command::new(program);
            // Before the source is translated, as the engine's own chain.
            command.args(["--wait", "--table", "mangle", "--append", "POSTROUTING"]);
            run(command.args(rule.split(' ')))?;
        }
    }
    Ok(())
}

/// Loads a rule like the engine's and takes it away again.
fn nftables_can_queue() -> Result<bool> {
    let table = "inet beeline-trial";
    let nft = |words: String| run(Command::new("nft").arg(words));
    nft(format!("table {table} {{ chain queues {{ }}; }}"))?;
    let can = nft(format!("add rule {table} queues queue num {QUEUE}")).is_ok();
    nft(format!("delete table {table}"))?;
    Ok(can)
}

/// What the engine's own rules say, but for all pods of the node: it leaves those alone that no policy selects, too.
/// DNS is no exception: that is for kernels before 6.12.
fn rules(pods: &str) -> Vec<String> {
    let mut rules = vec![
        // Probes of kubelet, which no policy may refuse.
        "-m owner --uid-owner 0 -j ACCEPT".to_owned(),
        "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT".to_owned(),
    ];
    // Neighbours must find each other.
    if pods.contains(':') {
        rules.push("-p icmpv6 -j ACCEPT".to_owned());
    }
    for direction in ["--source", "--destination"] {
        // Without an engine its own rules would not be there, and nothing would be held back.
        rules.push(format!(
            "{direction} {pods} -j NFQUEUE --queue-num {QUEUE} --queue-bypass"
        ));
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_the_only_one() {
        assert_eq!(image("a:\n  - image: x/y:v1\n"), Some("x/y:v1"));
        assert_eq!(image("image: x\nimage: y\n"), None);
        assert_eq!(image("a: b\n"), None);
    }
}
