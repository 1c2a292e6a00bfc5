//! A test's hold on a peer process: ask, connect, make traffic, kill.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{env, fmt};

use anyhow::{Context as _, Result, bail};

use crate::peer::protocol::{
    Answer, Direction, Failure, Findings, Names, Pattern, Probe, Reply, Request, Served, Survey,
    Tally, Traffic, Transfer,
};
use crate::process::Place;

/// How long one call may take unless a test says otherwise. No test should need nearly as much.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// Makes the demo act as a peer; the program `peer` needs no telling.
pub const PEER_ARGUMENT: &str = "peer";

/// A process that serves or asks. Dropping it kills it.
pub struct Peer {
    name: String,
    addresses: Vec<IpAddr>,
    process: Mutex<Child>,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

/// A socket in a peer process; closed when dropped.
pub struct Socket<'a> {
    peer: &'a Peer,
    number: u32,
    /// What the socket showed when it was opened.
    pub names: Names,
    /// How long opening it took.
    pub micros: u64,
}

/// Traffic in the background.
pub struct Flood<'a> {
    peer: &'a Peer,
    task: u32,
}

impl Peer {
    /// Starts a process. `addresses` are its own, on which it may serve.
    pub fn start(name: &str, place: &Place, addresses: &[IpAddr]) -> Result<Self> {
        let mut command = place.command(program()?)?;
        let mut child = command
            .arg(PEER_ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a peer process")?;
        let input = child.stdin.take().context("a peer without an input")?;
        let output = BufReader::new(child.stdout.take().context("a peer without an output")?);
        let (process, pipes) = (Mutex::new(child), Mutex::new((input, output)));
        Ok(Self {
            name: name.into(),
            addresses: addresses.into(),
            process,
            pipes,
        })
    }

    /// What the process calls itself.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Serves ports from now on.
    pub fn serve(&self, tcp: &[u16], udp: &[u16]) -> Result<()> {
        let (name, addresses) = (self.name.clone(), self.addresses.clone());
        self.expect(
            Request::Serve {
                name,
                addresses,
                tcp: tcp.into(),
                udp: udp.into(),
            },
            |reply| match reply {
                Reply::Done => Some(()),
                _ => None,
            },
        )
    }

    /// How many requests this process has served.
    pub fn served(&self) -> Result<Served> {
        self.expect(Request::Served, |reply| match reply {
            Reply::Served(served) => Some(served),
            _ => None,
        })
    }

    /// Opens a TCP connection.
    pub fn connect(&self, to: SocketAddr) -> Result<Socket<'_>, Failed> {
        self.connect_from(0, to, PATIENCE)
    }

