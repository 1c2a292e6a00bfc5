//! What ICMP tells a socket: whether it hears of errors, and which error it was.

use std::io;
use std::mem::zeroed;
use std::os::fd::AsRawFd;
use std::ptr::from_mut;

use super::protocol::IcmpError;
use super::socket::option;

/// Makes a socket hear of ICMP errors that it would ignore, and keep them (`IP_RECVERR`).
pub(super) fn hear(socket: &impl AsRawFd, ipv4: bool, wanted: bool) -> io::Result<()> {
    let (level, name) = if ipv4 {
        (libc::IPPROTO_IP, libc::IP_RECVERR)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
    };
    option(socket, level, name, &i32::from(wanted))
}

/// The last ICMP error that a socket heard of. Its queue is empty afterwards: it would take all of a long-lived
/// socket's memory.
pub(super) fn take(socket: &impl AsRawFd) -> Option<IcmpError> {
    let mut last = None;
    while let Some(heard) = next(socket) {
        last = heard.or(last);
    }
    last
}

/// The next in the queue, which may not be ICMP's; `None` at the end.
fn next(socket: &impl AsRawFd) -> Option<Option<IcmpError>> {
    let mut packet = [0_u8; 256];
    // Words, as headers of control messages are aligned.
    let mut control = [0_u64; 32];
    let mut part = libc::iovec {
        iov_base: packet.as_mut_ptr().cast(),
        iov_len: packet.len(),
    };
    // SAFETY: msghdr consists of integers and pointers, for which zero is a value.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = from_mut(&mut part);
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: all that `message` points to is writable for the lengths it says.
    let taken = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    if taken < 0 {
        return None;
    }
    let mut heard = None;
    // SAFETY: the kernel filled `message` in, and `control` lives on.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: not null, so it is a header within `control`.
        let about = unsafe { header.read() };
        if matches!(
            (about.cmsg_level, about.cmsg_type),
            (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
        ) {
            // SAFETY: a message of this type begins with sock_extended_err (ip(7)).
            let error = unsafe {
                libc::CMSG_DATA(header)
                    .cast::<libc::sock_extended_err>()
                    .read_unaligned()
            };
            if matches!(
                error.ee_origin,
                libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6
            ) {
                heard = Some(IcmpError {
                    kind: error.ee_type,
                    code: error.ee_code,
                });
            }
        }
        // SAFETY: both belong to the message that was received.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Some(heard)
}
