//! The two address families, as a type parameter.

use core::fmt::Debug;
use core::hash::Hash;

use super::address::{Address4, Address6};

/// An IP family. Code that does not depend on the wire format is written once over this.
pub trait Family:
    Copy + Clone + PartialEq + Eq + Hash + Debug + Default + Send + Sync + 'static
{
    /// [`Address4`] or [`Address6`].
    type Addr: Copy + Clone + PartialEq + Eq + Hash + Debug + Default + Send + Sync + 'static;
    /// 4 or 6, as in the IP header.
    const VERSION: u8;
    /// The unspecified address, under which NodePort frontends are filed.
    const UNSPECIFIED: Self::Addr;
    /// Reads an address here and now, in whole words; see [`crate::tcp_state::timeout`] for why.
    fn read(address: &Self::Addr) -> Self::Addr;
    /// The address as 16 bytes; IPv4 becomes `::ffff:a.b.c.d`.
    fn wide(addr: Self::Addr) -> Address6;
    /// The inverse of [`Family::wide`]; the caller knows the family.
    fn narrow(wide: Address6) -> Self::Addr;
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
    type Addr = Address4;
    const VERSION: u8 = 4;
    const UNSPECIFIED: Address4 = Address4 { octets: [0; 4] };

    #[inline(always)]
    fn read(address: &Address4) -> Address4 {
        // SAFETY: a reference is valid for reads, and aligned for a word.
        Address4::from_word(unsafe { core::ptr::read_volatile((&raw const *address).cast()) })
    }

    #[inline(always)]
    fn wide(addr: Address4) -> Address6 {
        Address6::from_words([0, 0, 0xffff_u32.to_be(), addr.word()])
    }

    #[inline(always)]
    fn narrow(wide: Address6) -> Address4 {
        Address4::from_word(wide.words()[3])
    }

    #[inline(always)]
    fn fold(addr: Address4) -> u32 {
        addr.word()
    }
}

impl Family for V6 {
    type Addr = Address6;
    const VERSION: u8 = 6;
    const UNSPECIFIED: Address6 = Address6 { octets: [0; 16] };

    #[inline(always)]
    fn read(address: &Address6) -> Address6 {
        let at = (&raw const *address).cast::<u32>();
        // SAFETY: a reference is valid for reads of its four words, and aligned for them.
        Address6::from_words(unsafe {
            [
                core::ptr::read_volatile(at),
                core::ptr::read_volatile(at.add(1)),
                core::ptr::read_volatile(at.add(2)),
                core::ptr::read_volatile(at.add(3)),
            ]
        })
    }

    #[inline(always)]
    fn wide(addr: Address6) -> Address6 {
        addr
    }

    #[inline(always)]
    fn narrow(wide: Address6) -> Address6 {
        wide
    }

    #[inline(always)]
    fn fold(addr: Address6) -> u32 {
        let [a, b, c, d] = addr.words();
        a ^ b.rotate_left(7) ^ c.rotate_left(14) ^ d.rotate_left(21)
    }
}
