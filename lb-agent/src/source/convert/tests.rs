use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::snapshot::{Hints, Node, Service, Slice};

/// A converter, and the counts of what it refused.
fn converter() -> (Converter, Arc<Refused>) {
    let refused = Arc::new(Refused::default());
    (Converter::new(Options::default(), refused.clone()), refused)
}

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Lays `over` on top of `base`, as deep as both are objects.
fn merged(mut base: Value, over: Value) -> Value {
    match (&mut base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                let below = base.remove(&key).unwrap_or(Value::Null);
                base.insert(key, merged(below, value));
            }
        }
        (base, over) => *base = over,
    }
    base
}

/// A dual-stack Service, changed by `over`.
fn service_json(over: Value) -> Value {
    let base = json!({
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "10.96.0.10",
            "clusterIPs": ["10.96.0.10", "fd00:96::10"],
            "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        },
    });
    merged(base, over)
}

fn read_service(over: Value) -> Option<Service> {
    match converter().0.service(&object(service_json(over))) {
        Some(Event::Service(service)) => Some(*service),
        Some(Event::ServiceGone(name)) => {
            assert_eq!((&*name.namespace, &*name.name), ("shop", "web"));
            None
        }
        other => panic!("{other:?}"),
    }
}

fn slice_json(over: Value) -> Value {
    let base = json!({
        "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.0.0.1"]}],
    });
    merged(base, over)
}

fn read_slice(over: Value) -> Option<Slice> {
    match converter().0.slice(&object(slice_json(over))) {
        Some(Event::Slice(slice)) => Some(*slice),
        Some(Event::SliceGone(name)) => {
            assert_eq!((&*name.namespace, &*name.name), ("shop", "web-1"));
            None
        }
        other => panic!("{other:?}"),
    }
}

fn read_node(value: Value) -> Node {
    match converter()
        .0
        .node(&object(merged(json!({"metadata": {"name": "a"}}), value)))
    {
        Some(Event::Node(node)) => *node,
        other => panic!("{other:?}"),
    }
}

fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(T::to_string).collect()
}

fn prefixes(items: &[Cidr]) -> Vec<String> {
    items
        .iter()
        .map(|cidr| format!("{}/{}", cidr.address, cidr.length))
        .collect()
}

