//! Devices without a link-layer header: two tun devices in two namespaces, and threads that carry packets between
//! them, as a VPN's processes would.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};

use crate::netns::Namespace;

/// Longer than any packet of a device whose MTU is the usual one.
const LONGEST: usize = 65_536;

/// A pair of tun devices. Dropping it removes them.
#[derive(Debug)]
pub struct Tunnel {
    carriers: Vec<JoinHandle<()>>,
    /// Nothing is ever written here: carriers end when it closes.
    end: Option<OwnedFd>,
}

impl Tunnel {
    /// Creates a device of this name in both namespaces. They are down and have no addresses.
    pub fn between(name: &str, ends: [&Namespace; 2]) -> Result<Self> {
        let open = |end: &Namespace| {
            let device = end.run(|| tun(name).context("creating a tun device"));
            device.map(Arc::new)
        };
        let (left, right) = (open(ends[0])?, open(ends[1])?);
        let (over, end) = io::pipe().context("making a pipe")?;
        let over = Arc::new(OwnedFd::from(over));
        let carriers = [(&left, &right), (&right, &left)].map(|(from, to)| {
            let (from, to, over) = (Arc::clone(from), Arc::clone(to), Arc::clone(&over));
            thread::spawn(move || carry(&from, &to, &over))
        });
        Ok(Self {
            carriers: carriers.into(),
            end: Some(end.into()),
        })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.end = None;
        for carrier in self.carriers.drain(..) {
            // One that panicked has said so.
            let _ = carrier.join();
        }
    }
}

/// Opens a tun device in the calling thread's network namespace; it lasts as long as its descriptor.
fn tun(name: &str) -> io::Result<File> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: integers and arrays of such, zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request outlives the call, which reads and writes a `struct ifreq`.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(device)
}

/// Carries packets until `over` closes or a device goes.
fn carry(from: &File, to: &File, over: &OwnedFd) {
    let mut packet = vec![0; LONGEST];
    loop {
        let mut ready = [from.as_raw_fd(), over.as_raw_fd()].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        // SAFETY: two `pollfd`.
        if unsafe { libc::poll(ready.as_mut_ptr(), 2, -1) } < 0 || ready[1].revents != 0 {
            return;
        }
        let (mut from, mut to) = (from, to);
        match from.read(&mut packet) {
            // A device that is down takes nothing, as a broken line would.
            Ok(length) => drop(to.write(&packet[..length])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
