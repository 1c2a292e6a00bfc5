//! `loadBalancerSourceRanges` (spec H1-H5), one trie for all service ports.

use super::address::Address6;

/// Trie key.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct SourceRangeKey {
    /// Bits of `prefix` that count: 32 + the length of the range (an IPv4 range counts as its mapped
    /// IPv6 one: +96).
    pub prefix_length: u32,
    /// What is compared.
    pub prefix: SourceRangePrefix,
}

/// The compared part of a [`SourceRangeKey`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct SourceRangePrefix {
    /// Service port id, big endian as a trie compares bytes.
    pub service: [u8; 4],
    /// Address as 16 bytes.
    pub address: Address6,
}

/// Present means allowed.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SourceRange {
    /// One.
    pub allowed: u32,
}

crate::assert_layout!(SourceRangeKey = 24, SourceRangePrefix = 20, SourceRange = 4);
