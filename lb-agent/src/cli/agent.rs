//! `beeline agent`: flags and what they become.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

use super::CommandError;
use super::api_server::ApiServerArgs;
use super::conntrack::ConntrackArgs;
use super::logging::LogFormat;
use crate::config::{
    self, BindAddress, Config, DetectLocalMode, Detection, Devices, Forwarding, NodePortAddresses,
    PodCidrs, Refused, SnatLocal, SocketLb, SocketPeer, SourceConfig, Xdp,
};

/// Where a BPF file system usually is.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Names another place for every command, so that `beeline status` in the agent's container finds its tables.
pub const BPFFS_VARIABLE: &str = "BEELINE_BPFFS";

const HOSTNAME: &str = "/proc/sys/kernel/hostname";

/// Flags of `beeline agent`. Log levels come from RUST_LOG, e.g. `RUST_LOG=debug`.
#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    /// Follow the API server that this kubeconfig names [default: in-cluster]
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    kubeconfig: Option<PathBuf>,
    /// Follow a directory of Service, EndpointSlice and Node manifests instead of an API server
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    #[command(flatten)]
    api_server: ApiServerArgs,
    /// Name of this node's Node object [default: the host name in lower case]
    #[arg(long, env = "NODE_NAME", value_name = "NAME", visible_alias = "hostname-override", value_parser = node_name)]
    node_name: Option<String>,
    /// BPF file system that keeps tables and programs alive across restarts
    #[arg(long, env = BPFFS_VARIABLE, value_name = "DIR", default_value = BPFFS)]
    bpffs: PathBuf,
    /// Root of the cgroup v2 hierarchy [default: found in the mounts]
    #[arg(long, env = "BEELINE_CGROUP", value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// Whose sockets go to endpoints when they connect: all, host or off
    #[arg(long, value_name = "WHOSE", default_value = "all")]
    socket_lb: SocketLb,
    /// What getpeername() tells of a translated TCP socket: service or endpoint
    #[arg(long, value_name = "WHAT", default_value = "service")]
    socket_lb_peer: SocketPeer,
    /// Devices of the packet path: auto, or names like eth0,veth1
    #[arg(long, value_name = "auto|LIST", default_value = "auto")]
    devices: Devices,
    /// XDP on uplinks: auto (network cards that can), native, generic or off. Attaching may reset a card's link
    #[arg(long, value_name = "MODE", default_value = "auto")]
    xdp: Xdp,
    /// Addresses that NodePorts are served on: prefixes, primary, all, or localhost (served to this node's own processes) [default: primary]
    #[arg(long, value_name = "LIST")]
    nodeport_addresses: Option<NodePortAddresses>,
    /// This node's primary address; unspecified: as the Node object says
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    bind_address: IpAddr,
    /// How local pods are told from other sources: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix
    /// [default: ClusterCIDR with --cluster-cidr, else by the devices that lead to pods]
    #[arg(long, value_name = "MODE")]
    detect_local_mode: Option<DetectLocalMode>,
    /// Addresses of the cluster's pods, for ClusterCIDR; one prefix of each family
    #[arg(long, value_name = "LIST")]
    cluster_cidr: Option<PodCidrs>,
    /// The pods' bridge, for BridgeInterface
    #[arg(long, value_name = "NAME")]
    pod_bridge_interface: Option<String>,
    /// How the names of devices that lead to pods begin, for InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX")]
    pod_interface_name_prefix: Option<String>,
    /// Masquerade all traffic to ClusterIPs, pods' too
    #[arg(long)]
    masquerade_all: bool,
    /// Whether endpoints of this node see their clients' addresses (preserve), or this node's (kube-proxy)
    #[arg(long, value_name = "HOW", default_value = "preserve")]
    snat_local: SnatLocal,
    /// How masqueraded flows to other nodes' endpoints go on: straight to the next hop (fast), or through this host's
    /// stack (stack), for whose forward rules and IPsec policies the fast way is none; stack also means --xdp=off
    #[arg(long, value_name = "WAY", default_value = "fast")]
    forwarding: Forwarding,
    #[command(flatten)]
    conntrack: ConntrackArgs,
    /// Only change the system's settings that need privileges (--conntrack-…), then end
    #[arg(long)]
    pub init_only: bool,
    /// Address of /healthz, /livez and /readyz; off for none
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:10256", value_parser = healthz_bind)]
    healthz_bind_address: BindAddress,
    /// Address of /metrics; off for none
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:10249", value_parser = metrics_bind)]
    metrics_bind_address: BindAddress,
    /// How to log to standard error
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

