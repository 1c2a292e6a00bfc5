//! Makes the flows of all stories speak, each client for itself: once, or all the while that something changes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::flow::{Flow, Met};
use super::outcome::Outcome;
use super::stage::{Stage, Twin, Who};
use super::stories::Story;
use crate::traffic::Peer;

/// Processes of the stories' own: a flow that waits shall hold up no other story.
pub(super) struct Cast {
    peers: BTreeMap<(usize, usize, Who), Peer>,
}

impl Cast {
    pub(super) fn of(twins: &[Twin], stories: &[Story]) -> Result<Self> {
        let mut peers = BTreeMap::new();
        for (twin, place) in twins.iter().enumerate() {
            for (number, story) in stories.iter().enumerate() {
                for &(who, ..) in &story.flows {
                    if let Entry::Vacant(entry) = peers.entry((twin, number, who)) {
                        entry.insert(place.peer(who)?);
                    }
                }
            }
        }
        Ok(Self { peers })
    }

    pub(super) fn peer(&self, twin: usize, story: usize, who: Who) -> &Peer {
        &self.peers[&(twin, story, who)]
    }
}

/// Makes flows speak, each client for itself.
pub(super) struct Asker<'a> {
    cast: &'a Cast,
    number: AtomicU64,
}

impl<'a> Asker<'a> {
    pub(super) fn of(cast: &'a Cast) -> Self {
        Self {
            cast,
            number: AtomicU64::new(0),
        }
    }
}

impl Asker<'_> {
    /// Lets all flows speak while `change` is made: what each met, by flow and twin.
    pub(super) fn meanwhile(
        &self,
        stage: &mut Stage,
        flows: &[Flow<'_>],
        change: impl FnOnce(&mut Stage) -> Result<()>,
    ) -> Result<Vec<Vec<Vec<Met>>>> {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let speaking: Vec<_> = self
                .cast
                .peers
                .keys()
                .map(|&place| {
                    let over = &over;
                    scope.spawn(move || {
                        let mut lines = Vec::new();
                        while !over.load(Ordering::Relaxed) {
                            self.round(flows, place, &mut lines)?;
                            thread::sleep(Duration::from_millis(20));
                        }
                        Ok(lines)
                    })
                })
                .collect();
            let changed = change(stage);
            over.store(true, Ordering::Relaxed);
            let found = speaking
                .into_iter()
                .map(|thread| thread.join().expect("a flow does not panic"))
                .collect::<Result<Vec<_>>>()?;
            changed?;
            let mut lines = vec![vec![Vec::new(); stage.twins.len()]; flows.len()];
            for (&(twin, ..), own) in self.cast.peers.keys().zip(found) {
                for (flow, met) in own {
                    Met::note(&mut lines[flow][twin], met);
                }
            }
            Ok(lines)
        })
    }

    /// One round of one client's flows.
    fn round(
        &self,
        flows: &[Flow<'_>],
        (twin, story, who): (usize, usize, Who),
        lines: &mut Vec<(usize, Outcome)>,
    ) -> Result<()> {
        for (index, flow) in flows.iter().enumerate() {
            if flow.story == story && flow.question.who() == who {
                let number = self.number.fetch_add(1, Ordering::Relaxed);
                lines.push((index, flow.sample(twin, number)?));
            }
        }
        Ok(())
    }

    /// One outcome of each flow in each twin.
    pub(super) fn once(&self, flows: &[Flow<'_>], twins: usize) -> Result<Vec<Vec<Outcome>>> {
        thread::scope(|scope| {
            let speaking: Vec<_> = self
                .cast
                .peers
                .keys()
                .map(|&place| {
                    scope.spawn(move || {
                        let mut lines = Vec::new();
                        self.round(flows, place, &mut lines).map(|()| lines)
                    })
                })
                .collect();
            let mut found = vec![vec![Outcome::default(); twins]; flows.len()];
            for (&(twin, ..), thread) in self.cast.peers.keys().zip(speaking) {
                for (flow, outcome) in thread.join().expect("a flow does not panic")? {
                    found[flow][twin] = outcome;
                }
            }
            Ok(found)
        })
    }
}
