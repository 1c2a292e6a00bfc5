//! Which devices get packet programs, and which ones.
//!
//! A device leads to a pod, or is a way to other hosts (an uplink), or is no business of ours. A packet shall meet
//! us once on its way in and once on its way out, so of stacked devices only the topmost counts, where IP lives:
//! the bond and not its members, the VLAN and not the NIC below that has no address of its own.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_ebpf::abi::address::{Address4, Address6};
use lb_ebpf::abi::device::{Device, LOOPBACK, Mac, POD, UPLINK};

use super::interfaces::{Interface, LinkKind, LocalAddress, Picture};
use super::xdp::Wish;
use crate::config::Xdp;
use crate::sys::bpf::XdpMode;

/// Which devices get packet programs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Selection {
    /// These names and no others; `None`: all that matter.
    pub names: Option<Vec<String>>,
    /// Where uplinks get the XDP program.
    pub xdp: Xdp,
    /// How devices that lead to pods are told from others.
    pub pods: PodDevices,
    /// Who translates what this node's own processes send.
    pub own: OwnTraffic,
}

/// Who translates what this node's own processes send.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OwnTraffic {
    /// Socket hooks do.
    #[default]
    Sockets,
    /// The packet programs: also on the loopback device, where packets to this node's own addresses pass.
    Packets,
}

/// How devices that lead to pods are told from others.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum PodDevices {
    /// By what they are: one end of a veth whose other end is in another namespace.
    #[default]
    ByNature,
    /// Ports of this bridge (spec E8).
    Bridge(String),
    /// Names that begin so (spec E9).
    Prefix(String),
}

/// A device that gets packet programs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chosen {
    pub name: String,
    pub device: Device,
    /// Its own link-layer address, where XDP is to know it.
    pub mac: Option<Mac>,
    /// It is a network card itself.
    pub card: bool,
    /// Whether it is to have the XDP program, too.
    pub xdp: Wish,
}

/// What became of the devices.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Choice {
    /// By index.
    pub chosen: BTreeMap<u32, Chosen>,
    /// Devices that one might expect among the chosen, and why they are not.
    pub left_out: BTreeMap<String, &'static str>,
}

/// Why a device that was asked for, or that leads to other hosts, gets no programs.
mod reason {
    pub(super) const LINK_HEADER: &str =
        "it leads to a pod without an Ethernet header, which the packet programs need there";
    pub(super) const LOOPBACK: &str = "it is a loopback device";
    pub(super) const MEMBER: &str =
        "it is a member of another device, which sees its packets: name that one";
    pub(super) const POD_BRIDGE: &str = "its ports lead to pods and get the programs themselves";
    pub(super) const ABSENT: &str = "there is no such device now";
    pub(super) const XDP_OFF: &str = "switched off by --xdp=off or --forwarding=stack";
    pub(super) const XDP_NO_UPLINK: &str = "it is no uplink";
    pub(super) const XDP_NO_HEADER: &str = "it has no Ethernet header";
    pub(super) const XDP_NO_CARD: &str =
        "it is no network card, so --xdp=auto leaves it out (checksums may not be complete there)";
    pub(super) const XDP_VLANS: &str = "VLANs sit on it, and a card may take their tags off before XDP sees them, \
         so --xdp=auto leaves it out";
}

impl Selection {
    /// All devices that matter.
    pub fn auto() -> Self {
        Self {
            names: None,
            xdp: Xdp::Auto,
            pods: PodDevices::ByNature,
            own: OwnTraffic::Sockets,
        }
    }

    /// The devices of these names and no others.
    pub fn list(names: &[&str]) -> Self {
        Self {
            names: Some(names.iter().map(|&name| name.to_owned()).collect()),
            ..Self::auto()
        }
    }
}

