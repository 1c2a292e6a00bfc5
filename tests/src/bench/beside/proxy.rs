//! The proxies that are measured, each alone on node1 of a cluster of its own.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::agent::{SocketLb, Source};
use crate::cluster::Cluster;
use crate::kube_proxy::{KubeProxy, Mode};

const CLUSTER_CIDR: &str = "10.244.0.0/16";

/// Who follows the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Proxy {
    Beeline,
    KubeProxy(Mode),
}

impl Proxy {
    pub(super) const ALL: [Self; 4] = [
        Self::Beeline,
        Self::KubeProxy(Mode::Nftables),
        Self::KubeProxy(Mode::IptablesLegacy),
        Self::KubeProxy(Mode::Iptables),
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Beeline => "beeline",
            Self::KubeProxy(Mode::Nftables) => "kube-proxy, nftables",
            Self::KubeProxy(Mode::IptablesLegacy) => "kube-proxy, iptables-legacy",
            Self::KubeProxy(Mode::Iptables) => "kube-proxy, iptables-nft",
        }
    }

    /// The most Services it finishes with in minutes: iptables-nft 1.8.9 does not finish ten thousand.
    pub(super) fn most(self) -> usize {
        match self {
            Self::KubeProxy(Mode::Iptables) => 1_000,
            Self::Beeline | Self::KubeProxy(_) => usize::MAX,
        }
    }
}

/// A proxy at work.
pub(super) struct Running {
    process: u32,
    /// `None` for the node's own agent.
    kube_proxy: Option<KubeProxy>,
}

impl Running {
    pub(super) fn start(proxy: Proxy, cluster: &mut Cluster, kubeconfig: &Path) -> Result<Self> {
        let node = cluster.node_mut(1);
        match proxy {
            Proxy::Beeline => {
                let source = Source::Kubeconfig(kubeconfig.to_owned());
                node.start_agent_on(source, SocketLb::All, &[])?;
                let process = node.agent()?.id().context("the agent does not run")?;
                Ok(Self {
                    process,
                    kube_proxy: None,
                })
            }
            Proxy::KubeProxy(mode) => {
                let kube_proxy = KubeProxy::start(node, kubeconfig, mode, CLUSTER_CIDR)?;
                Ok(Self {
                    process: kube_proxy.id(),
                    kube_proxy: Some(kube_proxy),
                })
            }
        }
    }

    pub(super) fn wait_ready(&mut self) -> Result<()> {
        match &mut self.kube_proxy {
            Some(kube_proxy) => kube_proxy.wait_ready(),
            None => Ok(()),
        }
    }

    pub(super) fn id(&self) -> Result<u32> {
        Ok(self.process)
    }

    /// Ends it; what it wrote stays.
    pub(super) fn stop(self, cluster: &mut Cluster) -> Result<()> {
        match self.kube_proxy {
            Some(kube_proxy) => {
                drop(kube_proxy);
                Ok(())
            }
            None => cluster.node(1).agent()?.stop(),
        }
    }

    /// Processor time of the process, and of the tools it ran.
    pub(super) fn processor_time(&self) -> Result<Duration> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.process))
            .context("read what the proxy used")?;
        // The name before may hold anything; fields are counted behind it.
        let (_, fields) = text.rsplit_once(") ").context("a line without a name")?;
        let ticks: u64 = fields
            .split(' ')
            .skip(11)
            .take(4)
            .map(|field| field.parse::<u64>().unwrap_or(0))
            .sum();
        // A hundredth of a second each, on every Linux that we run on.
        Ok(Duration::from_millis(ticks * 10))
    }
}
