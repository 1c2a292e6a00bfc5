//! The objects a node's agent sees: ordinary Kubernetes YAML in a directory.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use lb_agent::snapshot::Family;

use crate::address;

/// Something that can be written as YAML.
pub trait Object {
    /// The name of its file, without the ending.
    fn file(&self) -> String;
    /// Its text.
    fn yaml(&self) -> String;
}

/// A directory of manifests.
#[derive(Clone, Debug)]
pub struct Manifests {
    directory: PathBuf,
}

impl Manifests {
    /// The directory may be created later.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The directory itself.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes an object, new or changed.
    pub fn publish(&self, object: &impl Object) -> Result<()> {
        self.write(&object.file(), &object.yaml())
    }

    /// Removes an object's file.
    pub fn withdraw(&self, object: &impl Object) -> Result<()> {
        let path = self.path(&object.file());
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
    }

    /// Writes any text as a manifest. A rename makes it appear whole.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path(name);
        let draft = self.directory.join(format!(".{name}.draft"));
        fs::write(&draft, text).with_context(|| format!("writing {}", draft.display()))?;
        fs::rename(&draft, &path).with_context(|| format!("renaming to {}", path.display()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.yaml"))
    }
}

/// A Service in the namespace `default`: of type ClusterIP, until it gets more.
#[derive(Clone, Debug, Default)]
pub struct Service {
    name: String,
    addresses: Vec<IpAddr>,
    ports: Vec<(String, &'static str, u16)>,
    affinity_seconds: Option<u32>,
    internal_local: bool,
    external_local: bool,
    node_port: Option<u16>,
    external_ips: Vec<IpAddr>,
    /// With their `ipMode`.
    load_balancer: Vec<(IpAddr, &'static str)>,
    source_ranges: Vec<String>,
    health_check_port: Option<u16>,
}

impl Service {
    /// A dual-stack service at 10.96.0.`host` and its IPv6 twin.
    pub fn cluster_ip(name: &str, host: u8) -> Self {
        let addresses = address::FAMILIES
            .map(|family| address::service(family, host))
            .into();
        Self {
            name: name.into(),
            addresses,
            ..Self::default()
        }
    }

    /// Serves every port on this node port, too. TCP and UDP may share a number.
    pub fn node_port(mut self, port: u16) -> Self {
        self.node_port = Some(port);
        self
    }

    /// Adds an external address.
    pub fn external_ip(mut self, address: IpAddr) -> Self {
        self.external_ips.push(address);
        self
    }

    /// Adds an address that a load balancer has given.
    pub fn load_balancer(mut self, address: IpAddr) -> Self {
        self.load_balancer.push((address, "VIP"));
        self
    }

    /// Adds a load balancer's address whose traffic has to go there (`ipMode: Proxy`).
    pub fn load_balancer_proxy(mut self, address: IpAddr) -> Self {
        self.load_balancer.push((address, "Proxy"));
        self
    }

    /// Adds a range to `loadBalancerSourceRanges`.
    pub fn source_range(mut self, range: &str) -> Self {
        self.source_ranges.push(range.into());
        self
    }

    /// `externalTrafficPolicy: Local`.
    pub fn external_local(mut self) -> Self {
        self.external_local = true;
        self
    }

    /// `healthCheckNodePort`.
    pub fn health_check_port(mut self, port: u16) -> Self {
        self.health_check_port = Some(port);
        self
    }

    /// Adds a TCP port.
    pub fn tcp(mut self, name: &str, port: u16) -> Self {
        self.ports.push((name.into(), "TCP", port));
        self
    }

    /// Adds a UDP port.
    pub fn udp(mut self, name: &str, port: u16) -> Self {
        self.ports.push((name.into(), "UDP", port));
        self
    }

    /// Keeps a client on its endpoint until it was silent for so long.
    pub fn affinity(mut self, seconds: u32) -> Self {
        self.affinity_seconds = Some(seconds);
        self
    }

    /// `internalTrafficPolicy: Local`.
    pub fn internal_local(mut self) -> Self {
        self.internal_local = true;
        self
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The ClusterIP of a family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|&address| Family::of(address) == family)
    }
}

impl Object for Service {
    fn file(&self) -> String {
        format!("service-{}", self.name)
    }

