//! Watching an interface: proof of what went over a wire, and of what did not.

use std::fmt;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::ptr::from_ref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Result, bail};

use crate::device;
use crate::netns::Namespace;

/// How often the thread looks whether it shall end, in milliseconds.
const PACE_MS: i32 = 20;

/// Frames in both directions on one interface, from `start` on.
#[derive(Debug)]
pub struct Capture {
    frames: Arc<Mutex<Vec<Frame>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// One Ethernet frame.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    pub bytes: Vec<u8>,
}

/// What an IP packet says about itself. Ports are 0 where there are none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// The IP protocol number; in IPv6 that of the first header after the fixed one.
    pub protocol: u8,
    pub source_port: u16,
    pub destination_port: u16,
}

impl Capture {
    /// Starts to watch an interface.
    pub fn start(namespace: &Namespace, interface: &str) -> Result<Self> {
        let socket = namespace.run(|| open(interface))?;
        let (frames, stop) = (
            Arc::new(Mutex::new(Vec::new())),
            Arc::new(AtomicBool::new(false)),
        );
        let (into, ends) = (Arc::clone(&frames), Arc::clone(&stop));
        let thread = thread::spawn(move || watch(&socket, &into, &ends));
        Ok(Self {
            frames,
            stop,
            thread: Some(thread),
        })
    }

    /// The frames seen so far.
    pub fn frames(&self) -> Vec<Frame> {
        self.frames
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Ends watching, after what is on the way has been read, and returns the IP packets.
    pub fn finish(mut self) -> Vec<Packet> {
        self.end();
        self.frames().iter().filter_map(Frame::packet).collect()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

impl Frame {
    /// The IP packet inside, if there is one.
    pub fn packet(&self) -> Option<Packet> {
        let (header, rest) = self.bytes.split_at_checked(14)?;
        let (source, destination, protocol, payload): (IpAddr, IpAddr, u8, _) = match header[12..] {
            [0x08, 0x00] => {
                let octets = |at| Some(Ipv4Addr::from(*rest.get(at..)?.first_chunk::<4>()?));
                let length = usize::from(rest.first()? & 0xf) * 4;
                (
                    octets(12)?.into(),
                    octets(16)?.into(),
                    *rest.get(9)?,
                    rest.get(length..)?,
                )
            }
            [0x86, 0xdd] => {
                let octets = |at| Some(Ipv6Addr::from(*rest.get(at..)?.first_chunk::<16>()?));
                (
                    octets(8)?.into(),
                    octets(24)?.into(),
                    *rest.get(6)?,
                    rest.get(40..)?,
                )
            }
            _ => return None,
        };
        let has_ports = matches!(i32::from(protocol), libc::IPPROTO_TCP | libc::IPPROTO_UDP);
        let port = |at: usize| {
            payload
                .get(at..at + 2)
                .map_or(0, |b| u16::from_be_bytes([b[0], b[1]]))
        };
        let (source_port, destination_port) = if has_ports {
            (port(0), port(2))
        } else {
            (0, 0)
        };
        Some(Packet {
            source,
            destination,
            protocol,
            source_port,
            destination_port,
        })
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({} bytes, {:?})", self.bytes.len(), self.packet())
    }
}

fn open(interface: &str) -> Result<OwnedFd> {
    let everything = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: socket takes numbers only.
    let number = unsafe {
        libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            i32::from(everything),
        )
    };
    if number < 0 {
        bail!("opening a packet socket: {}", io::Error::last_os_error());
    }
    // SAFETY: `number` was just opened and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    // SAFETY: sockaddr_ll consists of integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = everything;
    address.sll_ifindex = i32::try_from(device::index(interface)?)?;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` is an initialised sockaddr_ll of `length` bytes.
    if unsafe { libc::bind(socket.as_raw_fd(), from_ref(&address).cast(), length) } < 0 {
        bail!("watching {interface}: {}", io::Error::last_os_error());
    }
    Ok(socket)
}

fn watch(socket: &OwnedFd, frames: &Mutex<Vec<Frame>>, stop: &AtomicBool) {
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let mut wanted = libc::pollfd {
            fd: socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: `wanted` is one valid pollfd.
        if unsafe { libc::poll(&raw mut wanted, 1, PACE_MS) } <= 0 {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            continue;
        }
        // SAFETY: `buffer` is writable for its whole length.
        let length = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
            )
        };
        if let Ok(length) = usize::try_from(length) {
            frames
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(Frame {
                    bytes: buffer[..length].into(),
                });
        }
    }
}
