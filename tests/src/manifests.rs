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

/// A Service of type ClusterIP, in the namespace `default`.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    addresses: Vec<IpAddr>,
    ports: Vec<(String, &'static str, u16)>,
    affinity_seconds: Option<u32>,
    internal_local: bool,
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
            ports: Vec::new(),
            affinity_seconds: None,
            internal_local: false,
        }
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
        } = self;
        let quoted = |address: &IpAddr| format!("\"{address}\"");
        let first = addresses.first().map_or_else(|| "None".into(), quoted);
        let all = addresses.iter().map(quoted).collect::<Vec<_>>().join(", ");
        let families = addresses
            .iter()
            .map(|&a| family_name(Family::of(a)))
            .collect::<Vec<_>>()
            .join(", ");
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: default\nspec:\n  type: ClusterIP\n  \
             clusterIP: {first}\n  clusterIPs: [{all}]\n  ipFamilies: [{families}]\n  ipFamilyPolicy: PreferDualStack\n"
        );
        text += if *internal_local {
            "  internalTrafficPolicy: Local\n"
        } else {
            "  internalTrafficPolicy: Cluster\n"
        };
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
        }
        text
    }
}

/// An EndpointSlice of a Service, in the namespace `default`.
#[derive(Clone, Debug)]
pub struct EndpointSlice {
    service: String,
    family: Family,
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
}

impl EndpointSlice {
    /// A slice without ports and endpoints.
    pub fn of(service: &str, family: Family) -> Self {
        Self {
            service: service.into(),
            family,
            ports: Vec::new(),
            endpoints: Vec::new(),
        }
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
            "slice-{}-{}",
            self.service,
            family_name(self.family).to_lowercase()
        )
    }

    fn yaml(&self) -> String {
        let Self {
            service,
            family,
            ports,
            endpoints,
        } = self;
        let family = family_name(*family);
        let mut text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-{}\n  namespace: default\n  \
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
}

impl NodeObject {
    /// The node of that number, with the addresses and pod ranges of the plan, in a zone of its own.
    pub fn of(number: u8) -> Self {
        Self { number }
    }
}

impl Object for NodeObject {
    fn file(&self) -> String {
        format!("node{}", self.number)
    }

    fn yaml(&self) -> String {
        let number = self.number;
        let [v4, v6] = address::FAMILIES;
        format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: node{number}\n  labels:\n    \
             kubernetes.io/hostname: node{number}\n    topology.kubernetes.io/zone: zone{number}\n\
             spec:\n  podCIDR: \"{range}\"\n  podCIDRs: [\"{range}\", \"{}\"]\n\
             status:\n  addresses:\n    - {{type: InternalIP, address: \"{}\"}}\n    - {{type: InternalIP, address: \"{}\"}}\n",
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