    fn yaml(&self) -> String {
        let Self {
            name,
            addresses,
            ports,
            affinity_seconds,
            internal_local,
            external_local,
            node_port,
            external_ips,
            load_balancer,
            source_ranges,
            health_check_port,
        } = self;
        let quoted = |address: &IpAddr| format!("\"{address}\"");
        let first = addresses.first().map_or_else(|| "None".into(), quoted);
        let all = addresses.iter().map(quoted).collect::<Vec<_>>().join(", ");
        let families = addresses
            .iter()
            .map(|&a| family_name(Family::of(a)))
            .collect::<Vec<_>>()
            .join(", ");
        let kind = match (load_balancer.is_empty(), node_port) {
            (false, _) => "LoadBalancer",
            (true, Some(_)) => "NodePort",
            (true, None) => "ClusterIP",
        };
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: default\nspec:\n  type: {kind}\n  \
             clusterIP: {first}\n  clusterIPs: [{all}]\n  ipFamilies: [{families}]\n  ipFamilyPolicy: PreferDualStack\n"
        );
        text += if *internal_local {
            "  internalTrafficPolicy: Local\n"
        } else {
            "  internalTrafficPolicy: Cluster\n"
        };
        if kind != "ClusterIP" || !external_ips.is_empty() {
            text += if *external_local {
                "  externalTrafficPolicy: Local\n"
            } else {
                "  externalTrafficPolicy: Cluster\n"
            };
        }
        if !external_ips.is_empty() {
            let all = external_ips.iter().map(quoted).collect::<Vec<_>>();
            text += &format!("  externalIPs: [{}]\n", all.join(", "));
        }
        if !source_ranges.is_empty() {
            text += &format!("  loadBalancerSourceRanges: {source_ranges:?}\n");
        }
        if let Some(port) = health_check_port {
            text += &format!("  healthCheckNodePort: {port}\n");
        }
        if let Some(seconds) = affinity_seconds {
            // Writing to a String cannot fail; the same holds below.
            let _ = write!(
                text,
                "  sessionAffinity: ClientIP\n  sessionAffinityConfig:\n    clientIP:\n      timeoutSeconds: {seconds}\n"
            );
        }
        text += "  ports:\n";
        for (name, protocol, port) in ports {
            let _ = write!(
                text,
                "    - name: {name}\n      protocol: {protocol}\n      port: {port}\n      targetPort: {name}\n"
            );
            if let Some(port) = node_port {
                let _ = writeln!(text, "      nodePort: {port}");
            }
        }
        if !load_balancer.is_empty() {
            text += "status:\n  loadBalancer:\n    ingress:\n";
        }
        for (address, mode) in load_balancer {
            let _ = writeln!(text, "    - {{ip: \"{address}\", ipMode: {mode}}}");
        }
        text
    }
}

/// The ranges that service addresses come from.
#[derive(Clone, Debug)]
pub struct ServiceCidr;

impl Object for ServiceCidr {
    fn file(&self) -> String {
        "service-cidr".into()
    }

    fn yaml(&self) -> String {
        let [v4, v6] = address::FAMILIES.map(address::service_range);
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata:\n  name: kubernetes\nspec:\n  \
             cidrs: [\"{v4}\", \"{v6}\"]\n"
        )
    }
}

/// An EndpointSlice of a Service, in the namespace `default`.
#[derive(Clone, Debug)]
pub struct EndpointSlice {
    service: String,
    family: Family,
    /// Tells several slices of one Service and family apart.
    part: &'static str,
    ports: Vec<(String, &'static str, u16)>,
    endpoints: Vec<(IpAddr, u8, Condition)>,
}

/// What a slice says about an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    Ready,
    NotReady,
    /// Being deleted, still serving.
    Terminating,
    /// Being deleted, serving no more.
    Ended,
}

impl EndpointSlice {
    /// A slice without ports and endpoints.
    pub fn of(service: &str, family: Family) -> Self {
        Self {
            service: service.into(),
            family,
            part: "",
            ports: Vec::new(),
            endpoints: Vec::new(),
        }
    }