    /// Opens a TCP connection from a given port, 0 for any.
    pub fn connect_from(
        &self,
        from_port: u16,
        to: SocketAddr,
        within: Duration,
    ) -> Result<Socket<'_>, Failed> {
        self.open(Request::Tcp {
            to,
            from_port,
            timeout_ms: millis(within),
        })
    }

    /// Opens a UDP socket that is not connected. It carries the family of `like`.
    pub fn udp(&self, like: SocketAddr) -> Result<Socket<'_>, Failed> {
        self.open(Request::Udp {
            bind: any(like, 0),
            to: None,
        })
    }

    /// Opens a UDP socket on a given port that is not connected.
    pub fn udp_from(&self, from_port: u16, like: SocketAddr) -> Result<Socket<'_>, Failed> {
        self.open(Request::Udp {
            bind: any(like, from_port),
            to: None,
        })
    }

    /// The same, and it hears of ICMP errors as a connected one does.
    pub fn udp_hearing(&self, from_port: u16, like: SocketAddr) -> Result<Socket<'_>, Failed> {
        self.open(Request::HearingUdp {
            bind: any(like, from_port),
        })
    }

    /// Opens a connected UDP socket.
    pub fn udp_connect(&self, to: SocketAddr) -> Result<Socket<'_>, Failed> {
        self.open(Request::Udp {
            bind: any(to, 0),
            to: Some(to),
        })
    }

    /// One question over a TCP connection of its own.
    pub fn ask_tcp(&self, to: SocketAddr) -> Result<Answer, Failed> {
        self.connect(to)?.ask("hello")
    }

    /// One question over a UDP socket of its own, not connected.
    pub fn ask_udp(&self, to: SocketAddr) -> Result<Answer, Failed> {
        self.udp(to)?.ask_at(to, "hello")
    }

    /// Whether a machine answers at this address at all, be it with a refusal.
    pub fn reaches(&self, address: IpAddr) -> bool {
        use crate::peer::protocol::FailureKind::Refused;
        match self.connect_from(0, SocketAddr::new(address, 9), Duration::from_secs(1)) {
            Ok(_) => true,
            Err(error) => error
                .failure()
                .is_some_and(|failure| failure.kind == Refused),
        }
    }

    /// Moves bytes over a TCP connection and checks them.
    pub fn bulk(
        &self,
        to: SocketAddr,
        direction: Direction,
        mebibytes: u32,
    ) -> Result<Transfer, Failed> {
        let request = Request::Bulk {
            to,
            direction,
            mebibytes,
            timeout_ms: millis(10 * PATIENCE),
        };
        self.call_for(&request, |reply| match reply {
            Reply::Transfer(transfer) => Some(transfer),
            _ => None,
        })
    }

    /// Asks all these addresses; the findings are in the order of the probes.
    pub fn survey(&self, probes: Vec<Probe>) -> Result<Vec<Findings>> {
        self.expect(Request::Survey(Survey { probes }), |reply| match reply {
            Reply::Findings(findings) => Some(findings),
            _ => None,
        })
    }

    /// Starts traffic in the background: `clients` at once, each resting `pause` between requests.
    pub fn flood(
        &self,
        pattern: Pattern,
        to: SocketAddr,
        clients: u32,
        pause: Duration,
    ) -> Result<Flood<'_>> {
        let pause_us = u64::try_from(pause.as_micros())?;
        let traffic = Traffic {
            to,
            pattern,
            clients,
            pause_us,
            // A SYN that a busy machine loses is sent again after 1, 3 and 7 s. That is no failure of the service.
            timeout_ms: millis(4 * PATIENCE),
        };
        let task = self.expect(Request::Traffic(traffic), |reply| match reply {
            Reply::Task { task } => Some(task),
            _ => None,
        })?;
        Ok(Flood { peer: self, task })
    }

    /// Kills the process; the kernel closes its sockets.
    pub fn kill(&self) {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        // Both fail only for a process that is gone already.
        let _ = process.kill();
        let _ = process.wait();
    }

    fn open(&self, request: Request) -> Result<Socket<'_>, Failed> {
        let (number, names, micros) = self.call_for(&request, |reply| match reply {
            Reply::Opened {
                socket,
                names,
                micros,
            } => Some((socket, names, micros)),
            _ => None,
        })?;
        Ok(Socket {
            peer: self,
            number,
            names,
            micros,
        })
    }

    /// A request that cannot fail on the network: any failure is the test's.
    fn expect<T>(&self, request: Request, read: impl FnOnce(Reply) -> Option<T>) -> Result<T> {
        self.call_for(&request, read)
            .with_context(|| format!("{} at {request:?}", self.name))
    }

    fn call_for<T>(
        &self,
        request: &Request,
        read: impl FnOnce(Reply) -> Option<T>,
    ) -> Result<T, Failed> {
        match self.call(request)? {
            Reply::Failed(failure) => Err(Failed::Network {
                who: self.name.clone(),
                request: format!("{request:?}"),
                failure,
            }),
            reply => read(reply)
                .context("a reply to another request")
                .map_err(Failed::Harness),
        }
    }

    fn call(&self, request: &Request) -> Result<Reply> {
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        let (input, output) = &mut *pipes;
        let line = serde_json::to_string(request)? + "\n";
        input
            .write_all(line.as_bytes())
            .with_context(|| format!("telling {} to {request:?}", self.name))?;
        let mut line = String::new();
        if output
            .read_line(&mut line)
            .context("reading a peer's reply")?
            == 0
        {
            bail!("{} ended during {request:?}", self.name);
        }
        serde_json::from_str(&line).with_context(|| format!("{} replied {line}", self.name))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill();
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Socket<'_> {
    /// Asks on a connected socket.
    pub fn ask(&self, text: &str) -> Result<Answer, Failed> {
        self.ask_for(None, text, PATIENCE)
    }

    /// Asks an address through an unconnected UDP socket.
    pub fn ask_at(&self, to: SocketAddr, text: &str) -> Result<Answer, Failed> {
        self.ask_for(Some(to), text, PATIENCE)
    }

    /// Asks and waits no longer than `within`.
    pub fn ask_for(
        &self,
        to: Option<SocketAddr>,
        text: &str,
        within: Duration,
    ) -> Result<Answer, Failed> {
        let request = Request::Ask {
            socket: self.number,
            to,
            text: text.into(),
            timeout_ms: millis(within),
        };
        self.peer.call_for(&request, |reply| match reply {
            Reply::Answer(answer) => Some(answer),
            _ => None,
        })
    }

    /// The addresses the socket shows now.
    pub fn names_now(&self) -> Result<Names, Failed> {
        self.peer.call_for(
            &Request::Names {
                socket: self.number,
            },
            |reply| match reply {
                Reply::Names(names) => Some(names),
                _ => None,
            },
        )
    }
}

