//! Validated settings of the agent.
//!
//! Each value knows how it is written, so that flags, environment and (later) files share one parser.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::Serialize;

mod api_server;
mod conntrack;
mod nodeport;
mod pods;

pub use api_server::{ApiServer, ServerAddress};
pub use conntrack::{Conntrack, Timeout};
pub use nodeport::NodePortAddresses;
pub use pods::{DetectLocalMode, Detection, LocalPods, PodCidrs};

/// Everything `agent::run` needs to know.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Where cluster objects come from.
    pub source: SourceConfig,
    /// Name of the Node object this agent serves.
    pub node_name: String,
    /// Mount point of the BPF file system, or a directory on one, under which pins are kept.
    pub bpffs: PathBuf,
    /// Root of the cgroup v2 hierarchy; `None` finds it.
    pub cgroup: Option<PathBuf>,
    /// Whose sockets are translated when they connect.
    pub socket_lb: SocketLb,
    /// What `getpeername` tells of a translated TCP socket.
    pub socket_lb_peer: SocketPeer,
    /// Devices the packet programs sit on.
    pub devices: Devices,
    /// Where uplinks get the XDP program.
    pub xdp: Xdp,
    /// Addresses that NodePorts are served on.
    pub nodeport_addresses: NodePortAddresses,
    /// Replaces this node's primary address of its family, if it is a specific one (spec §3.4).
    pub bind_address: Option<IpAddr>,
    /// How this node's pods are told from other sources.
    pub local_pods: LocalPods,
    /// Masquerade whatever goes to a ClusterIP (spec E5).
    pub masquerade_all: bool,
    /// Whether endpoints of this node see their clients' addresses.
    pub snat_local: SnatLocal,
    /// Whether masqueraded flows to other nodes may pass by the host's stack.
    pub forwarding: Forwarding,
    /// What netfilter is set to.
    pub conntrack: Conntrack,
    /// Address of `/healthz`, `/livez` and `/readyz`.
    pub healthz_bind: BindAddress,
    /// Address of `/metrics`.
    pub metrics_bind: BindAddress,
}

/// Where cluster objects come from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceConfig {
    /// The API server, with the pod's service account.
    InCluster(ApiServer),
    /// The API server, as this file says.
    Kubeconfig(PathBuf),
    /// A directory of manifests.
    Manifests(PathBuf),
}

/// Whose sockets are translated when they connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SocketLb {
    /// Those of every network namespace.
    #[default]
    All,
    /// Those of the host's network namespace; pods are served packet by packet.
    Host,
    /// None.
    Off,
}

/// What `getpeername` tells of a translated TCP socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SocketPeer {
    /// The address the program dialled.
    #[default]
    Service,
    /// The endpoint; saves one record per socket.
    Endpoint,
}

/// Whether endpoints of this node see their clients' addresses where kube-proxy would masquerade.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SnatLocal {
    /// They do.
    #[default]
    Preserve,
    /// As with kube-proxy: they see an address of this node.
    KubeProxy,
}

/// How masqueraded flows to other nodes' endpoints go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Forwarding {
    /// Straight to the next hop wherever that can be done.
    #[default]
    Fast,
    /// Through the host's stack, whose forward rules and IPsec policies then see them.
    Stack,
}

/// Devices the packet programs sit on.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Devices {
    /// Pods' veths and uplinks as they come and go.
    #[default]
    Auto,
    /// These names and no others.
    List(Vec<String>),
}

/// Where uplinks get the XDP program, beside their packet programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Xdp {
    /// Where it gains something and can do no harm: natively, on network cards.
    #[default]
    Auto,
    /// Natively, wherever the driver takes it.
    Native,
    /// Generically, which any device takes; for trying it out.
    Generic,
    /// Nowhere.
    Off,
}

/// An address to serve on, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(transparent)]
pub struct BindAddress(pub Option<SocketAddr>);

/// Why a value was refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

impl fmt::Display for SourceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SourceConfig::InCluster(_) => f.write_str("API server (service account)"),
            SourceConfig::Kubeconfig(file) => {
                write!(f, "API server (kubeconfig {})", file.display())
            }
            SourceConfig::Manifests(directory) => write!(f, "manifests in {}", directory.display()),
        }
    }
}

impl FromStr for SocketLb {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        match text {
            "all" => Ok(SocketLb::All),
            "host" => Ok(SocketLb::Host),
            "off" => Ok(SocketLb::Off),
            _ => Err(Refused("expected all, host or off".into())),
        }
    }
}