    /// Makes it one of several.
    pub fn part(mut self, part: &'static str) -> Self {
        self.part = part;
        self
    }

    /// Adds a TCP port under the name the Service gives it.
    pub fn tcp(mut self, name: &str, port: u16) -> Self {
        self.ports.push((name.into(), "TCP", port));
        self
    }

    /// Adds a UDP port under the name the Service gives it.
    pub fn udp(mut self, name: &str, port: u16) -> Self {
        self.ports.push((name.into(), "UDP", port));
        self
    }

    /// Adds an endpoint on a node.
    pub fn endpoint(mut self, address: IpAddr, node: u8, condition: Condition) -> Self {
        self.endpoints.push((address, node, condition));
        self
    }
}

impl Object for EndpointSlice {
    fn file(&self) -> String {
        format!(
            "slice-{}-{}{}",
            self.service,
            family_name(self.family).to_lowercase(),
            self.part
        )
    }

    fn yaml(&self) -> String {
        let Self {
            service,
            family,
            part,
            ports,
            endpoints,
        } = self;
        let family = family_name(*family);
        let mut text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-{}{part}\n  namespace: default\n  \
             labels:\n    kubernetes.io/service-name: {service}\naddressType: {family}\n",
            family.to_lowercase()
        );
        text += if ports.is_empty() {
            "ports: []\n"
        } else {
            "ports:\n"
        };
        for (name, protocol, port) in ports {
            let _ = write!(
                text,
                "  - name: {name}\n    protocol: {protocol}\n    port: {port}\n"
            );
        }
        text += if endpoints.is_empty() {
            "endpoints: []\n"
        } else {
            "endpoints:\n"
        };
        for (address, node, condition) in endpoints {
            let (ready, serving, terminating) = match condition {
                Condition::Ready => (true, true, false),
                Condition::NotReady => (false, false, false),
                Condition::Terminating => (false, true, true),
                Condition::Ended => (false, false, true),
            };
            let _ = write!(
                text,
                "  - addresses: [\"{address}\"]\n    nodeName: node{node}\n    conditions: {{ready: {ready}, \
                 serving: {serving}, terminating: {terminating}}}\n"
            );
        }
        text
    }
}

/// A Node.
#[derive(Clone, Debug)]
pub struct NodeObject {
    number: u8,
    external_ip: Option<IpAddr>,
}

impl NodeObject {
    /// The node of that number, with the addresses and pod ranges of the plan, in a zone of its own.
    pub fn of(number: u8) -> Self {
        Self {
            number,
            external_ip: None,
        }
    }

    /// An address that a cloud translates to one of the node's.
    pub fn external_ip(mut self, address: IpAddr) -> Self {
        self.external_ip = Some(address);
        self
    }
}

impl Object for NodeObject {
    fn file(&self) -> String {
        format!("node{}", self.number)
    }

    fn yaml(&self) -> String {
        let number = self.number;
        let [v4, v6] = address::FAMILIES;
        let external = self.external_ip.map_or(String::new(), |ip| {
            format!("    - {{type: ExternalIP, address: \"{ip}\"}}\n")
        });
        format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: node{number}\n  labels:\n    \
             kubernetes.io/hostname: node{number}\n    topology.kubernetes.io/zone: zone{number}\n\
             spec:\n  podCIDR: \"{range}\"\n  podCIDRs: [\"{range}\", \"{}\"]\n\
             status:\n  addresses:\n{external}    - {{type: InternalIP, address: \"{}\"}}\n    - {{type: InternalIP, address: \"{}\"}}\n",
            address::pod_range(v6, number),
            address::node(v4, number),
            address::node(v6, number),
            range = address::pod_range(v4, number),
        )
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}
