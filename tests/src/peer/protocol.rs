//! What a test and its peers say to each other.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// A wish of the test.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Serve these ports on these addresses from now on.
    Serve {
        name: String,
        addresses: Vec<IpAddr>,
        tcp: Vec<u16>,
        udp: Vec<u16>,
    },
    /// How many requests were served so far?
    Served,
    /// Open a TCP connection.
    Tcp {
        to: SocketAddr,
        from_port: u16,
        timeout_ms: u64,
    },
    /// Open a UDP socket, connected if `to` is given.
    Udp {
        bind: SocketAddr,
        to: Option<SocketAddr>,
    },
    /// Open a UDP socket that is not connected and hears of ICMP errors (`IP_RECVERR`).
    HearingUdp {
        bind: SocketAddr,
    },
    /// Send a line and wait for the answer. `to` is for unconnected UDP sockets.
    Ask {
        socket: u32,
        to: Option<SocketAddr>,
        text: String,
        timeout_ms: u64,
    },
    /// Which addresses does the socket show?
    Names {
        socket: u32,
    },
    Close {
        socket: u32,
    },
    /// Move raw bytes over a new TCP connection and check that they arrive unharmed.
    Bulk {
        to: SocketAddr,
        direction: Direction,
        mebibytes: u32,
        timeout_ms: u64,
    },
    /// Ask many addresses, each often.
    Survey(Survey),
    /// Keep making traffic until told to finish.
    Traffic(Traffic),
    /// How is the traffic going?
    Report {
        task: u32,
    },
    /// End the traffic and tell its result.
    Finish {
        task: u32,
    },
}

/// The way bulk data takes, seen from the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Direction {
    Push,
    Pull,
}

/// Questions that are asked side by side.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Survey {
    pub probes: Vec<Probe>,
}

/// One address to ask, and how.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Probe {
    pub to: SocketAddr,
    pub manner: Manner,
    /// New sockets to ask through, one after the other; failures end the row early.
    pub tries: u32,
    /// When the wait for one answer, or for one connection, ends.
    pub timeout_ms: u64,
}

/// The socket a probe asks through.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Manner {
    Tcp,
    UdpConnected,
    UdpUnconnected,
    /// An echo request (ping); the port means nothing.
    Echo,
}

/// What a probe met.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Findings {
    pub answers: Vec<Seen>,
    /// Failures, what ICMP said of them, and how often.
    pub failures: Vec<(FailureKind, Step, Option<IcmpError>, u32)>,
}

/// A server that answered a probe.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Seen {
    pub server: String,
    /// The server's own address.
    pub own: SocketAddr,
    /// The client's address as the server saw it.
    pub client: IpAddr,
    /// Where the answer came from, as the client saw it.
    pub from: SocketAddr,
    pub count: u32,
}

/// Traffic in the background.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Traffic {
    pub to: SocketAddr,
    pub pattern: Pattern,
    /// Threads that do it at the same time.
    pub clients: u32,
    /// Pause of each between two requests.
    pub pause_us: u64,
    pub timeout_ms: u64,
}

/// What one round of traffic is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Pattern {
    /// A new TCP connection for every request.
    TcpConnections,
    /// Numbered requests on one TCP connection per client.
    TcpStream,
    /// A new unconnected UDP socket for every request.
    UdpSockets,
    /// Numbered requests on one unconnected UDP socket per client.
    UdpStream,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Opened {
        socket: u32,
        names: Names,
        micros: u64,
    },
    Names(Names),
    Answer(Answer),
    Transfer(Transfer),
    /// In the order of the probes.
    Findings(Vec<Findings>),
    Task {
        task: u32,
    },
    Tally(Tally),
    Served(Served),
    Failed(Failure),
}

/// `getsockname` and `getpeername`; the latter is absent on unconnected sockets.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Names {
    pub local: SocketAddr,
    pub peer: Option<SocketAddr>,
}

/// A server's answer, and what the client saw around it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Who answered.
    pub server: String,
    /// The client's address as the server saw it.
    pub seen: SocketAddr,
    /// The server's own address.
    pub own: SocketAddr,
    /// Where the answer came from: `recvfrom` for UDP, `getpeername` for TCP.
    pub from: SocketAddr,
    /// The text that was sent.
    pub text: String,
    pub micros: u64,
}

