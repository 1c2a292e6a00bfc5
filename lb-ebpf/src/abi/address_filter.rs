//! Which addresses are in the table of addresses, as good as a hash can tell: one bit for many addresses, set where the
//! table has at least one of them. Most packets are to others, and one word says so.
//!
//! The agent sets a bit before it enters an address, and clears it after the last one is gone.

use super::family::Family;

/// Words of 64 bits: 32 KiB a family. Of 10,000 addresses, 4 in 100 others meet a bit that is set, and are looked up in
/// vain; of 30,000, 11.
pub const WORDS: u32 = 4096;

/// The word of an address's bit, and the bit as a mask.
#[inline(always)]
pub fn place<F: Family>(address: F::Addr) -> (u32, u64) {
    // Mixed twice: addresses of a network differ in few bits.
    let mut hash = F::fold(address).wrapping_mul(0x9e37_79b1);
    hash = (hash ^ hash >> 15).wrapping_mul(0x85eb_ca6b);
    (hash >> 20, 1 << (hash >> 14 & 63))
}

const _: () = assert!(WORDS == 1 << (32 - 20));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::address::Address4;
    use crate::abi::family::V4;
    use std::collections::BTreeSet;

    #[test]
    fn neighbouring_addresses_have_bits_of_their_own() {
        let places: BTreeSet<_> = (0..10_000u32)
            .map(|n| place::<V4>(Address4::from_word((0x0a60_0000 + n).to_be())))
            .collect();
        assert!(places.len() > 9_700, "{}", places.len());
        assert!(places.iter().all(|(word, _)| *word < WORDS));
    }
}
