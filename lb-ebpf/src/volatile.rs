//! Reads that the compiler neither puts off nor merges.

/// Reads a value before the program goes on.
///
/// Of two values the compiler would rather choose the offset at which to read later. The verifier lets only programs
/// with `CAP_PERFMON` add different offsets to one pointer on different paths.
#[inline(always)]
pub fn read<T: Copy>(value: &T) -> T {
    // SAFETY: a reference is valid for reads.
    unsafe { core::ptr::read_volatile(value) }
}
