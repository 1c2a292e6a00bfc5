//! The few socket calls the standard library lacks: a chosen source port, and closing without TIME_WAIT.

use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::ptr::from_ref;
use std::time::Duration;

use super::client::at;
use super::icmp_errors;
use super::protocol::{Failure, Step};

/// Opens a TCP connection from `from_port`, or from any port if that is 0; a failure tells what ICMP said.
pub(super) fn connect(
    to: SocketAddr,
    from_port: u16,
    timeout: Duration,
) -> Result<TcpStream, Failure> {
    let socket = unconnected(to, from_port, timeout).map_err(at(Step::Open))?;
    let (address, length) = raw(to);
    // SAFETY: `address` is an initialised sockaddr of at least `length` bytes.
    check(unsafe { libc::connect(socket.as_raw_fd(), from_ref(&address).cast(), length) })
        .map_err(|error| Failure {
            icmp: icmp_errors::take(&socket),
            ..at(Step::Open)(error)
        })?;
    // An open connection shall bear errors as those of other programs do.
    icmp_errors::hear(&socket, to.is_ipv4(), false).map_err(at(Step::Open))?;
    Ok(socket.into())
}

/// A TCP socket that is about to connect.
fn unconnected(to: SocketAddr, from_port: u16, timeout: Duration) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    // SAFETY: socket takes numbers only.
    let number = check(unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: `number` was just opened and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    if from_port != 0 {
        option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, &1_i32)?;
        let any = if to.is_ipv4() { "0.0.0.0" } else { "::" };
        let any = SocketAddr::new(any.parse().map_err(io::Error::other)?, from_port);
        let (address, length) = raw(any);
        // SAFETY: `address` is an initialised sockaddr of at least `length` bytes.
        check(unsafe { libc::bind(socket.as_raw_fd(), from_ref(&address).cast(), length) })?;
    }
    // A connect() that takes longer than the send timeout ends with EINPROGRESS (socket(7)).
    let seconds = timeout.as_secs() as libc::time_t;
    option(
        &socket,
        libc::SOL_SOCKET,
        libc::SO_SNDTIMEO,
        &libc::timeval {
            tv_sec: seconds,
            tv_usec: libc::suseconds_t::from(timeout.subsec_micros()),
        },
    )?;
    icmp_errors::hear(&socket, to.is_ipv4(), true)?;
    Ok(socket)
}

/// Opens a raw socket for ICMP of the address's family, in the guise of a UDP socket: both send and receive packets.
pub(super) fn icmp(address: IpAddr) -> io::Result<UdpSocket> {
    let (family, protocol) = if address.is_ipv4() {
        (libc::AF_INET, libc::IPPROTO_ICMP)
    } else {
        (libc::AF_INET6, libc::IPPROTO_ICMPV6)
    };
    // SAFETY: socket takes numbers only.
    let number =
        check(unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: `number` was just opened and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(number) }.into())
}

/// Makes close() reset the connection, so that thousands of connections leave no TIME_WAIT behind.
pub(crate) fn close_by_reset(stream: &TcpStream) -> io::Result<()> {
    option(
        stream,
        libc::SOL_SOCKET,
        libc::SO_LINGER,
        &libc::linger {
            l_onoff: 1,
            l_linger: 0,
        },
    )
}

/// How many segments this side had to send again.
pub(super) fn retransmits(stream: &TcpStream) -> io::Result<u32> {
    // SAFETY: tcp_info consists of integers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    let into = (&raw mut info).cast();
    // SAFETY: `into` points to `length` writable bytes.
    check(unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            into,
            &raw mut length,
        )
    })?;
    Ok(info.tcpi_total_retrans)
}

pub(super) fn option<T>(
    socket: &impl std::os::fd::AsRawFd,
    level: i32,
    name: i32,
    value: &T,
) -> io::Result<()> {
    let length = size_of_val(value) as libc::socklen_t;
    // SAFETY: `value` is readable for `length` bytes during the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            from_ref(value).cast(),
            length,
        )
    })?;
    Ok(())
}

fn raw(address: SocketAddr) -> (libc::sockaddr_in6, libc::socklen_t) {
    // SAFETY: sockaddr_in6 consists of integers, for which zero is a value.
    let mut storage: libc::sockaddr_in6 = unsafe { zeroed() };
    match address {
        SocketAddr::V6(v6) => {
            storage.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            storage.sin6_port = v6.port().to_be();
            storage.sin6_addr.s6_addr = v6.ip().octets();
            (storage, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
        }
        SocketAddr::V4(v4) => {
            let short = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(v4.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: a sockaddr_in is smaller than a sockaddr_in6, and both are plain integers aligned to 4.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(short) };
            (storage, size_of::<libc::sockaddr_in>() as libc::socklen_t)
        }
    }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