impl Picture {
    /// The devices that get packet programs. `node_addresses` are those of the Node object, if there is one.
    pub fn choose(&self, selection: &Selection, node_addresses: &[IpAddr]) -> Choice {
        let mut choice = Choice::default();
        for interface in &self.interfaces {
            if interface.kind == LinkKind::Loopback && selection.own == OwnTraffic::Packets {
                let chosen = self.chosen(interface, LOOPBACK, Wish::Not(reason::XDP_NO_UPLINK));
                choice.chosen.insert(interface.index, chosen);
                continue;
            }
            let named = match &selection.names {
                None => false,
                Some(names) if names.contains(&interface.name) => true,
                Some(_) => continue,
            };
            match self.role(interface, selection, node_addresses, named) {
                Ok(Some(role)) => {
                    let xdp = self.xdp(interface, role, selection.xdp);
                    let chosen = self.chosen(interface, role, xdp);
                    choice.chosen.insert(interface.index, chosen);
                }
                Ok(None) => {}
                Err(reason) => {
                    choice.left_out.insert(interface.name.clone(), reason);
                }
            }
        }
        for name in selection.names.iter().flatten() {
            if self.interfaces.iter().all(|other| other.name != *name) {
                choice.left_out.insert(name.clone(), reason::ABSENT);
            }
        }
        choice
    }

    /// What XDP there is to be on a device of a role.
    fn xdp(&self, interface: &Interface, role: u32, wanted: Xdp) -> Wish {
        match wanted {
            _ if role != UPLINK => Wish::Not(reason::XDP_NO_UPLINK),
            _ if interface.header_length == 0 => Wish::Not(reason::XDP_NO_HEADER),
            Xdp::Off => Wish::Not(reason::XDP_OFF),
            Xdp::Auto if !interface.card => Wish::Not(reason::XDP_NO_CARD),
            Xdp::Auto if self.carries_another(interface) => Wish::Not(reason::XDP_VLANS),
            Xdp::Auto | Xdp::Native => Wish::Mode(XdpMode::Native),
            Xdp::Generic => Wish::Mode(XdpMode::Generic),
        }
    }

