//! Pictures of nodes as one meets them, and what is made of their devices.

use super::*;

fn device(index: u32, name: &str, kind: LinkKind) -> Interface {
    Interface {
        index,
        name: name.into(),
        kind,
        card: kind == LinkKind::Nic,
        controller: 0,
        lower: 0,
        groups_only: false,
        peer_elsewhere: false,
        mac: None,
        mtu: 1500,
        header_length: 14,
    }
}

fn veth(index: u32, name: &str) -> Interface {
    Interface {
        peer_elsewhere: true,
        ..device(index, name, LinkKind::Veth)
    }
}

fn member_of(controller: u32, interface: Interface) -> Interface {
    Interface {
        controller,
        ..interface
    }
}

fn address(index: u32, text: &str) -> LocalAddress {
    let (address, length) = text.split_once('/').expect("a prefix");
    LocalAddress {
        index,
        address: address.parse().expect("an address"),
        length: length.parse().expect("a length"),
        primary: true,
        global: true,
    }
}

fn picture(interfaces: Vec<Interface>, addresses: Vec<LocalAddress>) -> Picture {
    Picture {
        interfaces,
        addresses,
        default_routes: Vec::new(),
    }
}

/// Names of the chosen devices, pods' marked by a `p`, uplinks by a `u`.
fn roles(picture: &Picture, selection: &Selection) -> Vec<String> {
    let shown = |chosen: &Chosen| match chosen.device.role {
        POD => format!("p {}", chosen.name),
        LOOPBACK => format!("l {}", chosen.name),
        _ => format!("u {}", chosen.name),
    };
    picture
        .choose(selection, &[])
        .chosen
        .values()
        .map(shown)
        .collect()
}

fn auto(picture: &Picture) -> Vec<String> {
    roles(picture, &Selection::auto())
}

#[test]
fn a_bridge_port_leads_to_a_pod_and_names_its_bridge() {
    let picture = picture(
        vec![
            device(5, "cni0", LinkKind::Bridge),
            member_of(5, veth(6, "vethab")),
        ],
        vec![address(5, "10.1.0.1/24")],
    );
    assert_eq!(auto(&picture), ["p vethab"]);
    let chosen = picture.choose(&Selection::auto(), &[]).chosen;
    assert_eq!(chosen[&6].device.bridge, 5);
}

#[test]
fn a_point_to_point_veth_with_the_gateways_host_address_leads_to_a_pod() {
    let picture = picture(
        vec![veth(7, "veth7")],
        vec![address(7, "10.1.0.1/32"), address(7, "fe80::1/64")],
    );
    assert_eq!(auto(&picture), ["p veth7"]);
}

#[test]
fn the_nodes_own_way_out_is_an_uplink_even_if_it_is_a_veth() {
    let mut numbered = picture(
        vec![veth(2, "eth0")],
        vec![address(2, "192.0.2.1/24"), address(2, "fd00::1/64")],
    );
    let told = ["192.0.2.1".parse().unwrap()];
    let chosen = &numbered.choose(&Selection::auto(), &told).chosen[&2];
    assert_eq!(chosen.device.role, UPLINK, "the Node object says so");
    assert_eq!(chosen.device.address4.octets, [192, 0, 2, 1]);
    assert_eq!(chosen.device.address6.octets[15], 1);
    // A routed container: a host address and the default route.
    numbered.addresses = vec![address(2, "192.0.2.1/32")];
    numbered.default_routes = vec![2];
    assert_eq!(auto(&numbered), ["u eth0"]);
}

#[test]
fn a_veth_with_a_network_of_its_own_leads_to_a_pod_unless_the_node_is_there() {
    let picture = picture(vec![veth(2, "pod1")], vec![address(2, "10.1.0.1/24")]);
    assert_eq!(auto(&picture), ["p pod1"]);
}

#[test]
fn a_veth_within_this_namespace_is_no_pod() {
    let inside = device(3, "a", LinkKind::Veth);
    assert_eq!(auto(&picture(vec![inside], vec![])), [""; 0]);
}

#[test]
fn of_stacked_devices_the_topmost_counts() {
    let picture = picture(
        vec![
            device(1, "lo", LinkKind::Loopback),
            member_of(4, device(2, "eth0", LinkKind::Nic)),
            member_of(4, device(3, "eth1", LinkKind::Nic)),
            device(4, "bond0", LinkKind::Nic),
            Interface {
                lower: 4,
                ..device(5, "bond0.7", LinkKind::Nic)
            },
        ],
        vec![address(1, "127.0.0.1/8"), address(5, "192.0.2.1/24")],
    );
    assert_eq!(auto(&picture), ["u bond0.7"]);
    let mut both = picture.clone();
    both.addresses.push(address(4, "198.51.100.1/24"));
    assert_eq!(auto(&both), ["u bond0", "u bond0.7"]);
}

