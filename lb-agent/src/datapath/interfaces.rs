//! This node's devices and addresses, and which devices lead to pods.
//!
//! Notifications only say that something changed; what there is comes from a fresh, complete list. So a lost
//! notification costs one more list, and no event can leave a wrong picture behind.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use lb_ebpf::abi::address::{Address4, Address6};
use lb_ebpf::abi::device::{Device, POD};
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage,
};
use tokio::io::unix::AsyncFd;

use super::{Error, Result};
use crate::sys::netlink::{Received, Socket};

/// Which devices get packet programs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Selection {
    /// Those that lead to pods, as far as can be told.
    Auto,
    /// Those of these names.
    List(Vec<String>),
}

/// What a device is, as far as we care.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkKind {
    Veth,
    Bridge,
    Other,
}

/// One network device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    pub kind: LinkKind,
    /// Index of the device it is a port of (bridge, bond), or 0.
    pub controller: u32,
    /// Its other end is in another network namespace.
    pub peer_elsewhere: bool,
    pub mtu: u32,
    /// 14 for Ethernet, 0 for devices without a link-layer header.
    pub header_length: u32,
}

/// One address of this node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LocalAddress {
    pub index: u32,
    pub address: IpAddr,
    pub length: u8,
}

/// All devices and addresses at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Picture {
    pub interfaces: Vec<Interface>,
    pub addresses: Vec<LocalAddress>,
}

/// A device that gets packet programs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chosen {
    pub name: String,
    pub device: Device,
}

impl Picture {
    /// The devices that get packet programs, by index.
    pub fn choose(&self, selection: &Selection) -> BTreeMap<u32, Chosen> {
        let wanted = self.interfaces.iter().filter(|interface| match selection {
            Selection::Auto => self.leads_to_pod(interface),
            Selection::List(names) => names.contains(&interface.name),
        });
        wanted
            .map(|interface| {
                let device = Device {
                    role: POD,
                    bridge: self.bridge_of(interface),
                    header_length: interface.header_length,
                    mtu: interface.mtu,
                    address4: self.own_address(interface.index, |address| match address {
                        IpAddr::V4(v4) => Some(Address4::from(v4)),
                        IpAddr::V6(_) => None,
                    }),
                    address6: self.own_address(interface.index, |address| match address {
                        IpAddr::V6(v6) if !v6.is_unicast_link_local() => Some(Address6::from(v6)),
                        _ => None,
                    }),
                };
                (
                    interface.index,
                    Chosen {
                        name: interface.name.clone(),
                        device,
                    },
                )
            })
            .collect()
    }

    /// A veth whose other end is in another namespace, unless it is this node's own way out: that has an address
    /// with a network around it, a pod's host side has none, or (point-to-point CNIs) a host address. A bridge
    /// port leads to a pod in any case.
    fn leads_to_pod(&self, interface: &Interface) -> bool {
        if interface.kind != LinkKind::Veth || !interface.peer_elsewhere {
            return false;
        }
        self.bridge_of(interface) != 0 || !self.has_network(interface.index)
    }

    fn has_network(&self, index: u32) -> bool {
        self.addresses.iter().any(|own| {
            let link_local = match own.address {
                IpAddr::V4(v4) => v4.is_link_local(),
                IpAddr::V6(v6) => v6.is_unicast_link_local(),
            };
            let host_length = if own.address.is_ipv4() { 32 } else { 128 };
            own.index == index && !link_local && own.length < host_length
        })
    }

    /// The first address of a device that `pick` takes, as the kernel lists them: primary ones come first.
    fn own_address<A: Default>(&self, index: u32, pick: impl Fn(IpAddr) -> Option<A>) -> A {
        let mut own = self.addresses.iter().filter(|own| own.index == index);
        own.find_map(|own| pick(own.address)).unwrap_or_default()
    }

    fn bridge_of(&self, interface: &Interface) -> u32 {
        let controller = self
            .interfaces
            .iter()
            .find(|other| other.index == interface.controller);
        controller
            .filter(|other| other.kind == LinkKind::Bridge)
            .map_or(0, |bridge| bridge.index)
    }
}

/// Follows the devices and addresses of the network namespace it was opened in.
#[derive(Debug)]
pub struct Interfaces {
    notifications: AsyncFd<Socket>,
    handle: rtnetlink::Handle,
    connection: tokio::task::JoinHandle<()>,
}

/// `RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR` of include/uapi/linux/rtnetlink.h.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;

/// One CNI call makes a burst of notifications; they are answered by one list.
const SETTLE: Duration = Duration::from_millis(5);

