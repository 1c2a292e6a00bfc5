//! Carries out a script.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use lb_agent::datapath::{Progress, steps};
use lb_agent::plan::{Plan, Write};
use lb_ebpf::abi::frontend::Frontend;

use super::agent::{Agent, OWN_DEVICE, Planned};
use super::compare;
use super::guard::{Guard, Memory};
use super::script::{Key, Object, Script, Step, Watch};
use super::server::{Server, Told};
use super::tables::Tables;
use crate::fuzz::random::Random;
use crate::oracle::objects;
use crate::oracle::picture::{Dialled, Met, Picture};

/// Something that must not be.
#[derive(Clone, PartialEq, Debug)]
pub struct Failure {
    /// The step; one past the last for what only the end showed.
    pub step: usize,
    pub text: String,
}

/// What a run without failure did.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Done {
    pub steps: u64,
    /// Single writes to the tables, each looked at.
    pub writes: u64,
}

/// Runs a script to its end, and then lets everything settle.
pub fn run(script: &Script) -> Result<Done, Failure> {
    let mut step = 0;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut run = Run::new();
        for next in &script.steps {
            run.step(next)?;
            step += 1;
        }
        run.settle()?;
        Ok(run.done)
    }));
    let outcome = outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panicked: {}", text.unwrap_or_default()))
    });
    outcome.map_err(|text| Failure { step, text })
}

/// What stops a writing.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    Fails(usize),
    Dies(usize),
}

struct Run {
    server: Server,
    agent: Agent,
    tables: Tables,
    memory: Memory,
    /// What the watches told so far.
    seen: BTreeMap<Key, Object>,
    /// Pictures since the tables last equalled the first of them.
    pictures: Vec<Picture>,
    /// Frontends that programs may still hold, and what they lead to.
    held: BTreeMap<(Dialled, u32), (Frontend, Vec<Met>)>,
    /// Nothing failed since the tables last equalled a picture.
    strict: bool,
    /// Something failed that only time makes good.
    owes: bool,
    now: u32,
    done: Done,
}

