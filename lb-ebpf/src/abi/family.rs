//! The two address families, as a type parameter.

use core::fmt::Debug;
use core::hash::Hash;

/// An IP family. Code that does not depend on the wire format is written once over this.
pub trait Family:
    Copy + Clone + PartialEq + Eq + Hash + Debug + Default + Send + Sync + 'static
{
    /// An address in network byte order: `[u8; 4]` or `[u8; 16]`.
    type Addr: Copy + Clone + PartialEq + Eq + Hash + Debug + Default + Send + Sync + 'static;
    /// 4 or 6, as in the IP header.
    const VERSION: u8;
    /// The unspecified address, under which NodePort frontends are filed.
    const UNSPECIFIED: Self::Addr;
    /// The address as 16 bytes; IPv4 becomes `::ffff:a.b.c.d`.
    fn wide(addr: Self::Addr) -> [u8; 16];
    /// The inverse of [`Family::wide`]; the caller knows the family.
    fn narrow(wide: [u8; 16]) -> Self::Addr;
    /// Folds an address to 32 bits, for [`super::frontend::key_check`] and shard choice.
    fn fold(addr: Self::Addr) -> u32;
}

/// IPv4.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct V6;

impl Family for V4 {
    type Addr = [u8; 4];
    const VERSION: u8 = 4;
    const UNSPECIFIED: [u8; 4] = [0; 4];

    #[inline(always)]
    fn wide(addr: [u8; 4]) -> [u8; 16] {
        [
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, addr[0], addr[1], addr[2], addr[3],
        ]
    }

    #[inline(always)]
    fn narrow(wide: [u8; 16]) -> [u8; 4] {
        [wide[12], wide[13], wide[14], wide[15]]
    }

    #[inline(always)]
    fn fold(addr: [u8; 4]) -> u32 {
        u32::from_ne_bytes(addr)
    }
}

impl Family for V6 {
    type Addr = [u8; 16];
    const VERSION: u8 = 6;
    const UNSPECIFIED: [u8; 16] = [0; 16];

    #[inline(always)]
    fn wide(addr: [u8; 16]) -> [u8; 16] {
        addr
    }

    #[inline(always)]
    fn narrow(wide: [u8; 16]) -> [u8; 16] {
        wide
    }

    #[inline(always)]
    fn fold(addr: [u8; 16]) -> u32 {
        let [a, b, c, d] = super::address::words(addr);
        a ^ b.rotate_left(7) ^ c.rotate_left(14) ^ d.rotate_left(21)
    }
}
