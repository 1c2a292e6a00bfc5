//! Devices as the kernel numbers them.

use std::ffi::CString;
use std::io;

use anyhow::{Context as _, Result};

/// The index of a device of the calling thread's network namespace.
pub fn index(name: &str) -> Result<u32> {
    let text = CString::new(name)?;
    // SAFETY: `text` is a C string that outlives the call.
    match unsafe { libc::if_nametoindex(text.as_ptr()) } {
        0 => Err(io::Error::last_os_error()).with_context(|| format!("finding {name}")),
        index => Ok(index),
    }
}
