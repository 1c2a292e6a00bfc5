//! How an unreachable API server is taken: tried again ever slower, told at most once a minute.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::refused::shown;
use crate::snapshot::Kind;

const TELL_EVERY: Duration = Duration::from_secs(60);
/// Failures in a row that are one.
const OUTAGE: u32 = 2;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Which watches fail, since when, and when that was told.
#[derive(Default)]
pub(super) struct Outage {
    failures: HashMap<Kind, u32>,
    since: Option<Instant>,
    told: Option<Instant>,
    /// The current outage was told.
    known: bool,
}

impl Outage {
    /// A watch met an error. One alone is no outage: connections end. True when this one makes it one.
    pub(super) fn failed(&mut self, kind: Kind, error: &str) -> bool {
        if self.is_due(kind, Instant::now()) {
            warn!(
                kind = ?kind,
                error = shown(error),
                seconds = self.since.map_or(0, |since| since.elapsed().as_secs()),
                hint = hint(error),
                "lost the API server; the last known state stays in force",
            );
        }
        self.failures.get(&kind) == Some(&OUTAGE)
    }

    /// A watch delivered something. True when that ends an outage of this kind.
    pub(super) fn worked(&mut self, kind: Kind) -> bool {
        let failures = self.failures.remove(&kind);
        if failures.is_some() && self.failures.is_empty() {
            let since = self.since.take();
            if std::mem::take(&mut self.known) {
                info!(
                    seconds = since.map_or(0, |since| since.elapsed().as_secs()),
                    "found the API server again"
                );
            }
        }
        failures.is_some_and(|failures| failures >= OUTAGE)
    }

    /// No kind of object that every server has could be followed for so long.
    pub(super) fn is_total(&self, long: Duration) -> bool {
        let failing = |kind: &Kind| {
            self.failures
                .get(kind)
                .is_some_and(|times| *times >= OUTAGE)
        };
        let needed = [Kind::Services, Kind::Slices, Kind::Node];
        needed.iter().all(failing) && self.since.is_some_and(|since| since.elapsed() >= long)
    }

    fn is_due(&mut self, kind: Kind, now: Instant) -> bool {
        let failures = self.failures.entry(kind).or_default();
        *failures = failures.saturating_add(1);
        self.since.get_or_insert(now);
        if *failures < OUTAGE
            || self
                .told
                .is_some_and(|told| now.duration_since(told) < TELL_EVERY)
        {
            return false;
        }
        self.told = Some(now);
        self.known = true;
        true
    }
}

fn hint(error: &str) -> &'static str {
    if error.contains("Forbidden") || error.contains("forbidden") {
        "give the agent's account list and watch on services, nodes, endpointslices and servicecidrs"
    } else if error.contains("Unauthorized") {
        "check the token or certificate of the kubeconfig or service account"
    } else {
        "check that the API server runs and its address is right"
    }
}

/// Growing pauses, of random length so that the nodes of a cluster do not come all at once.
pub(super) struct Backoff {
    pause: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { pause: FIRST_PAUSE }
    }
}

impl Backoff {
    pub(super) fn next(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        let random = RandomState::new().hash_one(0) % 1000;
        pause.mul_f64(0.5 + random as f64 / 2000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn j3_an_outage_is_told_at_most_once_a_minute() {
        let mut outage = Outage::default();
        let start = Instant::now();
        let second = |number| start + Duration::from_secs(number);
        assert!(
            !outage.is_due(Kind::Services, second(0)),
            "one error is no outage"
        );
        assert!(outage.is_due(Kind::Services, second(1)));
        assert!(!outage.is_due(Kind::Slices, second(2)));
        assert!(!outage.is_due(Kind::Slices, second(60)));
        assert!(outage.is_due(Kind::Slices, second(61)));
        // A flapping server is no reason for more lines.
        outage.worked(Kind::Slices);
        outage.worked(Kind::Services);
        assert!(outage.since.is_none() && !outage.known);
        assert!(!outage.is_due(Kind::Services, second(62)));
        assert!(!outage.is_due(Kind::Services, second(63)));
        assert!(outage.is_due(Kind::Services, second(121)));
    }

    #[test]
    fn one_kind_refused_is_no_lost_server() {
        let mut outage = Outage::default();
        for _ in 0..3 {
            outage.failed(Kind::Node, "Forbidden");
        }
        assert!(!outage.is_total(Duration::ZERO));
        for kind in [Kind::Services, Kind::Slices] {
            outage.failed(kind, "connection refused");
            assert!(!outage.is_total(Duration::ZERO), "one failure is none");
            outage.failed(kind, "connection refused");
        }
        assert!(outage.is_total(Duration::ZERO));
        assert!(!outage.is_total(Duration::from_secs(60)));
        outage.worked(Kind::Slices);
        assert!(!outage.is_total(Duration::ZERO));
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..12).map(|_| backoff.next()).collect();
        assert!(pauses[0] <= FIRST_PAUSE && pauses[11] >= LONGEST_PAUSE / 2);
        assert!(
            pauses
                .iter()
                .all(|pause| *pause >= FIRST_PAUSE / 2 && *pause <= LONGEST_PAUSE)
        );
    }
}
