//! Our own Node (spec §3.4).

use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;

use super::super::refused::Finding;
use super::{LABEL, Reader};
use crate::snapshot::{Event, Node};

/// Zone of a node (C8).
const ZONE: &str = "topology.kubernetes.io/zone";
/// Taint of a node that the cluster autoscaler is about to remove (KEP-3836).
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

impl Reader<'_> {
    pub(super) fn node(
        &mut self,
        name: Arc<str>,
        object: &core::Node,
    ) -> Result<Option<Event>, Finding> {
        let zone = object
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(ZONE));
        let zone = zone.filter(|zone| !zone.is_empty());
        let zone =
            zone.map(|zone| self.name("metadata.labels[topology.kubernetes.io/zone]", zone, LABEL));

        let listed = object
            .status
            .as_ref()
            .and_then(|status| status.addresses.as_deref())
            .unwrap_or_default();
        let of_type = |type_: &'static str| {
            listed
                .iter()
                .filter(move |address| address.type_ == type_)
                .map(|address| address.address.as_str())
        };
        let addresses = self.addresses(
            "status.addresses",
            of_type("InternalIP").chain(of_type("ExternalIP")),
        );

        let spec = object.spec.as_ref();
        let pod_cidrs = match spec.and_then(|spec| spec.pod_cidrs.as_deref()) {
            Some(prefixes) if !prefixes.is_empty() => self.prefixes("spec.podCIDRs", prefixes),
            _ => self.prefixes(
                "spec.podCIDR",
                spec.and_then(|spec| spec.pod_cidr.as_ref())
                    .map_or(&[], std::slice::from_ref),
            ),
        };
        let mut taints = spec
            .and_then(|spec| spec.taints.as_deref())
            .unwrap_or_default()
            .iter();
        let draining = object.metadata.deletion_timestamp.is_some()
            || taints.any(|taint| taint.key == TO_BE_DELETED);
        Ok(Some(Event::Node(Box::new(Node {
            name,
            zone: zone.transpose()?,
            addresses,
            pod_cidrs,
            draining,
        }))))
    }
}