impl Interfaces {
    /// Subscribes. Call within a tokio runtime.
    pub fn open() -> Result<Self> {
        let failed = |e| Error::io("open a netlink socket", e);
        let socket = Socket::open(libc::NETLINK_ROUTE, GROUPS).map_err(failed)?;
        let notifications = socket.watched().map_err(failed)?;
        let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
        Ok(Self {
            notifications,
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// Waits until something may have changed since the last [`Interfaces::read`] began.
    pub async fn changed(&self) -> Result<()> {
        let failed = |e| Error::io("hear about devices", e);
        loop {
            let mut guard = self.notifications.readable().await.map_err(failed)?;
            let heard = drain(self.notifications.get_ref()).map_err(failed)?;
            guard.clear_ready();
            drop(guard);
            if heard {
                tokio::time::sleep(SETTLE).await;
                drain(self.notifications.get_ref()).map_err(failed)?;
                return Ok(());
            }
        }
    }

    /// Lists all devices and addresses.
    pub async fn read(&self) -> Result<Picture> {
        let failed = |what: &str, e| Error::io(format!("list {what}"), io::Error::other(e));
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| failed("devices", e))?;
        let addresses: Vec<_> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| failed("addresses", e))?;
        let addresses = addresses.into_iter().filter_map(|message| {
            let mut found = None;
            for attribute in &message.attributes {
                match attribute {
                    // On a point-to-point device `Address` is the other end, `Local` ours.
                    AddressAttribute::Local(address) => found = Some(*address),
                    AddressAttribute::Address(address) => found = found.or(Some(*address)),
                    _ => {}
                }
            }
            let header = message.header;
            found.map(|address| LocalAddress {
                index: header.index,
                address,
                length: header.prefix_len,
            })
        });
        Ok(Picture {
            addresses: addresses.collect(),
            interfaces: links.iter().map(interface).collect(),
        })
    }
}

impl Drop for Interfaces {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Empties the queue; whether there was anything in it, or anything lost from it.
fn drain(socket: &Socket) -> io::Result<bool> {
    let mut heard = false;
    let mut buffer = [0; 4096];
    loop {
        match socket.receive(&mut buffer)? {
            Received::Bytes(_) => heard = true,
            Received::Lost => {
                tracing::warn!("notifications about devices were lost, reading them anew");
                heard = true;
            }
            Received::Empty => return Ok(heard),
        }
    }
}

fn interface(message: &LinkMessage) -> Interface {
    let ethernet = matches!(
        message.header.link_layer_type,
        LinkLayerType::Ether | LinkLayerType::Loopback
    );
    let mut interface = Interface {
        index: message.header.index,
        name: String::new(),
        kind: LinkKind::Other,
        controller: 0,
        peer_elsewhere: false,
        mtu: 0,
        header_length: if ethernet { 14 } else { 0 },
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Controller(index) => interface.controller = *index,
            LinkAttribute::LinkNetNsId(_) => interface.peer_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::Veth) => interface.kind = LinkKind::Veth,
                        LinkInfo::Kind(InfoKind::Bridge) => interface.kind = LinkKind::Bridge,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    interface
}

#[cfg(test)]
mod tests {
    use super::*;

    fn veth(index: u32, name: &str) -> Interface {
        Interface {
            index,
            name: name.into(),
            kind: LinkKind::Veth,
            controller: 0,
            peer_elsewhere: true,
            mtu: 1500,
            header_length: 14,
        }
    }

    fn address(index: u32, text: &str, length: u8) -> LocalAddress {
        LocalAddress {
            index,
            address: text.parse().expect("an address"),
            length,
        }
    }

    fn chosen(picture: &Picture) -> Vec<(u32, u32)> {
        picture
            .choose(&Selection::Auto)
            .iter()
            .map(|(index, chosen)| (*index, chosen.device.bridge))
            .collect()
    }

    #[test]
    fn a_bridge_port_leads_to_a_pod_and_names_its_bridge() {
        let bridge = Interface {
            kind: LinkKind::Bridge,
            peer_elsewhere: false,
            ..veth(5, "cni0")
        };
        let port = Interface {
            controller: 5,
            ..veth(6, "vethab")
        };
        let picture = Picture {
            interfaces: vec![bridge, port],
            addresses: vec![address(5, "10.1.0.1", 24)],
        };
        assert_eq!(chosen(&picture), [(6, 5)]);
    }

    #[test]
    fn a_point_to_point_veth_with_the_gateways_host_address_leads_to_a_pod() {
        let picture = Picture {
            interfaces: vec![veth(7, "veth7")],
            addresses: vec![address(7, "10.1.0.1", 32), address(7, "fe80::1", 64)],
        };
        assert_eq!(chosen(&picture), [(7, 0)]);
    }

    #[test]
    fn the_nodes_own_way_out_is_no_pod_even_if_it_is_a_veth() {
        let picture = Picture {
            interfaces: vec![veth(2, "eth0")],
            addresses: vec![address(2, "192.0.2.1", 24)],
        };
        assert_eq!(chosen(&picture), []);
    }

    #[test]
    fn a_veth_within_this_namespace_is_no_pod() {
        let inside = Interface {
            peer_elsewhere: false,
            ..veth(3, "a")
        };
        assert_eq!(
            chosen(&Picture {
                interfaces: vec![inside],
                addresses: vec![]
            }),
            []
        );
    }

    #[test]
    fn a_list_takes_its_devices_and_no_others() {
        let picture = Picture {
            interfaces: vec![veth(2, "eth0"), veth(3, "pod1")],
            addresses: vec![],
        };
        let list = Selection::List(vec!["pod1".into(), "absent".into()]);
        assert_eq!(
            picture.choose(&list).keys().copied().collect::<Vec<_>>(),
            [3]
        );
    }
}
