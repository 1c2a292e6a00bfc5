//! Histories out of a seed: a small cluster whose objects meet in names, addresses and ports as often as they can.

mod objects;

use std::collections::BTreeMap;

use super::script::{Key, Object, Script, Step, Watch};
use crate::fuzz::random::Random;

/// The history of a seed.
pub fn script(seed: u64) -> Script {
    let mut history = History {
        random: Random::new(seed),
        objects: BTreeMap::new(),
        former: Vec::new(),
        steps: Vec::new(),
    };
    // A cluster that is there before the agent, as often as not.
    for _ in 0..history.random.below(8) {
        history.change();
    }
    history.connect();
    for _ in 0..8 + history.random.below(24) {
        history.step();
    }
    Script {
        steps: history.steps,
    }
}

struct History {
    random: Random,
    objects: BTreeMap<Key, Object>,
    /// States that objects had: a restored server goes back to them.
    former: Vec<Object>,
    steps: Vec<Step>,
}

impl History {
    fn step(&mut self) {
        let seed = self.random.number();
        match self.random.below(40) {
            0..20 => self.change(),
            20..29 => self.steps.push(Step::Write { seed }),
            29 | 30 => {
                let at = self.random.below(12);
                self.steps.push(Step::Fail { seed, at });
            }
            31 => {
                let after = self.random.below(12);
                self.steps.push(Step::Crash { seed, after });
                // Things happen while it starts.
                for _ in 0..self.random.below(3) {
                    self.change();
                }
                self.connect();
            }
            32 | 33 => {
                let watch = self.watch();
                self.steps.push(Step::Disconnect(watch));
                for _ in 0..self.random.below(5) {
                    self.change();
                }
                self.list(watch);
            }
            34 => {
                let watch = self.watch();
                self.list(watch);
            }
            35 => {
                let (watch, events) = (self.watch(), 1 + self.random.below(6));
                self.steps.push(Step::Replay { watch, events });
            }
            36 | 37 => self.steps.push(Step::Release),
            _ => {
                let seconds = self.random.pick(&[0, 1, 30, 61, 101]);
                self.steps.push(Step::Wait(seconds));
            }
        }
    }

    fn watch(&mut self) -> Watch {
        self.random
            .pick(&[Watch::Services, Watch::Slices, Watch::Slices, Watch::Node])
    }

    fn connect(&mut self) {
        let mut watches = Watch::ALL;
        watches.rotate_left(self.random.below(3));
        watches.into_iter().for_each(|watch| self.list(watch));
    }

    fn list(&mut self, watch: Watch) {
        let (seed, breaks) = (self.random.number(), self.random.once_in(4));
        self.steps.push(Step::List {
            watch,
            seed,
            breaks,
        });
    }

    /// Some object comes, changes, goes, or is what it was before.
    fn change(&mut self) {
        let kind = self.random.below(20);
        if kind < 2 && !self.objects.is_empty() {
            let keys: Vec<Key> = self.objects.keys().cloned().collect();
            let key = self.random.pick(&keys);
            self.former.extend(self.objects.remove(&key));
            self.steps.push(Step::Remove(key));
            return;
        }
        let object = match kind {
            2 if !self.former.is_empty() => self.random.pick(&self.former),
            3 | 4 => self.node(),
            5..11 => self.service(),
            _ => self.slice(),
        };
        self.former
            .extend(self.objects.insert(object.key(), object.clone()));
        self.steps.push(Step::Put(object));
    }
}