#[test]
fn a_nic_without_an_address_is_an_uplink_and_borrows_one() {
    let picture = picture(
        vec![
            device(1, "lo", LinkKind::Loopback),
            device(2, "eth0", LinkKind::Nic),
        ],
        vec![
            address(1, "127.0.0.1/8"),
            address(1, "192.0.2.9/32"),
            address(2, "fe80::2/64"),
        ],
    );
    let chosen = picture.choose(&Selection::auto(), &[]).chosen;
    assert_eq!(chosen[&2].device.address4.octets, [192, 0, 2, 9]);
    assert_eq!(chosen[&2].device.address6, Address6::default());
}

#[test]
fn a_bridge_over_a_nic_is_an_uplink_and_one_over_pods_is_none() {
    let picture = picture(
        vec![
            member_of(3, device(2, "eth0", LinkKind::Nic)),
            device(3, "br0", LinkKind::Bridge),
            device(4, "cni0", LinkKind::Bridge),
            member_of(4, veth(5, "vethab")),
        ],
        vec![address(3, "192.0.2.1/24"), address(4, "10.1.0.1/24")],
    );
    assert_eq!(auto(&picture), ["u br0", "p vethab"]);
}

#[test]
fn tunnels_with_an_address_are_uplinks() {
    let tun = Interface {
        header_length: 0,
        ..device(3, "wg0", LinkKind::Tunnel)
    };
    let picture = picture(
        vec![
            device(2, "flannel.1", LinkKind::Tunnel),
            tun,
            device(4, "gretap0", LinkKind::Tunnel),
        ],
        vec![address(2, "10.1.0.0/32"), address(3, "10.9.0.1/24")],
    );
    assert_eq!(auto(&picture), ["u flannel.1", "u wg0"]);
}

#[test]
fn a_pods_device_without_an_ethernet_header_is_left_out() {
    let pod = Interface {
        header_length: 0,
        ..veth(3, "nk0")
    };
    let choice = picture(vec![pod], vec![]).choose(&Selection::auto(), &[]);
    assert!(choice.chosen.is_empty());
    assert_eq!(
        choice.left_out,
        BTreeMap::from([("nk0".to_owned(), reason::LINK_HEADER)])
    );
}

#[test]
fn the_loopback_device_is_for_packets_of_the_node_itself() {
    let picture = picture(vec![device(1, "lo", LinkKind::Loopback)], vec![]);
    assert!(auto(&picture).is_empty());
    let packets = Selection {
        own: OwnTraffic::Packets,
        ..Selection::list(&["eth0"])
    };
    assert_eq!(roles(&picture, &packets), ["l lo"]);
}

#[test]
fn a_vrf_only_groups_its_devices() {
    let vrf = Interface {
        groups_only: true,
        ..device(2, "blue", LinkKind::Idle)
    };
    let picture = picture(
        vec![vrf, member_of(2, device(3, "eth0", LinkKind::Nic))],
        vec![address(3, "192.0.2.1/24")],
    );
    assert_eq!(auto(&picture), ["u eth0"]);
}

#[test]
fn dummies_hold_addresses_and_carry_nothing() {
    let picture = picture(
        vec![device(2, "kube-ipvs0", LinkKind::Idle)],
        vec![address(2, "10.96.0.1/32")],
    );
    assert_eq!(auto(&picture), [""; 0]);
}

#[test]
fn listed_devices_are_told_apart_as_others_and_reasons_are_given() {
    let mut picture = picture(
        vec![
            device(1, "lo", LinkKind::Loopback),
            veth(2, "eth0"),
            veth(3, "pod1"),
            veth(4, "pod2"),
            device(5, "dummy0", LinkKind::Idle),
            member_of(7, device(6, "eth1", LinkKind::Nic)),
            device(7, "bond0", LinkKind::Nic),
        ],
        vec![address(2, "192.0.2.1/24")],
    );
    picture.default_routes = vec![2];
    let list = Selection::list(&["lo", "eth0", "pod1", "dummy0", "eth1", "absent"]);
    assert_eq!(roles(&picture, &list), ["u eth0", "p pod1", "u dummy0"]);
    let left_out = picture.choose(&list, &[]).left_out;
    let expected = [
        ("absent", reason::ABSENT),
        ("eth1", reason::MEMBER),
        ("lo", reason::LOOPBACK),
    ];
    assert_eq!(left_out, expected.map(|(n, r)| (n.to_owned(), r)).into());
}

/// Spec E8, E9.
#[test]
fn pods_can_be_told_by_bridge_or_by_name() {
    let picture = picture(
        vec![
            device(2, "cni0", LinkKind::Bridge),
            member_of(2, device(3, "tap1", LinkKind::Other)),
            veth(4, "cali1"),
            veth(5, "other1"),
        ],
        vec![],
    );
    let by = |pods| {
        roles(
            &picture,
            &Selection {
                pods,
                ..Selection::auto()
            },
        )
    };
    assert_eq!(
        by(PodDevices::Bridge("cni0".into())),
        ["p tap1", "u cali1", "u other1"]
    );
    assert_eq!(
        by(PodDevices::Prefix("cali".into())),
        ["p cali1", "u other1"]
    );
}