/// What a transfer achieved.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Transfer {
    pub server: String,
    pub mebibytes_per_second: f64,
    /// Whether every byte arrived as it was sent.
    pub intact: bool,
    /// TCP segments the client's side had to send again.
    pub retransmits: u32,
}

/// Requests served, by protocol.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Served {
    pub tcp: u64,
    pub udp: u64,
}

/// The result of background traffic so far.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Tally {
    /// Answers by server.
    pub answers: BTreeMap<String, u64>,
    /// Failures by kind.
    pub failures: BTreeMap<String, u64>,
    /// The first failures in full.
    pub examples: Vec<String>,
    /// The longest time a request took.
    pub slowest_micros: u64,
}

impl Tally {
    /// All answers.
    pub fn answered(&self) -> u64 {
        self.answers.values().sum()
    }

    /// All failures.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Adds another tally to this one.
    pub fn add(&mut self, other: &Self) {
        for (into, from) in [
            (&mut self.answers, &other.answers),
            (&mut self.failures, &other.failures),
        ] {
            for (name, count) in from {
                *into.entry(name.clone()).or_default() += count;
            }
        }
        self.examples.extend(other.examples.iter().cloned());
        self.examples.truncate(8);
        self.slowest_micros = self.slowest_micros.max(other.slowest_micros);
    }
}

/// Why something did not work.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failure {
    pub kind: FailureKind,
    pub step: Step,
    pub text: String,
    /// The ICMP error behind it, if the socket hears of such.
    pub icmp: Option<IcmpError>,
    pub micros: u64,
}

/// Type and code of an ICMP error, or of ICMPv6 where that address family was dialled.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct IcmpError {
    pub kind: u8,
    pub code: u8,
}

/// The call that failed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Step {
    Open,
    Send,
    Receive,
    /// A request that made no sense, e.g. an unknown socket.
    Request,
}

/// Failures that tests tell apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum FailureKind {
    /// ECONNREFUSED.
    Refused,
    /// Nothing came in time, or ETIMEDOUT.
    TimedOut,
    /// EPERM.
    Denied,
    /// ENETUNREACH, EHOSTUNREACH: routing found no way.
    Unreachable,
    /// ECONNRESET, ECONNABORTED, EPIPE, EDESTADDRREQ, or the peer closed early.
    Broken,
    /// EADDRNOTAVAIL, EADDRINUSE.
    Address,
    /// ENOBUFS: dropped on the way out of this machine.
    Full,
    /// The answer was not the one to this request.
    Wrong,
    Other,
}

impl Failure {
    pub(crate) fn new(step: Step, error: &io::Error) -> Self {
        Self {
            kind: FailureKind::of(error),
            step,
            text: error.to_string(),
            icmp: None,
            micros: 0,
        }
    }
}

impl FailureKind {
    fn of(error: &io::Error) -> Self {
        use io::ErrorKind as E;
        match error.raw_os_error() {
            // A blocking connect under SO_SNDTIMEO ends so.
            Some(libc::EINPROGRESS) => return Self::TimedOut,
            // A connected UDP socket that was destroyed has no peer any more.
            Some(libc::EDESTADDRREQ) => return Self::Broken,
            Some(libc::ENOBUFS) => return Self::Full,
            _ => {}
        }
        match error.kind() {
            E::ConnectionRefused => Self::Refused,
            E::TimedOut | E::WouldBlock => Self::TimedOut,
            E::PermissionDenied => Self::Denied,
            E::HostUnreachable | E::NetworkUnreachable => Self::Unreachable,
            E::ConnectionReset | E::ConnectionAborted | E::BrokenPipe | E::UnexpectedEof => {
                Self::Broken
            }
            E::AddrNotAvailable | E::AddrInUse => Self::Address,
            E::InvalidData => Self::Wrong,
            _ => Self::Other,
        }
    }
}

/// IPv4-mapped addresses in their plain form: servers listen and speak per family.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
