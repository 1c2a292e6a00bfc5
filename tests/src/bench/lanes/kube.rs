//! The API server that kube-proxies of a rig follow.
//!
//! Objects go straight into etcd: created one by one through the API server, thousands of Services take minutes, as
//! each costs it more than the one before. From there the API server tells its watchers of them like of any others.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::control_plane::ControlPlane;
use crate::control_plane::objects::{node, node_path};
use crate::link;
use crate::netns::Namespace;
use crate::process::{enter, output};
use crate::scope::Scope;
use crate::twins::relay;

/// Puts in one transaction; etcd takes 128.
const PUTS: usize = 100;

/// A running API server, in a namespace of its own.
pub(in crate::bench) struct Kube {
    plane: ControlPlane,
    scope: Scope,
}

impl Kube {
    /// Moves the calling thread into the API server's namespace, and needs it as long as this lives.
    pub(in crate::bench) fn start() -> Result<Self> {
        let scope = Scope::new()?;
        let name = scope.namespace("api");
        Namespace::create(std::slice::from_ref(&name))?;
        let namespace = Namespace::named(name);
        link::prepare(&namespace, false)?;
        enter(&namespace.open()?).context("entering the API server's namespace")?;
        let directory = scope.directory().join("plane");
        let plane = ControlPlane::start(Ipv4Addr::LOCALHOST.into(), &directory)?;
        Ok(Self { plane, scope })
    }

    /// Registers a cluster's nodes, and lets them reach the API server.
    pub(in crate::bench) fn register(&self, addresses: &[(String, IpAddr)]) -> Result<()> {
        let admin = self.plane.admin();
        for (name, address) in addresses {
            admin.create(&node(name))?;
            let status =
                json!({"status": {"addresses": [{"type": "InternalIP", "address": address}]}});
            admin.patch(&format!("{}/status", node_path(name)), &status)?;
        }
        Ok(())
    }

    pub(in crate::bench) fn connect(&self, cluster: &Cluster) -> Result<()> {
        relay::open(cluster.node(1).namespace(), self.plane.socket())
    }

    pub(in crate::bench) fn kubeconfig(&self) -> Result<PathBuf> {
        self.plane.kubeconfig("kube-proxy.kubeconfig", "admin")
    }

    /// Stores Services and slices.
    pub(in crate::bench) fn put(&self, objects: &[Value]) -> Result<()> {
        for chunk in objects.chunks(PUTS) {
            let puts: Vec<Value> = chunk
                .iter()
                .map(|object| {
                    let (key, stored) = stored(object);
                    json!({"requestPut": {
                        "key": base64(key.as_bytes()), "value": base64(stored.to_string().as_bytes()),
                    }})
                })
                .collect();
            let answer = self.post("/v3/kv/txn", &json!({"success": puts}))?;
            ensure!(
                answer.contains("\"succeeded\":true"),
                "etcd answered {answer}"
            );
        }
        Ok(())
    }

    fn post(&self, path: &str, content: &Value) -> Result<String> {
        let mut stream = TcpStream::connect(self.plane.etcd()).context("connect to etcd")?;
        let content = content.to_string();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{content}",
            content.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for Kube {
    fn drop(&mut self) {
        if let Err(error) = self.scope.remove() {
            eprintln!("removing the API server's namespace: {error:#}");
        }
    }
}

/// Where the API server looks for an object, and the object with what the API server gives it.
fn stored(object: &Value) -> (String, Value) {
    let mut object = object.clone();
    let name = object["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let place = match object["kind"].as_str() {
        Some("Service") => "services/specs",
        _ => "endpointslices",
    };
    let digits = name.bytes().fold(0u64, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(byte))
    });
    let mut uid = String::new();
    let kind = u16::from(place == "endpointslices");
    let _ = write!(
        uid,
        "{kind:08x}-0000-4000-8000-{:012x}",
        digits & 0xffff_ffff_ffff
    );
    object["metadata"]["uid"] = uid.into();
    object["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    (format!("/registry/{place}/default/{name}"), object)
}

/// RFC 4648 §4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let word = three
            .iter()
            .fold(0u32, |word, &byte| word << 8 | u32::from(byte))
            << (8 * (3 - three.len()));
        for digit in 0..4 {
            text.push(if digit <= three.len() {
                char::from(DIGITS[(word >> (18 - 6 * digit) & 63) as usize])
            } else {
                '='
            });
        }
    }
    text
}

/// ClusterIPs in the order in which the rules of a node's iptables come to them.
pub(super) fn places(cluster: &Cluster, save: &str) -> Result<Vec<Ipv4Addr>> {
    let rules = output(cluster.node(1).place()?.command(save)?.args(["-t", "nat"]))?;
    Ok(rules
        .lines()
        .filter_map(|rule| rule.strip_prefix("-A KUBE-SERVICES -d "))
        .filter_map(|rule| rule.split('/').next()?.parse().ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_as_in_rfc_4648() {
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ];
        for (bytes, text) in cases {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
