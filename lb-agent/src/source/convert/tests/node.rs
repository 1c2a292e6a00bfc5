//! Node (spec §3.4) and ServiceCIDRs (D5).

use super::*;

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
