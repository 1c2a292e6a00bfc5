//! Tables for tests: `shop/web` with endpoints here and elsewhere and a NodePort of policy Local, `shop/empty`
//! without endpoints, and an IPv6 service whose name holds a terminal's escape sequence.

use std::net::{Ipv4Addr, Ipv6Addr};

use lb_ebpf::abi::endpoint::{self, Endpoint, EndpointState};
use lb_ebpf::abi::family::Family;
use lb_ebpf::abi::frontend::{self, Frontend, FrontendKey};
use lb_ebpf::abi::name::ServiceName;

use super::live::LiveTables;

pub(super) fn tables() -> LiveTables {
    let mut tables = LiveTables::default();
    tables.names.insert(1, name("shop", "web", "http"));
    tables.names.insert(2, name("shop", "empty", ""));
    tables
        .names
        .insert(3, name("kube-system", "dns\u{1b}[2J", "dns"));
    tables.frontends4 = vec![
        frontend(
            Ipv4Addr::new(10, 96, 0, 10).into(),
            80,
            lb_ebpf::abi::TCP,
            Frontend {
                service: 1,
                block: 4096,
                local_count: 2,
                cluster_first: 1,
                cluster_count: 2,
                affinity_seconds: 10_800,
                flags: frontend::CLUSTER_IP | frontend::HAS_ENDPOINTS,
                ..Frontend::default()
            },
        ),
        frontend(
            Ipv4Addr::UNSPECIFIED.into(),
            30_080,
            lb_ebpf::abi::TCP,
            Frontend {
                service: 1,
                block: 4100,
                local_count: 0,
                cluster_first: 0,
                cluster_count: 1,
                flags: frontend::NODE_PORT | frontend::HAS_ENDPOINTS | frontend::LOCAL_POLICY,
                ..Frontend::default()
            },
        ),
        frontend(
            Ipv4Addr::new(10, 96, 0, 11).into(),
            443,
            lb_ebpf::abi::TCP,
            Frontend {
                service: 2,
                flags: frontend::CLUSTER_IP,
                ..Frontend::default()
            },
        ),
    ];
    tables.frontends6 = vec![frontend(
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 10).into(),
        53,
        lb_ebpf::abi::UDP,
        Frontend {
            service: 3,
            block: 7,
            local_count: 0,
            cluster_first: 0,
            cluster_count: 1,
            flags: frontend::CLUSTER_IP | frontend::HAS_ENDPOINTS,
            ..Frontend::default()
        },
    )];
    for (index, last, flags, id, service) in [
        (4096, 1, endpoint::LOCAL, 11, 1),
        (4097, 2, endpoint::LOCAL | endpoint::HOST, 12, 1),
        (4098, 3, 0, 13, 1),
        (4099, 9, 0, 19, 2),
        (4100, 3, 0, 13, 1),
    ] {
        let address = Ipv4Addr::new(10, 244, 0, last).into();
        tables.endpoints4.insert(
            index,
            Endpoint {
                address,
                port: 8080,
                flags,
                id,
                service,
            },
        );
    }
    let address = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 3).into();
    tables.endpoints6.insert(
        7,
        Endpoint {
            address,
            port: 5353,
            flags: 0,
            id: 20,
            service: 3,
        },
    );
    for id in [11, 13, 20] {
        tables.states.insert(
            id,
            EndpointState {
                generation: 4,
                flags: endpoint::SERVING,
            },
        );
    }
    tables
}

fn frontend<F: Family>(
    address: F::Addr,
    port: u16,
    protocol: u8,
    value: Frontend,
) -> (FrontendKey<F>, Frontend) {
    let key = FrontendKey {
        address,
        port,
        protocol,
        zero: 0,
    };
    (
        key,
        Frontend {
            generation: 5,
            generation_end: 5,
            check: frontend::key_check(&key),
            ..value
        },
    )
}

fn name(namespace: &str, name: &str, port: &str) -> ServiceName {
    let field = |text: &str| {
        let mut field = [0; 64];
        field[..text.len()].copy_from_slice(text.as_bytes());
        field
    };
    ServiceName {
        namespace: field(namespace),
        name: field(name),
        port: field(port),
        family: 4,
        protocol: 6,
        zero: [0; 2],
    }
}
