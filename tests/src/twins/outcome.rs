//! What a client met, in a form that can be compared.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use lb_agent::snapshot::Family;
use serde::{Deserialize, Serialize};

use super::question::{Aim, Question};
use crate::peer::protocol::{Answer, FailureKind, Findings, IcmpError, Manner, plain};

/// What a client met at one address.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Outcome {
    pub answers: BTreeSet<Answered>,
    pub failures: BTreeSet<FailureKind>,
    /// What told the client that it is refused.
    pub refusals: BTreeSet<Refusal>,
}

/// What says "refused".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Refusal {
    Icmp(IcmpError),
    /// A reset, or the call itself where hooks run in it: a TCP client cannot tell the two apart.
    Reset,
    /// The call itself.
    Call,
}

impl Refusal {
    /// ICMP's and ICMPv6's "port unreachable" (RFC 792, RFC 4443).
    pub fn port_unreachable(family: Family) -> Self {
        let (kind, code) = match family {
            Family::V4 => (3, 3),
            Family::V6 => (1, 4),
        };
        Self::Icmp(IcmpError { kind, code })
    }

    fn of(question: &Question, icmp: Option<IcmpError>) -> Self {
        match (icmp, question.manner) {
            (Some(icmp), _) => Self::Icmp(icmp),
            (None, Manner::Tcp) => Self::Reset,
            (None, _) => Self::Call,
        }
    }
}

/// A server that answered.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Answered {
    pub server: String,
    pub port: u16,
    /// The client as the server saw it.
    pub client: IpAddr,
    /// Whether the answer came from the address that was dialled.
    pub from_dialled: bool,
}

impl Outcome {
    pub fn of(question: &Question, findings: &Findings) -> Self {
        let answers = findings.answers.iter().map(|seen| Answered {
            server: seen.server.clone(),
            port: seen.own.port(),
            client: seen.client,
            from_dialled: seen.from == question.to,
        });
        Self {
            answers: answers.collect(),
            failures: findings.failures.iter().map(|(kind, ..)| *kind).collect(),
            refusals: findings
                .failures
                .iter()
                .filter(|(kind, ..)| *kind == FailureKind::Refused)
                .map(|(_, _, icmp, _)| Refusal::of(question, *icmp))
                .collect(),
        }
    }

    /// One answer to what was sent to `dialled`.
    pub fn answered(answer: &Answer, dialled: SocketAddr) -> Self {
        let answered = Answered {
            server: answer.server.clone(),
            port: answer.own.port(),
            client: answer.seen.ip(),
            from_dialled: plain(answer.from) == dialled,
        };
        Self {
            answers: BTreeSet::from([answered]),
            ..Self::default()
        }
    }

    /// One failure.
    pub fn failed(kind: FailureKind) -> Self {
        Self {
            failures: BTreeSet::from([kind]),
            ..Self::default()
        }
    }

    /// Where a packet went to the network's own router, the client may hear of it late or not at all.
    #[must_use]
    pub fn unrouted(mut self, question: &Question) -> Self {
        if question.aim == Aim::ExternalUndefined
            && self.answers.is_empty()
            && self.failures == BTreeSet::from([FailureKind::TimedOut])
        {
            self.failures = BTreeSet::from([FailureKind::Unreachable]);
        }
        let external = matches!(
            question.aim,
            Aim::Vip | Aim::ExternalIp | Aim::ExternalUndefined
        );
        if external && self.answers.is_empty() && self.failures.contains(&FailureKind::Unreachable)
        {
            self.failures.remove(&FailureKind::TimedOut);
        }
        self
    }

    /// Nothing but failures of this kind.
    pub fn is_just(&self, kind: FailureKind) -> bool {
        self.answers.is_empty() && self.failures == BTreeSet::from([kind])
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = self
            .answers
            .iter()
            .map(|answer| {
                let Answered {
                    server,
                    port,
                    client,
                    from_dialled,
                } = answer;
                let from = if *from_dialled {
                    ""
                } else {
                    ", answering from elsewhere"
                };
                format!("{server}:{port} (sees {client}{from})")
            })
            .collect();
        words.extend(self.failures.iter().map(|kind| format!("{kind:?}")));
        words.extend(self.refusals.iter().map(|by| match by {
            Refusal::Icmp(IcmpError { kind, code }) => format!("by ICMP {kind}/{code}"),
            Refusal::Reset => "by a reset".into(),
            Refusal::Call => "by its own call".into(),
        }));
        f.write_str(&words.join(", "))
    }
}
