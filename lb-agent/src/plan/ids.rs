//! Dense numbers: service port ids, and endpoint ids with their generations.

use lb_ebpf::abi::endpoint::EndpointState;

use super::blocks::RECORDS;

/// Numbers from 0 upward, lowest unused ones first after a start.
#[derive(Debug)]
pub(super) struct Ids {
    free: Vec<u32>,
    next: u32,
    limit: u32,
}

impl Ids {
    pub(super) fn new(limit: u32) -> Self {
        Self {
            free: Vec::new(),
            next: 0,
            limit,
        }
    }

    /// Every number below `next` that is not `used` is free.
    pub(super) fn adopt(limit: u32, next: u32, used: impl Fn(u32) -> bool) -> Self {
        let next = next.min(limit);
        Self {
            free: (0..next).rev().filter(|&id| !used(id)).collect(),
            next,
            limit,
        }
    }

    pub(super) fn remaining(&self) -> usize {
        self.free.len() + (self.limit - self.next) as usize
    }

    pub(super) fn take(&mut self) -> Option<u32> {
        if let Some(id) = self.free.pop() {
            return Some(id);
        }
        let id = self.next;
        (id < self.limit).then(|| self.next += 1).map(|()| id)
    }

    pub(super) fn release(&mut self, id: u32) {
        self.free.push(id);
    }
}

/// Endpoint ids. A pair (id, generation) names one endpoint for as long as it serves, and never another one:
/// the generation rises when the endpoint stops serving and again before the id is used anew. The second rise
/// is for a program that picked the old endpoint just before and read its state just after.
#[derive(Debug)]
pub(super) struct EndpointIds {
    ids: Ids,
    /// As the kernel holds them.
    generations: Vec<u32>,
}

impl Default for EndpointIds {
    fn default() -> Self {
        Self {
            ids: Ids::new(Self::LIMIT),
            generations: Vec::new(),
        }
    }
}

impl EndpointIds {
    const LIMIT: u32 = RECORDS;

    /// The ids below the length of `generations` exist.
    pub(super) fn adopt(mut generations: Vec<u32>, used: impl Fn(u32) -> bool) -> Self {
        generations.truncate(Self::LIMIT as usize);
        Self {
            ids: Ids::adopt(Self::LIMIT, generations.len() as u32, used),
            generations,
        }
    }

    pub(super) fn remaining(&self) -> usize {
        self.ids.remaining()
    }

    /// A new id. Its state must be written before anything names it.
    pub(super) fn take(&mut self) -> Option<u32> {
        let id = self.ids.take()?;
        if self.generations.len() <= id as usize {
            self.generations.resize(id as usize + 1, 0);
        }
        self.raise(id);
        Some(id)
    }

    /// What `id` once meant is over.
    pub(super) fn raise(&mut self, id: u32) {
        if let Some(generation) = self.generations.get_mut(id as usize) {
            *generation = generation.wrapping_add(1);
        }
    }

    pub(super) fn state(&self, id: u32, flags: u32) -> EndpointState {
        EndpointState {
            generation: self.generations.get(id as usize).copied().unwrap_or(0),
            flags,
        }
    }

    pub(super) fn release(&mut self, id: u32) {
        self.ids.release(id);
    }
}