impl Run {
    fn new() -> Self {
        let tables = Tables::default();
        let (agent, _) = Agent::start(&tables, 0);
        Self {
            server: Server::default(),
            agent,
            tables,
            memory: Memory::default(),
            seen: BTreeMap::new(),
            pictures: vec![Picture::default()],
            held: BTreeMap::new(),
            strict: true,
            owes: false,
            now: 0,
            done: Done::default(),
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        self.done.steps += 1;
        match step {
            Step::Put(object) => {
                let told = self.server.put(object);
                self.tell(told);
                self.see(object.watch());
            }
            Step::Remove(key) => {
                let told = self.server.remove(key);
                self.tell(told);
                self.see(key.watch);
            }
            Step::Disconnect(watch) => self.server.disconnect(*watch),
            Step::List {
                watch,
                seed,
                breaks,
            } => self.list(*watch, *seed, *breaks)?,
            Step::Replay { watch, events } => {
                let told = self.server.replay(*watch, *events);
                self.tell(told);
            }
            Step::Write { seed } => self.write(*seed, Fault::None)?,
            Step::Fail { seed, at } => self.write(*seed, Fault::Fails(*at))?,
            Step::Crash { seed, after } => {
                self.write(*seed, Fault::Dies(*after))?;
                self.start_anew()?;
            }
            Step::Release => self.release()?,
            Step::Wait(seconds) => {
                self.now += seconds;
                self.tick()?;
            }
        }
        Ok(())
    }

    /// Everything is connected and written; then a new agent finds nothing to do.
    fn settle(&mut self) -> Result<(), String> {
        self.connect(1)?;
        self.write(1, Fault::None)?;
        self.tick()?;
        self.write(2, Fault::None)?;
        if !self.strict {
            return Err("the tables never settled".into());
        }
        self.release()?;
        let before = self.done.writes;
        self.start_anew()?;
        self.connect(2)?;
        self.write(3, Fault::None)?;
        // What lost a frontend to another left no trace of the claim, so it is set up anew.
        let unreadable = self.pictures.iter().any(Picture::is_contested);
        match self.done.writes - before {
            _ if unreadable => Ok(()),
            0 => Ok(()),
            more => Err(format!(
                "a new agent wrote {more} times where nothing had changed"
            )),
        }
    }

    fn connect(&mut self, seed: u64) -> Result<(), String> {
        for watch in Watch::ALL {
            if !self.server.is_connected(watch) {
                self.list(watch, seed, false)?;
            }
        }
        Ok(())
    }

    fn list(&mut self, watch: Watch, seed: u64, breaks: bool) -> Result<(), String> {
        let mut told = self.server.list(watch, seed, breaks);
        // Changes that came in so far may be written before the list is complete.
        let rest = told.split_off(seed as usize % told.len());
        self.tell(told);
        if seed.is_multiple_of(3) {
            self.write(seed, Fault::None)?;
        }
        self.tell(rest);
        self.see(watch);
        Ok(())
    }

    fn tell(&mut self, told: Vec<Told>) {
        for told in told {
            self.agent.take(&told);
            match told {
                Told::Apply(object) => drop(self.seen.insert(object.key(), object)),
                Told::Delete(object) => drop(self.seen.remove(&object.key())),
                Told::Begin(_) | Told::Complete(_) => {}
            }
        }
    }

    /// What a connected watch tells is what there is: selectors are the agent's, the oracle judges by its own rules.
    fn see(&mut self, watch: Watch) {
        if self.server.is_connected(watch) {
            self.seen.retain(|key, _| key.watch != watch);
            let all = self.server.all(watch);
            self.seen
                .extend(all.map(|(key, object)| (key.clone(), object.clone())));
        }
    }

    fn picture(&self) -> Picture {
        let (mut services, mut slices, mut node) = (Vec::new(), Vec::new(), None);
        for object in self.seen.values() {
            match object {
                Object::Service(service) => services.extend(objects::service(service)),
                Object::Slice(slice) => slices.extend(objects::slice(slice)),
                Object::Node(object) => {
                    let own = objects::node(object);
                    node = node.or(own.filter(|node| &*node.name == super::script::OWN_NODE));
                }
            }
        }
        let mut node = node.unwrap_or_default();
        node.name = super::script::OWN_NODE.into();
        Picture::of(&services, &slices, &node, &[OWN_DEVICE])
    }

    fn write(&mut self, seed: u64, fault: Fault) -> Result<(), String> {
        if !self.agent.is_synced() {
            let plans = self.agent.plans(seed);
            return if plans.is_empty() {
                Ok(())
            } else {
                Err("it would write before it knows the cluster".into())
            };
        }
        self.hold()?;
        let picture = self.picture();
        self.memory.settle(&picture);
        self.pictures.push(picture);
        let before = self.done.writes;
        let plans = self.agent.plans(seed);
        let all = plans.iter().filter(|(name, _)| name.is_some()).count();
        let failed = self.execute(plans, seed, fault)?;
        if let Fault::Dies(_) = fault {
            self.strict = false;
            return Ok(());
        }
        let refused = failed.contains(&false) || all > 0 && failed.len() == all;
        if !refused && let Some(plan) = self.agent.first_written() {
            self.execute(vec![(None, plan)], seed, Fault::None)?;
        }
        if !failed.is_empty() {
            self.strict = false;
            self.owes |= failed.contains(&false);
            return Ok(());
        }
        self.check_held()?;
        if !self.owes {
            self.compare((self.done.writes - before) as usize)?;
        }
        Ok(())
    }

    /// All is written: the tables say what the picture says.
    fn compare(&mut self, writes: usize) -> Result<(), String> {
        let Some(picture) = self.pictures.pop() else {
            return Ok(());
        };
        compare::tables(&self.tables, &picture, &self.memory)?;
        compare::checks(&self.agent.checks(), &picture)?;
        if !self.strict {
            // What is owed to whom depends on what the agent came to, and a new one knows nothing of it.
            self.memory.lost.clear();
        } else if let Some(before) = self.pictures.first() {
            compare::tombstones(&self.tables, before, &picture, &mut self.memory)?;
            let most = compare::most_writes(before, &picture);
            if writes > most && !picture.is_contested() {
                return Err(format!("{writes} writes for a change worth {most}"));
            }
        }
        self.memory.settle(&picture);
        self.pictures = vec![picture];
        self.strict = true;
        Ok(())
    }

    /// Carries plans out. Answers of each that failed whether it was of a Service.
    fn execute(
        &mut self,
        plans: Vec<Planned>,
        seed: u64,
        fault: Fault,
    ) -> Result<Vec<bool>, String> {
        let strict = self.strict && !matches!(fault, Fault::Fails(_));
        let guard = Guard::new(&self.pictures, &self.tables, &self.memory, strict);
        let mut random = Random::new(seed);
        let mut failed: BTreeMap<usize, usize> = BTreeMap::new();
        let writes: Vec<&[Write]> = plans.iter().map(|(_, plan)| &plan.writes[..]).collect();
        let (mut count, mut progress) = (0, Progress::default());
        'all: for step in steps(&writes) {
            let mut placed: Vec<_> = step.writes().collect();
            let firsts: BTreeMap<usize, usize> = placed
                .iter()
                .rev()
                .map(|placed| (placed.plan, placed.at))
                .collect();
            let mut later = BTreeSet::new();
            placed.reverse();
            placed.retain(|placed| later.insert(place(placed.write)));
            for last in (1..placed.len()).rev() {
                placed.swap(last, random.below(last + 1));
            }
            for placed in placed {
                if progress.is_failed(placed.plan) {
                    continue;
                }
                if fault == Fault::Dies(count) {
                    break 'all;
                }
                if fault == Fault::Fails(count) || progress.forbids(placed.write) {
                    failed.insert(placed.plan, firsts[&placed.plan]);
                    progress.fail(placed.plan, writes[placed.plan]);
                }
                count += 1;
                if progress.is_failed(placed.plan) {
                    continue;
                }
                let told = |text| format!("{text}\n  at {:?}", placed.write);
                guard.before(&self.tables, placed.write).map_err(told)?;
                self.tables.execute(placed.write, self.now).map_err(told)?;
                guard
                    .after(&self.tables, placed.write, &mut self.memory)
                    .map_err(told)?;
                self.done.writes += 1;
            }
        }
        let answers = failed.keys().map(|plan| plans[*plan].0.is_some()).collect();
        self.agent.done(plans, &failed);
        Ok(answers)
    }

