//! The wires of a cluster: a LAN, nodes on it, pods behind the nodes.
//!
//! ```text
//!   client ── lan (bridge, router .254) ── eth0 node1 ── cni0 ── eth0 pod      Layout::Bridge
//!                                        └ eth0 node2 ── vethN ── eth0 pod     Layout::PointToPoint
//! ```
//!
//! The network is flat: nodes, client and router have routes to every pod range and nothing is masqueraded.
//! The LAN's router answers "unreachable" for every other address, so that a packet to a service address which
//! nobody translated shows at once and is not mistaken for one that was dropped.

use std::net::IpAddr;

use anyhow::Result;
use lb_agent::snapshot::Family;

use crate::address::{self, FAMILIES};
use crate::netns::Namespace;
use crate::process::{Place, output};

/// How the CNI connects pods.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// Host-side veths are ports of a bridge, which is the pods' gateway.
    Bridge,
    /// Host-side veths are routed to, one host route each; the gateway is 169.254.1.1, answered by proxy ARP,
    /// and a link-local address in IPv6.
    PointToPoint,
}

/// What a veth pair looks like.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    pub mtu: u32,
    /// Whether senders may leave checksums and segmentation to the device, as veth does by default.
    pub offload: bool,
}

/// A machine on the LAN.
pub struct Station<'a> {
    pub namespace: &'a Namespace,
    /// The host part of its addresses.
    pub host: u8,
}

/// A pod's place behind its node.
pub struct Socket<'a> {
    pub namespace: &'a Namespace,
    /// Counts from 1 on each node.
    pub index: u8,
}

/// Settings every namespace gets before it has links: nothing may wait for duplicate address detection,
/// or router advertisements.
pub fn prepare(namespace: &Namespace, forwards: bool) -> Result<()> {
    namespace.sysctl(&[
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/dad_transmits", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/router_solicitations", "0"),
    ])?;
    namespace.ip(&["link set lo up".into()])?;
    if forwards {
        namespace.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
    }
    Ok(())
}

