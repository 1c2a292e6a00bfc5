//! Builders for tests.

use std::net::IpAddr;

use super::NodeView;
use crate::snapshot::{
    Cidr, Family, Hints, ObjectName, Protocol, Service, ServicePort, Slice, SliceEndpoint,
    SlicePort,
};

/// The node of every test.
pub(crate) const NODE: &str = "n1";

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn object(name: &str) -> ObjectName {
    ObjectName {
        namespace: "ns".into(),
        name: name.into(),
    }
}

pub(crate) fn node() -> NodeView {
    NodeView {
        name: NODE.into(),
        zone: Some("z1".into()),
        addresses: vec![ip("192.168.0.2"), ip("10.0.7.1"), ip("2001:db8::1")],
        primary: vec![ip("192.168.0.2"), ip("2001:db8::1")],
    }
}

/// Service `web`, ClusterIP 172.30.1.1, port 80 of TCP.
pub(crate) fn service() -> Service {
    Service {
        name: object("web"),
        cluster_ips: vec![ip("172.30.1.1")],
        external_ips: vec![],
        load_balancer_ips: vec![],
        source_ranges: vec![],
        ports: vec![named_port("http", Protocol::Tcp, 80, 0)],
        external_local: false,
        internal_local: false,
        affinity_seconds: None,
        health_check_port: None,
    }
}

pub(crate) fn named_port(name: &str, protocol: Protocol, port: u16, node_port: u16) -> ServicePort {
    ServicePort {
        name: name.into(),
        protocol,
        port,
        node_port,
    }
}

pub(crate) fn cidr(text: &str) -> Cidr {
    let (address, length) = text.split_once('/').unwrap();
    Cidr {
        address: ip(address),
        length: length.parse().unwrap(),
    }
}

/// A slice of `web` with port `http` 8080; the family is its first endpoint's.
pub(crate) fn slice(name: &str, endpoints: Vec<SliceEndpoint>) -> Slice {
    let family = endpoints
        .first()
        .map_or(Family::V4, |endpoint| Family::of(endpoint.address));
    Slice {
        name: object(name),
        service: "web".into(),
        family,
        ports: vec![SlicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints,
        trigger_time: None,
    }
}

/// A ready endpoint of another node.
pub(crate) fn remote(address: &str) -> SliceEndpoint {
    SliceEndpoint {
        address: ip(address),
        ready: true,
        serving: true,
        terminating: false,
        node: Some("n2".into()),
        hints: None,
    }
}

/// A ready endpoint of this node.
pub(crate) fn local(address: &str) -> SliceEndpoint {
    SliceEndpoint {
        node: Some(NODE.into()),
        ..remote(address)
    }
}

/// `ts` of spec §5.8: terminating, serving.
pub(crate) fn ts(endpoint: SliceEndpoint) -> SliceEndpoint {
    SliceEndpoint {
        ready: false,
        serving: true,
        terminating: true,
        ..endpoint
    }
}

/// `tn` of spec §5.8: terminating, not serving.
pub(crate) fn tn(endpoint: SliceEndpoint) -> SliceEndpoint {
    SliceEndpoint {
        ready: false,
        serving: false,
        terminating: true,
        ..endpoint
    }
}

pub(crate) fn hinted(endpoint: SliceEndpoint, zones: &[&str], nodes: &[&str]) -> SliceEndpoint {
    let names = |list: &[&str]| list.iter().map(|&name| name.into()).collect();
    let hints = Hints {
        zones: names(zones),
        nodes: names(nodes),
    };
    SliceEndpoint {
        hints: Some(Box::new(hints)),
        ..endpoint
    }
}
