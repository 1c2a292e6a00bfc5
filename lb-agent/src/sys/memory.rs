//! Memory that the allocator keeps.

/// Gives freed memory back to the system.
///
/// glibc keeps what lies between blocks that are in use: after reading a large list that is several times what the
/// list became. Costs milliseconds, so it is for quiet moments.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number alone and locks the heap by itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has every large block given back to the system as soon as it is freed.
///
/// glibc does so until the first such block is freed, and keeps ever larger ones from then on. Ours are few and do not
/// come again: buffers of lists, and what loading programs takes.
pub fn keep_no_large_blocks() {
    /// Its first threshold.
    #[cfg(target_env = "gnu")]
    const LARGE: libc::c_int = 128 * 1024;
    #[cfg(target_env = "gnu")]
    // SAFETY: takes numbers alone and locks the heap by itself.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Lets go of the pages of a constant that is not needed for now; reading it brings them back from the file.
pub fn forget(constant: &'static [u8]) {
    // SAFETY: asks for a number.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    let begin = constant.as_ptr().addr().next_multiple_of(page);
    let end = (constant.as_ptr().addr() + constant.len()) / page * page;
    if begin < end {
        let pages = constant.as_ptr().with_addr(begin).cast_mut().cast();
        // SAFETY: whole pages of a constant, which are the file's own as nobody may write to them.
        unsafe {
            libc::madvise(pages, end - begin, libc::MADV_DONTNEED);
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_forgotten_constant_can_be_read_again() {
        static CONSTANT: [u8; 1 << 16] = [7; 1 << 16];
        super::forget(&CONSTANT);
        assert!(CONSTANT.iter().all(|&byte| byte == 7));
        super::give_back();
    }
}
