//! A plain netlink socket.
//!
//! Crates on top of it hide lost notifications (`ENOBUFS`), which we must see: then everything is read anew.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use tokio::io::unix::AsyncFd;

/// A netlink socket of one protocol, closed on drop.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

/// What lies in a socket's queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    Bytes(usize),
    /// The queue overflowed: messages are missing.
    Lost,
    /// Nothing for now.
    Empty,
}

impl Socket {
    /// Opens a socket that does not block and hears the multicast groups of the mask `groups`.
    pub fn open(protocol: libc::c_int, groups: u32) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: takes no addresses.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: integers alone, zero is valid.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as u16;
        address.nl_groups = groups;
        // SAFETY: `address` has the given length.
        let answer = unsafe {
            libc::bind(
                fd.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                size_of::<libc::sockaddr_nl>() as libc::socklen_t,
            )
        };
        if answer < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(Self { fd })
        }
    }

    /// Registers the socket with the calling tokio runtime.
    pub fn watched(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: the socket owns its descriptor, always tells the same one, and closes it only when dropped by
        // the `AsyncFd`, after that has deregistered it.
        unsafe { AsyncFd::register(self) }.map_err(Into::into)
    }

    /// Sends a message to the kernel.
    pub fn send(&self, message: &[u8]) -> io::Result<()> {
        // SAFETY: `message` has the given length.
        let sent = unsafe {
            libc::send(
                self.fd.as_raw_fd(),
                message.as_ptr().cast(),
                message.len(),
                0,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Takes one datagram off the queue; what does not fit into `buffer` is lost.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        // SAFETY: `buffer` has the given length.
        let got = unsafe {
            libc::recv(
                self.fd.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
            )
        };
        if got >= 0 {
            return Ok(Received::Bytes(got as usize));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Ok(Received::Empty),
            Some(libc::ENOBUFS) => Ok(Received::Lost),
            Some(libc::EINTR) => self.receive(buffer),
            _ => Err(error),
        }
    }

    /// Waits until there is something to receive or `milliseconds` have passed; whether there is.
    pub fn wait(&self, milliseconds: i32) -> io::Result<bool> {
        let mut poll = libc::pollfd {
            fd: self.fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one `pollfd`.
        let answer = unsafe { libc::poll(&mut poll, 1, milliseconds) };
        if answer < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(answer > 0)
        }
    }
}

/// The name of a device of the calling thread's network namespace, if there is one of this index.
pub fn device_name(index: u32) -> Option<String> {
    let mut name = [0u8; libc::IF_NAMESIZE];
    // SAFETY: `name` has the room the call is defined to need.
    let answer = unsafe { libc::if_indextoname(index, name.as_mut_ptr().cast()) };
    let length = name.iter().position(|&byte| byte == 0)?;
    (!answer.is_null()).then(|| String::from_utf8_lossy(&name[..length]).into_owned())
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
