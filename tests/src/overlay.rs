//! Networks between nodes other than the plain one: packets to the pods of another node go through a tunnel.

use anyhow::Result;
use lb_agent::snapshot::Family;

use crate::address::{self, FAMILIES};
use crate::cluster::Cluster;
use crate::node::Node;
use crate::tun::Tunnel;

/// What carries packets between two nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Overlay {
    /// A VXLAN device that knows the other node.
    Vxlan,
    /// One that is told the other node with each packet, by the route (`external`).
    VxlanByRoute,
    /// A device without a link-layer header.
    Tun,
}

/// The largest packet in a tunnel, on links of 1500 bytes.
pub const MTU: u32 = 1_400;

/// The tunnel between nodes 1 and 2 of a cluster, in use until it is dropped.
#[derive(Debug)]
pub struct Laid {
    _tunnel: Option<Tunnel>,
}

impl Overlay {
    /// Lays a tunnel between nodes 1 and 2, and has them use it to reach each other's pods. Their agents serve it
    /// then.
    pub fn lay(self, cluster: &Cluster) -> Result<Laid> {
        let ends = [cluster.node(1), cluster.node(2)];
        let tunnel = match self {
            Self::Tun => Some(Tunnel::between(DEVICE, ends.map(Node::namespace))?),
            Self::Vxlan | Self::VxlanByRoute => None,
        };
        for (own, other) in [(ends[0], ends[1]), (ends[1], ends[0])] {
            own.namespace().ip(&self.end(own, other))?;
        }
        for node in ends {
            node.wait_attached(DEVICE)?;
        }
        Ok(Laid { _tunnel: tunnel })
    }

    fn end(self, own: &Node, other: &Node) -> Vec<String> {
        let v4 = |node: &Node| node.address(Family::V4);
        let vxlan = format!(
            "link add {DEVICE} address {} mtu {MTU} type vxlan dstport 4789",
            mac(own)
        );
        let mut lines = match self {
            Self::Vxlan => vec![format!(
                "{vxlan} id {NETWORK} local {} remote {} dev eth0",
                v4(own),
                v4(other)
            )],
            Self::VxlanByRoute => vec![format!("{vxlan} external")],
            Self::Tun => vec![format!("link set {DEVICE} mtu {MTU}")],
        };
        lines.push(format!("link set {DEVICE} up"));
        let encapsulated = match self {
            Self::VxlanByRoute => format!("encap ip id {NETWORK} dst {} ", v4(other)),
            Self::Vxlan | Self::Tun => String::new(),
        };
        for family in FAMILIES {
            let (length, nodad) = match family {
                Family::V4 => (24, ""),
                Family::V6 => (64, " nodad"),
            };
            let (here, there) = (inside(family, own), inside(family, other));
            lines.push(format!("address add {here}/{length} dev {DEVICE}{nodad}"));
            let range = address::pod_range(family, other.number());
            match self {
                Self::Vxlan => {
                    lines.push(format!("route replace {range} via {there} dev {DEVICE}"))
                }
                Self::VxlanByRoute => {
                    lines.push(format!(
                        "neigh add {there} lladdr {} dev {DEVICE}",
                        mac(other)
                    ));
                    lines.push(format!("route add {there} {encapsulated}dev {DEVICE}"));
                    lines.push(format!(
                        "route replace {range} {encapsulated}via {there} dev {DEVICE}"
                    ));
                }
                Self::Tun => lines.push(format!("route replace {range} dev {DEVICE}")),
            }
        }
        lines
    }
}

const DEVICE: &str = "tunnel";
const NETWORK: u32 = 42;

fn mac(node: &Node) -> String {
    format!("02:00:00:00:02:{:02x}", node.number())
}

/// A node's address in the tunnel.
pub fn inside(family: Family, node: &Node) -> std::net::IpAddr {
    match family {
        Family::V4 => std::net::Ipv4Addr::new(10, 245, 0, node.number()).into(),
        Family::V6 => {
            std::net::Ipv6Addr::new(0xfd45, 0, 0, 0, 0, 0, 0, node.number().into()).into()
        }
    }
}
