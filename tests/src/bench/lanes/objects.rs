//! The Services of a rig: many that are alike, with a port for new connections, and two with NodePorts and a port for
//! each work.
//!
//! Each has one endpoint, which is kube-proxy's best case: since 1.37 its nftables mode needs no chain of its own
//! for such a Service. All endpoints serve, so whichever Service lies where one wants to measure can be dialled.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

use super::rig::{Path, endpoint};
use super::worker::Work;

pub(super) fn name(service: usize) -> String {
    format!("lane-{service}")
}

/// ClusterIP of a Service.
pub(super) fn address(service: usize) -> Ipv4Addr {
    Ipv4Addr::new(
        10,
        96,
        16 + (service / 250) as u8,
        1 + (service % 250) as u8,
    )
}

/// Whether a ClusterIP is one of those.
pub(super) fn is_alike(found: Ipv4Addr, services: usize) -> bool {
    let [_, _, high, low] = found.octets();
    high >= 16 && low > 0 && (usize::from(high) - 16) * 250 + usize::from(low) - 1 < services
}

/// A Service and its slice.
pub(super) fn service(number: usize) -> [Value; 2] {
    pair(
        &name(number),
        address(number).into(),
        Path::ClusterIp,
        &[Work::Connect],
    )
}

/// ClusterIP of the Service that has a port for each work, and its endpoint on node1.
pub(super) const EVERY_WORK: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// The Service with NodePorts that lead to this path's endpoint, and its slice.
pub(super) fn with_node_ports(path: Path) -> [Value; 2] {
    let (name, address) = match path {
        Path::NodePortRemote => ("remote", Ipv4Addr::new(10, 96, 0, 11)),
        Path::NodePortLocal | Path::ClusterIp => ("local", EVERY_WORK),
    };
    pair(name, address.into(), path, &Work::ALL)
}

fn pair(name: &str, address: IpAddr, path: Path, works: &[Work]) -> [Value; 2] {
    let ports = |service: bool| -> Vec<Value> {
        (0..)
            .zip(works)
            .map(|(number, &work)| {
                let protocol = if work == Work::Datagram { "UDP" } else { "TCP" };
                let mut port = json!({"name": work.name(), "protocol": protocol});
                if !service {
                    port["port"] = work.port().into();
                    return port;
                }
                port["port"] = (80 + number).into();
                port["targetPort"] = work.port().into();
                if path != Path::ClusterIp {
                    port["nodePort"] = (path.node_port() + number).into();
                }
                port
            })
            .collect()
    };
    let kind = if path == Path::ClusterIp {
        "ClusterIP"
    } else {
        "NodePort"
    };
    let node = if path == Path::NodePortRemote {
        "node2"
    } else {
        "node1"
    };
    let mut spec = json!({
        "type": kind, "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
        "ports": ports(true),
    });
    if path != Path::ClusterIp {
        spec["externalTrafficPolicy"] = "Cluster".into();
    }
    [
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "default"},
            "spec": spec,
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": name, "namespace": "default",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4",
            "ports": ports(false),
            "endpoints": [{
                "addresses": [endpoint(path)],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": node,
            }],
        }),
    ]
}