/// Builds the LAN: a bridge that is also the router, and one uplink `eth0` per station.
pub fn lan(lan: &Namespace, stations: &[Station<'_>], wire: Wire) -> Result<()> {
    let mtu = wire.mtu;
    let mut lines = vec![
        // A bridge without an address of its own takes the lowest of its ports' and changes it as they come.
        "link add lan address 02:00:00:00:00:fe type bridge mcast_snooping 0".into(),
    ];
    for station in stations {
        let port = format!("port{}", station.host);
        lines.push(format!(
            "link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
            station.namespace.name()
        ));
        lines.push(format!("link set {port} master lan up"));
    }
    lines.push("link set lan up".into());
    for family in FAMILIES {
        lines.push(format!(
            "addr add {}/{} dev lan{}",
            address::router(family),
            lan_prefix(family),
            nodad(family)
        ));
        lines.push(format!("route add unreachable {}", everything(family)));
    }
    lan.ip(&lines)?;
    for station in stations {
        let mut lines = vec!["link set eth0 up".to_owned()];
        for family in FAMILIES {
            let own = address::lan(family, station.host);
            lines.push(format!(
                "addr add {own}/{} dev eth0{}",
                lan_prefix(family),
                nodad(family)
            ));
            lines.push(format!("route add default via {}", address::router(family)));
        }
        station.namespace.ip(&lines)?;
    }
    Ok(())
}

/// Teaches a machine on the LAN the way to the pods of a node.
pub fn pod_routes(namespace: &Namespace, nodes: &[u8]) -> Result<()> {
    let via = |node: &u8| {
        FAMILIES.map(|family| {
            (
                address::pod_range(family, *node),
                address::node(family, *node),
            )
        })
    };
    let lines: Vec<_> = nodes
        .iter()
        .flat_map(via)
        .map(|(range, node)| format!("route add {range} via {node}"))
        .collect();
    if lines.is_empty() {
        Ok(())
    } else {
        namespace.ip(&lines)
    }
}

/// Connects pods to their node.
pub fn pods(
    node: &Namespace,
    number: u8,
    layout: Layout,
    pods: &[Socket<'_>],
    wire: Wire,
) -> Result<()> {
    node.ip(&node_side(number, layout, pods, wire))?;
    if layout == Layout::PointToPoint {
        for pod in pods {
            let arp = format!("ipv4/conf/veth{}/proxy_arp", pod.index);
            // Proxied ARP answers wait up to 0.8 s otherwise; Calico sets the same.
            let delay = format!("ipv4/neigh/veth{}/proxy_delay", pod.index);
            node.sysctl(&[(&arp, "1"), (&delay, "0")])?;
        }
    }
    pods.iter()
        .try_for_each(|pod| pod.namespace.ip(&pod_side(number, layout, pod.index)))
}

/// Makes senders compute checksums themselves, on one device (`ethtool -K … tx off`).
pub fn disable_offload(place: &Place, device: &str) -> Result<()> {
    let mut ethtool = place.command("ethtool")?;
    output(ethtool.args(["-K", device, "tx", "off"]))?;
    Ok(())
}

fn node_side(number: u8, layout: Layout, pods: &[Socket<'_>], wire: Wire) -> Vec<String> {
    let mtu = wire.mtu;
    let mut lines = Vec::new();
    if layout == Layout::Bridge {
        lines.push(format!(
            "link add cni0 address 02:00:00:00:01:{number:02x} type bridge mcast_snooping 0"
        ));
        lines.push("link set cni0 up".into());
        for family in FAMILIES {
            let gateway = address::pod_gateway(family, number);
            lines.push(format!(
                "addr add {gateway}/{} dev cni0{}",
                pod_prefix(family),
                nodad(family)
            ));
        }
    }
    for Socket { namespace, index } in pods {
        lines.push(format!(
            "link add veth{index} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
            namespace.name()
        ));
        match layout {
            Layout::Bridge => lines.push(format!("link set veth{index} master cni0 up")),
            Layout::PointToPoint => {
                lines.push(format!("link set veth{index} up"));
                lines.push(format!("addr add fe80::1/64 dev veth{index} nodad"));
                for family in FAMILIES {
                    lines.push(format!(
                        "route add {} dev veth{index}",
                        host_route(address::pod(family, number, *index))
                    ));
                }
            }
        }
    }
    lines
}

fn pod_side(number: u8, layout: Layout, index: u8) -> Vec<String> {
    let mut lines = vec!["link set eth0 up".to_owned()];
    for family in FAMILIES {
        let own = address::pod(family, number, index);
        match layout {
            Layout::Bridge => {
                lines.push(format!(
                    "addr add {own}/{} dev eth0{}",
                    pod_prefix(family),
                    nodad(family)
                ));
                lines.push(format!(
                    "route add default via {}",
                    address::pod_gateway(family, number)
                ));
            }
            Layout::PointToPoint => lines.push(format!(
                "addr add {} dev eth0{}",
                host_route(own),
                nodad(family)
            )),
        }
    }
    if layout == Layout::PointToPoint {
        lines.push("route add 169.254.1.1 dev eth0 scope link".into());
        lines.push("route add default via 169.254.1.1 dev eth0".into());
        lines.push("route add default via fe80::1 dev eth0".into());
    }
    lines
}

fn everything(family: Family) -> &'static str {
    match family {
        Family::V4 => "0.0.0.0/0",
        Family::V6 => "::/0",
    }
}

fn host_route(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

fn lan_prefix(family: Family) -> u8 {
    match family {
        Family::V4 => 24,
        Family::V6 => 64,
    }
}

fn pod_prefix(family: Family) -> u8 {
    lan_prefix(family)
}

fn nodad(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => " nodad",
    }
}
