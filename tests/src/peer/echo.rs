//! A ping: one echo request, and the answer or the error that comes back.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use super::client::{at, micros};
use super::protocol::{Answer, Failure, Step};
use super::{icmp_errors, socket};

/// Tells the pings of one process from each other.
static SEQUENCE: AtomicU16 = AtomicU16::new(0);

/// What the answer is called: machines that answer pings do not tell their names.
const SERVER: &str = "echo";

/// Sends one echo request and waits for the answer to it.
pub(super) fn ask(to: IpAddr, timeout: Duration) -> Result<Answer, Failure> {
    let start = Instant::now();
    let socket = socket::icmp(to).map_err(at(Step::Open))?;
    socket
        .connect(SocketAddr::new(to, 0))
        .map_err(at(Step::Open))?;
    icmp_errors::hear(&socket, to.is_ipv4(), true).map_err(at(Step::Open))?;
    let identity = (std::process::id() as u16).to_be_bytes();
    let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let named = [identity, sequence].concat();
    let (request, reply) = if to.is_ipv4() { (8, 0) } else { (128, 129) };
    let mut packet = [&[request, 0, 0, 0], &*named].concat();
    if to.is_ipv4() {
        // The kernel does this for ICMPv6 alone (RFC 3542, 3.1).
        let sum = checksum(&packet).to_be_bytes();
        packet[2..4].copy_from_slice(&sum);
    }
    socket.send(&packet).map_err(at(Step::Send))?;
    let mut buffer = [0; 256];
    loop {
        let left = timeout.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(Failure::new(Step::Receive, &io::ErrorKind::TimedOut.into()));
        }
        socket
            .set_read_timeout(Some(left))
            .map_err(at(Step::Receive))?;
        let length = socket.recv(&mut buffer).map_err(|error| Failure {
            icmp: icmp_errors::take(&socket),
            ..at(Step::Receive)(error)
        })?;
        let mut message = &buffer[..length];
        if to.is_ipv4() {
            // A raw IPv4 socket gets the header too (raw(7)).
            let header = usize::from(message.first().map_or(0, |byte| byte & 15)) * 4;
            message = message.get(header..).unwrap_or_default();
        }
        if message.first() == Some(&reply) && message.get(4..8) == Some(&*named) {
            return Ok(Answer {
                server: SERVER.into(),
                // What the other side saw, it does not tell.
                seen: SocketAddr::new(
                    if to.is_ipv4() {
                        [0; 4].into()
                    } else {
                        [0_u16; 8].into()
                    },
                    0,
                ),
                own: SocketAddr::new(to, 0),
                from: SocketAddr::new(to, 0),
                text: String::new(),
                micros: micros(start),
            });
        }
    }
}

/// RFC 1071, over an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    !((sum & 0xffff) + (sum >> 16)) as u16
}
