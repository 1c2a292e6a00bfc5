//! One socket of a client, and a question asked through it.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::protocol::{Answer, Failure, FailureKind, Names, Step};
use super::{icmp_errors, server, socket};

/// An open socket.
pub(super) enum Client {
    Tcp(BufReader<TcpStream>),
    Udp(UdpSocket),
}

impl Client {
    /// Connects over TCP.
    pub(super) fn tcp(to: SocketAddr, from_port: u16, timeout: Duration) -> Result<Self, Failure> {
        timed(|| {
            let stream = socket::connect(to, from_port, timeout)?;
            stream.set_nodelay(true).map_err(at(Step::Open))?;
            Ok(Self::Tcp(BufReader::new(stream)))
        })
    }

    /// Opens a UDP socket, connected if `to` is given.
    pub(super) fn udp(bind: SocketAddr, to: Option<SocketAddr>) -> Result<Self, Failure> {
        timed(|| {
            let socket = UdpSocket::bind(bind).map_err(at(Step::Open))?;
            if let Some(to) = to {
                socket.connect(to).map_err(at(Step::Open))?;
            }
            Ok(Self::Udp(socket))
        })
    }

    /// Makes a UDP socket hear of ICMP errors although it is not connected, and know which they were.
    pub(super) fn hear_errors(&self) -> Result<(), Failure> {
        match self {
            Self::Tcp(_) => Ok(()),
            Self::Udp(socket) => socket
                .local_addr()
                .and_then(|own| icmp_errors::hear(socket, own.is_ipv4(), true))
                .map_err(at(Step::Open)),
        }
    }

    /// Sends a line and waits for the answer to it.
    pub(super) fn ask(
        &mut self,
        to: Option<SocketAddr>,
        text: &str,
        timeout: Duration,
    ) -> Result<Answer, Failure> {
        timed(|| {
            let start = Instant::now();
            let (line, from) = match self {
                Self::Tcp(stream) => (
                    ask_stream(stream, text, timeout)?,
                    stream.get_ref().peer_addr(),
                ),
                Self::Udp(socket) => {
                    let (line, from) =
                        ask_datagram(socket, to, text, timeout).map_err(|failure| Failure {
                            icmp: icmp_errors::take(socket),
                            ..failure
                        })?;
                    (line, Ok(from))
                }
            };
            let from = from.map_err(at(Step::Receive))?;
            let answer = server::parse(&line, from, micros(start)).map_err(at(Step::Receive))?;
            if answer.text == text {
                Ok(answer)
            } else {
                let text = format!("asked {text:?}, got the answer to {:?}", answer.text);
                Err(Failure {
                    kind: FailureKind::Wrong,
                    step: Step::Receive,
                    text,
                    icmp: None,
                    micros: 0,
                })
            }
        })
    }

    /// The addresses the socket shows.
    pub(super) fn names(&self) -> io::Result<Names> {
        Ok(match self {
            Self::Tcp(stream) => Names {
                local: stream.get_ref().local_addr()?,
                peer: Some(stream.get_ref().peer_addr()?),
            },
            Self::Udp(socket) => Names {
                local: socket.local_addr()?,
                peer: socket.peer_addr().ok(),
            },
        })
    }

    /// Makes closing leave nothing behind.
    pub(super) fn close_by_reset(&self) {
        if let Self::Tcp(stream) = self {
            // Without it the port rests in TIME_WAIT: slower, not wrong.
            let _ = socket::close_by_reset(stream.get_ref());
        }
    }
}

/// Turns an I/O error into a failure of that step.
pub(super) fn at(step: Step) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure::new(step, &error)
}

/// Microseconds since `start`.
pub(super) fn micros(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn timed<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let start = Instant::now();
    work().map_err(|failure| Failure {
        micros: micros(start),
        ..failure
    })
}

fn ask_stream(
    stream: &mut BufReader<TcpStream>,
    text: &str,
    timeout: Duration,
) -> Result<String, Failure> {
    stream
        .get_ref()
        .set_read_timeout(Some(timeout))
        .map_err(at(Step::Send))?;
    stream
        .get_mut()
        .write_all(format!("{text}\n").as_bytes())
        .map_err(at(Step::Send))?;
    let mut line = String::new();
    match stream.read_line(&mut line).map_err(at(Step::Receive))? {
        0 => Err(Failure::new(
            Step::Receive,
            &io::ErrorKind::UnexpectedEof.into(),
        )),
        _ => Ok(line),
    }
}

fn ask_datagram(
    socket: &UdpSocket,
    to: Option<SocketAddr>,
    text: &str,
    timeout: Duration,
) -> Result<(String, SocketAddr), Failure> {
    socket
        .set_read_timeout(Some(timeout))
        .map_err(at(Step::Send))?;
    match to {
        Some(to) => socket.send_to(text.as_bytes(), to),
        None => socket.send(text.as_bytes()),
    }
    .map_err(at(Step::Send))?;
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).map_err(at(Step::Receive))?;
    Ok((
        String::from_utf8_lossy(&buffer[..length]).into_owned(),
        from,
    ))
}
