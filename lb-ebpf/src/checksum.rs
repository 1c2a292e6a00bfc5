//! Internet checksum arithmetic (RFC 1071), for headers we write ourselves and for what changes in others.

/// Adds `bytes` as big-endian 16-bit words to a running sum; an odd last byte counts as the high half.
#[inline(always)]
pub fn add(mut sum: u32, bytes: &[u8]) -> u32 {
    let mut i = 0;
    while i + 1 < bytes.len() {
        sum += u32::from(u16::from_be_bytes([bytes[i], bytes[i + 1]]));
        i += 2;
    }
    if i < bytes.len() {
        sum += u32::from(bytes[i]) << 8;
    }
    sum
}

/// Folds a running sum to the checksum field's value, host order.
#[inline(always)]
pub fn finish(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// The sum of words as the checksum counts them, in whatever byte order all have.
///
/// Added up in full and folded once, to half a word and a few carries: of a carry out of each sum LLVM makes a branch,
/// and Linux 6.1's verifier follows every combination of those, a million instructions for one IPv6 packet.
#[inline(always)]
pub const fn sum_words<const N: usize>(words: [u32; N]) -> u32 {
    let mut sum = 0;
    let mut i = 0;
    while i < N {
        sum += words[i] as u64;
        i += 1;
    }
    (sum & 0xffff) as u32 + (sum >> 16) as u32
}

/// A checksum after words in what it covers were changed from one sum to another (RFC 1624), all in the same byte
/// order.
#[inline(always)]
pub const fn replaced(checksum: u16, old: u32, new: u32) -> u16 {
    let sum = sum_words([!checksum as u32 & 0xffff, !old, new]);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_follows_what_it_covers() {
        let mut header = [
            0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8,
            0, 0xc7,
        ];
        let word = |bytes: &[u8; 20], at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let ends = |bytes: &[u8; 20]| sum_words([word(bytes, 12), word(bytes, 16)]);
        for addresses in [[0u8; 8], [0xff; 8], [10, 0, 0, 1, 10, 96, 0, 10]] {
            let (old, before) = (ends(&header), u16::from_ne_bytes([header[10], header[11]]));
            header[12..].copy_from_slice(&addresses);
            let checksum = replaced(before, old, ends(&header));
            header[10..12].copy_from_slice(&checksum.to_ne_bytes());
            assert_eq!(finish(add(0, &header)), 0, "{header:x?}");
        }
    }

    #[test]
    fn header_of_rfc_1071_style_example_sums_to_zero() {
        let mut h = [
            0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0,
            0xc7,
        ];
        let c = finish(add(0, &h));
        assert_eq!(c, 0xb861);
        h[10..12].copy_from_slice(&c.to_be_bytes());
        assert_eq!(finish(add(0, &h)), 0);
    }
}