    fn role(
        &self,
        interface: &Interface,
        selection: &Selection,
        node_addresses: &[IpAddr],
        named: bool,
    ) -> Result<Option<u32>, &'static str> {
        let refused = |reason| if named { Err(reason) } else { Ok(None) };
        if self.leads_to_pod(interface, &selection.pods, node_addresses) {
            return match interface.header_length {
                0 => Err(reason::LINK_HEADER),
                _ => Ok(Some(POD)),
            };
        }
        if interface.kind == LinkKind::Loopback {
            return refused(reason::LOOPBACK);
        }
        if self.member(interface) {
            return refused(reason::MEMBER);
        }
        if interface.kind == LinkKind::Bridge && !self.bridges_uplink(interface) {
            return refused(reason::POD_BRIDGE);
        }
        if !named && !self.leads_to_hosts(interface) {
            return Ok(None);
        }
        Ok(Some(UPLINK))
    }

    /// By nature: a veth whose other end is in another namespace, unless it is this node's own way out (nodes that
    /// are containers have such): that one has the default route, or the address that the Node object tells. A
    /// network of its own says nothing: some CNIs, and people who wire a pod by hand, give one to each pod.
    /// A bridge port leads to a pod in any case.
    fn leads_to_pod(
        &self,
        interface: &Interface,
        pods: &PodDevices,
        node_addresses: &[IpAddr],
    ) -> bool {
        match pods {
            PodDevices::ByNature => {
                interface.kind == LinkKind::Veth
                    && interface.peer_elsewhere
                    && (self.bridge_of(interface).is_some()
                        || !(self.member(interface)
                            || self.has_one_of(interface.index, node_addresses)
                            || self.has_default_route(interface.index)))
            }
            PodDevices::Bridge(name) => self
                .bridge_of(interface)
                .is_some_and(|bridge| bridge.name == *name),
            PodDevices::Prefix(prefix) => interface.name.starts_with(prefix.as_str()),
        }
    }

    /// Whether the device is a way to other hosts, where IP lives.
    fn leads_to_hosts(&self, interface: &Interface) -> bool {
        let speaks = self.has_network(interface.index) || self.has_default_route(interface.index);
        match interface.kind {
            LinkKind::Loopback | LinkKind::Idle => false,
            // Also without an address: nodes whose addresses sit on a loopback or dummy device have such NICs.
            LinkKind::Nic => speaks || !self.carries_another(interface),
            // A veth that is no pod's by the detector in force: some other namespace's way to this node.
            LinkKind::Veth => {
                speaks || interface.peer_elsewhere && self.bridge_of(interface).is_none()
            }
            LinkKind::Bridge => speaks,
            // VXLAN and IP tunnels may have a host address only.
            LinkKind::Tunnel => speaks || self.has_address(interface.index),
            LinkKind::Other => speaks,
        }
    }

    /// Whether the device's packets go through a bond, bridge or the like. A VRF only groups devices.
    fn member(&self, interface: &Interface) -> bool {
        interface.controller != 0
            && self
                .interface(interface.controller)
                .is_none_or(|controller| !controller.groups_only)
    }

    /// Whether a VLAN or the like sits on the device.
    fn carries_another(&self, interface: &Interface) -> bool {
        self.interfaces
            .iter()
            .any(|other| other.lower == interface.index && other.kind == LinkKind::Nic)
    }

    /// Whether a bridge has a port that is a way to other hosts.
    fn bridges_uplink(&self, bridge: &Interface) -> bool {
        self.interfaces
            .iter()
            .any(|port| port.controller == bridge.index && port.kind == LinkKind::Nic)
    }

    fn own<'a>(&'a self, index: u32) -> impl Iterator<Item = &'a LocalAddress> + 'a {
        let routable = |own: &&LocalAddress| !is_unroutable(own.address);
        self.addresses
            .iter()
            .filter(move |own| own.index == index)
            .filter(routable)
    }

    fn has_address(&self, index: u32) -> bool {
        self.own(index).next().is_some()
    }

    fn has_one_of(&self, index: u32, addresses: &[IpAddr]) -> bool {
        self.own(index).any(|own| addresses.contains(&own.address))
    }

    fn has_network(&self, index: u32) -> bool {
        self.own(index).any(|own| {
            let host_length = if own.address.is_ipv4() { 32 } else { 128 };
            own.length < host_length
        })
    }

    fn has_default_route(&self, index: u32) -> bool {
        self.default_routes.contains(&index)
    }

    fn interface(&self, index: u32) -> Option<&Interface> {
        self.interfaces.iter().find(|other| other.index == index)
    }

    fn bridge_of(&self, interface: &Interface) -> Option<&Interface> {
        self.interface(interface.controller)
            .filter(|other| other.kind == LinkKind::Bridge)
    }

    fn chosen(&self, interface: &Interface, role: u32, xdp: Wish) -> Chosen {
        let v4 = |own: &LocalAddress| match own.address {
            IpAddr::V4(address) => Some(Address4::from(address)),
            IpAddr::V6(_) => None,
        };
        let v6 = |own: &LocalAddress| match own.address {
            IpAddr::V6(address) => Some(Address6::from(address)),
            IpAddr::V4(_) => None,
        };
        let device = Device {
            role,
            bridge: self.bridge_of(interface).map_or(0, |bridge| bridge.index),
            header_length: interface.header_length,
            mtu: interface.mtu,
            // The engine's, which knows what the device can do now.
            flags: 0,
            address4: self.source_address(interface.index, v4),
            address6: self.source_address(interface.index, v6),
        };
        Chosen {
            name: interface.name.clone(),
            device,
            mac: interface.mac.filter(|_| role == UPLINK).map(|octets| Mac {
                octets,
                zero: [0; 2],
            }),
            card: interface.card,
            xdp,
        }
    }

    /// The address the kernel would masquerade with (`inet_select_addr`): the first primary one of the device, as
    /// the kernel lists them, else of any device.
    fn source_address<A: Default>(
        &self,
        index: u32,
        pick: impl Fn(&LocalAddress) -> Option<A>,
    ) -> A {
        let usable = |own: &&LocalAddress| own.primary && own.global && !is_unroutable(own.address);
        let all = || self.addresses.iter().filter(usable);
        all()
            .filter(|own| own.index == index)
            .chain(all())
            .find_map(pick)
            .unwrap_or_default()
    }
}

/// Loopback, link-local and the like are nobody's way to this node.
pub fn is_unroutable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.is_multicast()
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_unspecified()
                || v6.is_multicast()
        }
    }
}

#[cfg(test)]
mod tests;