impl Drop for Socket<'_> {
    fn drop(&mut self) {
        // A peer that was killed has closed its sockets already.
        let _ = self.peer.call(&Request::Close {
            socket: self.number,
        });
    }
}

impl Flood<'_> {
    /// The counts so far.
    pub fn report(&self) -> Result<Tally> {
        self.tally(Request::Report { task: self.task })
    }

    /// Ends the traffic.
    pub fn finish(self) -> Result<Tally> {
        self.tally(Request::Finish { task: self.task })
    }

    fn tally(&self, request: Request) -> Result<Tally> {
        self.peer.expect(request, |reply| match reply {
            Reply::Tally(tally) => Some(tally),
            _ => None,
        })
    }
}

/// What a peer's call ended with instead of a result.
#[derive(Debug)]
pub enum Failed {
    /// The network said no, which tests may well expect.
    Network {
        who: String,
        request: String,
        failure: Failure,
    },
    /// The harness itself failed.
    Harness(anyhow::Error),
}

impl Failed {
    /// What the network said.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Network { failure, .. } => Some(failure),
            Self::Harness(_) => None,
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network {
                who,
                request,
                failure:
                    Failure {
                        kind,
                        step,
                        text,
                        icmp: _,
                        micros,
                    },
            } => {
                write!(
                    f,
                    "{who}: {kind:?} at {step:?} after {micros} µs ({text}) during {request}"
                )
            }
            Self::Harness(error) => write!(f, "{error:#}"),
        }
    }
}

impl std::error::Error for Failed {}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Self::Harness(error)
    }
}

/// The peer program: the demo is one itself; cargo puts the tests' one directory above them.
fn program() -> Result<PathBuf> {
    let this = env::current_exe().context("looking for this program")?;
    if this.file_name().is_some_and(|name| name == "demo") {
        return Ok(this);
    }
    let mut places = this
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("peer"));
    places
        .find(|path| path.is_file())
        .context("there is no `peer` program: run `cargo build -p lb-tests`")
}

fn any(like: SocketAddr, port: u16) -> SocketAddr {
    if like.is_ipv4() {
        ([0; 4], port).into()
    } else {
        ([0_u16; 8], port).into()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
