//! What a map takes of memory, as the kernel tells in the description of its descriptor (proc(5), fdinfo).

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, AsRawFd as _};

use super::{Error, Map, Result};

/// More than all fields take.
const FIELDS: usize = 1024;

impl Map {
    /// Bytes the kernel accounts to this map.
    pub fn memory(&self) -> Result<u64> {
        let path = format!("/proc/self/fdinfo/{}", self.as_fd().as_raw_fd());
        // Hundreds of maps are asked every second, and one read gives all fields: asking for the length of the file
        // and for its end would be three times the system calls.
        let mut fields = [0; FIELDS];
        let length = File::open(&path)
            .and_then(|mut file| file.read(&mut fields))
            .map_err(|e| Error::new(format!("read {path}"), e))?;
        memlock(&fields[..length])
            .ok_or_else(|| Error::refused(format!("read {path}"), "no field `memlock`"))
    }
}

/// The field of that name, if it is whole.
fn memlock(fields: &[u8]) -> Option<u64> {
    let line = fields
        .split_inclusive(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"memlock:")?.strip_suffix(b"\n"))?;
    std::str::from_utf8(line).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_was_cut_off_is_no_number() {
        let fields = b"pos:\t0\nmap_type:\t1\nmemlock:\t4096\nfrozen:\t0\n";
        assert_eq!(memlock(fields), Some(4096));
        assert_eq!(memlock(&fields[..fields.len() - 12]), None);
        assert_eq!(memlock(b"pos:\t0\n"), None);
    }
}
