//! Type information, which makes `bpftool map dump` print fields by name.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::command::{BtfLoad, Command, call_for_fd};
use super::{Error, Result};

/// Type information loaded into the kernel; maps created with it keep it alive.
#[derive(Debug)]
pub struct Btf {
    fd: OwnedFd,
}

impl Btf {
    /// Loads `data`, a `.BTF` section as the kernel wants it (data sections with sizes, no empty names).
    pub fn load(data: &[u8]) -> Result<Self> {
        let attempt = |log: &mut [u8]| {
            let mut block = BtfLoad {
                data: data.as_ptr() as u64,
                length: data.len() as u32,
                log: if log.is_empty() {
                    0
                } else {
                    log.as_mut_ptr() as u64
                },
                log_length: log.len() as u32,
                log_level: u32::from(!log.is_empty()),
                zero: 0,
            };
            // SAFETY: `data` and `log` outlive the call and have the given lengths; the answer is a descriptor.
            unsafe { call_for_fd(Command::BtfLoad, &mut block) }
        };
        // The log costs time and memory, so it is only asked for once there is something to say.
        attempt(&mut []).map(|fd| Self { fd }).map_err(|error| {
            let mut log = vec![0; 64 * 1024];
            let _ = attempt(&mut log);
            let end = log.iter().position(|&b| b == 0).unwrap_or(log.len());
            let log = String::from_utf8_lossy(&log[..end]);
            let last = log.lines().last().unwrap_or_default();
            Error::new(format!("load type information ({last})"), error)
        })
    }
}

impl AsFd for Btf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
