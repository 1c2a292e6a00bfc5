//! What this node is: its addresses, as the Node object and its own devices tell them.

use std::net::IpAddr;

use crate::config::{Config, Forwarding, LocalPods, SocketLb, Xdp};
use crate::datapath::{OwnTraffic, PodDevices, Selection};
use crate::snapshot::{Cidr, Family, Node};

/// What the Node object says of this node that stays so when the object goes or falls silent: the node has these
/// addresses and pods all the same (spec §3.4: kube-proxy asks once).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Told {
    /// InternalIPs first.
    pub addresses: Vec<IpAddr>,
    pub pod_cidrs: Vec<Cidr>,
}

impl Told {
    /// Takes in what the object says now.
    pub(super) fn hear(&mut self, node: Option<&Node>) {
        let Some(node) = node else { return };
        if !node.addresses.is_empty() {
            self.addresses.clone_from(&node.addresses);
        }
        if !node.pod_cidrs.is_empty() {
            self.pod_cidrs.clone_from(&node.pod_cidrs);
        }
    }
}

/// Addresses of this node by use, each list sorted and without repeats.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Addresses {
    /// NodePorts are served on them.
    pub nodeport: Vec<IpAddr>,
    /// NodePorts are served on them to this node's own processes.
    pub loopback: Vec<IpAddr>,
    /// All.
    pub all: Vec<IpAddr>,
    /// The first of each family.
    pub primary: Vec<IpAddr>,
}

impl Addresses {
    /// From the Node object and the routable addresses of this node's devices.
    pub(super) fn of(config: &Config, told: &Told, own: &[IpAddr]) -> Self {
        let told = &told.addresses;
        let primary: Vec<IpAddr> = [Family::V4, Family::V6]
            .into_iter()
            .filter_map(|family| {
                let of_family = |address: &IpAddr| Family::of(*address) == family;
                config
                    .bind_address
                    .filter(of_family)
                    .or_else(|| told.iter().copied().find(of_family))
            })
            .collect();
        let mut all: Vec<IpAddr> = told.iter().chain(own).copied().collect();
        all.sort_unstable();
        all.dedup();
        Self {
            nodeport: config.nodeport_addresses.select(&primary, own),
            loopback: config.nodeport_addresses.loopback(),
            all,
            primary,
        }
    }

    /// Addresses that a family's health-check ports are opened on; `None`: on all, also where the node has none of those
    /// that are meant (H6).
    pub(super) fn health_checks(&self, config: &Config, family: Family) -> Option<Vec<IpAddr>> {
        if !config.nodeport_addresses.restricts(family) {
            return None;
        }
        let meant = self.nodeport.iter().chain(&self.loopback).copied();
        let meant: Vec<IpAddr> = meant
            .filter(|address| Family::of(*address) == family)
            .collect();
        (!meant.is_empty()).then_some(meant)
    }
}

/// Prefixes whose sources are local pods; `None` where devices tell.
pub(super) fn pod_cidrs(config: &Config, told: &Told) -> Option<Vec<Cidr>> {
    match &config.local_pods {
        LocalPods::ClusterCidr(cidrs) => Some(cidrs.0.clone()),
        LocalPods::NodeCidr => Some(told.pod_cidrs.clone()),
        LocalPods::Devices | LocalPods::Bridge(_) | LocalPods::Prefix(_) => None,
    }
}

/// Which devices get packet programs.
pub(super) fn selection(config: &Config) -> Selection {
    Selection {
        names: config.devices.names().map(<[String]>::to_vec),
        xdp: match config.forwarding {
            Forwarding::Fast => config.xdp,
            // It has no other way than the fast one.
            Forwarding::Stack => Xdp::Off,
        },
        pods: match &config.local_pods {
            LocalPods::Bridge(name) => PodDevices::Bridge(name.clone()),
            LocalPods::Prefix(prefix) => PodDevices::Prefix(prefix.clone()),
            _ => PodDevices::ByNature,
        },
        own: match config.socket_lb {
            SocketLb::All | SocketLb::Host => OwnTraffic::Sockets,
            SocketLb::Off => OwnTraffic::Packets,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(addresses: &[&str], pod_cidrs: &[&str]) -> Node {
        Node {
            name: "n".into(),
            zone: None,
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            pod_cidrs: pod_cidrs
                .iter()
                .map(|text| crate::source::address::parse_cidr(text).unwrap())
                .collect(),
            draining: false,
        }
    }

    #[test]
    fn a_node_keeps_what_its_object_said_until_it_says_otherwise() {
        let mut told = Told::default();
        told.hear(None);
        assert_eq!(told, Told::default());
        let first = node(&["192.0.2.1"], &["10.1.0.0/24"]);
        told.hear(Some(&first));
        for silent in [None, Some(&node(&[], &[]))] {
            told.hear(silent);
            assert_eq!(
                (&told.addresses, &told.pod_cidrs),
                (&first.addresses, &first.pod_cidrs)
            );
        }
        let other = node(&["192.0.2.2"], &[]);
        told.hear(Some(&other));
        assert_eq!(
            (&told.addresses, &told.pod_cidrs),
            (&other.addresses, &first.pod_cidrs)
        );
    }
}
