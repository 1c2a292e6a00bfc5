//! Spec §1.A: from a Service to its frontends.

use std::net::Ipv4Addr;

use super::*;

#[test]
fn a5_a11_tcp_and_udp_of_one_number_are_independent() {
    let mut both = service();
    both.ports.push(named_port("http", Protocol::Udp, 80, 0));
    let ids: Vec<_> = ports(&both, &[])
        .into_iter()
        .map(|p| p.id.protocol)
        .collect();
    assert_eq!(ids, [Protocol::Tcp, Protocol::Udp]);
}

#[test]
fn a5_a_port_named_twice_counts_once() {
    let mut twice = service();
    twice.ports.push(named_port("http", Protocol::Tcp, 81, 0));
    assert_eq!(ports(&twice, &[]).len(), 1);
}

#[test]
fn a6_a_family_without_cluster_ip_has_nothing_not_even_the_node_port() {
    let mut single = service();
    single.ports[0].node_port = 30080;
    single.external_ips = vec![ip("2001:db8::9")];
    let got = ports(&single, &[]);
    assert_eq!(got.len(), 1);
    assert_eq!(
        got[0].frontends,
        [
            frontend("0.0.0.0", 30080, FrontendKind::NodePort),
            frontend("172.30.1.1", 80, FrontendKind::ClusterIp)
        ]
    );
}

#[test]
fn a6_a7_families_have_their_own_frontends_and_endpoints() {
    let dual = Service {
        cluster_ips: vec![ip("fd00::1"), ip("172.30.1.1")],
        ..service()
    };
    let got = ports(
        &dual,
        &[
            slice("a", vec![remote("10.0.0.1")]),
            slice("b", vec![remote("fd00:10::1")]),
        ],
    );
    assert_eq!(
        got.iter().map(|p| p.id.family).collect::<Vec<_>>(),
        [Family::V4, Family::V6]
    );
    assert_eq!(sets(&got[0]), expect(&["10.0.0.1"], &[], true));
    assert_eq!(sets(&got[1]), expect(&["fd00:10::1"], &[], true));
    assert_eq!(
        got[1].frontends,
        [frontend("fd00::1", 80, FrontendKind::ClusterIp)]
    );
}

#[test]
fn a8_a10_node_port_and_vips_have_their_ports() {
    let mut all = balanced_local();
    all.external_local = false;
    all.external_ips = vec![ip("203.0.113.250")];
    all.ports[0].node_port = 30080;
    assert_eq!(
        only(&all, vec![]).frontends,
        [
            frontend("0.0.0.0", 30080, FrontendKind::NodePort),
            frontend("1.2.3.4", 80, FrontendKind::LoadBalancer),
            frontend("172.30.1.1", 80, FrontendKind::ClusterIp),
            frontend("203.0.113.250", 80, FrontendKind::ExternalIp),
        ]
    );
}

#[test]
fn a13_external_ips_can_be_ignored() {
    let external = Service {
        external_ips: vec![ip("203.0.113.250")],
        ..service()
    };
    let off = Options {
        external_ips: false,
    };
    let got = service_ports(&external, &[], &node(), &off);
    assert_eq!(
        got[0].frontends,
        [frontend("172.30.1.1", 80, FrontendKind::ClusterIp)]
    );
}

#[test]
fn one_address_in_several_lists_is_one_frontend() {
    let mut same = service();
    same.external_ips = vec![ip("172.30.1.1"), ip("1.2.3.4"), ip("1.2.3.4")];
    same.load_balancer_ips = vec![ip("1.2.3.4")];
    assert_eq!(
        only(&same, vec![]).frontends,
        [
            frontend("1.2.3.4", 80, FrontendKind::LoadBalancer),
            frontend("172.30.1.1", 80, FrontendKind::ClusterIp)
        ]
    );
}

#[test]
fn the_unspecified_address_is_never_a_frontend_of_its_own() {
    let odd = Service {
        external_ips: vec![ip("0.0.0.0")],
        ..service()
    };
    assert_eq!(only(&odd, vec![]).frontends.len(), 1);
    let none = Service {
        cluster_ips: vec![ip("0.0.0.0")],
        ..service()
    };
    assert_eq!(ports(&none, &[]), []);
}

#[test]
fn a19_h1_ranges_of_the_family_filter_vips_alone() {
    let mut ranged = balanced_local();
    ranged.external_ips = vec![ip("5.6.7.8")];
    ranged.source_ranges = vec![
        cidr("203.0.113.7/25"),
        cidr("192.168.0.0/24"),
        cidr("2001:db8::/32"),
    ];
    let port = only(&ranged, vec![]);
    assert_eq!(
        port.source_ranges,
        [cidr("192.168.0.0/24"), cidr("203.0.113.0/25")]
    );
    let filtered: Vec<_> = port
        .frontends
        .iter()
        .filter(|f| f.source_ranges)
        .map(|f| f.address)
        .collect();
    assert_eq!(filtered, [ip("1.2.3.4")]);
    assert!(port.ranges_admit_node, "H3: 192.168.0.2 is this node's");
}

