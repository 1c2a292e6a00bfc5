//! This node's devices and addresses.
//!
//! Notifications only say that something changed; what there is comes from a fresh, complete list. So a lost
//! notification costs one more list, and no event can leave a wrong picture behind.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::route::RouteAttribute;
use tokio::io::unix::AsyncFd;

use super::dump::dump;
use super::{Error, Result};
use crate::sys::netlink::{Received, Socket};

/// What a device is, as far as we care.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkKind {
    Loopback,
    /// A pair of devices of which the other may be in another namespace (veth, netkit).
    Veth,
    Bridge,
    /// A network card, or what stands for one: bond, team, VLAN, macvlan.
    Nic,
    /// A way to other hosts through an address: VXLAN, GRE, IPIP, WireGuard, tun, tap.
    Tunnel,
    /// Carries no traffic of other hosts: dummy, VRF, ifb.
    Idle,
    Other,
}

/// One network device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    pub kind: LinkKind,
    /// A network card itself, which is of no driver's kind: neither veth nor what sits on others.
    pub card: bool,
    /// Index of the device it is a port of (bridge, bond), or 0.
    pub controller: u32,
    /// Index of the device it sits on (VLAN), or 0.
    pub lower: u32,
    /// As a controller it only groups devices, their packets do not pass through it (VRF).
    pub groups_only: bool,
    /// Its other end is in another network namespace.
    pub peer_elsewhere: bool,
    /// Its link-layer address, if that is an Ethernet one.
    pub mac: Option<[u8; 6]>,
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
    /// Neither secondary, temporary nor deprecated, and free of conflicts as far as known.
    pub primary: bool,
    /// Valid everywhere, not only on this host or link.
    pub global: bool,
}

/// All devices and addresses at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Picture {
    pub interfaces: Vec<Interface>,
    pub addresses: Vec<LocalAddress>,
    /// Indices of the devices that unknown addresses are sent to.
    pub default_routes: Vec<u32>,
}

/// Follows the devices and addresses of the network namespace it was opened in.
#[derive(Debug)]
pub struct Interfaces {
    notifications: AsyncFd<Socket>,
    handle: rtnetlink::Handle,
    connection: tokio::task::JoinHandle<()>,
}

/// `RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE` of
/// include/uapi/linux/rtnetlink.h.
const GROUPS: u32 = 0x1 | 0x10 | 0x100 | 0x40 | 0x400;

/// `RTM_NEWROUTE` and `RTM_DELROUTE`.
const ROUTES: [u16; 2] = [24, 25];

/// One destination of each family that no site routes on its own (RFC 5737, RFC 3849): it goes where unknown
/// addresses go.
const ELSEWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// One CNI call makes a burst of notifications; they are answered by one list.
const SETTLE: Duration = Duration::from_millis(5);

impl Interfaces {
    /// Subscribes. Call within a tokio runtime.
    pub fn open() -> Result<Self> {
        let failed = |e| Error::io("open a netlink socket", e);
        let socket = Socket::open(libc::NETLINK_ROUTE, GROUPS).map_err(failed)?;
        let notifications = socket.watched().map_err(failed)?;
        let (mut connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
        // Else a list ends in the same way if the connection breaks.
        connection.set_forward_done(true);
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
        let failed = |what: &str, e| Error::io(format!("list {what}"), e);
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let links = dump(&self.handle, request).await;
        let links = links.map_err(|e| failed("devices", e))?;
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let addresses = dump(&self.handle, request).await;
        let addresses = addresses.map_err(|e| failed("addresses", e))?;
        let mut default_routes = Vec::new();
        for destination in ELSEWHERE {
            default_routes.extend(self.device_towards(destination).await);
        }
        let interfaces = links.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(message) => Some(interface(message)),
            _ => None,
        });
        // A list of several attempts may name a device twice: the latest is the one.
        let interfaces: BTreeMap<u32, Interface> = interfaces
            .map(|interface| (interface.index, interface))
            .collect();
        let addresses = addresses.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(message) => address(message),
            _ => None,
        });
        Ok(Picture {
            addresses: addresses.collect(),
            interfaces: interfaces.into_values().collect(),
            default_routes,
        })
    }

    /// The device that packets to an address leave by; none without a route.
    async fn device_towards(&self, destination: IpAddr) -> Option<u32> {
        let request = match destination {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(v4, 32)
                .build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(v6, 128)
                .build(),
        };
        let mut answers = std::pin::pin!(self.handle.route().get(request).execute());
        // "Network unreachable" is an answer as good as any.
        let route = answers.try_next().await.ok()??;
        route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
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
            Received::Bytes(length) => heard |= matters(&buffer[..length]),
            Received::Lost => {
                tracing::warn!("notifications about devices were lost, reading them anew");
                heard = true;
            }
            Received::Empty => return Ok(heard),
        }
    }
}

