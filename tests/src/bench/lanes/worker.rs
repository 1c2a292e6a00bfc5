//! The processes of a lane: a server, and a client that does one thing for as long as it is told and then waits.
//!
//! They are programs of their own, as the kernel judges a socket by the cgroup of the process that opened it. All
//! are bound to one processor: then the inverse of a rate is what a transaction costs.

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::mem;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::histogram::Histogram;

/// Ports of the server: connections that are closed at once, echoes, bulk, and echoes of datagrams.
pub(super) const CONNECT_PORT: u16 = 8080;
pub(super) const ECHO_PORT: u16 = 8081;
pub(super) const BULK_PORT: u16 = 8082;
pub(super) const DATAGRAM_PORT: u16 = 8083;

/// Bytes that are acknowledged in one.
const PIECE: usize = 4 << 20;
/// An answer that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a client does all the time.
#[derive(
    ValueEnum, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub(super) enum Work {
    /// Opens TCP connections and closes each by a reset.
    Connect,
    /// Sends a byte and waits for it to come back, on one connection.
    Request,
    /// Sends pieces of 4 MiB, each acknowledged by a byte.
    Bulk,
    /// Opens a UDP socket, connects it, sends a datagram and waits for it to come back.
    Datagram,
}

impl Work {
    pub(super) const ALL: [Work; 4] = [Self::Connect, Self::Request, Self::Bulk, Self::Datagram];

    /// The server's port.
    pub(super) fn port(self) -> u16 {
        match self {
            Self::Connect => CONNECT_PORT,
            Self::Request => ECHO_PORT,
            Self::Bulk => BULK_PORT,
            Self::Datagram => DATAGRAM_PORT,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Request => "request",
            Self::Bulk => "bulk",
            Self::Datagram => "datagram",
        }
    }
}

/// A lane's client: `bench lane-client`.
#[derive(Args, Clone, Debug)]
pub struct ClientOptions {
    #[arg(long)]
    processor: usize,
    #[arg(long, value_enum)]
    work: Work,
    #[arg(long)]
    to: SocketAddr,
}

/// A lane's server: `bench lane-server`.
#[derive(Args, Clone, Debug)]
pub struct ServerOptions {
    #[arg(long)]
    processor: usize,
    #[arg(long)]
    address: IpAddr,
}

/// What a client did in its turn.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Turn {
    pub(super) done: u64,
    pub(super) nanoseconds: u64,
    pub(super) errors: u64,
    pub(super) latency: Histogram,
}

impl Turn {
    /// Transactions per second.
    pub(super) fn rate(&self) -> f64 {
        self.done as f64 * 1e9 / self.nanoseconds.max(1) as f64
    }
}

/// Takes a number of milliseconds per line, works that long, and answers with what it did.
pub fn client(options: &ClientOptions) -> Result<()> {
    bind_to(options.processor)?;
    let mut worker = Worker::start(options.work, options.to)?;
    let mut output = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let milliseconds = line?.trim().parse().context("a number of milliseconds")?;
        let turn = worker.work_for(Duration::from_millis(milliseconds));
        serde_json::to_writer(&mut output, &turn)?;
        output.write_all(b"\n")?;
        output.flush()?;
    }
    Ok(())
}

enum Worker {
    Connect(SocketAddr),
    Request(TcpStream),
    Bulk(TcpStream, Vec<u8>),
    Datagram(SocketAddr),
}

impl Worker {
    fn start(work: Work, to: SocketAddr) -> Result<Self> {
        let connected = || -> Result<TcpStream> {
            let stream = TcpStream::connect_timeout(&to, PATIENCE)
                .with_context(|| format!("connect to {to}"))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(stream)
        };
        Ok(match work {
            Work::Connect => Self::Connect(to),
            Work::Datagram => Self::Datagram(to),
            Work::Request => Self::Request(connected()?),
            Work::Bulk => Self::Bulk(connected()?, vec![0; PIECE]),
        })
    }

    fn work_for(&mut self, time: Duration) -> Turn {
        let mut turn = Turn::default();
        let begin = Instant::now();
        let mut last = begin;
        while last.duration_since(begin) < time {
            let outcome = self.once();
            let now = Instant::now();
            match outcome {
                Ok(took) => {
                    turn.done += 1;
                    let took = took.unwrap_or(now.duration_since(last));
                    turn.latency.add(took.as_nanos() as u64);
                }
                Err(_) => turn.errors += 1,
            }
            last = now;
        }
        turn.nanoseconds = last.duration_since(begin).as_nanos() as u64;
        turn
    }

