//! Ends connected UDP sockets of our own network namespace whose endpoint vanished (spec: their next send must
//! fail, and for sockets of the host no packet program sits in between).
//!
//! Asks with `SOCK_DIAG_BY_FAMILY` and ends with `SOCK_DESTROY` (Linux 4.5, `CONFIG_INET_DIAG_DESTROY`); layouts
//! after include/uapi/linux/{netlink,inet_diag}.h. Needs CAP_NET_ADMIN. The kernel does not know why the socket
//! ends: the process sees ECONNABORTED.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::netlink::{HEADER, Socket, each_message, error_of, receive};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
/// `struct inet_diag_sockid` within a request.
const ID_IN_REQUEST: usize = 8;
/// `struct inet_diag_sockid` within an answer.
const ID_IN_ANSWER: usize = 4;
const ID: usize = 48;
/// `TCP_ESTABLISHED`: also the state of a connected UDP socket.
const CONNECTED: u32 = 1 << 1;

/// What became of the sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// This many sockets were ended.
    Sockets(usize),
    /// The kernel was built without the means.
    Unsupported,
}

/// Ends every UDP socket of this network namespace that is connected to one of `endpoints`, which have addresses in
/// canonical form. Reads the node's sockets once for all, which takes a while where there are many.
pub fn end_udp_sockets(endpoints: &HashSet<SocketAddr>) -> io::Result<Ended> {
    let socket = Socket::open(libc::NETLINK_SOCK_DIAG, 0)?;
    let mut ids = Vec::new();
    for &family in families(endpoints) {
        let asked = dump(&socket, family, &mut ids, endpoints);
        match asked {
            Ok(()) => {}
            // No handler for UDP: the module udp_diag is neither built in nor loadable.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(Ended::Unsupported),
            Err(e) => return Err(e),
        }
    }
    let mut ended = 0;
    for (family, id) in ids {
        let mut message = request(SOCK_DESTROY, libc::NLM_F_REQUEST | libc::NLM_F_ACK, family);
        message[HEADER + ID_IN_REQUEST..HEADER + ID_IN_REQUEST + ID].copy_from_slice(&id);
        socket.send(&message)?;
        match acknowledgement(&socket) {
            Ok(()) => ended += 1,
            // It was closed meanwhile.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Ended::Unsupported),
            Err(e) => return Err(e),
        }
    }
    Ok(Ended::Sockets(ended))
}

/// An IPv6 socket may be connected to an IPv4 endpoint by its mapped address.
fn families(endpoints: &HashSet<SocketAddr>) -> &'static [u8] {
    if endpoints.iter().any(SocketAddr::is_ipv4) {
        &[libc::AF_INET as u8, libc::AF_INET6 as u8]
    } else {
        &[libc::AF_INET6 as u8]
    }
}

fn request(kind: u16, flags: libc::c_int, family: u8) -> [u8; HEADER + REQUEST] {
    let mut message = [0; HEADER + REQUEST];
    message[0..4].copy_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&(flags as u16).to_ne_bytes());
    message[HEADER] = family;
    message[HEADER + 1] = libc::IPPROTO_UDP as u8;
    message[HEADER + 4..HEADER + 8].copy_from_slice(&CONNECTED.to_ne_bytes());
    message
}

/// Collects the identities of sockets connected to one of `endpoints`.
fn dump(
    socket: &Socket,
    family: u8,
    ids: &mut Vec<(u8, [u8; ID])>,
    endpoints: &HashSet<SocketAddr>,
) -> io::Result<()> {
    socket.send(&request(
        SOCK_DIAG_BY_FAMILY,
        libc::NLM_F_REQUEST | libc::NLM_F_DUMP,
        family,
    ))?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = receive(socket, &mut buffer)?;
        let done = each_message(&buffer[..length], |kind, body| match i32::from(kind) {
            libc::NLMSG_DONE if body.is_empty() => Ok(true),
            // The end of a list has a code, too: a kernel without lists of UDP sockets tells so there.
            libc::NLMSG_DONE | libc::NLMSG_ERROR => error_of(body).map(|()| true),
            _ => {
                if let Some(id) = body.get(ID_IN_ANSWER..ID_IN_ANSWER + ID)
                    && endpoints.contains(&peer(family, id))
                {
                    let mut copy = [0; ID];
                    copy.copy_from_slice(id);
                    ids.push((family, copy));
                }
                Ok(false)
            }
        })?;
        if done {
            return Ok(());
        }
    }
}

fn acknowledgement(socket: &Socket) -> io::Result<()> {
    let mut buffer = vec![0; 4096];
    let length = receive(socket, &mut buffer)?;
    each_message(&buffer[..length], |kind, body| {
        if i32::from(kind) == libc::NLMSG_ERROR {
            error_of(body).map(|()| true)
        } else {
            Ok(false)
        }
    })?;
    Ok(())
}

/// A socket's peer (`idiag_dport`, `idiag_dst`), its address in canonical form.
fn peer(family: u8, id: &[u8]) -> SocketAddr {
    let port = u16::from_be_bytes([id[2], id[3]]);
    let mut address = [0; 16];
    address.copy_from_slice(&id[20..36]);
    let address = if i32::from(family) == libc::AF_INET {
        IpAddr::V4(Ipv4Addr::new(
            address[0], address[1], address[2], address[3],
        ))
    } else {
        IpAddr::V6(address.into()).to_canonical()
    };
    SocketAddr::new(address, port)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, UdpSocket};

    use super::*;

    fn connected(bind: &str, to: SocketAddr) -> UdpSocket {
        let socket = UdpSocket::bind(bind).expect("bind");
        socket.connect(to).expect("connect");
        socket
    }

    /// Needs root, as ending a socket does.
    #[test]
    fn sockets_connected_to_the_endpoint_end_and_others_live() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let [second, other] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("bind"));
        let [endpoint, another] = [&server, &second].map(|s| s.local_addr().expect("address"));
        let also = connected("127.0.0.1:0", another);
        let plain = connected("127.0.0.1:0", endpoint);
        let mapped_address =
            SocketAddr::new(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), endpoint.port());
        let mapped = connected("[::]:0", mapped_address);
        let spared = connected("127.0.0.1:0", other.local_addr().expect("address"));
        assert_eq!(
            end_udp_sockets(&[endpoint, another].into()).expect("this test needs root"),
            Ended::Sockets(3)
        );
        assert!(also.recv(&mut [0]).is_err());
        assert!(plain.recv(&mut [0]).is_err());
        assert!(mapped.recv(&mut [0]).is_err());
        spared.send(b"x").expect("lives");
    }

    #[test]
    fn an_ipv6_endpoint_is_told_apart_from_an_ipv4_one() {
        let mut id = [0; ID];
        id[2..4].copy_from_slice(&53u16.to_be_bytes());
        id[20..36].copy_from_slice(&Ipv6Addr::LOCALHOST.octets());
        let v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 53);
        let v4 = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 53);
        assert_eq!(peer(libc::AF_INET6 as u8, &id), v6);
        assert_ne!(peer(libc::AF_INET6 as u8, &id), v4);
    }
}
