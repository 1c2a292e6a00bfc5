//! The API objects tests write, with the fields every test repeats filled in.

use serde_json::{Value, json};

/// Path of a Service in namespace `default`.
pub fn service_path(name: &str) -> String {
    format!("/api/v1/namespaces/default/services/{name}")
}

/// Path of an EndpointSlice in namespace `default`.
pub fn slice_path(name: &str) -> String {
    format!("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/{name}")
}

/// Path of a Node.
pub fn node_path(name: &str) -> String {
    format!("/api/v1/nodes/{name}")
}

/// A dual-stack ClusterIP Service with one TCP port 80.
pub fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "ClusterIP",
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        },
    })
}

/// An EndpointSlice with one TCP port; the addresses' family is that of the first. All endpoints are ready.
pub fn slice(name: &str, service: &str, port: u16, addresses: &[&str]) -> Value {
    let is_v6 = addresses
        .first()
        .is_some_and(|address| address.contains(':'));
    let endpoints: Vec<Value> = addresses.iter().map(|address| endpoint(address)).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": if is_v6 { "IPv6" } else { "IPv4" },
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

/// A ready endpoint on no particular node.
pub fn endpoint(address: &str) -> Value {
    json!({"addresses": [address], "conditions": {"ready": true, "serving": true, "terminating": false}})
}

/// A Node; its addresses still have to be patched into its status.
pub fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
}
