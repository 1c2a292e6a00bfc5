//! EndpointSlices (spec §1.B).

use super::*;

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
