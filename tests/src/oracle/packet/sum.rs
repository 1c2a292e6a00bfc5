//! Internet checksums, always computed over all bytes (RFC 1071).

/// One's complement sum of the parts laid end to end, folded to 16 bits.
fn total(parts: &[&[u8]]) -> u16 {
    let mut bytes = parts.concat();
    if bytes.len() % 2 == 1 {
        bytes.push(0);
    }
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// The checksum of the parts, in which the checksum field must be zero.
pub fn of(parts: &[&[u8]]) -> u16 {
    !total(parts)
}

/// The field after a change that took the right checksum from `before` to `after`: a field that was right is right
/// again, one that was wrong is wrong by the same amount.
pub fn carry(field: u16, before: u16, after: u16) -> u16 {
    if field == before {
        return after;
    }
    let sum = total(&[
        &field.to_be_bytes(),
        &(!before).to_be_bytes(),
        &after.to_be_bytes(),
    ]);
    // Zero has two forms; receivers take either.
    if sum == 0xffff { 0 } else { sum }
}

/// Equal for every receiver: zero and its complement are one number.
pub fn equal(a: u16, b: u16) -> bool {
    a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_comes_out() {
        assert_eq!(
            total(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]),
            0xddf2
        );
    }

    #[test]
    fn wrong_stays_wrong_by_the_same_amount() {
        let (before, after) = (of(&[&[1, 2, 3, 4]]), of(&[&[9, 9, 3, 4]]));
        assert_eq!(carry(before, before, after), after);
        let off_by_five = before - 5;
        assert_eq!(carry(off_by_five, before, after), after - 5);
    }
}
