//! Traffic in the background, counted by who answered and what failed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::client::{Client, micros};
use super::protocol::{Answer, Failure, Pattern, Tally, Traffic};

/// Failures kept in full; the rest is only counted.
const EXAMPLES: usize = 8;

/// Running traffic.
pub(super) struct Task {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    clients: Vec<JoinHandle<()>>,
}

impl Task {
    /// Starts the clients.
    pub(super) fn start(traffic: &Traffic) -> Self {
        let (stop, tally) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(Mutex::new(Tally::default())),
        );
        let clients = (0..traffic.clients).map(|_| {
            let (traffic, stop, tally) = (traffic.clone(), Arc::clone(&stop), Arc::clone(&tally));
            thread::spawn(move || run(&traffic, &stop, &tally))
        });
        Self {
            clients: clients.collect(),
            stop,
            tally,
        }
    }

    /// The counts so far.
    pub(super) fn report(&self) -> Tally {
        self.tally
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Ends the clients after their current request.
    pub(super) fn finish(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            let _ = client.join();
        }
        self.tally
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn run(traffic: &Traffic, stop: &AtomicBool, tally: &Mutex<Tally>) {
    let mut stream = None;
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        number += 1;
        let outcome = round(traffic, &mut stream, number);
        let failed = outcome.is_err();
        count(
            &mut tally.lock().unwrap_or_else(PoisonError::into_inner),
            outcome,
            number,
            micros(start),
        );
        if failed {
            // A stream starts again; and what fails at once must not fail a million times.
            stream = None;
            thread::sleep(Duration::from_millis(10));
        }
        if traffic.pause_us > 0 {
            thread::sleep(Duration::from_micros(traffic.pause_us));
        }
    }
}

fn round(traffic: &Traffic, stream: &mut Option<Client>, number: u64) -> Result<Answer, Failure> {
    let timeout = Duration::from_millis(traffic.timeout_ms);
    let (is_stream, to) = match traffic.pattern {
        Pattern::TcpConnections => (false, None),
        Pattern::TcpStream => (true, None),
        Pattern::UdpSockets => (false, Some(traffic.to)),
        Pattern::UdpStream => (true, Some(traffic.to)),
    };
    let mut client = match stream.take() {
        Some(client) => client,
        None if to.is_some() => Client::udp(any(traffic.to), None)?,
        None => Client::tcp(traffic.to, 0, timeout)?,
    };
    let answer = client.ask(to, &number.to_string(), timeout)?;
    if is_stream {
        *stream = Some(client);
    } else {
        client.close_by_reset();
    }
    Ok(answer)
}

fn count(tally: &mut Tally, outcome: Result<Answer, Failure>, number: u64, micros: u64) {
    tally.slowest_micros = tally.slowest_micros.max(micros);
    match outcome {
        Ok(answer) => *tally.answers.entry(answer.server).or_default() += 1,
        Err(failure) => {
            *tally
                .failures
                .entry(format!("{:?}", failure.kind))
                .or_default() += 1;
            if tally.examples.len() < EXAMPLES {
                let Failure {
                    kind,
                    step,
                    text,
                    icmp: _,
                    micros,
                } = failure;
                tally.examples.push(format!(
                    "request {number}: {kind:?} at {step:?} after {micros} µs: {text}"
                ));
            }
        }
    }
}

fn any(to: SocketAddr) -> SocketAddr {
    if to.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    }
}
