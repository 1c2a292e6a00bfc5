//! What is loaded: Services of ten endpoints each, named by number.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, Result};
use lb_ebpf::abi::TCP;
use lb_ebpf::abi::address::Address4;
use lb_ebpf::abi::family::V4;
use lb_ebpf::abi::frontend::FrontendKey;
use serde_json::{Value, json};

/// Endpoints of each Service.
pub(super) const ENDPOINTS: usize = 10;

pub(super) fn name(service: usize) -> String {
    format!("service-{service}")
}

/// Within the API server's service prefix, away from where it allocates first.
pub(super) fn address(service: usize) -> Ipv4Addr {
    Ipv4Addr::new(
        10,
        96,
        16 + (service / 250) as u8,
        1 + (service % 250) as u8,
    )
}

/// The Service's only frontend.
pub(super) fn key(service: usize) -> FrontendKey<V4> {
    FrontendKey {
        address: Address4 {
            octets: address(service).octets(),
        },
        port: 80,
        protocol: TCP,
        zero: 0,
    }
}

pub(super) fn service(service: usize) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name(service), "namespace": "default"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address(service),
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        },
    })
}

/// The Service's slice. Its last endpoint is another one for each `version`.
pub(super) fn slice(service: usize, version: usize) -> Value {
    let endpoints: Vec<Value> = (0..ENDPOINTS)
        .map(|number| {
            endpoint(
                service,
                if number + 1 == ENDPOINTS {
                    number + version % 200
                } else {
                    number
                },
            )
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name(service),
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": name(service)},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

/// Shaped as the EndpointSlice controller writes them: node, zone and target with each.
fn endpoint(service: usize, number: usize) -> Value {
    let (high, low) = (service / 256, service % 256);
    json!({
        "addresses": [format!("10.{}.{low}.{}", 128 + high, 1 + number)],
        "conditions": {"ready": true, "serving": true, "terminating": false},
        "nodeName": format!("node-{}", (service + number) % 1000),
        "zone": format!("zone-{}", number % 3),
        "targetRef": {"kind": "Pod", "namespace": "default", "name": format!("pod-{service}-{number}")},
    })
}

/// The manifest of one Service and its slice.
pub(super) fn manifest(number: usize, version: usize) -> String {
    let mut text = String::new();
    let _ = write!(
        text,
        "{}\n---\n{}\n",
        service(number),
        slice(number, version)
    );
    text
}

/// A directory with one file for each Service.
pub(super) fn write_directory(directory: &Path, services: usize) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    for service in 0..services {
        let file = directory.join(format!("{}.yaml", name(service)));
        fs::write(&file, manifest(service, 0))
            .with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}
