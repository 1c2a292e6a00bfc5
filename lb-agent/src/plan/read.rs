//! Blocks read back from the tables.

use lb_ebpf::abi::endpoint::{Endpoint, EndpointState, IN_CLUSTER, IN_LOCAL, SERVING};
use lb_ebpf::abi::frontend::Frontend;
use lb_ebpf::abi::{SEGMENT_RECORDS, SEGMENT_SHIFT};

use super::adopt::KernelState;
use super::port::{Held, USED};
use super::{NO_BLOCK, NO_ID, record};
use crate::snapshot::Family;

/// A block as read from the kernel.
pub(super) struct Read {
    pub(super) held: Vec<Held>,
    pub(super) len: u32,
    /// Some state does not say what the block says, or some record is of no use.
    pub(super) doubtful: bool,
}
/// Records that a frontend uses.
pub(super) fn needed(record: &Frontend) -> Option<u32> {
    Some(
        record
            .cluster_first
            .checked_add(record.cluster_count)?
            .max(record.local_count),
    )
}

/// What `record` of service port `id` leads to.
pub(super) fn read(
    state: &KernelState,
    family: Family,
    id: u32,
    record: &Frontend,
) -> Option<Read> {
    match family {
        Family::V4 => read_block(&state.endpoints4, &state.states, id, record),
        Family::V6 => read_block(&state.endpoints6, &state.states, id, record),
    }
}

/// The block `record` leads to; `None` if it is not one of ours.
fn read_block<F: record::Wire>(
    segments: &[Vec<Endpoint<F>>],
    states: &[EndpointState],
    service: u32,
    record: &Frontend,
) -> Option<Read> {
    let needed = needed(record)? as usize;
    let mut read = Read {
        held: Vec::new(),
        len: 0,
        doubtful: false,
    };
    if record.block == NO_BLOCK {
        return (needed == 0).then_some(read);
    }
    let offset = (record.block % SEGMENT_RECORDS) as usize;
    let (first, further) = segments
        .get((record.block >> SEGMENT_SHIFT) as usize..)?
        .split_first()?;
    // A segment that does not exist ends it.
    let further = further.iter().take_while(|segment| !segment.is_empty());
    let records = first.get(offset..)?.iter().chain(further.flatten());
    for (index, endpoint) in records.enumerate() {
        if endpoint.id == NO_ID {
            read.len = index as u32 + 1;
            break;
        }
        if endpoint.service != service {
            return None;
        }
        read.len = index as u32 + 1;
        read.endpoint(index as u32, endpoint, states, record);
    }
    (read.len as usize >= needed && read.len > 0).then_some(read)
}

impl Read {
    fn endpoint<F: record::Wire>(
        &mut self,
        index: u32,
        from: &Endpoint<F>,
        states: &[EndpointState],
        record: &Frontend,
    ) {
        let state = states.get(from.id as usize).copied().unwrap_or_default();
        let cluster = record.cluster_first..record.cluster_first + record.cluster_count;
        let mut sets = if index < record.local_count {
            IN_LOCAL
        } else {
            0
        };
        sets |= if cluster.contains(&index) {
            IN_CLUSTER
        } else {
            0
        };
        let serving = state.flags & SERVING;
        let dead = sets | serving == 0;
        self.doubtful |= dead || state.flags != sets | serving;
        if dead {
            return;
        }
        self.held.push(Held {
            address: F::wide(from.address),
            id: from.id,
            port: from.port,
            flags: from.flags & 0xff | ((sets | serving) << 8) as u16 | USED,
        });
    }
}