impl AgentArgs {
    /// The settings these flags mean on this host.
    pub fn config(&self) -> Result<Config, CommandError> {
        let source = match (&self.kubeconfig, &self.manifests) {
            (_, Some(directory)) => SourceConfig::Manifests(directory.clone()),
            (Some(file), None) => SourceConfig::Kubeconfig(file.clone()),
            (None, None) => {
                SourceConfig::InCluster(self.api_server.config().map_err(|refused| {
                    CommandError {
                        what: "cannot tell where the API server is".into(),
                        cause: refused.to_string(),
                        next: "correct --api-server or BEELINE_API_SERVER".into(),
                    }
                })?)
            }
        };
        // An environment that sets NODE_NAME to nothing means that it does not know it.
        let node_name = match self.node_name.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => name.to_owned(),
            None => host_name()?,
        };
        let detection = Detection {
            mode: self.detect_local_mode,
            cluster_cidr: self.cluster_cidr.clone(),
            bridge: self.pod_bridge_interface.clone(),
            prefix: self.pod_interface_name_prefix.clone(),
        };
        let local_pods = detection.resolve().map_err(|refused| CommandError {
            what: "cannot tell local pods from other sources".into(),
            cause: refused.to_string(),
            next: "name them as `beeline agent --help` says, or leave --detect-local-mode out"
                .into(),
        })?;
        Ok(Config {
            source,
            node_name,
            bpffs: self.bpffs.clone(),
            cgroup: self.cgroup.clone(),
            socket_lb: self.socket_lb,
            socket_lb_peer: self.socket_lb_peer,
            devices: self.devices.clone(),
            xdp: self.xdp,
            nodeport_addresses: self.nodeport_addresses.clone().unwrap_or_default(),
            bind_address: Some(self.bind_address).filter(|address| !address.is_unspecified()),
            local_pods,
            masquerade_all: self.masquerade_all,
            snat_local: self.snat_local,
            forwarding: self.forwarding,
            conntrack: (&self.conntrack).into(),
            healthz_bind: self.healthz_bind_address,
            metrics_bind: self.metrics_bind_address,
        })
    }
}

fn host_name() -> Result<String, CommandError> {
    let read = std::fs::read_to_string(HOSTNAME).map_err(|error| error.to_string());
    read.and_then(|name| config::node_name(&name).map_err(|refused| refused.to_string()))
        .map_err(|cause| CommandError {
            what: format!("no node name from {HOSTNAME}"),
            cause,
            next: "give the Node object's name with --node-name or NODE_NAME".into(),
        })
}

fn node_name(text: &str) -> Result<String, Refused> {
    if text.trim().is_empty() {
        Ok(String::new())
    } else {
        config::node_name(text)
    }
}

fn healthz_bind(text: &str) -> Result<BindAddress, Refused> {
    BindAddress::parse(text, 10256)
}

fn metrics_bind(text: &str) -> Result<BindAddress, Refused> {
    BindAddress::parse(text, 10249)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::config::{Conntrack, Timeout};

    fn config(flags: &str) -> Config {
        let line = format!("beeline agent {flags}");
        match Cli::try_parse_from(line.split_whitespace())
            .unwrap()
            .command
        {
            Command::Agent(args) => args.config().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_are_kube_proxys() {
        let config = config("--node-name Node-1");
        let SourceConfig::InCluster(api_server) = config.source else {
            panic!("{:?}", config.source);
        };
        assert_eq!(api_server.given, None);
        assert_eq!(api_server.kubeconfigs.len(), 2);
        assert_eq!(api_server.state, PathBuf::from("/var/lib/beeline"));
        assert_eq!(config.node_name, "node-1");
        assert_eq!(config.bpffs, PathBuf::from("/sys/fs/bpf"));
        assert_eq!(
            (config.socket_lb, config.socket_lb_peer),
            (SocketLb::All, SocketPeer::Service)
        );
        assert_eq!(config.devices, Devices::Auto);
        assert_eq!(config.xdp, Xdp::Auto);
        assert_eq!(config.conntrack, Conntrack::default());
        assert_eq!(
            config.healthz_bind,
            BindAddress(Some("0.0.0.0:10256".parse().unwrap()))
        );
        assert_eq!(
            config.metrics_bind,
            BindAddress(Some("127.0.0.1:10249".parse().unwrap()))
        );
    }

    #[test]
    fn flags_become_settings() {
        let config = config(
            "--manifests /m --hostname-override n2 --socket-lb off --socket-lb-peer endpoint --devices a,b --xdp native \
             --cgroup /c --forwarding stack --healthz-bind-address off --conntrack-max-per-core 0 --conntrack-udp-timeout 10s \
             --conntrack-tcp-timeout-close-wait 0 --conntrack-tcp-be-liberal",
        );
        assert_eq!(config.source, SourceConfig::Manifests("/m".into()));
        assert_eq!(config.node_name, "n2");
        assert_eq!(
            (config.socket_lb, config.socket_lb_peer),
            (SocketLb::Off, SocketPeer::Endpoint)
        );
        assert_eq!(config.devices, Devices::List(vec!["a".into(), "b".into()]));
        assert_eq!(config.xdp, Xdp::Native);
        assert_eq!(config.forwarding, Forwarding::Stack);
        assert_eq!(config.cgroup, Some("/c".into()));
        assert_eq!(config.healthz_bind, BindAddress(None));
        let conntrack = Conntrack {
            max_per_core: 0,
            tcp_close_wait: Timeout(None),
            tcp_be_liberal: true,
            udp: Timeout(Some(10)),
            ..Conntrack::default()
        };
        assert_eq!(config.conntrack, conntrack);
    }

    #[test]
    fn wrong_flags_are_refused_as_usage() {
        for flags in [
            "--kubeconfig a --manifests b",
            "--socket-lb some",
            "--devices a/b",
            "--xdp fast",
            "--forwarding slow",
            "--node-name a_b",
            "--healthz-bind-address host:80",
            "--conntrack-udp-timeout 10",
        ] {
            let line = format!("beeline agent {flags}");
            let error = Cli::try_parse_from(line.split_whitespace()).expect_err(flags);
            assert_eq!(error.exit_code(), 2, "{flags}");
        }
    }
}