impl FromStr for SocketPeer {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        match text {
            "service" => Ok(SocketPeer::Service),
            "endpoint" => Ok(SocketPeer::Endpoint),
            _ => Err(Refused("expected service or endpoint".into())),
        }
    }
}

impl FromStr for SnatLocal {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        match text {
            "preserve" => Ok(SnatLocal::Preserve),
            "kube-proxy" => Ok(SnatLocal::KubeProxy),
            _ => Err(Refused("expected preserve or kube-proxy".into())),
        }
    }
}

impl FromStr for Forwarding {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        match text {
            "fast" => Ok(Forwarding::Fast),
            "stack" => Ok(Forwarding::Stack),
            _ => Err(Refused("expected fast or stack".into())),
        }
    }
}

impl FromStr for Xdp {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        match text {
            "auto" => Ok(Xdp::Auto),
            "native" => Ok(Xdp::Native),
            "generic" => Ok(Xdp::Generic),
            "off" => Ok(Xdp::Off),
            _ => Err(Refused("expected auto, native, generic or off".into())),
        }
    }
}

impl FromStr for Devices {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        if text == "auto" {
            return Ok(Devices::Auto);
        }
        let mut names: Vec<String> = Vec::new();
        for name in text.split(',').map(str::trim) {
            // The kernel's own rule (dev_valid_name): 1 to 15 bytes, no slash, colon or space.
            let shape = (1..=15).contains(&name.len()) && name != "." && name != "..";
            if !shape || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
                return Err(Refused(format!(
                    "{name:?} is no interface name; expected auto or a list like eth0,veth1"
                )));
            }
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        Ok(Devices::List(names))
    }
}

impl Devices {
    /// The names given; `None` for all that matter.
    pub fn names(&self) -> Option<&[String]> {
        match self {
            Devices::Auto => None,
            Devices::List(names) => Some(names),
        }
    }
}

impl BindAddress {
    /// Reads `IP:PORT`, `:PORT`, `IP` alone (then `default_port`), or nothing or `off` for no server.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, Refused> {
        let text = text.trim();
        if text.is_empty() || text == "off" {
            return Ok(BindAddress(None));
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(BindAddress(Some(address)));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(BindAddress(Some(SocketAddr::new(address, default_port))));
        }
        match text.strip_prefix(':').and_then(|port| port.parse().ok()) {
            Some(port) => Ok(BindAddress(Some(SocketAddr::new(
                Ipv4Addr::UNSPECIFIED.into(),
                port,
            )))),
            None => Err(Refused(
                "expected IP:PORT (IPv6 as [IP]:PORT), IP, :PORT, or off".into(),
            )),
        }
    }
}

/// A node name as kube-proxy makes it of the host's: trimmed and lower-cased.
pub fn node_name(given: &str) -> Result<String, Refused> {
    let name = given.trim().to_lowercase();
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if name.is_empty() || name.len() > 253 || !name.chars().all(legal) {
        return Err(Refused(format!(
            "{name:?} cannot be the name of a Node (letters, digits, '-' and '.')"
        )));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bind_addresses_are_read_as_kube_proxy_reads_them() {
        let parse =
            |text| BindAddress::parse(text, 10256).map(|bind| bind.0.map(|a| a.to_string()));
        assert_eq!(parse("0.0.0.0:10256"), Ok(Some("0.0.0.0:10256".into())));
        assert_eq!(parse("127.0.0.1"), Ok(Some("127.0.0.1:10256".into())));
        assert_eq!(parse("::1"), Ok(Some("[::1]:10256".into())));
        assert_eq!(parse("[::]:99"), Ok(Some("[::]:99".into())));
        assert_eq!(parse(":99"), Ok(Some("0.0.0.0:99".into())));
        assert_eq!(parse(""), Ok(None));
        assert_eq!(parse("off"), Ok(None));
        for wrong in ["host:80", "1.2.3.4:99999", ":x", "1.2.3:4"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn devices_are_auto_or_a_list_without_repeats() {
        assert_eq!("auto".parse(), Ok(Devices::Auto));
        assert_eq!(
            "eth0, veth1,eth0".parse(),
            Ok(Devices::List(vec!["eth0".into(), "veth1".into()]))
        );
        for wrong in ["", "eth0,", "a/b", "a b", "interface-name-too-long", ".."] {
            assert!(wrong.parse::<Devices>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn node_names_are_trimmed_and_lower_cased() {
        assert_eq!(
            node_name(" Node-1.Example\n").as_deref(),
            Ok("node-1.example")
        );
        assert!(node_name("  ").is_err() && node_name("a/b").is_err());
    }
}