    /// A new agent with the tables of the old one. Its watches begin with lists.
    fn start_anew(&mut self) -> Result<(), String> {
        self.held.clear();
        let (agent, plan) = Agent::start(&self.tables, self.now);
        self.agent = agent;
        self.memory.start_anew(&self.tables);
        Watch::ALL
            .into_iter()
            .for_each(|watch| self.server.disconnect(watch));
        self.owes = false;
        self.carry_out(plan)
    }

    fn tick(&mut self) -> Result<(), String> {
        let plan = self.agent.tick(self.now);
        self.owes = false;
        self.carry_out(plan)
    }

    fn carry_out(&mut self, plan: Plan) -> Result<(), String> {
        self.execute(vec![(None, plan)], 0, Fault::None).map(drop)
    }

    /// Programs may hold what the tables lead to now until a grace period is over.
    fn hold(&mut self) -> Result<(), String> {
        for (at, frontend) in &self.tables.frontends {
            let key = (*at, frontend.generation);
            if !self.held.contains_key(&key) {
                let met = self.tables.all_met(at, frontend)?;
                self.held.insert(key, (*frontend, met));
            }
        }
        Ok(())
    }

    fn check_held(&self) -> Result<(), String> {
        for ((at, _), (frontend, met)) in &self.held {
            if self.tables.all_met(at, frontend).as_ref() != Ok(met) {
                return Err(format!("{at:?} as a program may hold it leads elsewhere"));
            }
        }
        Ok(())
    }

    fn release(&mut self) -> Result<(), String> {
        self.check_held()?;
        self.held.clear();
        self.agent.release();
        Ok(())
    }
}

/// Where a write goes: of two to one place the later counts.
fn place(write: &Write) -> (u8, u32, Option<IpAddr>, u16, u8) {
    match write {
        Write::Endpoints4 { first, .. } => (0, *first, None, 0, 0),
        Write::Endpoints6 { first, .. } => (1, *first, None, 0, 0),
        Write::EndpointState { id, .. } => (2, *id, None, 0, 0),
        Write::Name { id, .. } | Write::NameGone { id } => (3, *id, None, 0, 0),
        Write::Frontend4 { key, .. } | Write::Frontend4Gone { key } => {
            (4, 0, Some(key.address.into()), key.port, key.protocol)
        }
        Write::Frontend6 { key, .. } | Write::Frontend6Gone { key } => {
            (5, 0, Some(key.address.into()), key.port, key.protocol)
        }
        Write::Address { address, .. } => (6, 0, Some(*address), 0, 0),
        Write::SourceRange {
            service,
            address,
            length,
            ..
        } => (7, *service, Some((*address).into()), 0, *length),
        Write::Tombstone { key, .. } => (8, 0, Some(key.address.into()), key.port, key.protocol),
    }
}
