//! Which writes bring the kernel's tables to what the model says.
//!
//! Pure: a [`Ledger`] mirrors what the kernel holds, a change of one Service becomes the shortest ordered
//! list of [`Write`]s. No I/O, no clock, no aya.
//!
//! # Order
//! Spec J9 and one-write publishing fix the order of a plan's writes:
//!
//! 1. names, states of new endpoint ids, the *new* block, tombstones lifted, source ranges added: nothing
//!    reaches these yet, or they only permit;
//! 2. one write per frontend: each leads to the old block before it and to the new one after it. Those that are there
//!    already come first: they can be written in a full table, too;
//! 3. uses of addresses gained: an address starts to be ours when all its ports are there, so that no client
//!    meets a Service of which only some ports exist;
//! 4. frontends that go, then states of endpoints that stopped serving, tombstones, source ranges, addresses and
//!    names that go.
//!
//! After any prefix of a plan every frontend leads to exactly its old or its new endpoints. Every write is
//! absolute: doing it twice is doing it once, and removing what is absent must count as done.
//!
//! # What the caller owes
//! * Execute the writes in order. Then, **after a grace period** that every running program has outlived, hand
//!   [`Plan::retire`] to [`Ledger::release`]; only then are its blocks and ids used again.
//! * If a write fails (table full, out of memory), stop, and hand that write, the rest and `retire` to
//!   [`Ledger::failed`]. The tables stay consistent, as after a crash at that point. The ledger then takes
//!   what the Service has in the kernel for unknown: the next plan for it (apply it again when there is room)
//!   rewrites all of it, but for blocks that were written, and carries the outstanding removals. A block that was not
//!   written is free at once. Where plans were carried out together, hand it the
//!   `retire` of the others too: a frontend that was to go over to the failed Service may lead there still. And
//!   stop plans that lead clients to a service port of the failed one.
//!   If it failed for want of room, use [`Ledger::no_room`] instead, and do what it says: others may need the room that
//!   it took.
//! * Call [`Ledger::tick`] about once a minute. Times come from there alone.
//!
//! # What can be read back
//! A frontend names the first record of its block and how many records it uses. Behind those may follow
//! records of endpoints that serve but are in no set any more (UDP flows and affinity may still name their
//! ids), then a terminator with id [`NO_ID`]. That is how an agent that starts finds every id again, see
//! [`KernelState`].

mod addresses;
mod adopt;
mod apply;
mod blocks;
mod claims;
mod conflicts;
mod draft;
mod ids;
mod ledger;
mod port;
mod read;
mod record;
mod room;
mod settle;
#[cfg(test)]
mod tests;
mod udp;

use lb_ebpf::abi::address::Address6;
use std::fmt;
use std::net::IpAddr;
use std::ops::Range;

use lb_ebpf::abi::endpoint::{Endpoint, EndpointState};
use lb_ebpf::abi::family::{V4, V6};
use lb_ebpf::abi::frontend::{Frontend, FrontendKey};
use lb_ebpf::abi::name::ServiceName;
use lb_ebpf::abi::socket::TombstoneKey;

pub use addresses::NodeAddresses;
pub use adopt::KernelState;
pub use blocks::Block;
pub use conflicts::Conflict;
pub use ledger::{Ledger, Timing};
pub use room::TakenBack;

use crate::model::ServicePortId;

/// No endpoint id: the terminator of a block.
pub const NO_ID: u32 = u32::MAX;
/// [`Frontend::block`] of a frontend without endpoint records.
pub const NO_BLOCK: u32 = u32::MAX;

/// One write to the tables.
#[derive(Clone, PartialEq, Debug)]
pub enum Write {
    /// Records `first ..` of the IPv4 endpoint table. They may lie in several segments, which may not exist yet.
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
    /// A source range of a service port: allowed, or gone. `length` is that of the 16-byte address.
    SourceRange {
        service: u32,
        address: Address6,
        length: u8,
        allowed: bool,
    },
    /// A UDP endpoint vanished / is in use again.
    Tombstone {
        key: TombstoneKey,
        present: bool,
    },
}

/// What to write for one change, and what follows from it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan {
    /// In this order.
    pub writes: Vec<Write>,
    /// Those of them that put frontends and addresses under keys that held nothing.
    fresh: Range<usize>,
    /// For [`Ledger::release`], after the writes and a grace period.
    pub retire: Retired,
    /// What could not be planned, for the log and an Event on the Service.
    pub problems: Vec<Problem>,
}

impl Plan {
    /// Nothing to do and nothing to say.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.retire.is_empty() && self.problems.is_empty()
    }
}

/// Blocks and ids that a running program may still hold.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Retired {
    blocks4: Vec<Block>,
    blocks6: Vec<Block>,
    endpoints: Vec<u32>,
    services: Vec<u32>,
}

impl Retired {
    /// Nothing in it: no grace period is needed.
    pub fn is_empty(&self) -> bool {
        let Self {
            blocks4,
            blocks6,
            endpoints,
            services,
        } = self;
        blocks4.is_empty() && blocks6.is_empty() && endpoints.is_empty() && services.is_empty()
    }

    /// Takes in another plan's, so that one grace period serves many plans.
    pub fn append(&mut self, mut other: Retired) {
        self.blocks4.append(&mut other.blocks4);
        self.blocks6.append(&mut other.blocks6);
        self.endpoints.append(&mut other.endpoints);
        self.services.append(&mut other.services);
    }
}

/// Why part of a Service is not in the tables as its objects say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Problem {
    /// No room in the tables of endpoints. It may pass: apply the Service again after a while.
    EndpointTableFull { service: ServicePortId },
}

impl Problem {
    /// The service port that has the problem.
    pub fn service(&self) -> &ServicePortId {
        match self {
            Problem::EndpointTableFull { service } => service,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::EndpointTableFull { service } => write!(
                f,
                "service port {} stays as it was: the endpoint tables are full; remove Services or endpoints",
                Shown(service)
            ),
        }
    }
}

impl std::error::Error for Problem {}

/// `namespace/name:port/protocol`.
struct Shown<'a>(&'a ServicePortId);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.0;
        write!(f, "{}/{}", id.service.namespace, id.service.name)?;
        if !id.port.is_empty() {
            write!(f, ":{}", id.port)?;
        }
        write!(f, " ({:?}, {:?})", id.protocol, id.family)
    }
}