    /// One transaction; how long the client waited, if that is not all of it.
    fn once(&mut self) -> io::Result<Option<Duration>> {
        match self {
            Self::Connect(to) => return connect_and_reset(*to).map(Some),
            Self::Request(stream) => {
                let mut byte = [1];
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte)?;
            }
            Self::Bulk(stream, piece) => {
                stream.write_all(piece)?;
                stream.read_exact(&mut [0])?;
            }
            Self::Datagram(to) => ask_once(*to)?,
        }
        Ok(None)
    }
}

/// By a reset, as sockets in TIME_WAIT would use up the ports. Tells how long connect() took.
fn connect_and_reset(to: SocketAddr) -> io::Result<Duration> {
    let socket = tcp_socket(to)?;
    let reset = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    set(&socket, libc::SO_LINGER, &reset)?;
    let late = libc::timeval {
        tv_sec: PATIENCE.as_secs() as i64,
        tv_usec: 0,
    };
    // It bounds connect(), too.
    set(&socket, libc::SO_SNDTIMEO, &late)?;
    let begin = Instant::now();
    connect(&socket, to)?;
    Ok(begin.elapsed())
}

fn ask_once(to: SocketAddr) -> io::Result<()> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => ([0; 4], 0).into(),
        SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    socket.send(b"question")?;
    let mut answer = [0; 16];
    socket.recv(&mut answer).map(drop)
}

/// Serves on one address until its input ends.
pub fn server(options: &ServerOptions) -> Result<()> {
    bind_to(options.processor)?;
    let at = |port| SocketAddr::new(options.address, port);
    let listen =
        |port| TcpListener::bind(at(port)).with_context(|| format!("listen on {}", at(port)));
    let connections = listen(CONNECT_PORT)?;
    thread::spawn(move || connections.incoming().for_each(drop));
    let echoes = listen(ECHO_PORT)?;
    thread::spawn(move || each_connection(&echoes, 1));
    let bulk = listen(BULK_PORT)?;
    thread::spawn(move || each_connection(&bulk, PIECE));
    let datagrams = UdpSocket::bind(at(DATAGRAM_PORT)).context("open the datagram port")?;
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = datagrams.recv_from(&mut buffer) {
            // A client that is gone has lost interest.
            let _ = datagrams.send_to(&buffer[..length], from);
        }
    });
    println!("ready");
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    Ok(())
}

/// Answers each `piece` of bytes by one.
fn each_connection(listener: &TcpListener, piece: usize) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || -> io::Result<()> {
            let mut stream = stream;
            stream.set_nodelay(true)?;
            let mut buffer = vec![0; piece];
            loop {
                stream.read_exact(&mut buffer)?;
                stream.write_all(&[1])?;
            }
        });
    }
}

// ---- system calls ---------------------------------------------------------------------------------------------

/// Binds the calling thread, and those it starts, to one processor.
fn bind_to(processor: usize) -> Result<()> {
    super::super::use_processors(0, &super::super::only(processor))
}

fn tcp_socket(like: SocketAddr) -> io::Result<OwnedFd> {
    let family = if like.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the value is readable for its size; the kernel checks that the option takes as much.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as u32,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn connect(socket: &OwnedFd, to: SocketAddr) -> io::Result<()> {
    // SAFETY: an address of the family's layout and size, which outlives the call; zero is a value for all fields.
    let done = unsafe {
        match to {
            SocketAddr::V4(to) => {
                let mut address: libc::sockaddr_in = mem::zeroed();
                address.sin_family = libc::AF_INET as u16;
                address.sin_port = to.port().to_be();
                address.sin_addr.s_addr = u32::from_ne_bytes(to.ip().octets());
                libc::connect(
                    socket.as_raw_fd(),
                    (&raw const address).cast(),
                    size_of_val(&address) as u32,
                )
            }
            SocketAddr::V6(to) => {
                let mut address: libc::sockaddr_in6 = mem::zeroed();
                address.sin6_family = libc::AF_INET6 as u16;
                address.sin6_port = to.port().to_be();
                address.sin6_addr.s6_addr = to.ip().octets();
                libc::connect(
                    socket.as_raw_fd(),
                    (&raw const address).cast(),
                    size_of_val(&address) as u32,
                )
            }
        }
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Two processors: for what is timed, and for everything else.
pub(super) fn processors() -> Result<(usize, usize)> {
    let all = super::super::processors()?;
    let mut found =
        (0..libc::CPU_SETSIZE as usize).filter(|&cpu| super::super::contains(&all, cpu));
    let (Some(other), Some(timed)) = (found.next(), found.next()) else {
        bail!("the benchmark needs two processors");
    };
    ensure!(other != timed, "two processors are one");
    Ok((timed, other))
}
