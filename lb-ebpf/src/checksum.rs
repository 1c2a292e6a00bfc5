//! Internet checksum arithmetic (RFC 1071, RFC 1624), for headers we write or change ourselves.

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

/// What replacing words by others of the same number adds to a sum. All words are as they lie in memory.
#[inline(always)]
pub fn replaced(old: &[u32], new: &[u32]) -> u64 {
    let mut difference = 0;
    for word in old {
        difference += u64::from(!*word);
    }
    for word in new {
        difference += u64::from(*word);
    }
    difference
}

/// A checksum field after a change that [`replaced`] describes. Equal to what the kernel's helpers make of it, also
/// in the choice between the two zeros: the sum starts with ones in its high half and so never is all zeros.
#[inline(always)]
pub fn adjusted(checksum: u16, difference: u64) -> u16 {
    let sum = u64::from(!u32::from(checksum)) + difference;
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel computes it: `csum_fold(csum_add(csum_sub(~csum_unfold(sum), old), new))`.
    fn kernels(checksum: u16, old: u32, new: u32) -> u16 {
        let add = |a: u32, b: u32| {
            let (sum, carry) = a.overflowing_add(b);
            sum + u32::from(carry)
        };
        let sum = add(add(!u32::from(checksum), !old), new);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        !(sum as u16)
    }

    #[test]
    fn adjusting_is_what_the_kernel_does() {
        let edges = [
            0,
            1,
            0x7fff,
            0x8000,
            0xfffe,
            0xffff,
            0x1_0000,
            0xffff_0000,
            !1,
            !0,
        ];
        for checksum in edges.map(|edge| edge as u16) {
            for old in edges {
                for new in edges {
                    assert_eq!(
                        adjusted(checksum, replaced(&[old], &[new])),
                        kernels(checksum, old, new),
                        "{checksum:#x} {old:#x} {new:#x}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_changed_header_still_sums_to_zero() {
        let mut header = *b"\x45\0\0\x73\0\0\x40\0\x40\x11\xb8\x61\xc0\xa8\0\x01\xc0\xa8\0\xc7";
        let word = |bytes: &[u8]| u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let old = [word(&header[12..]), word(&header[16..])];
        let new = [word(&[10, 255, 0, 1]), word(&[203, 0, 113, 255])];
        header[12..16].copy_from_slice(&new[0].to_ne_bytes());
        header[16..].copy_from_slice(&new[1].to_ne_bytes());
        let checksum = u16::from_ne_bytes([header[10], header[11]]);
        let checksum = adjusted(checksum, replaced(&old, &new));
        header[10..12].copy_from_slice(&checksum.to_ne_bytes());
        assert_eq!(finish(add(0, &header)), 0);
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
