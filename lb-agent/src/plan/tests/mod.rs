//! The ledger against tables of our own make, which do what the kernel's do.

mod adoption;
mod cases;
mod expected;
mod failures;
mod fake;
mod large;
mod node_addresses;
mod random;
mod room;
mod scenario;
mod tombstones;

use std::net::IpAddr;

use super::*;
use crate::model::{self, FrontendKind, ServicePort};
use crate::snapshot::{Family, ObjectName, Protocol};
use fake::Fake;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn object(name: &str) -> ObjectName {
    ObjectName {
        namespace: "ns".into(),
        name: name.into(),
    }
}

fn frontend(address: &str, port: u16, kind: FrontendKind) -> model::Frontend {
    model::Frontend {
        address: ip(address),
        port,
        kind,
        local_policy: false,
        source_ranges: false,
    }
}

fn endpoint(address: &str) -> model::Endpoint {
    model::Endpoint {
        address: ip(address),
        port: 8080,
        local: false,
        host: false,
        serving: true,
        cluster: true,
        in_local_set: false,
    }
}

/// In the slices, but neither serving nor selected.
fn failing(address: &str) -> model::Endpoint {
    model::Endpoint {
        serving: false,
        cluster: false,
        ..endpoint(address)
    }
}

/// Serving, in no set.
fn unselected(address: &str) -> model::Endpoint {
    model::Endpoint {
        cluster: false,
        ..endpoint(address)
    }
}

/// An IPv4 TCP service port with one ClusterIP frontend on port 80.
fn port(service: &str, cluster_ip: &str, endpoints: Vec<model::Endpoint>) -> ServicePort {
    ServicePort {
        id: ServicePortId {
            service: object(service),
            port: "http".into(),
            protocol: Protocol::Tcp,
            family: Family::of(ip(cluster_ip)),
        },
        frontends: vec![frontend(cluster_ip, 80, FrontendKind::ClusterIp)],
        has_any: endpoints.iter().any(|e| e.cluster || e.in_local_set),
        endpoints,
        affinity_seconds: 0,
        source_ranges: vec![],
        ranges_admit_node: false,
    }
}

fn udp(mut port: ServicePort) -> ServicePort {
    port.id.protocol = Protocol::Udp;
    port
}

/// A ledger and tables that go together.
#[derive(Default)]
struct Bench {
    ledger: Ledger,
    fake: Fake,
}

impl Bench {
    /// Applies, executes, releases, and hands back the plan.
    fn apply(&mut self, service: &str, desired: Vec<ServicePort>) -> Plan {
        let plan = self.ledger.apply(&object(service), desired);
        self.run(plan)
    }

    fn run(&mut self, plan: Plan) -> Plan {
        plan.writes
            .iter()
            .for_each(|write| self.fake.execute(write));
        self.fake.poison(&plan.retire);
        self.ledger.release(plan.retire.clone());
        plan
    }
}
