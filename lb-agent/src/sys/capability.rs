//! What the calling thread may do.

use std::fs;
use std::io;

/// Bits of include/uapi/linux/capability.h.
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;

/// Whether the verifier trusts this thread with what it takes for a look into the kernel: pointers, and what a
/// mispredicted branch could read.
pub fn may_read_kernel_memory() -> io::Result<bool> {
    let status = fs::read_to_string("/proc/thread-self/status")?;
    let held = effective(&status).ok_or(io::ErrorKind::InvalidData)?;
    Ok([SYS_ADMIN, PERFMON].iter().any(|bit| held >> bit & 1 == 1))
}

/// The effective capabilities of proc_pid_status(5).
fn effective(status: &str) -> Option<u64> {
    let held = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(held.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::effective;

    #[test]
    fn the_effective_set_is_read() {
        let status = "CapPrm:\t0000004000001000\nCapEff:\t0000008000001000\nCapBnd:\tf\n";
        assert_eq!(effective(status), Some(1 << 39 | 1 << 12));
        assert_eq!(effective("Name:\tx\n"), None);
    }
}
