//! Servers that tell who they are.
//!
//! Each line (TCP) or datagram (UDP) is answered by `<name> <client's address> <own address> <text>`, so that a
//! person with `nc` can read it too. `push <n>` and `pull <n>` on TCP move raw bytes (see [`super::bulk`]).

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::protocol::{Answer, Served, plain};
use super::{PULL, PUSH, bulk};

/// The servers of this process.
#[derive(Default)]
pub(super) struct Servers {
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    tcp: AtomicU64,
    udp: AtomicU64,
}

impl Servers {
    /// Opens the ports; they answer until the process ends.
    pub(super) fn serve(
        &self,
        name: &str,
        addresses: &[IpAddr],
        tcp: &[u16],
        udp: &[u16],
    ) -> io::Result<()> {
        for &address in addresses {
            for &port in tcp {
                let listener = TcpListener::bind((address, port))?;
                let (name, counts) = (name.to_owned(), Arc::clone(&self.counts));
                thread::spawn(move || accept(&name, &listener, &counts));
            }
            for &port in udp {
                let socket = UdpSocket::bind((address, port))?;
                let (name, counts) = (name.to_owned(), Arc::clone(&self.counts));
                thread::spawn(move || answer_datagrams(&name, &socket, &counts));
            }
        }
        Ok(())
    }

    /// How many requests were answered.
    pub(super) fn served(&self) -> Served {
        Served {
            tcp: self.counts.tcp.load(Ordering::Relaxed),
            udp: self.counts.udp.load(Ordering::Relaxed),
        }
    }
}

/// Reads an answer line; `from` is what the client knows about its origin.
pub(super) fn parse(line: &str, from: SocketAddr, micros: u64) -> io::Result<Answer> {
    let strange = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("not an answer of ours: {line:?}"),
        )
    };
    let mut words = line.trim_end().splitn(4, ' ');
    let mut word = || words.next().ok_or_else(strange);
    let server = word()?.to_owned();
    let seen = word()?.parse().map_err(|_| strange())?;
    let own = word()?.parse().map_err(|_| strange())?;
    Ok(Answer {
        server,
        seen,
        own,
        from,
        text: word()?.to_owned(),
        micros,
    })
}

fn accept(name: &str, listener: &TcpListener, counts: &Arc<Counts>) {
    for stream in listener.incoming().filter_map(Result::ok) {
        let (name, counts) = (name.to_owned(), Arc::clone(counts));
        // A client that goes away is the client's business, and so is the error.
        thread::spawn(move || converse(&name, stream, &counts));
    }
}

fn converse(name: &str, stream: TcpStream, counts: &Counts) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (peer, own) = (plain(stream.peer_addr()?), plain(stream.local_addr()?));
    let mut output = stream.try_clone()?;
    let mut input = BufReader::new(stream);
    let mut line = String::new();
    while input.read_line(&mut line)? > 0 {
        let text = line.trim_end();
        let (word, count) = text.split_once(' ').unwrap_or((text, ""));
        counts.tcp.fetch_add(1, Ordering::Relaxed);
        let verdict = match (word, count.parse()) {
            (PUSH, Ok(count)) => {
                if bulk::receive(&mut input, count)? {
                    "intact"
                } else {
                    "damaged"
                }
            }
            (PULL, Ok(count)) => {
                bulk::send(&mut output, count)?;
                "sent"
            }
            _ => text,
        };
        output.write_all(format!("{name} {peer} {own} {verdict}\n").as_bytes())?;
        line.clear();
    }
    Ok(())
}

fn answer_datagrams(name: &str, socket: &UdpSocket, counts: &Counts) {
    let mut buffer = [0; 2048];
    let Ok(own) = socket.local_addr() else { return };
    loop {
        // An error here is the echo of an earlier answer that found no reader.
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let text = String::from_utf8_lossy(&buffer[..length]);
        counts.udp.fetch_add(1, Ordering::Relaxed);
        let answer = format!(
            "{name} {} {} {}\n",
            plain(peer),
            plain(own),
            text.trim_end()
        );
        let _ = socket.send_to(answer.as_bytes(), peer);
    }
}
