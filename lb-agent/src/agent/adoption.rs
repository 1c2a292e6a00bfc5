//! What a former agent left, in the ledger's words.

use std::net::IpAddr;

use lb_ebpf::abi::SEGMENT_SHIFT;

use crate::datapath;
use crate::plan::KernelState;

/// The tables' contents as the ledger reads them.
pub(super) fn kernel_state(state: datapath::KernelState) -> KernelState {
    fn segments<T>(records: Vec<(u32, T)>) -> Vec<Vec<T>> {
        let mut segments: Vec<Vec<T>> = Vec::new();
        for (index, record) in records {
            let segment = (index >> SEGMENT_SHIFT) as usize;
            while segments.len() <= segment {
                segments.push(Vec::new());
            }
            segments[segment].push(record);
        }
        segments
    }
    let addresses4 = state
        .addresses4
        .into_iter()
        .map(|(address, uses)| (address.into(), uses.flags));
    let addresses6 = state.addresses6.into_iter().map(|(address, uses)| {
        (
            IpAddr::V6(std::net::Ipv6Addr::from(address.octets)),
            uses.flags,
        )
    });
    KernelState {
        names: state.names,
        frontends4: state.frontends4,
        frontends6: state.frontends6,
        endpoints4: segments(state.endpoints4),
        endpoints6: segments(state.endpoints6),
        states: state.states.into_iter().map(|(_, state)| state).collect(),
        addresses: addresses4.chain(addresses6).collect(),
        tombstones: state.tombstones,
        source_ranges: state
            .source_ranges
            .into_iter()
            .map(|(key, _)| key)
            .collect(),
    }
}
