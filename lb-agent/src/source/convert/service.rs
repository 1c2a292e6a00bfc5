//! Services (spec §1.A).

use std::collections::HashSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use super::super::address::parse_family;
use super::super::refused::{Fault, Finding};
use super::Reader;
use crate::snapshot::{Cidr, Event, Family, ObjectName, Protocol, Service, ServicePort};

/// The API server's default for session affinity (A24).
const AFFINITY_SECONDS: i32 = 10_800;
/// The most it accepts: a day.
const AFFINITY_SECONDS_MOST: i32 = 86_400;

impl Reader<'_> {
    pub(super) fn service(
        &mut self,
        name: ObjectName,
        object: &core::Service,
    ) -> Result<Option<Event>, Finding> {
        let Some(spec) = object.spec.as_ref().filter(|spec| is_ours(spec)) else {
            return Ok(None);
        };
        let cluster_ips = self.cluster_ips(spec);
        if cluster_ips.is_empty() {
            return Ok(None);
        }

        let external_ips = match &spec.external_ips {
            Some(addresses) if !self.options.ignore_external_ips => {
                self.addresses("spec.externalIPs", addresses.iter().map(String::as_str))
            }
            _ => Vec::new(),
        };
        let external_local = is_external_local(spec, !external_ips.is_empty());
        let ranges = spec
            .load_balancer_source_ranges
            .as_deref()
            .unwrap_or_default();
        let ranges = self.prefixes("spec.loadBalancerSourceRanges", ranges);
        Ok(Some(Event::Service(Box::new(Service {
            name,
            cluster_ips,
            external_ips,
            load_balancer_ips: self.load_balancer_ips(object),
            source_ranges: without_open_families(ranges),
            ports: self.service_ports(spec)?,
            external_local,
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            affinity_seconds: self.affinity(spec),
            health_check_port: self.health_check_port(spec, external_local),
        }))))
    }

    /// At most one address per family: that of the first entry of `ipFamilies` naming it (A6).
    fn cluster_ips(&mut self, spec: &core::ServiceSpec) -> Vec<IpAddr> {
        let families = spec.ip_families.as_deref().unwrap_or_default();
        let addresses = spec.cluster_ips.as_deref().unwrap_or_default();
        if families.is_empty() {
            return self.addresses("spec.clusterIP", spec.cluster_ip.as_deref().into_iter());
        }
        let mut found = Vec::with_capacity(families.len().min(2));
        for family in [Family::V4, Family::V6] {
            let index = families
                .iter()
                .position(|text| parse_family(text) == Some(family));
            let Some(text) = index
                .and_then(|index| addresses.get(index))
                .filter(|text| !text.is_empty())
            else {
                continue;
            };
            found.extend(self.address("spec.clusterIPs", text, Some(family)));
        }
        found
    }

    /// Ingress addresses whose traffic ends here: no mode, or mode VIP (A14, A15); host names are ignored (A16).
    fn load_balancer_ips(&mut self, object: &core::Service) -> Vec<IpAddr> {
        let ingress = object
            .status
            .as_ref()
            .and_then(|status| status.load_balancer.as_ref());
        let ingress = ingress
            .and_then(|balancer| balancer.ingress.as_deref())
            .unwrap_or_default();
        let ours = ingress
            .iter()
            .filter(|ingress| matches!(ingress.ip_mode.as_deref(), None | Some("VIP")))
            .filter_map(|ingress| ingress.ip.as_deref().filter(|ip| !ip.is_empty()));
        self.addresses("status.loadBalancer.ingress", ours)
    }

    fn service_ports(&mut self, spec: &core::ServiceSpec) -> Result<Vec<ServicePort>, Finding> {
        let given = spec.ports.as_deref().unwrap_or_default();
        let mut ports = Vec::with_capacity(given.len());
        let mut identities = HashSet::with_capacity(given.len());
        for port in given {
            let name =
                self.port_name("spec.ports.name", port.name.as_deref().unwrap_or_default())?;
            let protocol = self.protocol("spec.ports.protocol", port.protocol.as_deref());
            let number = self.port("spec.ports.port", port.port);
            // A10: 0 is none.
            let node_port = match port.node_port {
                None | Some(0) => 0,
                Some(number) => self.port("spec.ports.nodePort", number).unwrap_or(0),
            };
            let (Some(protocol), Some(number)) = (protocol, number) else {
                continue;
            };
            // Two ports with one identity (A5) could only overwrite each other.
            if !identities.insert((name.clone(), protocol)) {
                self.find("spec.ports.name", &name, Fault::DuplicatePort);
                continue;
            }
            if protocol == Protocol::Sctp {
                // It stays a port all the same: its endpoints count for the health-check node port (H10).
                self.find("spec.ports.protocol", "SCTP", Fault::Untranslated);
            }
            ports.push(ServicePort {
                name,
                protocol,
                port: number,
                node_port,
            });
        }
        ports.shrink_to_fit();
        Ok(ports)
    }

    fn affinity(&mut self, spec: &core::ServiceSpec) -> Option<u32> {
        if spec.session_affinity.as_deref() != Some("ClientIP") {
            return None;
        }
        let client_ip = spec
            .session_affinity_config
            .as_ref()
            .and_then(|config| config.client_ip.as_ref());
        let given = client_ip
            .and_then(|client_ip| client_ip.timeout_seconds)
            .unwrap_or(AFFINITY_SECONDS);
        let used = if given < 1 {
            AFFINITY_SECONDS
        } else {
            given.min(AFFINITY_SECONDS_MOST)
        };
        if used != given {
            let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
            self.find(field, &given.to_string(), Fault::AffinityTimeout);
        }
        u32::try_from(used).ok()
    }

    fn health_check_port(&mut self, spec: &core::ServiceSpec, external_local: bool) -> Option<u16> {
        if spec.type_.as_deref() != Some("LoadBalancer") || !external_local {
            return None;
        }
        match spec.health_check_node_port.unwrap_or(0) {
            0 => {
                self.find("spec.healthCheckNodePort", "0", Fault::NoHealthCheckPort);
                None
            }
            number => self.port("spec.healthCheckNodePort", number),
        }
    }
}

/// A2, A4.
fn is_ours(spec: &core::ServiceSpec) -> bool {
    let headless = matches!(spec.cluster_ip.as_deref(), None | Some("" | "None"));
    !headless && spec.type_.as_deref() != Some("ExternalName")
}

/// A21: the policy counts only where there is an external destination by type, or by `externalIPs`.
fn is_external_local(spec: &core::ServiceSpec, has_external_ips: bool) -> bool {
    let applies = match spec.type_.as_deref() {
        Some("LoadBalancer" | "NodePort") => true,
        None | Some("" | "ClusterIP") => has_external_ips,
        Some(_) => false,
    };
    applies && spec.external_traffic_policy.as_deref() == Some("Local")
}

/// A19: a zero prefix makes the other ranges of its family moot.
fn without_open_families(mut ranges: Vec<Cidr>) -> Vec<Cidr> {
    for family in [Family::V4, Family::V6] {
        if ranges
            .iter()
            .any(|range| range.length == 0 && Family::of(range.address) == family)
        {
            ranges.retain(|range| Family::of(range.address) != family);
        }
    }
    ranges.shrink_to_fit();
    ranges
}
