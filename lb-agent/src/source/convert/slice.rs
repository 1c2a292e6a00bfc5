//! EndpointSlices (spec §1.B).

use std::sync::Arc;

use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::jiff::Timestamp;

use super::super::address::parse_family;
use super::super::refused::Finding;
use super::{LABEL, Reader, SUBDOMAIN};
use crate::snapshot::{Event, Family, Hints, ObjectName, Slice, SliceEndpoint, SlicePort};

/// Names the Service a slice belongs to (B2).
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// When the change that the slice carries happened (B18).
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

impl Reader<'_> {
    pub(super) fn slice(
        &mut self,
        name: ObjectName,
        object: &discovery::EndpointSlice,
    ) -> Result<Option<Event>, Finding> {
        let labels = object.metadata.labels.as_ref();
        let service = labels
            .and_then(|labels| labels.get(SERVICE_NAME))
            .filter(|service| !service.is_empty());
        let (Some(service), Some(family)) = (service, parse_family(&object.address_type)) else {
            return Ok(None);
        };
        let service = self.name(
            "metadata.labels[kubernetes.io/service-name]",
            service,
            LABEL,
        )?;
        let ports = self.slice_ports(object.ports.as_deref().unwrap_or_default())?;
        let mut endpoints = Vec::with_capacity(object.endpoints.len());
        for endpoint in &object.endpoints {
            endpoints.extend(self.endpoint(endpoint, family)?);
        }
        endpoints.shrink_to_fit();
        Ok(Some(Event::Slice(Box::new(Slice {
            name,
            service,
            family,
            ports,
            endpoints,
            trigger_time: trigger_time(object),
        }))))
    }

    /// B6: without a name or a number a port is skipped.
    fn slice_ports(
        &mut self,
        given: &[discovery::EndpointPort],
    ) -> Result<Vec<SlicePort>, Finding> {
        let mut ports = Vec::with_capacity(given.len());
        for port in given {
            let (Some(name), Some(number)) = (&port.name, port.port.filter(|number| *number != 0))
            else {
                continue;
            };
            let name = self.port_name("ports.name", name)?;
            let protocol = self.protocol("ports.protocol", port.protocol.as_deref());
            if let (Some(port), Some(protocol)) = (self.port("ports.port", number), protocol) {
                ports.push(SlicePort {
                    name,
                    protocol,
                    port,
                });
            }
        }
        ports.shrink_to_fit();
        Ok(ports)
    }

    fn endpoint(
        &mut self,
        endpoint: &discovery::Endpoint,
        family: Family,
    ) -> Result<Option<SliceEndpoint>, Finding> {
        // B5: the other addresses are not used.
        let Some(address) = endpoint.addresses.first() else {
            return Ok(None);
        };
        let Some(address) = self.address("endpoints.addresses", address, Some(family)) else {
            return Ok(None);
        };
        let node = endpoint
            .node_name
            .as_deref()
            .filter(|name| !name.is_empty());
        let node = node
            .map(|name| self.name("endpoints.nodeName", name, SUBDOMAIN))
            .transpose()?;
        // B7.
        let conditions = endpoint.conditions.as_ref();
        Ok(Some(SliceEndpoint {
            address,
            ready: conditions
                .and_then(|conditions| conditions.ready)
                .unwrap_or(true),
            serving: conditions
                .and_then(|conditions| conditions.serving)
                .unwrap_or(true),
            terminating: conditions
                .and_then(|conditions| conditions.terminating)
                .unwrap_or(false),
            node,
            hints: self.hints(endpoint.hints.as_ref())?,
        }))
    }

    /// B10: sets of names.
    fn hints(
        &mut self,
        hints: Option<&discovery::EndpointHints>,
    ) -> Result<Option<Box<Hints>>, Finding> {
        let Some(hints) = hints else {
            return Ok(None);
        };
        let zones = hints
            .for_zones
            .iter()
            .flatten()
            .map(|zone| zone.name.as_str());
        let nodes = hints
            .for_nodes
            .iter()
            .flatten()
            .map(|node| node.name.as_str());
        let hints = Hints {
            zones: self.set("endpoints.hints.forZones", zones, LABEL)?,
            nodes: self.set("endpoints.hints.forNodes", nodes, SUBDOMAIN)?,
        };
        Ok((hints != Hints::default()).then(|| Box::new(hints)))
    }

    fn set<'t>(
        &mut self,
        field: &'static str,
        names: impl Iterator<Item = &'t str>,
        limit: usize,
    ) -> Result<Vec<Arc<str>>, Finding> {
        let mut set = names
            .map(|name| self.name(field, name, limit))
            .collect::<Result<Vec<_>, _>>()?;
        set.sort_unstable();
        set.dedup();
        set.shrink_to_fit();
        Ok(set)
    }
}

/// Nanoseconds since the Unix epoch; `None` if there is none or it is not readable.
fn trigger_time(object: &discovery::EndpointSlice) -> Option<i64> {
    let time: Timestamp = object
        .metadata
        .annotations
        .as_ref()?
        .get(TRIGGER_TIME)?
        .parse()
        .ok()?;
    i64::try_from(time.as_nanosecond()).ok()
}
