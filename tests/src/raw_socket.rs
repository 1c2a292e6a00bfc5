//! Packets whose headers the sender writes itself, so that they come from whomever it likes.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::ptr::from_ref;

use lb_agent::snapshot::Family;

/// A socket that sends whole IP packets.
#[derive(Debug)]
pub struct RawSocket(OwnedFd);

impl RawSocket {
    /// Opens one in the calling thread's network namespace.
    pub fn open(family: Family) -> io::Result<Self> {
        let domain = match family {
            Family::V4 => libc::AF_INET,
            Family::V6 => libc::AF_INET6,
        };
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: the call takes numbers only.
        let number = unsafe { libc::socket(domain, kind, libc::IPPROTO_RAW) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was just opened and belongs to nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(number) }))
    }

    /// Sends a packet, from its IP header on, towards `to`.
    pub fn send(&self, packet: &[u8], to: SocketAddr) -> io::Result<()> {
        match to {
            SocketAddr::V4(to) => self.send_to(
                packet,
                &libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: 0,
                    sin_addr: libc::in_addr {
                        s_addr: u32::from(*to.ip()).to_be(),
                    },
                    sin_zero: [0; 8],
                },
            ),
            SocketAddr::V6(to) => self.send_to(
                packet,
                &libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: 0,
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr {
                        s6_addr: to.ip().octets(),
                    },
                    sin6_scope_id: 0,
                },
            ),
        }
    }

    fn send_to<A>(&self, packet: &[u8], address: &A) -> io::Result<()> {
        // SAFETY: packet and address are readable for their lengths.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                from_ref(address).cast(),
                size_of::<A>() as libc::socklen_t,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}
