//! A Service in a line: what the model would make of its objects.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_agent::model::{Endpoint, Frontend, FrontendKind, ServicePort, ServicePortId};
use lb_agent::snapshot::{Cidr, Family, ObjectName, Protocol};

/// One service port. It has any endpoint that serves in its cluster set, and local ones in its local set too.
#[derive(Clone, Debug)]
pub struct Described(ServicePort);

/// A TCP service port without frontends.
pub fn tcp_service(name: &str, family: Family) -> Described {
    described(name, Protocol::Tcp, family)
}

/// A UDP service port without frontends.
pub fn udp_service(name: &str, family: Family) -> Described {
    described(name, Protocol::Udp, family)
}

fn described(name: &str, protocol: Protocol, family: Family) -> Described {
    Described(ServicePort {
        id: ServicePortId {
            service: ObjectName {
                namespace: "shop".into(),
                name: name.into(),
            },
            port: "main".into(),
            protocol,
            family,
        },
        frontends: Vec::new(),
        endpoints: Vec::new(),
        has_any: false,
        affinity_seconds: 0,
        source_ranges: Vec::new(),
        ranges_admit_node: false,
    })
}

impl Described {
    /// Its ClusterIP and port.
    pub fn cluster_ip(self, at: SocketAddr) -> Self {
        self.frontend(at.ip(), at.port(), FrontendKind::ClusterIp)
    }

    pub fn load_balancer(self, at: SocketAddr) -> Self {
        self.frontend(at.ip(), at.port(), FrontendKind::LoadBalancer)
    }

    pub fn external_ip(self, at: SocketAddr) -> Self {
        self.frontend(at.ip(), at.port(), FrontendKind::ExternalIp)
    }

    pub fn node_port(self, port: u16) -> Self {
        let any: IpAddr = match self.0.id.family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        self.frontend(any, port, FrontendKind::NodePort)
    }

    /// `externalTrafficPolicy: Local`, for the external frontends it has so far.
    pub fn external_local(mut self) -> Self {
        for frontend in &mut self.0.frontends {
            frontend.local_policy |= frontend.kind != FrontendKind::ClusterIp;
        }
        self
    }

    /// `internalTrafficPolicy: Local`.
    pub fn internal_local(mut self) -> Self {
        for frontend in &mut self.0.frontends {
            frontend.local_policy |= frontend.kind == FrontendKind::ClusterIp;
        }
        self
    }

    /// An endpoint on another node.
    pub fn endpoint(self, at: SocketAddr) -> Self {
        self.with_endpoint(at, false, false)
    }

    /// An endpoint on this node.
    pub fn local_endpoint(self, at: SocketAddr) -> Self {
        self.with_endpoint(at, true, false)
    }

    /// An endpoint on this node that is on its way out: it serves where no other one of this node does.
    pub fn terminating_local_endpoint(self, at: SocketAddr) -> Self {
        let mut this = self.with_endpoint(at, true, false);
        for endpoint in &mut this.0.endpoints {
            endpoint.cluster &= (endpoint.address, endpoint.port) != (at.ip(), at.port());
        }
        this
    }

    /// An endpoint elsewhere that is not ready, of a Service with `publishNotReadyAddresses`.
    pub fn published_endpoint(self, at: SocketAddr) -> Self {
        let mut this = self.with_endpoint(at, false, false);
        for endpoint in &mut this.0.endpoints {
            endpoint.serving &= (endpoint.address, endpoint.port) != (at.ip(), at.port());
        }
        this
    }

    /// A server of this node itself.
    pub fn host_endpoint(self, at: SocketAddr) -> Self {
        self.with_endpoint(at, true, true)
    }

    /// `sessionAffinity: ClientIP`.
    pub fn affinity(mut self, seconds: u32) -> Self {
        self.0.affinity_seconds = seconds;
        self
    }

    /// `loadBalancerSourceRanges`, for the load-balancer frontends it has so far.
    pub fn source_range(mut self, address: IpAddr, length: u8) -> Self {
        self.0.source_ranges.push(Cidr { address, length });
        for frontend in &mut self.0.frontends {
            frontend.source_ranges |= frontend.kind == FrontendKind::LoadBalancer;
        }
        self
    }

    pub(super) fn into_parts(self) -> (ObjectName, ServicePort) {
        (self.0.id.service.clone(), self.0)
    }

    fn frontend(mut self, address: IpAddr, port: u16, kind: FrontendKind) -> Self {
        self.0.frontends.push(Frontend {
            address,
            port,
            kind,
            local_policy: false,
            source_ranges: false,
        });
        self.0.frontends.sort_unstable();
        self
    }

    fn with_endpoint(mut self, at: SocketAddr, local: bool, host: bool) -> Self {
        self.0.endpoints.push(Endpoint {
            address: at.ip(),
            port: at.port(),
            local,
            host,
            serving: true,
            cluster: true,
            in_local_set: local,
        });
        self.0
            .endpoints
            .sort_unstable_by_key(|endpoint| (endpoint.address, endpoint.port));
        self.0.has_any = true;
        self
    }
}
