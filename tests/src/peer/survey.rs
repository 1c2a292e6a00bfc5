//! Many questions at once: who answers at these addresses, as whom the client is seen, or how it is turned away.
//!
//! Silence costs time and nothing else, so the probes of one survey wait side by side, each on a thread of a small
//! crew. The tries of one probe come one after the other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::client::Client;
use super::echo;
use super::protocol::{
    Answer, Failure, FailureKind, Findings, IcmpError, Manner, Probe, Seen, Step, Survey, plain,
};

/// Probes that wait at the same time.
const CREW: usize = 40;

/// How many tries without an answer prove that there is none.
const FAILED: u32 = 2;

/// The same where others are answered: every endpoint must have its chance.
const FAILED_AMONG_ANSWERS: u32 = 24;

/// How long an answer may take where others came: less than the second after which a lost SYN is sent again, and long
/// enough for a machine on which a hundred processes wait.
const AMONG_ANSWERS_MS: u64 = 900;

/// Carries a survey out; findings are in the order of its probes.
pub(super) fn survey(survey: &Survey) -> Vec<Findings> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(vec![Findings::default(); survey.probes.len()]);
    let work = || {
        while let Some((index, probe)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            survey.probes.get(index).map(|probe| (index, probe))
        } {
            let findings = ask_often(probe);
            found.lock().unwrap_or_else(PoisonError::into_inner)[index] = findings;
        }
    };
    thread::scope(|scope| {
        for _ in 0..CREW.min(survey.probes.len()) {
            scope.spawn(work);
        }
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn ask_often(probe: &Probe) -> Findings {
    let mut answers: BTreeMap<(String, SocketAddr, std::net::IpAddr, SocketAddr), u32> =
        BTreeMap::new();
    let mut failures: BTreeMap<(FailureKind, Step, Option<IcmpError>), u32> = BTreeMap::new();
    let mut failed = 0;
    for _ in 0..probe.tries {
        let timeout_ms = if answers.is_empty() {
            probe.timeout_ms
        } else {
            probe.timeout_ms.min(AMONG_ANSWERS_MS)
        };
        match ask(probe, Duration::from_millis(timeout_ms)) {
            Ok(answer) => {
                let key = (
                    answer.server,
                    answer.own,
                    answer.seen.ip(),
                    plain(answer.from),
                );
                *answers.entry(key).or_default() += 1;
            }
            Err(failure) => {
                failed += 1;
                let key = (failure.kind, failure.step, failure.icmp);
                *failures.entry(key).or_default() += 1;
            }
        }
        let limit = if answers.is_empty() {
            FAILED
        } else {
            FAILED_AMONG_ANSWERS
        };
        if failed >= limit {
            break;
        }
    }
    Findings {
        answers: answers
            .into_iter()
            .map(|((server, own, client, from), count)| Seen {
                server,
                own,
                client,
                from,
                count,
            })
            .collect(),
        failures: failures
            .into_iter()
            .map(|((kind, step, icmp), count)| (kind, step, icmp, count))
            .collect(),
    }
}

fn ask(probe: &Probe, timeout: Duration) -> Result<Answer, Failure> {
    let answer = match probe.manner {
        Manner::Tcp => {
            Client::tcp(probe.to, 0, timeout).and_then(|client| who(client, None, timeout))
        }
        Manner::UdpConnected => Client::udp(any(probe.to), Some(probe.to)).and_then(|client| {
            client.hear_errors()?;
            who(client, None, timeout)
        }),
        Manner::UdpUnconnected => Client::udp(any(probe.to), None).and_then(|client| {
            client.hear_errors()?;
            who(client, Some(probe.to), timeout)
        }),
        Manner::Echo => echo::ask(probe.to.ip(), timeout),
    };
    answer.map_err(|failure| match failure.kind {
        // A socket that hears of errors learns that its packet was dropped before it left (ENOBUFS): silence, too.
        FailureKind::Full => Failure {
            kind: FailureKind::TimedOut,
            ..failure
        },
        _ => failure,
    })
}

fn who(mut client: Client, to: Option<SocketAddr>, timeout: Duration) -> Result<Answer, Failure> {
    let answer = client.ask(to, "who", timeout);
    client.close_by_reset();
    answer
}

fn any(like: SocketAddr) -> SocketAddr {
    if like.is_ipv4() {
        SocketAddr::from(([0; 4], 0))
    } else {
        SocketAddr::from(([0_u16; 8], 0))
    }
}
