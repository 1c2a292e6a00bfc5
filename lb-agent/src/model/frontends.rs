//! What clients dial: the addresses of a Service in one family, and its source ranges.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Frontend, FrontendKind, Options};
use crate::snapshot::{Cidr, Family, Service, ServicePort};

/// The addresses of one Service in one family.
#[derive(Debug)]
pub(super) struct Addresses {
    family: Family,
    cluster_ip: IpAddr,
    /// With their kind, sorted, each address once.
    external: Vec<(IpAddr, FrontendKind)>,
}

impl Addresses {
    /// `None` if the Service has no ClusterIP of the family (A6).
    pub(super) fn of(service: &Service, family: Family, options: &Options) -> Option<Self> {
        // The unspecified address is where NodePorts are filed, so nothing else may use it.
        let usable =
            |address: &&IpAddr| Family::of(**address) == family && !address.is_unspecified();
        let cluster_ip = *service.cluster_ips.iter().find(usable)?;
        let external_ips = if options.external_ips {
            &service.external_ips[..]
        } else {
            &[]
        };
        // One address in both lists counts as a VIP: kube-proxy filters by source range whatever else the
        // address is.
        let vips = service
            .load_balancer_ips
            .iter()
            .filter(usable)
            .map(|a| (*a, FrontendKind::LoadBalancer));
        let external = external_ips
            .iter()
            .filter(usable)
            .map(|a| (*a, FrontendKind::ExternalIp));
        let mut all: Vec<(IpAddr, FrontendKind)> = vips
            .chain(external)
            .filter(|(address, _)| *address != cluster_ip)
            .collect();
        // A stable sort: of one address the VIP stays first. There may be as many as an object has room for.
        all.sort_by_key(|(address, _)| *address);
        all.dedup_by_key(|(address, _)| *address);
        Some(Self {
            family,
            cluster_ip,
            external: all,
        })
    }

    /// The frontends of one service port, sorted.
    pub(super) fn frontends(
        &self,
        service: &Service,
        port: &ServicePort,
        filtered: bool,
    ) -> Vec<Frontend> {
        let mut frontends = Vec::with_capacity(2 + self.external.len());
        frontends.push(Frontend {
            address: self.cluster_ip,
            port: port.port,
            kind: FrontendKind::ClusterIp,
            local_policy: service.internal_local,
            source_ranges: false,
        });
        if port.node_port != 0 {
            let unspecified: IpAddr = match self.family {
                Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
                Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
            };
            frontends.push(Frontend {
                address: unspecified,
                port: port.node_port,
                kind: FrontendKind::NodePort,
                local_policy: service.external_local,
                source_ranges: false,
            });
        }
        frontends.extend(self.external.iter().map(|(address, kind)| Frontend {
            address: *address,
            port: port.port,
            kind: *kind,
            local_policy: service.external_local,
            // H1: ranges filter VIPs alone.
            source_ranges: filtered && *kind == FrontendKind::LoadBalancer,
        }));
        frontends.sort_unstable();
        frontends
    }

    /// The ranges that filter in this family; none if one of them is the zero prefix (A19).
    pub(super) fn source_ranges(&self, service: &Service) -> Vec<Cidr> {
        let of_family = |range: &&Cidr| {
            Family::of(range.address) == self.family && range.length <= width(range.address)
        };
        let mut ranges: Vec<Cidr> = service
            .source_ranges
            .iter()
            .filter(of_family)
            .map(masked)
            .collect();
        if ranges.iter().any(|range| range.length == 0) {
            return Vec::new();
        }
        ranges.sort_unstable();
        ranges.dedup();
        ranges
    }
}

fn masked(range: &Cidr) -> Cidr {
    let length = u32::from(range.length);
    let address = match range.address {
        IpAddr::V4(a) => {
            let mask = u32::MAX
                .checked_shl(32u32.saturating_sub(length))
                .unwrap_or(0);
            Ipv4Addr::from_bits(a.to_bits() & mask).into()
        }
        IpAddr::V6(a) => {
            let mask = u128::MAX
                .checked_shl(128u32.saturating_sub(length))
                .unwrap_or(0);
            Ipv6Addr::from_bits(a.to_bits() & mask).into()
        }
    };
    Cidr {
        address,
        length: range.length,
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
