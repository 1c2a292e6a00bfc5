//! A packet as parsing, lookup and rewriting see it, whichever kind of program it passes.

use aya_ebpf::bindings::bpf_fib_lookup as FibLookup;
use lb_ebpf::abi::family::Family;

use crate::extension::Led;
use crate::header::{Network, Transport, Wire};
use crate::rewrite::Checksum;
use crate::work::Way;

/// Length of an Ethernet header.
pub(crate) const ETHERNET: u32 = 14;

/// `BPF_F_PSEUDO_HDR`: the change is also in the pseudo header.
pub(crate) const PSEUDO: u64 = 1 << 4;
/// `BPF_F_MARK_MANGLED_0`: UDP, where a checksum of zero means "none".
pub(crate) const ZERO_IS_NONE: u64 = 1 << 5;

/// Answers of the route lookup that name a route.
pub(crate) const FOUND: i64 = 0;
pub(crate) const NO_NEIGHBOUR: i64 = 7;
pub(crate) const TOO_BIG: i64 = 8;

/// Handle of a packet; its methods' boolean answers say whether the packet had the bytes asked for.
pub(crate) trait Packet: Copy {
    /// Where the network and the transport header are.
    fn headers<F: Wire>(network: &Network<F>) -> (u32, u32);

    /// The checksum of the transport header.
    fn checksum<F: Wire>(network: &Network<F>, transport: &Transport) -> Checksum;

    /// Bytes of the whole frame.
    fn length(&self) -> u32;

    /// Whether the frame stands for several packets that are still to be cut, or were put together.
    fn is_segmented(&self) -> bool;

    /// What lies behind IPv6 extension headers, the first of them of kind `protocol` and at `offset`; `None` if they
    /// are broken, too many, or lead to further stops.
    fn past_extensions(&self, offset: u32, protocol: u8) -> Option<Led>;

    /// Interface the program sits on.
    fn device(&self) -> u32;

    /// Reads a header. `T` is made of integers and arrays of such.
    fn load<T: Copy>(&self, offset: u32) -> Option<T>;

    /// As [`Packet::load`], for a place that is known beforehand and so may be looked at directly.
    #[inline(always)]
    fn load_at<T: Copy, const OFFSET: u32>(&self) -> Option<T> {
        self.load(OFFSET)
    }

    /// Writes a header without regard to a sum of the whole packet that the device may have made: every such
    /// change of ours comes with one of a checksum that makes up for it.
    fn store<T: Copy>(&self, offset: u32, value: &T) -> bool;

    /// Writes a header that no checksum covers.
    fn store_summed<T: Copy>(&self, offset: u32, value: &T) -> bool;

    /// Updates an IPv4 header's checksum for a changed word.
    fn replace_l3(&self, offset: u32, old: u32, new: u32) -> bool;

    /// Updates a transport checksum for a changed value of `size` bytes.
    fn replace_l4(&self, offset: u32, old: u32, new: u32, size: u64, flags: u64) -> bool;

    /// Updates a transport checksum for a changed IPv6 address in the pseudo header.
    fn replace_l4_address6(&self, offset: u32, old: [u32; 4], new: [u32; 4], flags: u64) -> bool;

    /// Looks up a route; what `bpf_fib_lookup` answers.
    fn route(&self, route: &mut FibLookup, flags: u32) -> i64;

    /// How the packet can leave by a route, given what the lookup answered; 0 if it cannot.
    fn way(&self, answer: i64, route: &FibLookup) -> i32;

    /// Bytes that a route must take in one piece, from the network header on: the packet, or the largest of those that
    /// it is to be cut into.
    fn datagram<F: Wire>(&self, network: &Network<F>) -> u32;

    /// Whether the MTU of a route's device lets the packet pass, whose network header is at `network`. `answer` is what
    /// the lookup answered.
    fn fits(&self, answer: i64, route: &FibLookup, network: u32) -> bool;

    /// Gives the packet an Ethernet header if its network header, at `network`, comes first: redirection to a
    /// neighbour wants one, and the device says what becomes of it. Offsets count from there then.
    fn give_link_header(&self, _network: u32) -> bool {
        true
    }

    /// Whether egress programs meet a packet that leaves.
    const PASSES_EGRESS: bool;

    /// Sends the packet by a route in the manner that [`Packet::way`] told; the value ends the program.
    fn leave<F: Family>(&self, way: &mut Way<F>, manner: i32) -> i32;
}
