//! A packet as tc programs see it.

use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup as FibLookup};
use aya_ebpf::helpers::generated::{
    bpf_check_mtu, bpf_csum_diff, bpf_csum_update, bpf_fib_lookup, bpf_l3_csum_replace,
    bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_skb_adjust_room,
    bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_load_bytes,
    bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use core::arch::asm;
use core::mem::MaybeUninit;
use core::ptr::{addr_of, null_mut, read_volatile};

use lb_ebpf::abi::TCP;
use lb_ebpf::abi::family::Family;

use crate::extension::{Led, walk_skb};
use crate::header::{Network, Transport, Wire};
use crate::packet::{ETHERNET, FOUND, NO_NEIGHBOUR, PSEUDO, Packet};
use crate::rewrite::Checksum;
use crate::work::{NextHop, Way};
use crate::{DROP, NEXT};

/// `BPF_F_IPV6` (Linux 6.16): the pseudo header's change leaves `skb->csum` right.
const IPV6: u64 = 1 << 7;

/// `BPF_F_RECOMPUTE_CSUM`: the written bytes count in `skb->csum`.
const RECOMPUTE: u64 = 1;

/// Ethertype of a VLAN tag, and the bits of a tag that are the VLAN's number.
const TAG: u16 = 0x8100;
const VLAN_ID: u32 = 0xfff;

/// `BPF_ADJ_ROOM_MAC`.
const ROOM_AFTER_MAC: u32 = 1;

/// `BPF_MTU_CHK_SEGS`: look at the segments of a GSO packet.
const SEGMENTS: u64 = 1;

/// Where in a TCP header its length is, in words, and how long a UDP header is.
const TCP_DATA_OFFSET: u32 = 12;
const UDP_HEADER: u32 = 8;

/// Handle of a packet. Helpers that move data need no care here: nothing keeps pointers into the packet.
#[derive(Clone, Copy)]
pub(crate) struct Skb(*mut __sk_buff);

/// Back out of the device that a packet came in on.
pub(crate) const OUT: u64 = 0;

/// Back in from the device that a packet leaves by: `BPF_F_INGRESS`.
pub(crate) const IN: u64 = 1;

/// Onwards as it is: on the loopback device everything comes back to its sender.
pub(crate) const STAY: u64 = u64::MAX;

/// `PACKET_HOST`.
const TO_US: u32 = 0;

/// Interface index of the loopback device of any network namespace.
const LOOPBACK: u32 = 1;

impl Skb {
    #[inline(always)]
    pub(crate) fn new(ctx: &TcContext) -> Self {
        Self(ctx.skb.skb)
    }

    /// From the context itself.
    #[inline(always)]
    pub(crate) fn from_raw(skb: *mut __sk_buff) -> Self {
        Self(skb)
    }

    /// Ethertype, host order; a tag's where the packet has one.
    ///
    /// The kernel takes the outer tag out of a frame before we meet it, and looks for the device of that VLAN only
    /// afterwards. That device has programs of ours where it is an uplink, and there the packet comes by without its
    /// tag: translated here it would meet the wrong routes, and leave with a tag that is not the way out's. A tag
    /// that names no VLAN is only a priority (IEEE 802.1Q, 9.6).
    #[inline(always)]
    pub(crate) fn ethertype(&self) -> u16 {
        // SAFETY: fields of the context.
        let (protocol, tagged, tag) = unsafe {
            (
                read_volatile(addr_of!((*self.0).protocol)),
                read_volatile(addr_of!((*self.0).vlan_present)),
                read_volatile(addr_of!((*self.0).vlan_tci)),
            )
        };
        if tagged != 0 && tag & VLAN_ID != 0 {
            return TAG;
        }
        u16::from_be(protocol as u16)
    }

    /// Writes `length` bytes, at most what `buffer` holds, and keeps `skb->csum` right.
    #[inline(always)]
    pub(crate) fn store_bytes(&self, offset: u32, buffer: &[u8; 256], length: u32) -> bool {
        if length == 0 || length > 256 {
            return false;
        }
        // SAFETY: `buffer` is readable for `length`.
        unsafe {
            bpf_skb_store_bytes(self.0, offset, buffer.as_ptr().cast(), length, RECOMPUTE) == 0
        }
    }

    /// Updates a checksum that covers a changed run of 16 bytes directly (ICMPv6 and what it quotes).
    #[inline(always)]
    pub(crate) fn replace_quoted6(
        &self,
        offset: u32,
        mut old: [u32; 4],
        mut new: [u32; 4],
    ) -> bool {
        // SAFETY: both buffers hold 16 bytes.
        unsafe {
            let difference = bpf_csum_diff(old.as_mut_ptr(), 16, new.as_mut_ptr(), 16, 0);
            difference >= 0 && bpf_l4_csum_replace(self.0, offset, 0, difference as u64, 0) == 0
        }
    }

    /// Makes the packet `length` bytes long.
    #[inline(always)]
    pub(crate) fn set_len(&self, length: u32) -> bool {
        // SAFETY: no pointers into the packet are kept.
        unsafe { bpf_skb_change_tail(self.0, length, 0) == 0 }
    }

    /// Removes bytes after the link-layer header.
    #[inline(always)]
    pub(crate) fn remove_after_mac(&self, bytes: i32) -> bool {
        // SAFETY: no pointers into the packet are kept.
        unsafe { bpf_skb_adjust_room(self.0, -bytes, ROOM_AFTER_MAC, 0) == 0 }
    }

    /// Sends the packet back the way it came, [`OUT`] of the device or [`IN`]; the value ends the program.
    #[inline(always)]
    pub(crate) fn send_back<const WAY: u64>(&self) -> i32 {
        if WAY == STAY {
            return NEXT;
        }
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_redirect(self.device(), WAY) as i32 }
    }

    /// Gives this host a packet whose source is an address of its own, or of a service; the value ends the program.
    /// `network` is where its network header is.
    ///
    /// On the device where it came in the kernel would refuse such a source. So the packet leaves by the loopback
    /// device, with the route of a packet that this host sends to itself: input takes it by that route and asks no
    /// further.
    #[inline(always)]
    pub(crate) fn hand_over(&self, network: u32) -> i32 {
        if !self.give_link_header(network) {
            return DROP;
        }
        // The helper counts the Ethernet header in `skb->csum`, where the device summed up the packet, and does not
        // take it out again.
        let Some([a, b, c, d, e, f, g]) = self.load::<[u16; 7]>(0) else {
            return DROP;
        };
        let mut header = [a, b, c, d, e, f, g, 0u16];
        // SAFETY: 16 bytes are readable, the others have no preconditions. No next hop is given.
        unsafe {
            let sum = bpf_csum_diff(header.as_mut_ptr().cast(), 16, null_mut(), 0, 0);
            bpf_csum_update(self.0, sum as u32);
            // To a bridge's port, a frame for the bridge is one for somebody else.
            bpf_skb_change_type(self.0, TO_US);
            bpf_redirect_neigh(LOOPBACK, null_mut(), 0, 0) as i32
        }
    }

    /// Whether the packet is this host's own: it came in on no device.
    #[inline(always)]
    pub(crate) fn is_own(&self) -> bool {
        // SAFETY: a field of the context.
        unsafe { read_volatile(addr_of!((*self.0).ingress_ifindex)) == 0 }
    }

    /// Whether the frame was addressed to the device that it came in on. The host's stack takes no other: a promiscuous
    /// device also brings others', and one that mirrors traffic nothing else.
    #[inline(always)]
    pub(crate) fn is_for_this_host(&self) -> bool {
        // SAFETY: a field of the context.
        unsafe { read_volatile(addr_of!((*self.0).pkt_type)) == TO_US }
    }

    /// Reads a header at a place that is known beforehand, if the packet's linear part has it. `T` is made of whole words.
    #[inline(always)]
    pub(crate) fn peek_at<T: Copy, const OFFSET: u32>(&self) -> Option<T> {
        const { assert!(size_of::<T>().is_multiple_of(4) && size_of::<T>() <= 40) };
        // SAFETY: fields of the context.
        let (start, end) = unsafe {
            (
                read_volatile(addr_of!((*self.0).data)) as usize,
                read_volatile(addr_of!((*self.0).data_end)) as usize,
            )
        };
        if start + OFFSET as usize + size_of::<T>() > end {
            return None;
        }
        let mut value = MaybeUninit::<T>::uninit();
        let to = value.as_mut_ptr().cast::<u32>();
        // Written out, as each word's place is part of its instruction.
        macro_rules! words {
            ($($word:literal)+) => {
                $(
                    if $word * 4 < size_of::<T>() {
                        // SAFETY: within the packet, as just compared, and within `value`. Whatever the bytes are, `T`
                        // takes them.
                        unsafe {
                            to.add($word).write_unaligned(word_at::<OFFSET, $word>(start));
                        }
                    }
                )+
            };
        }
        words!(0 1 2 3 4 5 6 7 8 9);
        // SAFETY: every word of it was written.
        Some(unsafe { value.assume_init() })
    }

    /// For helpers that take the context itself.
    #[inline(always)]
    pub(crate) fn raw(&self) -> *mut __sk_buff {
        self.0
    }
}

