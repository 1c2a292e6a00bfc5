//! YAML and JSON files of ordinary Kubernetes objects, with the defaults the API server would set.
//!
//! Only the kinds we use are read; other objects in the files are none of our business.

use std::fmt;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::address::parse_usable;
use crate::snapshot::Family;

/// An object of a file.
#[derive(Debug)]
pub(super) enum Manifest {
    Service(Box<Service>),
    Slice(Box<EndpointSlice>),
    Node(Box<Node>),
    ServiceCidr(Box<ServiceCIDR>),
}

/// Why a file cannot be read, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub line: u64,
    pub problem: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.problem)
    }
}

/// Reads all documents of a file. One that is broken breaks the file: half of it could mean anything.
pub(super) fn parse(text: &str) -> Result<Vec<Manifest>, Broken> {
    let mut manifests = Vec::new();
    for document in documents(text) {
        let value = document.read::<Value>()?;
        if !value.is_null() {
            document.objects(value, &mut manifests)?;
        }
    }
    Ok(manifests)
}

/// One YAML document and where it stands.
struct Document<'t> {
    text: &'t str,
    first_line: u64,
}

/// Splits at the lines that begin with `---`: wherever they stand, YAML ends a document there.
/// Doing it here keeps one document in memory at a time, and gives line numbers of the file.
fn documents(text: &str) -> impl Iterator<Item = Document<'_>> {
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut line = 1;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut end = 0;
        for (number, content) in rest.split_inclusive('\n').enumerate() {
            let is_marker = content
                .strip_prefix("---")
                .is_some_and(|after| after.trim_start() != after || after.is_empty());
            if number > 0 && is_marker {
                break;
            }
            end += content.len();
        }
        let (text, after) = rest.split_at(end);
        let document = Document {
            text,
            first_line: line,
        };
        line += text.matches('\n').count() as u64;
        rest = after;
        Some(document)
    })
}

impl Document<'_> {
    fn read<T: DeserializeOwned>(&self) -> Result<T, Broken> {
        // YAML 1.2: a port named `no` is no boolean. The limits on anchors and nesting stay: they are what stops a small file from growing huge.
        let budget = serde_saphyr::budget! { max_nodes: 10_000_000, max_events: 40_000_000 };
        let aliases = serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 };
        let options = serde_saphyr::options! { budget: budget, alias_limits: aliases, strict_booleans: true, with_snippet: false };
        serde_saphyr::from_str_with_options(self.text, options).map_err(|error| {
            let line = error
                .location()
                .map_or(1, |location| location.line().max(1));
            self.broken(line, error.without_snippet().to_string())
        })
    }

    fn broken(&self, line: u64, problem: String) -> Broken {
        Broken {
            line: self.first_line + line - 1,
            problem,
        }
    }

    /// A problem of the whole object, said of the line it begins at.
    fn broken_object(&self, problem: impl Into<String>) -> Broken {
        let is_content = |line: &str| {
            !line.trim().is_empty() && !line.starts_with('#') && !line.starts_with("---")
        };
        let line = self.text.lines().position(is_content).unwrap_or(0);
        self.broken(line as u64 + 1, problem.into())
    }

    fn objects(&self, value: Value, into: &mut Vec<Manifest>) -> Result<(), Broken> {
        let field = |name: &str| {
            value
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let (api_version, kind) = (field("apiVersion"), field("kind"));
        match (api_version.as_str(), kind.as_str()) {
            ("v1", "Service") => into.push(Manifest::Service(self.object(value, default_service)?)),
            ("v1", "Node") => into.push(Manifest::Node(self.object(value, |_| {})?)),
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                into.push(Manifest::Slice(self.object(value, default_slice)?))
            }
            ("networking.k8s.io/v1", "ServiceCIDR") => {
                into.push(Manifest::ServiceCidr(self.object(value, |_| {})?))
            }
            (_, "") => {
                return Err(self.broken_object("the object has no kind: add apiVersion and kind"));
            }
            ("", _) => {
                return Err(self.broken_object(format!("the {kind} has no apiVersion: add it")));
            }
            (_, "EndpointSlice") => {
                return Err(self.broken_object("set apiVersion to discovery.k8s.io/v1"));
            }
            (_, list) if list.ends_with("List") => self.list(value, &api_version, &kind, into)?,
            _ => {}
        }
        Ok(())
    }

    /// Items of a typed list may leave out what its name says.
    fn list(
        &self,
        mut value: Value,
        version: &str,
        kind: &str,
        into: &mut Vec<Manifest>,
    ) -> Result<(), Broken> {
        let Some(Value::Array(items)) = value.get_mut("items").map(Value::take) else {
            return Ok(());
        };
        let item_kind = kind.trim_end_matches("List");
        for mut item in items {
            if let Value::Object(fields) = &mut item
                && !item_kind.is_empty()
            {
                fields.entry("kind").or_insert_with(|| item_kind.into());
                fields.entry("apiVersion").or_insert_with(|| version.into());
            }
            self.objects(item, into)?;
        }
        Ok(())
    }

    fn object<T: DeserializeOwned>(
        &self,
        value: Value,
        default: fn(&mut T),
    ) -> Result<Box<T>, Broken> {
        let name = value
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let kind = value
            .get("kind")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let mut object = serde_json::from_value(value).map_err(|error| {
            // Values know no lines: read it once more, for the place alone.
            match self.read::<T>() {
                Err(broken) => Broken {
                    problem: format!("{kind} {name}: {}", broken.problem),
                    ..broken
                },
                Ok(_) => self.broken_object(format!("{kind} {name}: {error}")),
            }
        })?;
        default(&mut object);
        Ok(Box::new(object))
    }
}

fn default_service(service: &mut Service) {
    service
        .metadata
        .namespace
        .get_or_insert_with(|| "default".into());
    let Some(spec) = &mut service.spec else {
        return;
    };
    if spec.cluster_ip.as_deref().is_none_or(str::is_empty) {
        spec.cluster_ip = spec
            .cluster_ips
            .as_ref()
            .and_then(|addresses| addresses.first().cloned());
    }
    let Some(cluster_ip) = spec
        .cluster_ip
        .as_deref()
        .filter(|address| !address.is_empty() && *address != "None")
    else {
        return;
    };
    let addresses = spec.cluster_ips.get_or_insert_default();
    if addresses.is_empty() {
        addresses.push(cluster_ip.into());
    }
    if spec.ip_families.as_ref().is_none_or(Vec::is_empty) {
        // An address that is none gets a family all the same, so that it is told about.
        let families =
            addresses
                .iter()
                .map(|address| match parse_usable(address).map(Family::of) {
                    Ok(Family::V6) => "IPv6",
                    Err(_) if address.contains(':') => "IPv6",
                    Ok(Family::V4) | Err(_) => "IPv4",
                });
        spec.ip_families = Some(families.map(String::from).collect());
    }
}

fn default_slice(slice: &mut EndpointSlice) {
    slice
        .metadata
        .namespace
        .get_or_insert_with(|| "default".into());
    for port in slice.ports.iter_mut().flatten() {
        port.name.get_or_insert_default();
    }
}

#[cfg(test)]
mod tests;
