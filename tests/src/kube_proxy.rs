//! The real kube-proxy on a node of a cluster: what Beeline's behaviour is compared with.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::agent::healthy;
use crate::control_plane::{build, program};
use crate::netns::Namespace;
use crate::node::Node;
use crate::process::Place;
use crate::wait::eventually;

const PROGRAM: &str = "kube-proxy";

/// kube-proxy's backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Nftables,
    Iptables,
}

impl Mode {
    /// As kube-proxy spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }
}

/// A running kube-proxy. Dropping it ends the process; its rules stay with the namespace.
#[derive(Debug)]
pub struct KubeProxy {
    process: Child,
    namespace: Namespace,
    log: PathBuf,
}

impl KubeProxy {
    /// Starts it on a node, for the pods of `cluster_cidr` (`--cluster-cidr`).
    pub fn start(node: &Node, kubeconfig: &Path, mode: Mode, cluster_cidr: &str) -> Result<Self> {
        build(&[PROGRAM])?;
        let directory = node.directory();
        let config = directory.join("kube-proxy.json");
        // It waits this long after a sync before the next one begins.
        let pace = json!({"minSyncPeriod": "50ms", "syncPeriod": "30s"});
        let settings = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": mode.name(),
            "hostnameOverride": node.name(),
            "clientConnection": {"kubeconfig": kubeconfig, "qps": 100, "burst": 200},
            "clusterCIDR": cluster_cidr,
            "nftables": pace,
            "iptables": pace,
            // These are settings of the machine, not of the namespace.
            "conntrack": {"maxPerCore": 0, "min": 0},
        });
        fs::write(&config, settings.to_string())
            .with_context(|| format!("write {}", config.display()))?;
        let log = directory.join("kube-proxy.log");
        let output = OpenOptions::new().create(true).append(true).open(&log);
        let output = output.with_context(|| format!("open {}", log.display()))?;
        let place = Place {
            namespace: node.namespace().clone(),
            cgroup: node.cgroup()?.join("agent"),
        };
        let process = place
            .command(program(PROGRAM))?
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("start kube-proxy")?;
        Ok(Self {
            process,
            namespace: place.namespace,
            log,
        })
    }

    /// Waits until it says that it is healthy.
    pub fn wait_ready(&mut self) -> Result<()> {
        let namespace = self.namespace.clone();
        let outcome = eventually("kube-proxy is healthy", Duration::from_secs(60), || {
            if let Some(status) = self.process.try_wait()? {
                bail!("kube-proxy ended ({status})");
            }
            Ok(namespace.run(|| Ok(healthy()))?.then_some(()))
        });
        outcome.with_context(|| format!("kube-proxy's log:\n{}", self.log()))
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        // Both fail only for a process that is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