// ---- Services -----------------------------------------------------------------------------------------------

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
    // 0, 65536, -1, node port 70000, and the second dns/UDP.
    assert_eq!(
        (refused.ports.load(Relaxed), refused.protocols.load(Relaxed)),
        (5, 1)
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

// ---- slices -------------------------------------------------------------------------------------------------

#[test]
fn b2_b3_b4_slices_that_belong_to_a_service() {
    for (over, ours) in [
        (json!({}), true),
        (
            json!({"metadata": {"labels": {"endpointslice.kubernetes.io/managed-by": "somebody"}}}),
            true,
        ),
        (json!({"metadata": {"labels": null}}), false),
        (
            json!({"metadata": {"labels": {"kubernetes.io/service-name": ""}}}),
            false,
        ),
        (json!({"addressType": "FQDN"}), false),
        (json!({"addressType": "IPv6"}), true),
    ] {
        assert_eq!(read_slice(over.clone()).is_some(), ours, "{over}");
    }
}

#[test]
fn b4_b5_endpoint_addresses() {
    for (address_type, addresses, want) in [
        ("IPv4", json!(["10.0.0.1", "10.0.0.2"]), Some("10.0.0.1")),
        ("IPv4", json!([]), None),
        ("IPv4", json!(["010.0.0.01"]), Some("10.0.0.1")),
        ("IPv4", json!(["fd00::1"]), None),
        ("IPv6", json!(["FD00:0::1"]), Some("fd00::1")),
        ("IPv6", json!(["10.0.0.1"]), None),
        ("IPv6", json!(["::ffff:10.0.0.1"]), None),
        ("IPv6", json!(["fe80::1%eth0"]), None),
        ("IPv4", json!(["255.255.255.255"]), None),
    ] {
        let over = json!({"addressType": address_type, "endpoints": [{"addresses": addresses}]});
        let endpoints = read_slice(over.clone()).unwrap().endpoints;
        assert_eq!(
            endpoints.first().map(|e| e.address.to_string()).as_deref(),
            want,
            "{over}"
        );
    }
}

#[test]
fn b6_slice_ports() {
    let slice = read_slice(json!({"ports": [
        {"name": "http", "port": 80},
        {"name": "", "port": 81, "protocol": "UDP"},
        {"port": 82},
        {"name": "none"},
        {"name": "zero", "port": 0},
        {"name": "large", "port": 70000},
        {"name": "odd", "port": 83, "protocol": "tcp"},
    ]}));
    let ports = slice.unwrap().ports;
    let ports: Vec<_> = ports
        .iter()
        .map(|p| (&*p.name, p.protocol, p.port))
        .collect();
    assert_eq!(
        ports,
        [("http", Protocol::Tcp, 80), ("", Protocol::Udp, 81)]
    );
    assert_eq!(read_slice(json!({"ports": null})).unwrap().ports, []);
}

#[test]
fn b7_conditions() {
    for (conditions, want) in [
        (json!(null), (true, true, false)),
        (json!({}), (true, true, false)),
        (json!({"ready": false}), (false, true, false)),
        (
            json!({"ready": false, "serving": false}),
            (false, false, false),
        ),
        (
            json!({"ready": false, "serving": true, "terminating": true}),
            (false, true, true),
        ),
        // B14: publishNotReadyAddresses.
        (
            json!({"ready": true, "serving": false, "terminating": true}),
            (true, false, true),
        ),
    ] {
        let over = json!({"endpoints": [{"addresses": ["10.0.0.1"], "conditions": conditions}]});
        let slice = read_slice(over.clone()).unwrap();
        let endpoint = &slice.endpoints[0];
        assert_eq!(
            (endpoint.ready, endpoint.serving, endpoint.terminating),
            want,
            "{over}"
        );
    }
}

#[test]
fn b8_b9_b10_place_and_hints() {
    let slice = read_slice(json!({"endpoints": [
        {"addresses": ["10.0.0.1"], "nodeName": "Node-A.example", "zone": "ignored", "hints": {
            "forZones": [{"name": "west"}, {"name": "east"}, {"name": "west"}], "forNodes": [{"name": "a"}],
        }},
        {"addresses": ["10.0.0.2"], "hints": {}},
        {"addresses": ["10.0.0.3"], "nodeName": ""},
    ]}));
    let endpoints = slice.unwrap().endpoints;
    assert_eq!(endpoints[0].node.as_deref(), Some("Node-A.example"));
    let hints = Hints {
        zones: vec!["east".into(), "west".into()],
        nodes: vec!["a".into()],
    };
    assert_eq!(endpoints[0].hints.as_deref(), Some(&hints));
    assert_eq!((&endpoints[1].hints, &endpoints[2].node), (&None, &None));
}

#[test]
fn b18_trigger_time() {
    for (annotation, want) in [
        (
            json!("2026-11-23T08:00:00.000000001Z"),
            Some(1_795_420_800_000_000_001),
        ),
        (
            json!("2026-11-23T09:00:00+01:00"),
            Some(1_795_420_800_000_000_000),
        ),
        (json!("yesterday"), None),
        (json!(null), None),
    ] {
        let mut value = slice_json(json!({}));
        if !annotation.is_null() {
            value["metadata"]["annotations"] =
                json!({"endpoints.kubernetes.io/last-change-trigger-time": annotation});
        }
        let Some(Event::Slice(slice)) = converter().0.slice(&object(value)) else {
            panic!("no slice")
        };
        assert_eq!(slice.trigger_time, want, "{annotation}");
    }
}

// ---- node and service CIDRs ---------------------------------------------------------------------------------

#[test]
fn node_identity() {
    let node = read_node(json!({
        "metadata": {"labels": {"topology.kubernetes.io/zone": "east", "other": "x"}},
        "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd01::/64"]},
        "status": {"addresses": [
            {"type": "Hostname", "address": "a"},
            {"type": "ExternalIP", "address": "198.51.100.1"},
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "2001:db8::1"},
        ]},
    }));
    assert_eq!(
        (&*node.name, node.zone.as_deref(), node.draining),
        ("a", Some("east"), false)
    );
    assert_eq!(
        texts(&node.addresses),
        ["192.0.2.1", "2001:db8::1", "198.51.100.1"]
    );
    assert_eq!(prefixes(&node.pod_cidrs), ["10.1.0.0/24", "fd01::/64"]);

    let old = read_node(
        json!({"spec": {"podCIDR": "10.1.0.0/24"}, "metadata": {"labels": {"topology.kubernetes.io/zone": ""}}}),
    );
    assert_eq!(
        (prefixes(&old.pod_cidrs), old.zone),
        (vec!["10.1.0.0/24".into()], None)
    );
}

