//! What the API server holds for one comparison: Services with their slices, and the zones of the nodes.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use lb_agent::snapshot::Family;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The namespace of everything in a state.
pub const NAMESPACE: &str = "oracle";

/// All objects of one comparison.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct State {
    /// What the state shows, or how it came to be.
    pub note: String,
    /// Zone labels of the nodes, node1 first.
    pub zones: Vec<Option<String>>,
    pub cases: Vec<Case>,
}

/// One Service with the slices that name it: one case.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Case {
    /// The Service; its status goes to the API server separately.
    pub service: Value,
    pub slices: Vec<Value>,
}

/// A port of a Service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Port {
    pub number: u16,
    pub node_port: u16,
    pub udp: bool,
}

impl State {
    /// A named state of the fixtures.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("understand {}", path.display()))
    }

    /// Writes it so that a person can read it.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }
}

impl Case {
    /// The Service's name.
    pub fn name(&self) -> &str {
        self.service["metadata"]["name"].as_str().unwrap_or("?")
    }

    /// The Service's ports in TCP and UDP.
    pub fn ports(&self) -> Vec<Port> {
        let number = |value: &Value| {
            value
                .as_u64()
                .and_then(|number| u16::try_from(number).ok())
                .unwrap_or(0)
        };
        list(&self.service["spec"]["ports"])
            .map(|port| Port {
                number: number(&port["port"]),
                node_port: number(&port["nodePort"]),
                udp: port["protocol"] == "UDP",
            })
            .collect()
    }

    /// ClusterIPs that are addresses.
    pub fn cluster_ips(&self) -> Vec<IpAddr> {
        addresses(list(&self.service["spec"]["clusterIPs"]))
    }

    /// External addresses of the spec.
    pub fn external_ips(&self) -> Vec<IpAddr> {
        addresses(list(&self.service["spec"]["externalIPs"]))
    }

    /// Load-balancer addresses of the status, whatever their mode.
    pub fn vips(&self) -> Vec<IpAddr> {
        addresses(
            list(&self.service["status"]["loadBalancer"]["ingress"]).map(|entry| &entry["ip"]),
        )
    }

    /// Whether clients come back to the endpoint they had.
    pub fn has_affinity(&self) -> bool {
        self.service["spec"]["sessionAffinity"] == "ClientIP"
    }

    /// Whether a pod of `node` is an endpoint that its slice puts on no node, or on another.
    pub fn is_unnamed(&self, pod: IpAddr, node: u8) -> bool {
        let (pod, node) = (pod.to_string(), format!("node{node}"));
        self.slices
            .iter()
            .flat_map(|slice| list(&slice["endpoints"]))
            .any(|endpoint| endpoint["addresses"][0] == *pod && endpoint["nodeName"] != *node)
    }

    /// How many different endpoints there are in a family, usable or not.
    pub fn endpoints(&self, family: Family) -> usize {
        let kind = match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        let mut found: Vec<&str> = self
            .slices
            .iter()
            .filter(|slice| slice["addressType"] == kind)
            .flat_map(|slice| list(&slice["endpoints"]))
            .filter_map(|endpoint| endpoint["addresses"][0].as_str())
            .collect();
        found.sort_unstable();
        found.dedup();
        // The same pod may be there under several ports.
        let ports: usize = self.slices.len().max(1);
        found.len() * ports.min(2)
    }
}

/// The elements of a list, or nothing.
pub fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Addresses as the proxies read them: octets with leading zeros are decimal (spec A25).
fn addresses<'a>(values: impl Iterator<Item = &'a Value>) -> Vec<IpAddr> {
    values
        .filter_map(|value| lenient(value.as_str()?))
        .collect()
}

fn lenient(text: &str) -> Option<IpAddr> {
    let plain: Vec<String> = text
        .split('.')
        .map(|octet| octet.parse::<u8>().map(|number| number.to_string()))
        .collect::<Result<_, _>>()
        .unwrap_or_else(|_| vec![text.to_owned()]);
    plain.join(".").parse().ok()
}
