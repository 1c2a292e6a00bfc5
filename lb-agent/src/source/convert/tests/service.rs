//! Services (spec §1.A).

use super::*;

#[test]
fn a2_a4_services_without_an_address_are_not_ours() {
    for spec in [
        json!({"clusterIP": "None", "clusterIPs": ["None"]}),
        json!({"clusterIP": ""}),
        json!({"clusterIP": null}),
        json!({"type": "ExternalName"}),
    ] {
        assert_eq!(read_service(json!({"spec": spec.clone()})), None, "{spec}");
    }
    assert_eq!(read_service(json!({"spec": null})), None);
}

#[test]
fn a6_one_address_per_family() {
    for (spec, want) in [
        (json!({}), vec!["10.96.0.10", "fd00:96::10"]),
        (
            json!({"ipFamilies": ["IPv6", "IPv4"], "clusterIPs": ["fd00::1", "10.96.0.1"]}),
            vec!["10.96.0.1", "fd00::1"],
        ),
        (json!({"ipFamilies": ["IPv4"]}), vec!["10.96.0.10"]),
        (
            json!({"ipFamilies": ["IPv4", "IPv6"], "clusterIPs": ["10.96.0.10"]}),
            vec!["10.96.0.10"],
        ),
        // Without families the one address counts.
        (json!({"ipFamilies": []}), vec!["10.96.0.10"]),
        (
            json!({"ipFamilies": null, "clusterIP": "fd00::7"}),
            vec!["fd00::7"],
        ),
        // Of the other family than it says.
        (
            json!({"clusterIPs": ["10.96.0.10", "10.96.0.11"]}),
            vec!["10.96.0.10"],
        ),
        // A25.
        (
            json!({"ipFamilies": ["IPv4"], "clusterIPs": ["010.096.000.010"]}),
            vec!["10.96.0.10"],
        ),
    ] {
        let service = read_service(json!({"spec": spec.clone()})).unwrap();
        assert_eq!(texts(&service.cluster_ips), want, "{spec}");
    }
    let loopback =
        json!({"clusterIP": "127.0.0.1", "clusterIPs": ["127.0.0.1"], "ipFamilies": ["IPv4"]});
    assert_eq!(read_service(json!({"spec": loopback})), None);
}

#[test]
fn a5_a10_a11_ports() {
    let spec = json!({"ports": [
        {"port": 53, "protocol": "UDP", "name": "dns", "nodePort": 30053},
        {"port": 53, "name": "dns"},
        {"port": 9999, "protocol": "SCTP", "name": "s", "nodePort": 0},
        {"port": 54, "protocol": "UDP", "name": "dns"},
        {"port": 0, "name": "zero"},
        {"port": 65536, "name": "large"},
        {"port": -1, "name": "negative"},
        {"port": 7, "name": "quic", "protocol": "QUIC"},
        {"port": 65535, "nodePort": 70000},
    ]});
    let (mut converter, refused) = converter();
    let Some(Event::Service(service)) =
        converter.service(&object(service_json(json!({"spec": spec}))))
    else {
        panic!("no service");
    };
    let ports: Vec<_> = service
        .ports
        .iter()
        .map(|p| (&*p.name, p.protocol, p.port, p.node_port))
        .collect();
    assert_eq!(
        ports,
        [
            ("dns", Protocol::Udp, 53, 30053),
            ("dns", Protocol::Tcp, 53, 0),
            ("s", Protocol::Sctp, 9999, 0),
            ("", Protocol::Tcp, 65535, 0),
        ]
    );
    // 0, 65536, -1, node port 70000, and the second dns/UDP; QUIC, and SCTP as it is not translated.
    assert_eq!(
        (refused.ports.load(Relaxed), refused.protocols.load(Relaxed)),
        (5, 2)
    );
}

#[test]
fn a13_external_ips_and_their_switch() {
    let value = service_json(json!({"spec": {
        "externalIPs": ["203.0.113.250", "2001:db8::1", "203.0.113.250", "127.0.0.1", "0203.0.113.9"],
        "externalTrafficPolicy": "Local",
    }}));
    for (ignore_external_ips, want) in [
        (false, vec!["203.0.113.250", "2001:db8::1", "203.0.113.9"]),
        (true, vec![]),
    ] {
        let mut converter = Converter::new(
            Options {
                ignore_external_ips,
            },
            Arc::default(),
        );
        let Some(Event::Service(service)) = converter.service(&object(value.clone())) else {
            panic!("no service");
        };
        assert_eq!(texts(&service.external_ips), want);
        assert_eq!(service.external_local, !ignore_external_ips, "A21");
    }
}

#[test]
fn a14_a15_a16_a17_load_balancer_addresses() {
    let service = read_service(json!({"status": {"loadBalancer": {"ingress": [
        {"ip": "1.2.3.4"},
        {"ip": "5.6.7.8", "ipMode": "VIP", "ports": [{"port": 1, "protocol": "TCP"}]},
        {"ip": "9.9.9.9", "ipMode": "Proxy"},
        {"ip": "9.9.9.8", "ipMode": "Unheard"},
        {"ip": "", "hostname": "lb.example.org"},
        {"hostname": "lb.example.org"},
        {"ip": "2001:db8::5"},
        {"ip": "169.254.1.1"},
    ]}}}));
    assert_eq!(
        texts(&service.unwrap().load_balancer_ips),
        ["1.2.3.4", "5.6.7.8", "2001:db8::5"]
    );
}