#[test]
fn h3_only_the_primary_address_counts_for_the_node() {
    let mut ranged = balanced_local();
    // The node's address on its pods' bridge.
    ranged.source_ranges = vec![cidr("10.0.7.0/24")];
    let port = only(&ranged, vec![]);
    assert!(!port.source_ranges.is_empty() && !port.ranges_admit_node);
}

#[test]
fn a19_a_zero_range_or_ranges_of_the_other_family_filter_nothing() {
    for ranges in [
        vec![cidr("10.0.0.0/8"), cidr("0.0.0.0/0")],
        vec![cidr("2001:db8::/32")],
    ] {
        let port = only(
            &Service {
                source_ranges: ranges,
                ..balanced_local()
            },
            vec![],
        );
        assert_eq!(port.source_ranges, []);
        assert!(port.frontends.iter().all(|f| !f.source_ranges) && !port.ranges_admit_node);
    }
}

#[test]
fn a19_an_impossible_prefix_length_is_no_range() {
    let port = only(
        &Service {
            source_ranges: vec![cidr("10.0.0.0/33")],
            ..balanced_local()
        },
        vec![],
    );
    assert_eq!(port.source_ranges, []);
}

#[test]
fn a21_a22_each_policy_governs_its_own_direction() {
    let mut mixed = Service {
        internal_local: true,
        ..balanced_local()
    };
    mixed.external_local = false;
    mixed.ports[0].node_port = 30080;
    let local: Vec<_> = only(&mixed, vec![])
        .frontends
        .iter()
        .map(|f| (f.kind, f.local_policy))
        .collect();
    let kinds = [
        FrontendKind::NodePort,
        FrontendKind::LoadBalancer,
        FrontendKind::ClusterIp,
    ];
    assert_eq!(
        local,
        [(kinds[0], false), (kinds[1], false), (kinds[2], true)]
    );
}

#[test]
fn a24_affinity_is_handed_on() {
    assert_eq!(only(&service(), vec![]).affinity_seconds, 0);
    assert_eq!(
        only(
            &Service {
                affinity_seconds: Some(10800),
                ..service()
            },
            vec![]
        )
        .affinity_seconds,
        10800
    );
}

#[test]
fn a28_external_local_without_external_address_computes_no_local_set() {
    let plain = Service {
        external_local: true,
        ..service()
    };
    assert_eq!(
        sets(&only(&plain, vec![local("10.0.0.1")])),
        expect(&["10.0.0.1"], &[], true)
    );
}

#[test]
fn a28_internal_local_alone_computes_no_cluster_set() {
    let got = sets(&only(
        &internal_local(),
        vec![local("10.0.0.1"), remote("10.0.0.2")],
    ));
    assert_eq!(got, expect(&[], &["10.0.0.1"], true));
}

#[test]
fn a28_internal_local_with_a_node_port_keeps_the_cluster_set() {
    let mut both = internal_local();
    both.ports[0].node_port = 30080;
    let port = only(&both, vec![local("10.0.0.1"), remote("10.0.0.2")]);
    assert_eq!(
        sets(&port),
        expect(&["10.0.0.1", "10.0.0.2"], &["10.0.0.1"], true)
    );
    assert_eq!(leads(&port, FrontendKind::ClusterIp), to(&["10.0.0.1"]));
    assert_eq!(
        leads(&port, FrontendKind::NodePort),
        to(&["10.0.0.1", "10.0.0.2"])
    );
}

/// Comparing each with each would take these minutes.
#[test]
fn an_object_full_of_addresses_and_ports_has_each_once() {
    let mut large = service();
    let addresses = || (0..50_000u32).map(|n| IpAddr::from(Ipv4Addr::from_bits(0xc612_0000 + n)));
    large.external_ips = addresses().rev().chain(addresses()).collect();
    large.load_balancer_ips = addresses().step_by(2).collect();
    let frontends = only(&large, vec![]).frontends;
    let count = |kind| frontends.iter().filter(|f| f.kind == kind).count();
    assert_eq!(frontends.len(), 50_001);
    assert_eq!(count(FrontendKind::LoadBalancer), 25_000);
    assert!(frontends.is_sorted_by_key(|frontend| (frontend.address, frontend.port)));

    let mut large = service();
    let numbered = |n: u16| named_port(&format!("port-{n}"), Protocol::Tcp, n, 0);
    large.ports = (1..=40_000).chain(1..=40_000).map(numbered).collect();
    let found = ports(&large, &[]);
    assert!(
        found
            .iter()
            .map(|port| port.frontends[0].port)
            .eq(1..=40_000)
    );
}
