//! `loadBalancerSourceRanges` (spec H1-H5).

use aya_ebpf::btf_maps::lpm_trie::Key;
use lb_ebpf::abi::source_range::SourceRangePrefix;

use crate::maps::{SOURCE_RANGES, Tables};

/// Whether a source may use a service port.
#[inline(always)]
pub(crate) fn admitted<F: Tables>(service: u32, source: F::Addr) -> bool {
    let key = Key::new(
        32 + 128,
        SourceRangePrefix {
            service: service.to_be_bytes(),
            address: F::wide(source),
        },
    );
    SOURCE_RANGES.get(&key).is_some()
}
