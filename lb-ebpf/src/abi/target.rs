//! Which addresses flows lead to, and from which they come, as good as a hash can tell: what goes to any other address,
//! or comes from any other, cannot meet a flow's ports, and pays no more than a look or two here to know it.

use super::family::Family;

/// What is known of the addresses of one hash.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Target {
    /// When a flow to one of them was last seen alive, seconds; 0: there is none.
    pub flows: u32,
    /// The same of flows that a client has to an endpoint directly (see [`super::flow::DIRECT`]).
    pub direct: u32,
}

/// Hashes told apart, of targets and, in a table of its own, of clients: there an element is when a flow of one of
/// them was last seen alive, as [`Target::flows`]. 32 KiB and 16; of 1,000 endpoints of a node's flows each hides one address in five.
pub const TARGETS: u32 = 4096;

/// Seconds after which an address that no flow was seen to have is forgotten. Rounds of the sweep take seconds.
pub const LIFETIME: u32 = 120;

/// Index of an address.
#[inline(always)]
pub fn index<F: Family>(address: F::Addr) -> u32 {
    F::fold(address).wrapping_mul(0x9e37_79b1) >> 20
}

const _: () = assert!(TARGETS == 1 << (32 - 20));

crate::assert_layout!(Target = 8);