#[test]
fn kep_3836_a_node_drains_when_it_is_deleted_or_about_to_be() {
    for (value, want) in [
        (json!({}), false),
        (
            json!({"metadata": {"deletionTimestamp": "2026-11-23T08:00:00Z"}}),
            true,
        ),
        (
            json!({"spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}}),
            true,
        ),
        (
            json!({"spec": {"unschedulable": true, "taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]}}),
            false,
        ),
    ] {
        assert_eq!(read_node(value.clone()).draining, want, "{value}");
    }
}

#[test]
fn d5_service_cidrs() {
    let value = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["010.96.0.0/12", "fd00::/108", "x"]}});
    let Some(Event::ServiceCidr(name, found)) = converter().0.service_cidr(&object(value)) else {
        panic!("none")
    };
    assert_eq!(
        (&*name, prefixes(&found)),
        (
            "kubernetes",
            vec!["10.96.0.0/12".into(), "fd00::/108".into()]
        )
    );
}

// ---- hostile objects ----------------------------------------------------------------------------------------

#[test]
fn names_that_are_none_refuse_the_object() {
    let long = "x".repeat(64);
    for (over, gone) in [
        (json!({"metadata": {"name": "a\nb"}}), false),
        (json!({"metadata": {"name": ""}}), false),
        (json!({"metadata": {"name": long}}), false),
        (json!({"metadata": {"name": "\u{202e}web"}}), false),
        (json!({"metadata": {"namespace": "\u{1b}[31m"}}), false),
        (json!({"metadata": {"namespace": null}}), false),
        // The object's own name is fine: what was there before goes.
        (
            json!({"spec": {"ports": [{"port": 80, "name": "a\u{0}b"}]}}),
            true,
        ),
        (
            json!({"spec": {"ports": [{"port": 80, "name": "x".repeat(64)}]}}),
            true,
        ),
    ] {
        let (mut converter, refused) = converter();
        let event = converter.service(&object(service_json(over.clone())));
        assert_eq!(
            matches!(event, Some(Event::ServiceGone(_))),
            gone,
            "{over} {event:?}"
        );
        assert!(gone || event.is_none());
        assert_eq!(refused.objects.load(Relaxed), 1, "{over}");
    }
    for over in [
        json!({"metadata": {"labels": {"kubernetes.io/service-name": "a\nb"}}}),
        json!({"endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "a\rb"}]}),
        json!({"endpoints": [{"addresses": ["10.0.0.1"], "hints": {"forZones": [{"name": "\u{7}"}]}}]}),
        json!({"ports": [{"name": "\u{9b}", "port": 80}]}),
    ] {
        assert_eq!(read_slice(over.clone()), None, "{over}");
    }
    // Slices may have longer names than Services.
    let name = json!({"metadata": {"name": "s".repeat(253)}});
    assert!(matches!(
        converter().0.slice(&object(slice_json(name))),
        Some(Event::Slice(_))
    ));
}

#[test]
fn thousands_of_hostile_endpoints_are_counted_and_told_in_a_few_lines() {
    let endpoints: Vec<_> = (0..5000)
        .map(|n| json!({"addresses": [format!("127.0.{}.{}", n / 250, n % 250)]}))
        .collect();
    let slice = object(slice_json(json!({"endpoints": endpoints})));
    let (mut converter, refused) = converter();
    let log = logged(|| {
        for _ in 0..3 {
            let Some(Event::Slice(slice)) = converter.slice(&slice) else {
                panic!("no slice")
            };
            assert_eq!(slice.endpoints, []);
        }
    });
    assert_eq!(refused.addresses.load(Relaxed), 5000);
    assert_eq!(log.lines().count(), 9, "{log}");
    assert!(
        log.contains("EndpointSlice shop/web-1")
            && log.contains("127.0.0.0")
            && log.contains("loopback"),
        "{log}"
    );
}

#[test]
fn the_log_shows_no_control_characters() {
    let (mut converter, _) = converter();
    let log = logged(|| {
        converter.service(&object(service_json(
            json!({"metadata": {"name": "a\n\u{1b}[2Jb"}}),
        )));
        converter.service(&object(service_json(
            json!({"spec": {"externalIPs": ["1.2.3.4\n\u{1b}[2J"]}}),
        )));
        converter.service(&object(service_json(
            json!({"spec": {"ports": [{"port": 1, "protocol": "\u{8}"}]}}),
        )));
    });
    assert_eq!(log.lines().count(), 3, "{log}");
    assert!(
        log.chars()
            .all(|character| character == '\n' || !character.is_control()),
        "{log:?}"
    );
}

#[test]
fn a_deleted_object_may_be_told_about_again() {
    let value: core::Service = object(service_json(
        json!({"spec": {"externalIPs": ["127.0.0.1"]}}),
    ));
    let (mut converter, refused) = converter();
    converter.service(&value);
    let name = ObjectName {
        namespace: "shop".into(),
        name: "web".into(),
    };
    assert_eq!(
        converter.service_gone(&value.metadata),
        Some(Event::ServiceGone(name))
    );
    converter.service(&value);
    assert_eq!(refused.addresses.load(Relaxed), 2);
}

/// What `act` logs, as plain lines.
fn logged(act: impl FnOnce()) -> String {
    // While there is only one dispatcher, tracing asks whichever thread comes first whether anybody listens, and
    // another test's thread has none. A second one makes it ask all.
    static SECOND: std::sync::OnceLock<tracing::Dispatch> = std::sync::OnceLock::new();
    SECOND.get_or_init(|| {
        tracing::Dispatch::new(
            tracing_subscriber::fmt()
                .with_writer(std::io::sink)
                .finish(),
        )
    });

    let lines = Arc::new(Mutex::new(Vec::new()));
    let writer = Lines(lines.clone());
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, act);
    let lines = lines.lock().unwrap();
    String::from_utf8(lines.clone()).unwrap()
}

#[derive(Clone)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
