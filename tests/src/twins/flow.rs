//! A client that goes on talking: one socket in each twin, kept for the length of a story.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use super::outcome::Outcome;
use super::question::{Aim, Question};
use super::stage::Who;
use super::telling::client;
use crate::peer::protocol::{FailureKind, Manner};
use crate::traffic::{Failed, Peer, Socket};

/// How long silence is listened to.
const PATIENCE: Duration = Duration::from_millis(600);

/// The same for a connection: a refusal by ICMPv6 may show with the second SYN only (spec §8, D2).
const CONNECTING: Duration = Duration::from_millis(1600);

/// What kind of client it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// One TCP connection.
    Connection,
    /// A new TCP connection each time.
    Fresh,
    /// An unconnected UDP socket on this port.
    Bound(u16),
    /// A connected UDP socket.
    Dialled,
}

/// A flow in all twins.
pub struct Flow<'a> {
    pub story: usize,
    pub question: Question,
    pub way: Way,
    held: Vec<Held<'a>>,
    /// What it met last, by twin.
    pub met: Vec<Outcome>,
}

/// A socket in one twin.
struct Held<'a> {
    peer: &'a Peer,
    socket: Result<Socket<'a>, Failed>,
}

impl<'a> Flow<'a> {
    /// Opens it in each twin.
    pub(super) fn open(
        story: usize,
        who: Who,
        aim: Aim,
        to: SocketAddr,
        way: Way,
        peers: impl Iterator<Item = &'a Peer>,
    ) -> Self {
        let held: Vec<_> = peers
            .map(|peer| {
                let socket = match way {
                    Way::Connection | Way::Fresh => peer.connect_from(0, to, CONNECTING),
                    Way::Bound(port) => peer.udp_hearing(port, to),
                    Way::Dialled => peer.udp_connect(to),
                };
                Held { peer, socket }
            })
            .collect();
        let manner = match way {
            Way::Connection | Way::Fresh => Manner::Tcp,
            Way::Bound(_) => Manner::UdpUnconnected,
            Way::Dialled => Manner::UdpConnected,
        };
        Self {
            story,
            question: Question {
                client: client(who),
                case: Some(story),
                aim,
                to,
                manner,
                endpoints: 1,
                sticky: false,
                unnamed_self: false,
            },
            way,
            met: vec![Outcome::default(); held.len()],
            held,
        }
    }

    /// Asks once in one twin; `number` tells the answer from late ones.
    pub(super) fn sample(&self, twin: usize, number: u64) -> Result<Outcome> {
        let held = &self.held[twin];
        let text = number.to_string();
        let to = self.question.to;
        loop {
            let answer = match (self.way, &held.socket) {
                (Way::Fresh, _) => held
                    .peer
                    .connect_from(0, to, CONNECTING)
                    .and_then(|socket| socket.ask_for(None, &text, PATIENCE)),
                (_, Err(failed)) => return self.failed(failed),
                (Way::Connection | Way::Dialled, Ok(socket)) => {
                    socket.ask_for(None, &text, PATIENCE)
                }
                (Way::Bound(_), Ok(socket)) => socket.ask_for(Some(to), &text, PATIENCE),
            };
            match answer {
                Ok(answer) => return Ok(Outcome::answered(&answer, to)),
                // Late, and no answer to this question; there are no more of them than questions were asked.
                Err(failed)
                    if failed
                        .failure()
                        .is_some_and(|f| f.kind == FailureKind::Wrong) => {}
                Err(failed) => return self.failed(&failed),
            }
        }
    }

    fn failed(&self, failed: &Failed) -> Result<Outcome> {
        let Some(failure) = failed.failure() else {
            anyhow::bail!("{self}: {failed}");
        };
        let kind = match failure.kind {
            // A socket that hears of errors learns that its packet was dropped before it left: silence, too.
            FailureKind::Full => FailureKind::TimedOut,
            // Where a packet went to the network's own router, the client may hear of it late or not at all.
            FailureKind::Unreachable if self.question.aim == Aim::Vip => FailureKind::TimedOut,
            kind => kind,
        };
        Ok(Outcome::failed(kind))
    }
}

impl fmt::Display for Flow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Question { aim, to, .. } = &self.question;
        let (who, way) = (self.question.who(), self.way);
        write!(f, "{who:?} → {aim:?} {to}, {way:?}")
    }
}

/// One thing met, so many times in a row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Met {
    outcome: Outcome,
    times: u32,
}

impl Met {
    /// Adds to a line.
    pub(super) fn note(line: &mut Vec<Self>, outcome: Outcome) {
        match line.last_mut() {
            Some(last) if last.outcome == outcome => last.times += 1,
            _ => line.push(Self { outcome, times: 1 }),
        }
    }

    /// A line for a person.
    pub(super) fn text(line: &[Self]) -> String {
        let words = line
            .iter()
            .map(|met| format!("{}·({})", met.times, met.outcome));
        words.collect::<Vec<_>>().join(" ")
    }
}

/// What a line has in it, without single losses: a packet that is on its way while rules change may find no way back.
pub(super) fn losses_left_out(line: &[Met]) -> Vec<&Outcome> {
    line.iter()
        .filter(|met| met.times > 1 || !met.outcome.is_just(FailureKind::TimedOut))
        .map(|met| &met.outcome)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lost_packet_is_left_out_and_two_are_not() {
        let silence = Outcome::failed(FailureKind::TimedOut);
        let refusal = Outcome::failed(FailureKind::Refused);
        let mut line = Vec::new();
        for outcome in [&refusal, &silence, &refusal] {
            Met::note(&mut line, outcome.clone());
        }
        assert_eq!(losses_left_out(&line), [&refusal, &refusal]);
        for outcome in [&silence, &silence] {
            Met::note(&mut line, outcome.clone());
        }
        assert_eq!(losses_left_out(&line), [&refusal, &refusal, &silence]);
    }
}
