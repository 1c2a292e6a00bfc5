//! Which writes bring the kernel's tables to what the model says.
//!
//! Pure: a [`Ledger`] mirrors what the kernel holds, a change of one service port becomes the shortest
//! ordered list of [`Write`]s. No I/O, no clock, no aya.
//!
//! Order (spec J9, architecture: one-write publishing): names, endpoint states and a *new* block first,
//! then one write per frontend, then what nobody reaches any more. Blocks and ids that were in use are
//! [`Write::Retire`]d and may be reused only after a grace period.

use std::net::IpAddr;

use lb_ebpf::abi::endpoint::{Endpoint, EndpointState};
use lb_ebpf::abi::family::{V4, V6};
use lb_ebpf::abi::frontend::{Frontend, FrontendKey};
use lb_ebpf::abi::name::ServiceName;
use lb_ebpf::abi::socket::TombstoneKey;

/// One write to the tables.
#[derive(Clone, PartialEq, Debug)]
pub enum Write {
    /// Records `first ..` of the IPv4 endpoint table. Never crosses a segment. The segment may not exist yet.
    Endpoints4 {
        first: u32,
        records: Vec<Endpoint<V4>>,
    },
    /// Likewise, IPv6.
    Endpoints6 {
        first: u32,
        records: Vec<Endpoint<V6>>,
    },
    /// State of an endpoint id.
    EndpointState {
        id: u32,
        state: EndpointState,
    },
    /// Name of a service port id.
    Name {
        id: u32,
        name: Box<ServiceName>,
    },
    NameGone {
        id: u32,
    },
    Frontend4 {
        key: FrontendKey<V4>,
        frontend: Frontend,
    },
    Frontend6 {
        key: FrontendKey<V6>,
        frontend: Frontend,
    },
    Frontend4Gone {
        key: FrontendKey<V4>,
    },
    Frontend6Gone {
        key: FrontendKey<V6>,
    },
    /// Uses of an address; 0 removes it.
    Address {
        address: IpAddr,
        flags: u32,
    },
    /// A source range of a service port: allowed, or gone.
    SourceRange {
        service: u32,
        address: [u8; 16],
        length: u8,
        allowed: bool,
    },
    /// A UDP endpoint vanished / is in use again.
    Tombstone {
        key: TombstoneKey,
        present: bool,
    },
}
