//! Network namespaces.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;

/// `SO_NETNS_COOKIE` of include/uapi/asm-generic/socket.h (Linux 5.14), which libc does not name everywhere.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of the calling thread's network namespace: what `bpf_get_netns_cookie` tells the programs.
pub fn cookie() -> io::Result<u64> {
    // Any socket will do; an unbound one touches no network.
    let socket = UdpSocket::bind(("127.0.0.1", 0)).or_else(|_| UdpSocket::bind(("::1", 0)));
    let socket = match socket {
        Ok(socket) => socket,
        // A namespace whose loopback is down still lets the wildcard be bound.
        Err(_) => UdpSocket::bind(("0.0.0.0", 0))?,
    };
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` has room for `length` bytes and both outlive the call.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &mut length,
        )
    };
    if answer == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_namespace_has_one_cookie() {
        let cookie = super::cookie().expect("Linux 5.14 or newer");
        assert_ne!(cookie, 0);
        assert_eq!(cookie, super::cookie().expect("same call"));
    }
}