#[test]
fn a19_source_ranges() {
    for (ranges, want) in [
        (
            vec!["192.168.0.0/24", " 203.0.113.0/25"],
            vec!["192.168.0.0/24", "203.0.113.0/25"],
        ),
        (
            vec!["10.0.0.0/8\n", "\t010.1.0.0/16"],
            vec!["10.0.0.0/8", "10.1.0.0/16"],
        ),
        (
            vec!["nonsense", "10.0.0.0/8", "10.0.0.1"],
            vec!["10.0.0.0/8"],
        ),
        (
            vec!["10.0.0.0/8", "0.0.0.0/0", "fd00::/8"],
            vec!["fd00::/8"],
        ),
        (vec!["10.0.0.0/8", "::/0", "fd00::/8"], vec!["10.0.0.0/8"]),
        (vec!["10.0.0.0/8", "10.1.2.3/8"], vec!["10.0.0.0/8"]),
        (vec![], vec![]),
    ] {
        let service = read_service(json!({"spec": {"loadBalancerSourceRanges": ranges}})).unwrap();
        assert_eq!(prefixes(&service.source_ranges), want, "{ranges:?}");
    }
}

#[test]
fn a21_external_policy_counts_where_there_is_an_external_destination() {
    for (spec, want) in [
        (
            json!({"type": "LoadBalancer", "healthCheckNodePort": 30000}),
            true,
        ),
        (json!({"type": "NodePort"}), true),
        (json!({"type": "ClusterIP"}), false),
        (
            json!({"type": "ClusterIP", "externalIPs": ["203.0.113.1"]}),
            true,
        ),
        (json!({"type": null, "externalIPs": ["203.0.113.1"]}), true),
        (
            json!({"type": "Unheard", "externalIPs": ["203.0.113.1"]}),
            false,
        ),
        (
            json!({"type": "NodePort", "externalTrafficPolicy": "Cluster"}),
            false,
        ),
        (
            json!({"type": "NodePort", "externalTrafficPolicy": null}),
            false,
        ),
    ] {
        let spec = merged(json!({"externalTrafficPolicy": "Local"}), spec);
        assert_eq!(
            read_service(json!({"spec": spec.clone()}))
                .unwrap()
                .external_local,
            want,
            "{spec}"
        );
    }
}

#[test]
fn a22_internal_policy() {
    for (policy, want) in [
        (json!(null), false),
        (json!("Cluster"), false),
        (json!("Local"), true),
    ] {
        let service = read_service(json!({"spec": {"internalTrafficPolicy": policy}})).unwrap();
        assert_eq!(service.internal_local, want);
    }
}

#[test]
fn a23_health_check_port() {
    for (spec, want) in [
        (
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000}),
            Some(32000),
        ),
        (
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Cluster", "healthCheckNodePort": 32000}),
            None,
        ),
        (
            json!({"type": "NodePort", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000}),
            None,
        ),
        (
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}),
            None,
        ),
        (
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 99999}),
            None,
        ),
    ] {
        assert_eq!(
            read_service(json!({"spec": spec.clone()}))
                .unwrap()
                .health_check_port,
            want,
            "{spec}"
        );
    }
}

#[test]
fn a24_session_affinity() {
    for (affinity, timeout, want) in [
        (json!("ClientIP"), json!(5), Some(5)),
        (json!("ClientIP"), json!(null), Some(10_800)),
        (json!("ClientIP"), json!(86_400), Some(86_400)),
        (json!("ClientIP"), json!(86_401), Some(86_400)),
        (json!("ClientIP"), json!(0), Some(10_800)),
        (json!("ClientIP"), json!(-5), Some(10_800)),
        (json!("None"), json!(5), None),
        (json!(null), json!(5), None),
    ] {
        let config = json!({"clientIP": {"timeoutSeconds": timeout}});
        let spec = json!({"sessionAffinity": affinity, "sessionAffinityConfig": config});
        assert_eq!(
            read_service(json!({"spec": spec.clone()}))
                .unwrap()
                .affinity_seconds,
            want,
            "{spec}"
        );
    }
    assert_eq!(
        read_service(json!({"spec": {"sessionAffinity": "ClientIP"}}))
            .unwrap()
            .affinity_seconds,
        Some(10_800)
    );
}

/// What other components read makes no other Service of it.
#[test]
fn a9_a12_a18_a20_fields_that_are_not_read() {
    let plain =
        json!({"type": "LoadBalancer", "ports": [{"port": 80, "name": "http", "nodePort": 30080}]});
    let mut adorned = plain.clone();
    adorned["ports"][0]["targetPort"] = json!("web");
    adorned["ports"][0]["appProtocol"] = json!("kubernetes.io/h2c");
    for (field, value) in [
        ("selector", json!({"app": "web"})),
        ("loadBalancerIP", json!("198.51.100.9")),
        ("loadBalancerClass", json!("example.org/lb")),
        ("allocateLoadBalancerNodePorts", json!(false)),
        ("publishNotReadyAddresses", json!(true)),
        ("trafficDistribution", json!("PreferSameNode")),
        ("ipFamilyPolicy", json!("PreferDualStack")),
    ] {
        adorned[field] = value;
    }
    let annotations =
        json!({"service.beta.kubernetes.io/load-balancer-source-ranges": "192.0.2.0/24"});
    let read = |annotations: Value, spec: Value| {
        read_service(json!({"metadata": {"annotations": annotations}, "spec": spec})).unwrap()
    };
    assert_eq!(read(annotations, adorned), read(json!({}), plain));
}
