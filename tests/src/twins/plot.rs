//! What a story is about: one dual-stack Service, TCP and UDP on port 80, and who serves it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_agent::snapshot::Family;
use serde_json::{Value, json};

use super::question::Aim;
use super::stage::TARGETS;
use super::state::{Case, NAMESPACE};
use crate::address::{self, FAMILIES};

/// The Service's port, in TCP and UDP.
pub const PORT: u16 = 80;

/// A Service and its endpoints at one moment of a story.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plot {
    /// What its addresses and NodePort are counted by; no two stories share it.
    pub number: u8,
    pub presence: Presence,
    pub kind: Kind,
    pub internal: Policy,
    pub external: Policy,
    /// The port that endpoints listen on, one of [`TARGETS`].
    pub target: u16,
    pub endpoints: Vec<End>,
}

/// Whether the proxies can see the Service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    There,
    /// With `service-proxy-name` (spec A1).
    Hidden,
    Deleted,
}

/// What the Service can be reached by, besides its ClusterIP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    ClusterIp,
    NodePort,
    /// With a NodePort and a VIP.
    LoadBalancer,
}

/// A traffic policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    Cluster,
    Local,
}

/// An endpoint: a pod, as its slice shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    pub node: u8,
    pub pod: u8,
    pub condition: Condition,
    /// The zone it is meant for (`hints.forZones`).
    pub hint: Option<&'static str>,
}

/// How an endpoint is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    Ready,
    Unready,
    /// It still serves.
    Terminating,
}

/// A ready endpoint.
pub const fn ready(node: u8, pod: u8) -> End {
    End {
        node,
        pod,
        condition: Condition::Ready,
        hint: None,
    }
}

impl End {
    /// The same in another condition.
    #[must_use]
    pub const fn but(mut self, condition: Condition) -> Self {
        self.condition = condition;
        self
    }

    /// The same, meant for a zone.
    #[must_use]
    pub const fn meant_for(mut self, zone: &'static str) -> Self {
        self.hint = Some(zone);
        self
    }
}

impl Plot {
    /// A ClusterIP Service with these endpoints.
    pub fn of(number: u8, kind: Kind, endpoints: &[End]) -> Self {
        Self {
            number,
            presence: Presence::There,
            kind,
            internal: Policy::Cluster,
            external: Policy::Cluster,
            target: TARGETS[0],
            endpoints: endpoints.into(),
        }
    }

    /// Where a client goes for it.
    pub fn socket(&self, aim: Aim, family: Family) -> SocketAddr {
        match aim {
            Aim::NodePort(node) => {
                SocketAddr::new(address::node(family, node), node_port(self.number))
            }
            Aim::Vip => SocketAddr::new(vip(family, self.number), PORT),
            _ => SocketAddr::new(cluster_ip(family, self.number), PORT),
        }
    }

    /// Whether clients can be served at such an address, if anybody serves.
    pub fn offers(&self, aim: Aim) -> bool {
        let there = self.presence == Presence::There;
        match aim {
            Aim::NodePort(_) => there && self.kind != Kind::ClusterIp,
            Aim::Vip => there && self.kind == Kind::LoadBalancer,
            _ => there,
        }
    }

    /// As the API server holds it; `None` without a Service.
    pub fn service(&self, name: &str) -> Option<Value> {
        let mut labels = json!({});
        match self.presence {
            Presence::There => {}
            Presence::Hidden => labels["service.kubernetes.io/service-proxy-name"] = json!("other"),
            Presence::Deleted => return None,
        }
        let node_port = (self.kind != Kind::ClusterIp).then(|| node_port(self.number));
        let ports = [("tcp", "TCP"), ("udp", "UDP")].map(|(name, protocol)| {
            let mut port = json!({"name": name, "protocol": protocol, "port": PORT});
            if let Some(node_port) = node_port {
                port["nodePort"] = json!(node_port);
            }
            port
        });
        let ips = FAMILIES.map(|family| cluster_ip(family, self.number).to_string());
        let mut service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
            "spec": {
                "type": match self.kind {
                    Kind::ClusterIp => "ClusterIP",
                    Kind::NodePort => "NodePort",
                    Kind::LoadBalancer => "LoadBalancer",
                },
                "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
                "clusterIP": ips[0], "clusterIPs": ips, "ports": ports,
                "internalTrafficPolicy": self.internal.name(),
            },
        });
        if self.kind != Kind::ClusterIp {
            service["spec"]["externalTrafficPolicy"] = json!(self.external.name());
        }
        if self.kind == Kind::LoadBalancer {
            let ingress =
                FAMILIES.map(|family| json!({"ip": vip(family, self.number).to_string()}));
            service["status"] = json!({"loadBalancer": {"ingress": ingress}});
        }
        Some(service)
    }

    /// The slices, one per family, of the Service of that name.
    pub fn slices(&self, name: &str) -> Vec<Value> {
        let slice = |(family, kind): (Family, &str)| {
            let endpoints: Vec<Value> =
                self.endpoints.iter().map(|end| end.value(family)).collect();
            let ports = [("tcp", "TCP"), ("udp", "UDP")].map(
                |(name, protocol)| json!({"name": name, "protocol": protocol, "port": self.target}),
            );
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": format!("{name}-{}", kind.to_lowercase()),
                    "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": name}},
                "addressType": kind, "ports": ports, "endpoints": endpoints,
            })
        };
        FAMILIES
            .into_iter()
            .zip(["IPv4", "IPv6"])
            .map(slice)
            .collect()
    }

    /// Service and slices as one case; without a Service one that nobody asks about.
    pub fn case(&self, name: &str) -> Case {
        let gone = json!({"metadata": {"name": name}, "spec": {}});
        Case {
            service: self.service(name).unwrap_or(gone),
            slices: self.slices(name),
        }
    }
}

impl Policy {
    fn name(self) -> &'static str {
        match self {
            Self::Cluster => "Cluster",
            Self::Local => "Local",
        }
    }
}

impl End {
    fn value(&self, family: Family) -> Value {
        let (ready, serving, terminating) = match self.condition {
            Condition::Ready => (true, true, false),
            Condition::Unready => (false, false, false),
            Condition::Terminating => (false, true, true),
        };
        let mut value = json!({
            "addresses": [address::pod(family, self.node, self.pod).to_string()],
            "nodeName": format!("node{}", self.node),
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        });
        if let Some(zone) = self.hint {
            value["hints"] = json!({"forZones": [{"name": zone}]});
        }
        value
    }
}

/// In a corner of the range that generated states leave free.
fn cluster_ip(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 250, number).into(),
        Family::V6 => Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0xfa00 | u16::from(number)).into(),
    }
}

fn vip(family: Family, number: u8) -> IpAddr {
    address::load_balancer(family, number)
}

/// From the first 86 NodePorts, of which the API server gives none away by itself (KEP-3668): health checks are given
/// ports of the same range.
fn node_port(number: u8) -> u16 {
    30_000 + u16::from(number)
}
