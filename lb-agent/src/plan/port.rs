//! One service port as the ledger holds it, and what a new list of endpoints changes in it.

use lb_ebpf::abi::address::Address6;
use std::cmp::Ordering;

use lb_ebpf::abi::endpoint::{HOST, IN_CLUSTER, IN_LOCAL, LOCAL, SERVING};
use lb_ebpf::abi::frontend::{Frontend, HAS_ENDPOINTS, LOCAL_POLICY, NODE_ALLOWED, SOURCE_RANGES};

use super::blocks::Block;
use super::claims::FrontendId;
use super::record::{self, Counts, wide};
use super::{NO_BLOCK, NO_ID};
use crate::model::{self, FrontendKind, ServicePort, ServicePortId};
use crate::snapshot::{Cidr, Protocol};

/// A service port in the tables.
#[derive(Debug)]
pub(super) struct HeldPort {
    pub(super) name: ServicePortId,
    /// Sorted by address and port.
    pub(super) endpoints: Vec<Held>,
    /// Those it wants, sorted; whether it has them is in the claims.
    pub(super) frontends: Vec<model::Frontend>,
    /// Sorted.
    pub(super) ranges: Vec<Range>,
    pub(super) block: Option<Block>,
    pub(super) counts: Counts,
    pub(super) affinity_seconds: u32,
    pub(super) has_any: bool,
    pub(super) ranges_admit_node: bool,
    /// The kernel may hold something else: rewrite all of it but the block.
    pub(super) doubtful: bool,
    /// The block is not there, or not as it should be: write another one.
    pub(super) needs_block: bool,
}

/// An endpoint that has an id, or had one (UDP), or of which we must know that it exists (UDP).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Held {
    pub(super) address: Address6,
    /// [`NO_ID`] for none. An endpoint gets one when it is first selected and keeps it while it serves.
    pub(super) id: u32,
    pub(super) port: u16,
    /// Record flags in the low byte, state flags in the high one, and [`USED`].
    pub(super) flags: u16,
}

/// The endpoint had an id once: somebody may be connected to it.
pub(super) const USED: u16 = 1 << 15;

/// A source range: 16-byte address and prefix length in it.
pub(super) type Range = (Address6, u8);

impl Held {
    fn of(endpoint: &model::Endpoint) -> Self {
        let bit = |on: bool, bit: u16| if on { bit } else { 0 };
        let state = bit(endpoint.cluster, IN_CLUSTER as u16)
            | bit(endpoint.in_local_set, IN_LOCAL as u16)
            | bit(endpoint.serving, SERVING as u16);
        // An own address is here whatever node its slice names: packets to it are delivered, not forwarded.
        let here = endpoint.local || endpoint.host;
        let flags = bit(here, LOCAL) | bit(endpoint.host, HOST) | state << 8;
        Self {
            address: wide(endpoint.address),
            id: NO_ID,
            port: endpoint.port,
            flags,
        }
    }

    /// Flags of its record in a block.
    pub(super) fn record_flags(&self) -> u16 {
        self.flags & 0xff
    }

    /// Flags of its id's state.
    pub(super) fn state_flags(&self) -> u32 {
        u32::from((self.flags & !USED) >> 8)
    }

    pub(super) fn in_cluster_set(&self) -> bool {
        self.state_flags() & IN_CLUSTER != 0
    }

    pub(super) fn in_local_set(&self) -> bool {
        self.state_flags() & IN_LOCAL != 0
    }

    pub(super) fn selected(&self) -> bool {
        self.in_cluster_set() || self.in_local_set()
    }

    fn serving(&self) -> bool {
        self.state_flags() & SERVING != 0
    }

    pub(super) fn key(&self) -> (Address6, u16) {
        (self.address, self.port)
    }
}

impl HeldPort {
    pub(super) fn new(name: ServicePortId) -> Self {
        Self {
            name,
            endpoints: Vec::new(),
            frontends: Vec::new(),
            ranges: Vec::new(),
            block: None,
            counts: Counts::default(),
            affinity_seconds: 0,
            has_any: false,
            ranges_admit_node: false,
            doubtful: false,
            needs_block: false,
        }
    }

    pub(super) fn udp(&self) -> bool {
        self.name.protocol == Protocol::Udp
    }

    pub(super) fn key(&self, frontend: &model::Frontend) -> FrontendId {
        FrontendId {
            address: frontend.address,
            port: frontend.port,
            protocol: record::number(self.name.protocol),
        }
    }

    /// The frontend it wants under `key`.
    pub(super) fn frontend(&self, key: FrontendId) -> Option<&model::Frontend> {
        let wanted = (key.address, key.port);
        self.frontends
            .binary_search_by_key(&wanted, |frontend| (frontend.address, frontend.port))
            .ok()
            .map(|at| &self.frontends[at])
    }

    /// Claims to one frontend are ranked by this: a ClusterIP first, then by name (spec D22).
    pub(super) fn rank(&self, key: FrontendId) -> (bool, &ServicePortId) {
        (
            self.frontend(key)
                .is_none_or(|frontend| frontend.kind != FrontendKind::ClusterIp),
            &self.name,
        )
    }