/// Whether a notification is about a device, an address or a default route. Other routes come and go by the
/// thousand where a routing daemon runs.
fn matters(message: &[u8]) -> bool {
    // Type at offset 4 of `struct nlmsghdr`; prefix length at offset 1 of `struct rtmsg` behind it.
    match message {
        [_, _, _, _, low, high, ..] if ROUTES.contains(&u16::from_ne_bytes([*low, *high])) => {
            message.get(17) == Some(&0)
        }
        _ => true,
    }
}

fn address(message: &AddressMessage) -> Option<LocalAddress> {
    let header = &message.header;
    let mut found = None;
    let mut flags = AddressFlags::from_bits_retain(header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point device `Address` is the other end, `Local` ours.
            AddressAttribute::Local(address) => found = Some(*address),
            AddressAttribute::Address(address) => found = found.or(Some(*address)),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let unfit = AddressFlags::Secondary
        | AddressFlags::Deprecated
        | AddressFlags::Tentative
        | AddressFlags::Dadfailed;
    Some(LocalAddress {
        index: header.index,
        address: found?,
        length: header.prefix_len,
        primary: !flags.intersects(unfit),
        global: matches!(header.scope, AddressScope::Universe | AddressScope::Site),
    })
}

fn interface(message: &LinkMessage) -> Interface {
    let layer = message.header.link_layer_type;
    let ethernet = matches!(layer, LinkLayerType::Ether | LinkLayerType::Loopback);
    let mut interface = Interface {
        index: message.header.index,
        name: String::new(),
        kind: match layer {
            LinkLayerType::Loopback => LinkKind::Loopback,
            _ => LinkKind::Nic,
        },
        card: layer == LinkLayerType::Ether,
        controller: 0,
        lower: 0,
        groups_only: false,
        peer_elsewhere: false,
        mac: None,
        mtu: 0,
        header_length: if ethernet { 14 } else { 0 },
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Address(address) => interface.mac = address.as_slice().try_into().ok(),
            LinkAttribute::Controller(index) => interface.controller = *index,
            LinkAttribute::LinkNetNsId(_) => interface.peer_elsewhere = true,
            LinkAttribute::Link(index) => interface.lower = *index,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(info) = info {
                        interface.kind = kind(info);
                        interface.card = false;
                        interface.groups_only = *info == InfoKind::Vrf;
                    }
                }
            }
            _ => {}
        }
    }
    interface
}

/// What a driver's kind of device is to us. Network cards have none.
fn kind(info: &InfoKind) -> LinkKind {
    match info {
        InfoKind::Veth | InfoKind::Netkit => LinkKind::Veth,
        InfoKind::Bridge => LinkKind::Bridge,
        InfoKind::Bond
        | InfoKind::Team
        | InfoKind::Vlan
        | InfoKind::MacVlan
        | InfoKind::IpVlan
        | InfoKind::MacSec
        | InfoKind::Ipoib
        | InfoKind::Wwan
        | InfoKind::Netdevsim => LinkKind::Nic,
        InfoKind::Tun
        | InfoKind::Vxlan
        | InfoKind::Geneve
        | InfoKind::GreTap
        | InfoKind::GreTap6
        | InfoKind::IpIp
        | InfoKind::Ip6Tnl
        | InfoKind::SitTun
        | InfoKind::GreTun
        | InfoKind::GreTun6
        | InfoKind::Vti
        | InfoKind::Vti6
        | InfoKind::Wireguard
        | InfoKind::Xfrm => LinkKind::Tunnel,
        InfoKind::Dummy | InfoKind::Vrf | InfoKind::Ifb | InfoKind::Nlmon => LinkKind::Idle,
        _ => LinkKind::Other,
    }
}
