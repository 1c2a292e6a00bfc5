//! Changes of numbers that several processors change at once. Rust's own atomics for this target are of kernels newer than
//! ours.

use core::arch::asm;

/// Adds to a number in one piece.
///
/// # Safety
/// `number` points into an element of a table.
#[inline(always)]
pub(crate) unsafe fn add(number: *mut u32, more: i64) {
    // SAFETY: as the caller promises.
    unsafe {
        asm!("lock *(u32 *)({number} + 0) += {more}", number = in(reg) number, more = in(reg) more);
    }
}