    /// The table record of `frontend`, generations left 0.
    pub(super) fn record(&self, service: u32, frontend: &model::Frontend) -> Frontend {
        let bit = |on: bool, bit: u32| if on { bit } else { 0 };
        Frontend {
            generation: 0,
            service,
            block: self.block.map_or(NO_BLOCK, |block| block.first),
            local_count: self.counts.local_count,
            cluster_first: self.counts.cluster_first,
            cluster_count: self.counts.cluster_count,
            affinity_seconds: self.affinity_seconds,
            flags: record::kind_bits(frontend.kind)
                | bit(frontend.local_policy, LOCAL_POLICY)
                | bit(self.has_any, HAS_ENDPOINTS)
                | bit(frontend.source_ranges, SOURCE_RANGES)
                | bit(
                    frontend.source_ranges && self.ranges_admit_node,
                    NODE_ALLOWED,
                ),
            check: record::check(self.key(frontend)),
            generation_end: 0,
        }
    }
}

/// The source ranges a service port needs, sorted: those that apply, and its VIPs where H3 admits them.
pub(super) fn ranges(want: &ServicePort) -> Vec<Range> {
    let filtered = want
        .frontends
        .iter()
        .filter(|frontend| frontend.source_ranges);
    if filtered.clone().next().is_none() {
        return Vec::new();
    }
    let length = |cidr: &Cidr| {
        if cidr.address.is_ipv4() {
            cidr.length.saturating_add(96)
        } else {
            cidr.length
        }
    };
    let mut ranges: Vec<Range> = want
        .source_ranges
        .iter()
        .map(|cidr| (wide(cidr.address), length(cidr)))
        .collect();
    if want.ranges_admit_node {
        ranges.extend(filtered.map(|frontend| (wide(frontend.address), 128)));
    }
    ranges.sort_unstable();
    ranges.dedup();
    ranges
}

/// What a new list of endpoints makes of the held one.
#[derive(Debug, Default)]
pub(super) struct Merge {
    pub(super) next: Vec<Held>,
    /// Indices in `next` that need an id.
    pub(super) fresh: Vec<usize>,
    /// Indices in `next` whose state changes.
    pub(super) restated: Vec<Restated>,
    /// Ids whose endpoint neither serves nor is selected any more.
    pub(super) dead: Vec<u32>,
    /// UDP endpoints that were not there before.
    pub(super) appeared: Vec<Held>,
    /// UDP endpoints that are gone from the slices.
    pub(super) vanished: Vec<Held>,
    /// The block's records change.
    pub(super) block_changed: bool,
    /// Records of the block, the terminator not counted.
    pub(super) records: usize,
}

/// A change of an endpoint's state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Restated {
    pub(super) index: usize,
    /// It loses something: written after the frontends.
    pub(super) loses: bool,
    /// It stopped serving: its generation rises.
    pub(super) stopped: bool,
    /// It loses one set and gains another: in both while frontends change over.
    pub(super) between: Option<u32>,
}

impl Merge {
    /// Both lists are sorted by address and port.
    pub(super) fn of(old: &[Held], new: &[model::Endpoint], udp: bool) -> Self {
        let mut merge = Self {
            next: Vec::with_capacity(new.len()),
            ..Self::default()
        };
        let (mut old, mut new) = (old.iter().peekable(), new.iter().map(Held::of).peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(held), Some(wanted)) => held.key().cmp(&wanted.key()),
            };
            let held = if order.is_le() { old.next() } else { None };
            let wanted = if order.is_ge() { new.next() } else { None };
            match (held, wanted) {
                (Some(held), Some(wanted)) => merge.keep(*held, wanted, udp),
                (Some(held), None) => merge.leave(*held, udp),
                (None, Some(wanted)) => merge.join(wanted, udp),
                (None, None) => break,
            }
        }
        merge.records =
            merge.next.iter().filter(|held| held.id != NO_ID).count() + merge.fresh.len();
        merge
    }

    fn join(&mut self, wanted: Held, udp: bool) {
        if udp {
            self.appeared.push(wanted);
        }
        self.without_id(wanted, udp);
    }

    fn keep(&mut self, held: Held, mut wanted: Held, udp: bool) {
        wanted.flags |= held.flags & USED;
        if held.id == NO_ID {
            return self.without_id(wanted, udp);
        }
        if !wanted.serving() && !wanted.selected() {
            self.dead.push(held.id);
            self.block_changed = true;
            return self.without_id(wanted, udp);
        }
        wanted.id = held.id;
        let (before, after) = (held.state_flags(), wanted.state_flags());
        if before != after {
            let stopped = before & !after & SERVING != 0;
            self.restated.push(Restated {
                index: self.next.len(),
                loses: before & !after != 0,
                stopped,
                between: (before & !after != 0 && after & !before != 0).then_some(before | after),
            });
        }
        // Nobody is led to the record of an endpoint in no set, so what it says of the endpoint may be old.
        let sets = IN_CLUSTER | IN_LOCAL;
        self.block_changed |= before & sets != after & sets
            || wanted.selected() && held.record_flags() != wanted.record_flags();
        self.next.push(wanted);
    }

    fn leave(&mut self, held: Held, udp: bool) {
        if held.id != NO_ID {
            self.dead.push(held.id);
            self.block_changed = true;
        }
        if udp {
            self.vanished.push(held);
        }
    }

    fn without_id(&mut self, mut wanted: Held, udp: bool) {
        if wanted.selected() {
            wanted.flags |= USED;
            self.fresh.push(self.next.len());
            self.block_changed = true;
            self.next.push(wanted);
        } else if udp {
            self.next.push(wanted);
        }
    }
}
