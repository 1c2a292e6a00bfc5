//! Who is who in the fixtures, in one family.

use std::net::{IpAddr, SocketAddr};

use lb_agent::snapshot::Family;

/// Addresses of one family. Ports are part of the names: a client's is its own, a service's the dialled one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Net {
    pub family: Family,
    /// A pod of this node that dials.
    pub client: SocketAddr,
    /// A Service's ClusterIP and port, and another's.
    pub service: SocketAddr,
    pub other_service: SocketAddr,
    /// An address of the service CIDR that no Service has.
    pub free: SocketAddr,
    /// A load balancer's VIP.
    pub vip: SocketAddr,
    /// Endpoints on other nodes.
    pub endpoint: SocketAddr,
    pub other_endpoint: SocketAddr,
    /// An endpoint on this node.
    pub local_endpoint: SocketAddr,
    /// A client that comes in by the uplink.
    pub outside: SocketAddr,
    /// This node's address.
    pub node: IpAddr,
    /// A NodePort of this node.
    pub node_port: SocketAddr,
    /// A router between here and the endpoints.
    pub router: IpAddr,
    /// Somebody who has nothing to do with any Service.
    pub stranger: SocketAddr,
}

impl Net {
    pub fn v4() -> Self {
        Self {
            family: Family::V4,
            client: at("10.1.0.5:40000"),
            service: at("10.96.0.10:80"),
            other_service: at("10.96.0.11:80"),
            free: at("10.96.200.200:80"),
            vip: at("203.0.113.9:443"),
            endpoint: at("10.2.0.7:8080"),
            other_endpoint: at("10.2.0.8:8081"),
            local_endpoint: at("10.1.0.8:8080"),
            outside: at("198.51.100.77:51000"),
            node: at("192.0.2.1:0").ip(),
            node_port: at("192.0.2.1:30080"),
            router: at("192.0.2.254:0").ip(),
            stranger: at("198.51.100.200:9000"),
        }
    }

    pub fn v6() -> Self {
        Self {
            family: Family::V6,
            client: at("[fd01::5]:40000"),
            service: at("[fd96::10]:80"),
            other_service: at("[fd96::11]:80"),
            free: at("[fd96::c8c8]:80"),
            vip: at("[2001:db8:9::9]:443"),
            endpoint: at("[fd02::7]:8080"),
            other_endpoint: at("[fd02::8]:8081"),
            local_endpoint: at("[fd01::8]:8080"),
            outside: at("[2001:db8:77::77]:51000"),
            node: at("[2001:db8::1]:0").ip(),
            node_port: at("[2001:db8::1]:30080"),
            router: at("[2001:db8::fe]:0").ip(),
            stranger: at("[2001:db8:200::200]:9000"),
        }
    }

    /// Whether this is IPv4.
    pub fn is_v4(&self) -> bool {
        self.family == Family::V4
    }
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}
