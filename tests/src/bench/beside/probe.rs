//! Who is led where, seen by a client that connects all the time; and the server it meets.
//!
//! Both are programs of their own, as the kernel judges a socket by the cgroup of the process that opened it.

use std::env;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use lb_agent::sys::clock::monotonic;

use crate::peer::close_by_reset;
use crate::process::Place;

/// Ports of the server, and what it says on each.
pub(super) const PORTS: [(u16, u8); 2] = [(8080, b'A'), (8081, b'B')];
/// Between two connections.
const PAUSE: Duration = Duration::from_micros(200);

/// `bench probe-client`.
#[derive(Args, Clone, Debug)]
pub struct ClientOptions {
    #[arg(long)]
    to: SocketAddr,
    /// Milliseconds after which a connection counts as failed
    #[arg(long)]
    patience: u64,
}

/// `bench probe-server`.
#[derive(Args, Clone, Debug)]
pub struct ServerOptions {
    #[arg(long)]
    address: IpAddr,
}

static TRIES: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);

/// Connects until its input ends and tells each time that something else answers. A line of input asks for the counts.
pub fn client(options: &ClientOptions) -> Result<()> {
    let (to, patience) = (options.to, Duration::from_millis(options.patience));
    thread::spawn(move || watch(to, patience));
    for _ in io::stdin().lock().lines() {
        println!("count {} {}", TRIES.load(Relaxed), FAILED.load(Relaxed));
    }
    Ok(())
}

/// Connects for ever; who no longer listens to what it says ends it.
fn watch(to: SocketAddr, patience: Duration) -> io::Result<()> {
    let mut last = None;
    loop {
        let met = ask(to, patience);
        TRIES.fetch_add(1, Relaxed);
        FAILED.fetch_add(u64::from(met.is_err()), Relaxed);
        let met = met.map_or('-', char::from);
        if last.replace(met) != Some(met) {
            let mut out = io::stdout().lock();
            writeln!(out, "met {} {met}", monotonic().as_nanos())?;
            out.flush()?;
        }
        thread::sleep(PAUSE);
    }
}

fn ask(to: SocketAddr, patience: Duration) -> io::Result<u8> {
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    // By a reset: sockets in TIME_WAIT would use up the ports.
    close_by_reset(&stream)?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// Says who it is to everyone who connects.
pub fn server(options: &ServerOptions) -> Result<()> {
    for (port, name) in PORTS {
        let listener = TcpListener::bind((options.address, port)).context("listen")?;
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                // The client may be gone.
                let _ = stream.write_all(&[name]);
            }
        });
    }
    println!("ready");
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// What a client tells.
enum Told {
    Met(Duration, char),
    Count(u64, u64),
}

/// A client or server at work. Dropping it ends it.
pub(super) struct Probe {
    child: Child,
    input: ChildStdin,
    told: Receiver<Told>,
}

impl Probe {
    pub(super) fn client(place: &Place, to: SocketAddr, patience: Duration) -> Result<Self> {
        let patience = patience.as_millis().to_string();
        let arguments = [
            "probe-client",
            "--to",
            &to.to_string(),
            "--patience",
            &patience,
        ];
        Self::start(place, &arguments)
    }

    pub(super) fn server(place: &Place, address: IpAddr) -> Result<Self> {
        Self::start(place, &["probe-server", "--address", &address.to_string()])
    }

    fn start(place: &Place, arguments: &[&str]) -> Result<Self> {
        let mut command = place.command(env::current_exe()?)?;
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        let input = child.stdin.take().context("a child without an input")?;
        let output = child.stdout.take().context("a child without an output")?;
        let (tell, told) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let words: Vec<&str> = line.split(' ').collect();
                let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
                let said = match words[0] {
                    "met" => number(1)
                        .zip(words.get(2).and_then(|word| word.chars().next()))
                        .map(|(at, who)| Told::Met(Duration::from_nanos(at), who)),
                    "count" => number(1)
                        .zip(number(2))
                        .map(|(all, failed)| Told::Count(all, failed)),
                    _ => None,
                };
                if said.is_some_and(|said| tell.send(said).is_err()) {
                    return;
                }
            }
        });
        Ok(Self { child, input, told })
    }

    /// When this one answered for the first time since the last question, in the monotonic clock's time.
    pub(super) fn met(&self, who: u8, patience: Duration) -> Result<Duration> {
        let end = Instant::now() + patience;
        loop {
            match self
                .told
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(Told::Met(at, met)) if met == char::from(who) => return Ok(at),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    bail!("nobody met {} within {patience:?}", char::from(who))
                }
                Err(RecvTimeoutError::Disconnected) => bail!("the client ended"),
            }
        }
    }

    /// Connections so far, and how many of them failed.
    pub(super) fn count(&mut self) -> Result<(u64, u64)> {
        writeln!(self.input)?;
        loop {
            match self.told.recv_timeout(Duration::from_secs(10)) {
                Ok(Told::Count(all, failed)) => return Ok((all, failed)),
                Ok(Told::Met(..)) => {}
                Err(error) => bail!("the client counts nothing: {error}"),
            }
        }
    }

    pub(super) fn check_alive(&mut self) -> Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(ended.is_none(), "a probe ended: {ended:?}");
        Ok(())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // Both fail only for a process that is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