/// The word that many words behind `OFFSET` in the packet that starts at `start`. Headers lie at any address, and of an
/// unaligned read the compiler for the BPF target makes four, one for each byte: every kernel with a JIT compiler that we
/// run on takes such words in one piece.
///
/// # Safety
/// The word has been shown to lie within the packet.
#[inline(always)]
unsafe fn word_at<const OFFSET: u32, const WORD: u32>(start: usize) -> u32 {
    let word: u64;
    // SAFETY: as the caller promises.
    unsafe {
        asm!(
            "{word} = *(u32 *)({start} + {at})",
            word = lateout(reg) word,
            start = in(reg) start,
            at = const OFFSET + 4 * WORD,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    word as u32
}

impl Packet for Skb {
    #[inline(always)]
    fn headers<F: Wire>(network: &Network<F>) -> (u32, u32) {
        (network.offset, network.transport)
    }

    #[inline(always)]
    fn checksum<F: Wire>(network: &Network<F>, transport: &Transport) -> Checksum {
        Checksum::of(network.transport, transport.checksum)
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { read_volatile(addr_of!((*self.0).len)) }
    }

    #[inline(always)]
    fn is_segmented(&self) -> bool {
        // SAFETY: a field of the context.
        unsafe { read_volatile(addr_of!((*self.0).gso_size)) != 0 }
    }

    #[inline(always)]
    fn past_extensions(&self, offset: u32, protocol: u8) -> Option<Led> {
        Led::from_number(walk_skb(self.0, offset, protocol.into()))
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { read_volatile(addr_of!((*self.0).ifindex)) }
    }

    #[inline(always)]
    fn load<T: Copy>(&self, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper fills all of `value` or fails.
        unsafe {
            let failed = bpf_skb_load_bytes(
                self.0.cast(),
                offset,
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
            );
            if failed != 0 {
                None
            } else {
                Some(value.assume_init())
            }
        }
    }

    /// Without a call where the bytes are in the packet's linear part, as headers mostly are. Offsets that vary are
    /// not for this: the verifier lets only programs with `CAP_PERFMON` add them to a pointer into a packet.
    #[inline(always)]
    fn load_at<T: Copy, const OFFSET: u32>(&self) -> Option<T> {
        match self.peek_at::<T, OFFSET>() {
            Some(value) => Some(value),
            None => self.load(OFFSET),
        }
    }

    #[inline(always)]
    fn store<T: Copy>(&self, offset: u32, value: &T) -> bool {
        // SAFETY: `value` is readable for its size.
        unsafe {
            bpf_skb_store_bytes(
                self.0,
                offset,
                (&raw const *value).cast(),
                size_of::<T>() as u32,
                0,
            ) == 0
        }
    }

    #[inline(always)]
    fn store_summed<T: Copy>(&self, offset: u32, value: &T) -> bool {
        // SAFETY: `value` is readable for its size.
        unsafe {
            bpf_skb_store_bytes(
                self.0,
                offset,
                (&raw const *value).cast(),
                size_of::<T>() as u32,
                RECOMPUTE,
            ) == 0
        }
    }

    #[inline(always)]
    fn replace_l3(&self, offset: u32, old: u32, new: u32) -> bool {
        // SAFETY: the helper checks the offset.
        unsafe { bpf_l3_csum_replace(self.0, offset, old.into(), new.into(), 4) == 0 }
    }

    #[inline(always)]
    fn replace_l4(&self, offset: u32, old: u32, new: u32, size: u64, flags: u64) -> bool {
        // SAFETY: the helper checks the offset.
        unsafe { bpf_l4_csum_replace(self.0, offset, old.into(), new.into(), size | flags) == 0 }
    }

    #[inline(always)]
    fn replace_l4_address6(
        &self,
        offset: u32,
        mut old: [u32; 4],
        mut new: [u32; 4],
        flags: u64,
    ) -> bool {
        // SAFETY: both buffers hold 16 bytes.
        let difference = unsafe { bpf_csum_diff(old.as_mut_ptr(), 16, new.as_mut_ptr(), 16, 0) };
        if difference < 0 {
            return false;
        }
        // SAFETY: the helper checks the offset.
        unsafe {
            if bpf_l4_csum_replace(self.0, offset, 0, difference as u64, flags | PSEUDO | IPV6) == 0
            {
                return true;
            }
            // Before 6.16 the helper also changes `skb->csum`, wrongly for IPv6; put it back.
            if bpf_l4_csum_replace(self.0, offset, 0, difference as u64, flags | PSEUDO) != 0 {
                return false;
            }
            bpf_csum_update(self.0, difference as u32);
            true
        }
    }

    #[inline(always)]
    fn route(&self, route: &mut FibLookup, flags: u32) -> i64 {
        // SAFETY: `route` is readable and writable for its size.
        unsafe {
            bpf_fib_lookup(
                self.0.cast(),
                &raw mut *route,
                size_of::<FibLookup>() as i32,
                flags,
            )
        }
    }

    #[inline(always)]
    fn way(&self, answer: i64, _: &FibLookup) -> i32 {
        i32::from(answer == FOUND || answer == NO_NEIGHBOUR)
    }

    #[inline(always)]
    fn datagram<F: Wire>(&self, network: &Network<F>) -> u32 {
        if !self.is_segmented() {
            return self.length() - network.offset;
        }
        // SAFETY: a field of the context.
        let payload = unsafe { read_volatile(addr_of!((*self.0).gso_size)) };
        let header = match network.protocol {
            TCP => self
                .load::<u8>(network.transport + TCP_DATA_OFFSET)
                .map_or(0, |byte| u32::from(byte >> 4) * 4),
            _ => UDP_HEADER,
        };
        network.transport - network.offset + header + payload
    }

    #[inline(always)]
    fn fits(&self, answer: i64, route: &FibLookup, network: u32) -> bool {
        // The lookup tells the route's MTU where it names a neighbour; one that takes more than 16 bits reads as another.
        // SAFETY: the field that the lookup writes.
        let known = u32::from(unsafe { route.__bindgen_anon_1.mtu_result });
        if answer == FOUND && !self.is_segmented() && self.length() - network <= known {
            return true;
        }
        let mut mtu = 0;
        // SAFETY: `mtu` is writable.
        unsafe { bpf_check_mtu(self.0.cast(), route.ifindex, &raw mut mtu, 0, SEGMENTS) == 0 }
    }

    #[inline(always)]
    fn give_link_header(&self, network: u32) -> bool {
        if network != 0 {
            return true;
        }
        let ethertype = self.ethertype().to_be();
        // SAFETY: no pointers into the packet are kept.
        let given = unsafe { bpf_skb_change_head(self.0, ETHERNET, 0) == 0 };
        given && self.store(12, &ethertype)
    }

    const PASSES_EGRESS: bool = true;

    /// With the next hop that the lookup has found: the kernel would look up the route once more.
    #[inline(always)]
    fn leave<F: Family>(&self, way: &mut Way<F>, _: i32) -> i32 {
        way.hop.family = u32::from(way.route.family);
        // SAFETY: the field of the wider family holds all of the other's.
        way.hop.address = unsafe { way.route.__bindgen_anon_4.ipv6_dst };
        let hop = (&raw mut way.hop).cast();
        // SAFETY: the next hop is readable for its size.
        unsafe { bpf_redirect_neigh(way.route.ifindex, hop, size_of::<NextHop>() as i32, 0) as i32 }
    }
}
