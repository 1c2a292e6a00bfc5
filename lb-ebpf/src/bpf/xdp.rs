//! A packet as XDP programs see it: the frame in the device's own buffer, before the kernel makes anything of it.
//!
//! Nothing here knows of checksums left to the device, and nothing needs to: frames that come over a wire are
//! complete. Only senders of this very machine (veth) leave them out, and XDP is not for those by default.

use aya_ebpf::bindings::{bpf_fib_lookup as FibLookup, xdp_md};
use aya_ebpf::helpers::generated::{
    bpf_check_mtu, bpf_fib_lookup, bpf_redirect, bpf_xdp_get_buff_len,
};
use aya_ebpf::programs::XdpContext;
use lb_ebpf::abi::device::{SENDS_BACK, TRANSMITS};
use lb_ebpf::abi::family::Family;
use lb_ebpf::abi::{TCP, UDP};
use lb_ebpf::checksum::{replaced, sum_words};

use crate::extension::Led;
use crate::header::{Network, TCP_CHECKSUM, Transport, UDP_CHECKSUM, Wire};
use crate::maps::DEVICES;
use crate::packet::{ETHERNET, FOUND, Packet, ZERO_IS_NONE};
use crate::rewrite::Checksum;
use crate::work::Way;

/// `XDP_TX`: back out of the device, as `leave` answers it.
pub(crate) const TX: i32 = 3;
/// `XDP_REDIRECT`: out of any device.
pub(crate) const REDIRECT: i32 = 4;

/// Handle of a whole packet of a protocol; of one that is not known yet, 0.
#[derive(Clone, Copy)]
pub(crate) struct Xdp<const PROTOCOL: u8>(*mut xdp_md);

/// A header at an even address, which is all that a frame promises.
#[repr(C, packed(2))]
struct Even<T>(T);

impl Xdp<0> {
    #[inline(always)]
    pub(crate) fn new(ctx: &XdpContext) -> Self {
        Self(ctx.ctx)
    }

    /// Ethertype, host order; that of a tag if there is one.
    #[inline(always)]
    pub(crate) fn ethertype(&self) -> u16 {
        self.load(12).map_or(0, u16::from_be)
    }

    /// The same packet, found to be of a protocol.
    #[inline(always)]
    pub(crate) fn known_as<const PROTOCOL: u8>(self) -> Xdp<PROTOCOL> {
        Xdp(self.0)
    }
}

impl<const PROTOCOL: u8> Xdp<PROTOCOL> {
    /// Where a header is, if the frame's first piece has it whole.
    ///
    /// Callers give offsets known when compiling: without CAP_PERFMON the verifier lets nothing else be added to
    /// an address in a packet ("pointer with unsupported alu operation").
    #[inline(always)]
    fn at<T>(&self, offset: u32) -> Option<*mut Even<T>> {
        // SAFETY: fields of the context.
        let (start, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        let at = start + offset as usize;
        if at + size_of::<T>() > end {
            return None;
        }
        Some(at as *mut Even<T>)
    }

    /// Makes the checksum at `offset` follow a change from one sum of words to another.
    #[inline(always)]
    fn adjust(&self, offset: u32, (before, after): (u32, u32), flags: u64) -> bool {
        let Some(old) = self.load::<u16>(offset) else {
            return false;
        };
        let zero_is_none = flags & ZERO_IS_NONE != 0;
        if zero_is_none && old == 0 {
            return true;
        }
        let new = replaced(old, before, after);
        let new = if zero_is_none && new == 0 { !0 } else { new };
        self.store(offset, &new)
    }
}

impl<const PROTOCOL: u8> Packet for Xdp<PROTOCOL> {
    /// Only packets with plain headers are served here.
    #[inline(always)]
    fn headers<F: Wire>(_: &Network<F>) -> (u32, u32) {
        (ETHERNET, ETHERNET + F::HEADER)
    }

    #[inline(always)]
    fn checksum<F: Wire>(_: &Network<F>, _: &Transport) -> Checksum {
        let within = match PROTOCOL {
            TCP => TCP_CHECKSUM,
            UDP => UDP_CHECKSUM,
            _ => 0,
        };
        Checksum::of(ETHERNET + F::HEADER, within)
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_xdp_get_buff_len(self.0) as u32 }
    }

    #[inline(always)]
    fn is_segmented(&self) -> bool {
        false
    }

    #[inline(always)]
    fn past_extensions(&self, _: u32, _: u8) -> Option<Led> {
        None
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { (*self.0).ingress_ifindex }
    }

    #[inline(always)]
    fn load<T: Copy>(&self, offset: u32) -> Option<T> {
        // SAFETY: the frame has these bytes, and even addresses will do.
        self.at::<T>(offset).map(|at| unsafe { at.read() }.0)
    }

    #[inline(always)]
    fn store<T: Copy>(&self, offset: u32, value: &T) -> bool {
        match self.at::<T>(offset) {
            Some(at) => {
                // SAFETY: as above; the frame is ours while we run.
                unsafe { at.write(Even(*value)) };
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn store_summed<T: Copy>(&self, offset: u32, value: &T) -> bool {
        self.store(offset, value)
    }

    #[inline(always)]
    fn replace_l3(&self, offset: u32, old: u32, new: u32) -> bool {
        self.adjust(offset, (old, new), 0)
    }

    #[inline(always)]
    fn replace_l4(&self, offset: u32, old: u32, new: u32, _: u64, flags: u64) -> bool {
        self.adjust(offset, (old, new), flags)
    }

    #[inline(always)]
    fn replace_l4_address6(&self, offset: u32, old: [u32; 4], new: [u32; 4], flags: u64) -> bool {
        self.adjust(offset, (sum_words(old), sum_words(new)), flags)
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

    /// The neighbour must be known, and the device able to send what XDP gives it: one that is not drops it, and
    /// nobody would know.
    #[inline(always)]
    fn way(&self, answer: i64, route: &FibLookup) -> i32 {
        if answer != FOUND {
            return 0;
        }
        let Some(device) = DEVICES.get_ptr(route.ifindex) else {
            return 0;
        };
        // SAFETY: an element of the table, which changes only with the device.
        let flags = unsafe { core::ptr::read_volatile(&raw const (*device).flags) };
        if flags & SENDS_BACK != 0 && route.ifindex == self.device() {
            TX
        } else if flags & TRANSMITS != 0 {
            REDIRECT
        } else {
            0
        }
    }

    #[inline(always)]
    fn datagram<F: Wire>(&self, _: &Network<F>) -> u32 {
        self.length().wrapping_sub(ETHERNET)
    }

    #[inline(always)]
    fn fits(&self, _: i64, route: &FibLookup, _: u32) -> bool {
        // The kernel would count the first piece of a frame in pieces alone.
        let mut length = self.length().wrapping_sub(ETHERNET);
        // SAFETY: `length` is readable and writable.
        unsafe { bpf_check_mtu(self.0.cast(), route.ifindex, &raw mut length, 0, 0) == 0 }
    }

    const PASSES_EGRESS: bool = false;

    #[inline(always)]
    fn leave<F: Family>(&self, way: &mut Way<F>, manner: i32) -> i32 {
        let route = &way.route;
        if !self.store(0, &route.dmac) || !self.store(6, &route.smac) {
            return crate::DROP;
        }
        if manner == TX {
            return TX;
        }
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_redirect(route.ifindex, 0) as i32 }
    }
}
