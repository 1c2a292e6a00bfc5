//! The real kube-proxy on a node of a cluster: what Beeline's behaviour is compared with.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;
use std::{env, io};

use anyhow::{Context as _, Result, bail, ensure};
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
    /// With the iptables that writes nftables rules.
    Iptables,
    /// With the iptables that writes tables of its own.
    IptablesLegacy,
}

impl Mode {
    /// As kube-proxy spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables | Self::IptablesLegacy => "iptables",
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
        let mut command = place.command(program(PROGRAM))?;
        match mode {
            Mode::Nftables => {}
            Mode::Iptables => {
                command.env("PATH", path_with_iptables(directory, "nft")?);
            }
            Mode::IptablesLegacy => {
                command.env("PATH", path_with_iptables(directory, "legacy")?);
            }
        }
        let process = command
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

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Stops it where it is, so that it takes no processor and changes no rule.
    pub fn pause(&self) -> Result<()> {
        self.signal(libc::SIGSTOP)
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        self.signal(libc::SIGCONT)
    }

    fn signal(&self, signal: libc::c_int) -> Result<()> {
        // SAFETY: the child is not reaped yet, so the id is its own.
        let sent = unsafe { libc::kill(self.process.id().cast_signed(), signal) };
        ensure!(
            sent == 0,
            "signalling kube-proxy: {}",
            io::Error::last_os_error()
        );
        Ok(())
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

/// A search path on which `iptables` is of this kind, whatever the distribution chose.
fn path_with_iptables(directory: &Path, kind: &str) -> Result<OsString> {
    let tools = directory.join("iptables");
    fs::create_dir_all(&tools).with_context(|| format!("create {}", tools.display()))?;
    for family in ["iptables", "ip6tables"] {
        for action in ["", "-save", "-restore"] {
            let name = format!("{family}-{kind}{action}");
            let found = ["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"]
                .map(|place| Path::new(place).join(&name))
                .into_iter()
                .find(|path| path.exists());
            let found = found.with_context(|| format!("{name} is missing: install iptables"))?;
            let link = tools.join(format!("{family}{action}"));
            if !link.exists() {
                symlink(found, &link).with_context(|| format!("link {}", link.display()))?;
            }
        }
    }
    let mut path = tools.into_os_string();
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    Ok(path)
}
