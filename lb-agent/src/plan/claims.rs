//! Who has which frontend, and what the kernel holds under its key (spec D22).

use std::collections::HashMap;
use std::net::IpAddr;

use lb_ebpf::abi::frontend::Frontend;

/// A key of the frontend tables.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct FrontendId {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    /// IP protocol number.
    pub(super) protocol: u8,
}

#[derive(Debug, Default)]
struct Entry {
    /// The record in the kernel.
    written: Option<Frontend>,
    /// The service port that has it.
    owner: Option<u32>,
}

/// All frontends of both families.
#[derive(Debug, Default)]
pub(super) struct Claims {
    table: HashMap<FrontendId, Entry>,
    /// Service ports that want a frontend that another one has.
    waiting: HashMap<FrontendId, Vec<u32>>,
    /// Number of the last change of who waits for whom.
    contests: u64,
}

impl Claims {
    /// `service` wants `key`. Who gets it is decided by [`Claims::elect`].
    pub(super) fn claim(&mut self, key: FrontendId, service: u32) {
        let entry = self.table.entry(key).or_default();
        match entry.owner {
            None => entry.owner = Some(service),
            Some(_) => {
                self.waiting.entry(key).or_default().push(service);
                self.contests += 1;
            }
        }
    }

    /// `service` no longer wants `key`.
    pub(super) fn unclaim(&mut self, key: FrontendId, service: u32) {
        let waiting = self.waiting.get_mut(&key);
        self.contests += u64::from(waiting.is_some());
        match self.table.get_mut(&key) {
            Some(entry) if entry.owner == Some(service) => entry.owner = waiting.and_then(Vec::pop),
            _ => {
                if let Some(waiting) = waiting {
                    waiting.retain(|id| *id != service);
                }
            }
        }
        if self.waiting.get(&key).is_some_and(Vec::is_empty) {
            self.waiting.remove(&key);
        }
    }

    /// Gives `key` to the claimant of the lowest rank.
    pub(super) fn elect<R: Ord>(
        &mut self,
        key: FrontendId,
        rank: impl Fn(u32) -> R,
    ) -> Option<u32> {
        let owner = self.table.get_mut(&key)?.owner.as_mut()?;
        if let Some(waiting) = self.waiting.get_mut(&key) {
            let best = waiting.iter_mut().min_by_key(|id| rank(**id));
            if let Some(best) = best.filter(|best| rank(**best) < rank(*owner)) {
                std::mem::swap(best, owner);
                self.contests += 1;
            }
        }
        Some(*owner)
    }

    /// Of each claim that waits: the frontend, who has it, and who wants it too.
    pub(super) fn contested(&self) -> impl Iterator<Item = (FrontendId, u32, u32)> {
        let waiting = self.waiting.iter();
        waiting.flat_map(|(key, waiting)| {
            let owner = self.table.get(key).and_then(|entry| entry.owner);
            let waiting = waiting.iter();
            waiting.filter_map(move |id| Some((*key, owner?, *id)))
        })
    }

    /// Changes whenever [`Claims::contested`] does.
    pub(super) fn contests(&self) -> u64 {
        self.contests
    }

    /// The record in the kernel.
    pub(super) fn written(&self, key: FrontendId) -> Option<Frontend> {
        self.table.get(&key)?.written
    }

    pub(super) fn set_written(&mut self, key: FrontendId, record: Frontend) {
        self.table.entry(key).or_default().written = Some(record);
    }

    /// The kernel has nothing under `key`.
    pub(super) fn clear_written(&mut self, key: FrontendId) {
        if let Some(entry) = self.table.get_mut(&key) {
            entry.written = None;
        }
    }

    /// Nobody wants `key` any more; tells whether the kernel still has it.
    pub(super) fn forget(&mut self, key: FrontendId) -> bool {
        self.table
            .remove(&key)
            .is_some_and(|entry| entry.written.is_some())
    }

    /// Keys that no service port claims.
    pub(super) fn ownerless(&self) -> Vec<FrontendId> {
        self.table
            .iter()
            .filter(|(_, entry)| entry.owner.is_none())
            .map(|(key, _)| *key)
            .collect()
    }
}
