//! Tables of "who dials what, and what comes of it", as the specification has them.
//!
//! Every row is tried in TCP and UDP; all rows that fail are told at the end, not only the first.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::peer::protocol::{Answer, FailureKind};
use crate::scenario::SOON;
use crate::traffic::{Failed, Peer};
use crate::wait::eventually;

/// Long enough to tell silence from a slow answer.
const SILENCE: Duration = Duration::from_millis(700);

/// What comes of dialling.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Each of these servers answers, none else, and sees the client under this address.
    Answered(Vec<(String, IpAddr)>),
    /// At once.
    Refused,
    /// Nothing, ever.
    Silent,
    /// The LAN's router says that nobody has the address: the packet left the node as it came.
    LeftAlone,
}

/// Which protocols a row is tried in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// A row's name, and what was wrong with it.
#[derive(Default)]
pub struct Table {
    rows: usize,
    failures: Vec<String>,
}

impl Outcome {
    /// These servers, each of which sees the client under this address.
    pub fn answered<S: Into<String>>(servers: impl IntoIterator<Item = (S, IpAddr)>) -> Self {
        let servers = servers.into_iter();
        Self::Answered(servers.map(|(name, seen)| (name.into(), seen)).collect())
    }
}

impl Table {
    /// No rows yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tries a row in TCP and UDP.
    pub fn row(
        &mut self,
        name: impl fmt::Display,
        client: &Peer,
        to: SocketAddr,
        outcome: &Outcome,
    ) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            self.row_over(protocol, &name, client, to, outcome);
        }
    }

    /// The same for a row that objects just written may make true only soon. Rows after it find them written.
    pub fn soon(
        &mut self,
        name: impl fmt::Display,
        client: &Peer,
        to: SocketAddr,
        outcome: &Outcome,
    ) {
        // What is still wrong in the end the row itself tells.
        let _ = eventually("a row comes true", SOON, || {
            let protocols = [Protocol::Tcp, Protocol::Udp];
            let good = protocols
                .iter()
                .all(|&protocol| check(protocol, client, to, outcome).is_ok());
            Ok(good.then_some(()))
        });
        self.row(name, client, to, outcome);
    }

    /// Tries a row in one protocol.
    pub fn row_over(
        &mut self,
        protocol: Protocol,
        name: impl fmt::Display,
        client: &Peer,
        to: SocketAddr,
        outcome: &Outcome,
    ) {
        self.rows += 1;
        if let Err(wrong) = check(protocol, client, to, outcome) {
            self.failures.push(format!(
                "{name}: {} → {to} {protocol:?}: expected {outcome:?}, but {wrong}",
                client.name()
            ));
        }
    }

    /// Tells what failed.
    pub fn finish(self) -> Result<()> {
        ensure!(self.rows > 0, "a table without rows");
        ensure!(
            self.failures.is_empty(),
            "{} of {} rows failed:\n{}",
            self.failures.len(),
            self.rows,
            self.failures.join("\n")
        );
        Ok(())
    }
}

fn check(
    protocol: Protocol,
    client: &Peer,
    to: SocketAddr,
    outcome: &Outcome,
) -> Result<(), String> {
    match outcome {
        Outcome::Answered(servers) => answered(protocol, client, to, servers),
        Outcome::Refused => failed(ask(protocol, client, to, SILENCE), FailureKind::Refused),
        // The router's answer comes while connect() still holds the socket, so it counts for the SYN's repetition
        // after a second. A UDP socket takes it for a passing trouble.
        Outcome::LeftAlone => match protocol {
            Protocol::Tcp => failed(
                ask(protocol, client, to, 4 * SILENCE),
                FailureKind::Unreachable,
            ),
            Protocol::Udp => failed(ask(protocol, client, to, SILENCE), FailureKind::TimedOut),
        },
        Outcome::Silent => failed(ask(protocol, client, to, SILENCE), FailureKind::TimedOut),
    }
}

fn answered(
    protocol: Protocol,
    client: &Peer,
    to: SocketAddr,
    servers: &[(String, IpAddr)],
) -> Result<(), String> {
    let mut missing: BTreeSet<&str> = servers.iter().map(|(name, _)| name.as_str()).collect();
    // Each of n equally likely servers misses 20·n tries once in 10⁸.
    let tries = if servers.len() == 1 {
        3
    } else {
        20 * servers.len()
    };
    for number in 0..tries {
        let answer = ask(protocol, client, to, 2 * SILENCE)
            .map_err(|failed| format!("try {number}: {failed}"))?;
        let Some((name, seen)) = servers.iter().find(|(name, _)| *name == answer.server) else {
            return Err(format!("{answer:?}"));
        };
        if answer.from != to || answer.seen.ip() != *seen {
            return Err(format!("{answer:?}"));
        }
        missing.remove(name.as_str());
        if missing.is_empty() && number >= 2 {
            return Ok(());
        }
    }
    if missing.is_empty() {
        Ok(())
    } else {
        Err(format!("{missing:?} never answered"))
    }
}

fn failed(outcome: Result<Answer, Failed>, expected: FailureKind) -> Result<(), String> {
    match &outcome {
        Err(failed) if kind(failed) == Some(expected) => Ok(()),
        _ => Err(shown(outcome)),
    }
}

fn ask(
    protocol: Protocol,
    client: &Peer,
    to: SocketAddr,
    within: Duration,
) -> Result<Answer, Failed> {
    match protocol {
        Protocol::Tcp => client
            .connect_from(0, to, within)?
            .ask_for(None, "hello", within),
        // Only a connected socket hears of a refusal.
        Protocol::Udp => client.udp_connect(to)?.ask_for(None, "hello", within),
    }
}

fn kind(failed: &Failed) -> Option<FailureKind> {
    failed.failure().map(|failure| failure.kind)
}

fn shown(outcome: Result<Answer, Failed>) -> String {
    match outcome {
        Ok(answer) => format!("{answer:?}"),
        Err(failed) => failed.to_string(),
    }
}
