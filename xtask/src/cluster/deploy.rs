//! Puts a service proxy and the name service on the cluster: Beeline the way a user does it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::control_plane::{kubeconfig_of_kube_proxy, kubectl, pods};
use super::process::{in_network, run, start, stop, wait_for};
use super::settings::{Proxy, Settings};
use super::{images, node, place};
use crate::{build, build_ebpf};

const ROLLOUT: &str = "--timeout=120s";

/// Beeline's overlay, which a user applies too.
fn overlay() -> PathBuf {
    crate::root().join("manifests/overlays/replace-kube-proxy")
}

/// The proxy that the settings name, of the image that was built last.
pub(super) fn proxy(settings: &Settings) -> Result<()> {
    match settings.proxy {
        Proxy::Beeline => beeline(settings),
        Proxy::Upstream => settings
            .numbers()
            .try_for_each(|number| kube_proxy(settings, number)),
        Proxy::None => Ok(()),
    }
}

/// Builds Beeline's image, where it is wanted.
pub(super) fn build_image(settings: &Settings) -> Result<()> {
    if settings.proxy == Proxy::Beeline {
        build_ebpf::build()?;
        build::static_agent()?;
        images::build_beeline()?;
    }
    Ok(())
}

fn beeline(settings: &Settings) -> Result<()> {
    for number in settings.numbers() {
        node::import(number, &images::beeline_archive())?;
    }
    // What kubeadm leaves on a cluster, and Beeline takes the API server's address from.
    let kubeconfig = kubeconfig_of_kube_proxy()?;
    apply(&format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: kube-proxy, namespace: kube-system}}\n\
         data:\n  kubeconfig.conf: |\n    {}\n",
        kubeconfig.trim_end().replace('\n', "\n    ")
    ))?;
    let place = if settings.agent.is_empty() {
        overlay()
    } else {
        with_flags(settings)?
    };
    run(kubectl().args(["apply", "-k"]).arg(place))?;
    wait_rolled_out()
}

/// Has every agent replaced by one of the same image.
pub(super) fn restart() -> Result<()> {
    run(kubectl().args([
        "-n",
        "kube-system",
        "rollout",
        "restart",
        "daemonset/beeline",
    ]))?;
    wait_rolled_out()
}

pub(super) fn wait_rolled_out() -> Result<()> {
    let status = [
        "-n",
        "kube-system",
        "rollout",
        "status",
        "daemonset/beeline",
    ];
    run(kubectl().args(status).arg(ROLLOUT))
        .context("Beeline did not become ready: cargo xtask cluster kubectl -n kube-system logs ds/beeline")
        .map(drop)
}

/// The overlay with further flags of the agent, as a user would add them.
fn with_flags(settings: &Settings) -> Result<PathBuf> {
    let place = place::state().join("overlay");
    fs::create_dir_all(&place)?;
    let mut text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n  - {}\npatches:\n  \
         - target: {{kind: DaemonSet, name: beeline}}\n    patch: |-\n",
        relative(&place, &overlay()).display()
    );
    for flag in &settings.agent {
        text.push_str(&format!(
            "      - {{op: add, path: /spec/template/spec/containers/0/args/-, value: {flag:?}}}\n"
        ));
    }
    fs::write(place.join("kustomization.yaml"), text)?;
    Ok(place)
}

/// The way from one directory to another; kustomize takes no absolute one.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let common = from.components().zip(to.components());
    let common = common.take_while(|(a, b)| a == b).count();
    let up = from.components().skip(common).map(|_| "..");
    let down = to.components().skip(common).map(|part| part.as_os_str());
    up.map(std::ffi::OsStr::new).chain(down).collect()
}

/// kube-proxy as a process of the node: to measure what it passes, not how it is deployed.
fn kube_proxy(settings: &Settings, number: u8) -> Result<()> {
    let name = place::node(number);
    let file = place::disk(number).join("kube-proxy.yaml");
    let configuration = format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {{kubeconfig: '{}'}}
hostnameOverride: {name}
clusterCIDR: '{}'
bindAddress: 0.0.0.0
healthzBindAddress: 0.0.0.0:10256
metricsBindAddress: 127.0.0.1:10249
# A network namespace cannot change the table's size.
conntrack: {{maxPerCore: 0, min: 0}}
",
        place::kubeconfig().display(),
        pods(settings)
    );
    fs::write(&file, configuration)?;
    let process = format!("{name}.kube-proxy");
    let mut command = node::inside(number, place::program("kube-proxy"))?;
    start(&process, command.arg("--config").arg(file))?;
    wait_for(
        "kube-proxy is healthy",
        &place::log(&process),
        Duration::from_secs(60),
        || {
            let mut curl = in_network(&name, "curl");
            run(curl.args(["-sf", "http://127.0.0.1:10256/healthz"])).is_ok()
        },
    )
}

/// Ends processes that are no pods.
pub(super) fn stop_kube_proxy(number: u8) -> Result<()> {
    stop(&format!("{}.kube-proxy", place::node(number)))
}

pub(super) fn names() -> Result<()> {
    let manifest = crate::root().join("tests/e2e/coredns.yaml");
    run(kubectl().args(["apply", "-f"]).arg(manifest)).map(drop)
}

pub(super) fn wait_names() -> Result<()> {
    let status = [
        "-n",
        "kube-system",
        "rollout",
        "status",
        "deployment/coredns",
    ];
    run(kubectl().args(status).arg(ROLLOUT))
        .context("the name service did not become ready, which asks the API server through its ClusterIP")
        .map(drop)
}

fn apply(manifest: &str) -> Result<()> {
    let file = place::state().join("applied.yaml");
    fs::write(&file, manifest)?;
    run(Command::args(&mut kubectl(), ["apply", "-f"]).arg(file)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_between_directories_goes_up_and_down() {
        let way = relative(Path::new("/a/b/c"), Path::new("/a/d/e"));
        assert_eq!(way, Path::new("../../d/e"));
    }
}
