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

/// Length of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;

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

/// Takes the next answer of the kernel off the queue.
pub(super) fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
    // The kernel answers within the send, so a second is more than enough.
    if !socket.wait(1000)? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    match socket.receive(buffer)? {
        Received::Bytes(length) => Ok(length),
        Received::Lost => Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
        Received::Empty => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Hands each message to `visit` until it says that the answer is complete; whether it did.
pub(super) fn each_message(
    mut rest: &[u8],
    mut visit: impl FnMut(u16, &[u8]) -> io::Result<bool>,
) -> io::Result<bool> {
    while rest.len() >= HEADER {
        let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        let kind = u16::from_ne_bytes([rest[4], rest[5]]);
        let Some(body) = rest.get(HEADER..length) else {
            break;
        };
        if visit(kind, body)? {
            return Ok(true);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// What a message of kind `NLMSG_ERROR` says; 0 is an acknowledgement.
pub(super) fn error_of(body: &[u8]) -> io::Result<()> {
    let code = body.get(..4).map_or(-libc::EPROTO, |b| {
        i32::from_ne_bytes([b[0], b[1], b[2], b[3]])
    });
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(-code))
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
