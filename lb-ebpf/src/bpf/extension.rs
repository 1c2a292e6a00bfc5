//! IPv6 extension headers (RFC 8200 §4, RFC 4302): what lies between the fixed header and the transport's.
//!
//! The walk is a global function, which the verifier looks at once and not wherever a header is read. So it gives one
//! number.

use aya_ebpf::bindings::__sk_buff;

use crate::header::Part;
use crate::packet::Packet;
use crate::skb::Skb;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const OPTIONS: u8 = 60;

/// Where a walk led: to a transport header, or to a later fragment's data.
#[derive(Clone, Copy)]
pub(crate) struct Led {
    /// Its offset.
    pub(crate) transport: u32,
    pub(crate) protocol: u8,
    pub(crate) part: Part,
    pub(crate) identification: u32,
}

impl Led {
    /// Eight headers of 2,048 bytes and what is before them fit the 16 bits of the offset.
    #[inline(always)]
    fn number(self) -> u64 {
        u64::from(self.transport & 0xffff)
            | u64::from(self.protocol) << 16
            | (self.part as u64) << 24
            | u64::from(self.identification) << 32
    }

    #[inline(always)]
    pub(crate) fn from_number(number: u64) -> Option<Self> {
        (number != NOWHERE).then_some(Self {
            transport: number as u32 & 0xffff,
            protocol: (number >> 16) as u8,
            part: match (number >> 24) as u8 {
                0 => Part::Whole,
                1 => Part::First,
                _ => Part::Later,
            },
            identification: (number >> 32) as u32,
        })
    }
}

/// The number of no place.
const NOWHERE: u64 = 0;

/// [`walk`] for tc programs.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn walk_skb(skb: *mut __sk_buff, transport: u32, protocol: u32) -> u64 {
    walk(&Skb::from_raw(skb), transport, protocol)
}

/// Walks over at most eight headers (RFC 8200 allows more, nobody sends them), the first of them of kind `protocol` and
/// at `transport`; gives a [`Led`] as a number.
#[inline(always)]
fn walk(skb: &impl Packet, transport: u32, protocol: u32) -> u64 {
    let mut led = Led {
        transport,
        protocol: protocol as u8,
        part: Part::Whole,
        identification: 0,
    };
    // Written out: LLVM leaves a loop of so many a loop, and loses its counter to the verifier by spilling it.
    macro_rules! look {
        ($($header:literal)+) => {
            $(
                let _ = $header;
                match pass(skb, &mut led) {
                    Look::On => {}
                    Look::There => return led.number(),
                    Look::Nowhere => return NOWHERE,
                }
            )+
        };
    }
    // The last one must find the chain's end.
    look!(1 2 3 4 5 6 7 8 9);
    NOWHERE
}

/// What a look at a header tells.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    On,
    There,
    Nowhere,
}

/// Passes an extension header, if there is one. All of them have eight bytes at least.
#[inline(always)]
fn pass(skb: &impl Packet, led: &mut Led) -> Look {
    let kind = led.protocol;
    if !matches!(
        kind,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | OPTIONS
    ) {
        return Look::There;
    }
    let Some(words) = skb.load::<[u32; 2]>(led.transport) else {
        return Look::Nowhere;
    };
    let [next, length, third, last] = words[0].to_ne_bytes();
    led.protocol = next;
    let length = u32::from(length);
    match kind {
        FRAGMENT => {
            let offset_flags = u16::from_be_bytes([third, last]);
            led.transport += 8;
            led.identification = u32::from_be(words[1]);
            led.part = match (offset_flags >> 3, offset_flags & 1) {
                (0, 0) => Part::Whole,
                (0, _) => Part::First,
                _ => Part::Later,
            };
            if led.part == Part::Later {
                return Look::There;
            }
        }
        // Length in words, minus two.
        AUTHENTICATION => led.transport += (length + 2) * 4,
        // Further stops are left: the destination is only the next one.
        ROUTING if last != 0 => return Look::Nowhere,
        _ => led.transport += (length + 1) * 8,
    }
    Look::On
}
