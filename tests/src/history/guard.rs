//! What must hold after every single write: no client meets what neither the cluster before nor the one after
//! says (spec J6, J9), and what goes on is not cut.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_agent::plan::Write;
use lb_ebpf::abi::address::{CLUSTER_IP, EXTERNAL, NODE_LOCAL};
use lb_ebpf::abi::endpoint::{IN_CLUSTER, IN_LOCAL, SERVING};
use lb_ebpf::abi::frontend::SOURCE_RANGES;

use super::tables::{Life, Resolved, Tables, dialled};
use crate::oracle::Target;
use crate::oracle::objects::is_forbidden;
use crate::oracle::picture::{Dialled, Picture, PortName, View};

const OPEN: u32 = CLUSTER_IP | EXTERNAL;

/// Which endpoint each id with its generation ever named, and which one has it now.
#[derive(Default)]
pub struct Memory {
    pub named: BTreeMap<Life, (PortName, Target)>,
    current: BTreeMap<(PortName, Target), Life>,
    /// UDP endpoints that a service port sent clients to and lost, while others had them.
    pub lost: BTreeSet<(PortName, Target)>,
}

/// Watches the writes between two pictures.
pub struct Guard<'a> {
    /// Since the tables last equalled one; the last one is what is to come.
    pictures: &'a [Picture],
    /// Addresses that were open before.
    open: BTreeSet<IpAddr>,
    /// Endpoint ids that must go on, with their generations.
    lives: BTreeMap<u32, u32>,
    /// Nothing failed and nobody died since the tables last equalled a picture.
    strict: bool,
}

impl<'a> Guard<'a> {
    pub fn new(pictures: &'a [Picture], tables: &Tables, memory: &Memory, strict: bool) -> Self {
        let serves = |name: &PortName, target: &Target| {
            let mut pictures = pictures.iter();
            pictures.all(|picture| serves(picture, name, target))
        };
        // Nothing leads to the endpoints of one that lost all it claims: an agent that starts cannot know them.
        let losers: BTreeSet<_> = pictures.iter().flat_map(Picture::losers).collect();
        let lives = memory
            .current
            .iter()
            .filter(|((name, target), _)| serves(name, target) && !losers.contains(name));
        let open = tables
            .addresses
            .iter()
            .filter(|(_, flags)| **flags & OPEN != 0);
        Self {
            pictures,
            open: open.map(|(address, _)| *address).collect(),
            lives: lives.map(|(_, life)| *life).collect(),
            strict,
        }
    }

    /// Before a write.
    pub fn before(&self, tables: &Tables, write: &Write) -> Result<(), String> {
        let trodden = match write {
            Write::Endpoints4 { first, records } => {
                tables.trodden(true, *first, records.len() as u32)
            }
            Write::Endpoints6 { first, records } => {
                tables.trodden(false, *first, records.len() as u32)
            }
            _ => None,
        };
        trodden.map_or(Ok(()), |at| {
            Err(format!("it changes records that {at:?} leads to"))
        })
    }

    /// After it.
    pub fn after(&self, tables: &Tables, write: &Write, memory: &mut Memory) -> Result<(), String> {
        match write {
            Write::Frontend4 { key, .. } => self.frontend(tables, &dialled(key), memory),
            Write::Frontend6 { key, .. } => self.frontend(tables, &dialled(key), memory),
            Write::Frontend4Gone { key } => self.frontend(tables, &dialled(key), memory),
            Write::Frontend6Gone { key } => self.frontend(tables, &dialled(key), memory),
            Write::EndpointState { id, .. } => self.state(tables, *id),
            Write::Address { address, flags } => self.address(tables, *address, *flags),
            Write::SourceRange { service, .. } => self.ranges_of(tables, *service),
            Write::NameGone { id } if self.strict => {
                let mut frontends = tables.frontends.iter();
                match frontends.find(|(_, frontend)| frontend.service == *id) {
                    Some((at, _)) => Err(format!("{at:?} leads to a nameless service")),
                    None => Ok(()),
                }
            }
            Write::Endpoints4 { .. }
            | Write::Endpoints6 { .. }
            | Write::Name { .. }
            | Write::NameGone { .. }
            | Write::Tombstone { .. } => Ok(()),
        }
    }

    fn frontend(&self, tables: &Tables, at: &Dialled, memory: &mut Memory) -> Result<(), String> {
        let Some(met) = tables.resolve(at)? else {
            return self.absent(at);
        };
        let claims = self
            .pictures
            .iter()
            .flat_map(|picture| picture.claims.get(at));
        if !claims.flatten().any(|view| fits(view, &met)) && !self.is_own(&met) {
            return Err(format!("{at:?} leads to what no picture says: {met:?}"));
        }
        for (set, member) in [(&met.local, IN_LOCAL), (&met.cluster, IN_CLUSTER)] {
            for ((address, port, _), life) in set {
                if is_forbidden(*address) {
                    return Err(format!("{at:?} leads to {address}"));
                }
                if tables.state(life.0).flags & member == 0 {
                    return Err(format!(
                        "{at:?} leads to {address}, whose state denies the set"
                    ));
                }
                memory.remember(*life, &met.owner, (*address, *port))?;
            }
        }
        self.ranges(tables, at, &met)
    }

    /// After a failure or a death, what a service port gives up may lead to its newer endpoints for a while: to its
    /// own at any rate.
    fn is_own(&self, met: &Resolved) -> bool {
        let ports = self
            .pictures
            .iter()
            .filter_map(|picture| picture.ports.get(&met.owner));
        let known: BTreeSet<_> = ports.flat_map(|port| port.known.keys()).collect();
        let mut targets = met.local.keys().chain(met.cluster.keys());
        !self.strict && targets.all(|(address, port, _)| known.contains(&(*address, *port)))
    }

    fn absent(&self, at: &Dialled) -> Result<(), String> {
        let owners: Vec<_> = self
            .pictures
            .iter()
            .map(|picture| picture.view(at).map(|view| &view.owner))
            .collect();
        let stays = owners
            .iter()
            .all(|owner| owner.is_some() && *owner == owners[0]);
        if stays && self.strict {
            return Err(format!("{at:?} of {:?} is away for a moment", owners[0]));
        }
        Ok(())
    }

    /// An endpoint's state: that of one that goes on does not change its generation, and who is led to it finds
    /// it in its set.
    fn state(&self, tables: &Tables, id: u32) -> Result<(), String> {
        let state = tables.state(id);
        if let Some(generation) = self.lives.get(&id)
            && (state.generation != *generation || state.flags & SERVING == 0)
        {
            return Err(format!("endpoint {id} serves on, but became {state:?}"));
        }
        // After a failure or a death an endpoint that ended may be led to until its frontend is made good; new
        // connections do not look at states.
        if state.flags == 0 && !self.strict {
            return Ok(());
        }
        for at in tables.frontends.keys() {
            let Some(met) = tables.resolve(at)? else {
                continue;
            };
            // So may one that left its set, where another Service was to take the frontend over.
            if !self.strict && self.is_anothers(at, &met) {
                continue;
            }
            for (set, member) in [(&met.local, IN_LOCAL), (&met.cluster, IN_CLUSTER)] {
                if set.values().any(|life| life.0 == id) && state.flags & member == 0 {
                    return Err(format!(
                        "{at:?} leads to endpoint {id}, which became {state:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// What is to come gives the frontend to another service port.
    fn is_anothers(&self, at: &Dialled, met: &Resolved) -> bool {
        let next = self.pictures.last().and_then(|picture| picture.view(at));
        next.is_some_and(|view| view.owner != met.owner)
    }

    /// An address opens when all that is behind it is there, and is open while anything goes on behind it.
    fn address(&self, tables: &Tables, address: IpAddr, flags: u32) -> Result<(), String> {
        if flags & OPEN != 0 && is_forbidden(address) {
            return Err(format!("{address} is taken for a Service's"));
        }
        if !self.strict {
            return Ok(());
        }
        let Some(next) = self.pictures.last() else {
            return Ok(());
        };
        let behind = |at: &&Dialled| at.address == address;
        let claims = next.claims.iter().filter(|(at, _)| behind(at));
        let services: BTreeSet<_> = claims
            .flat_map(|(_, views)| views.iter().map(View::service))
            .collect();
        for at in next.claims.keys().filter(behind) {
            // Where several Services meet, some may come later.
            let is_there = tables.frontends.contains_key(at) || services.len() > 1;
            let owner = next.view(at).map(View::service);
            let mut views = self.pictures.iter().map(|picture| picture.view(at));
            let stays = views.all(|view| view.map(View::service) == owner);
            if flags & OPEN != 0 && !self.open.contains(&address) && !is_there {
                return Err(format!("{address} opens before {at:?} is there"));
            }
            if flags & OPEN == 0 && stays {
                return Err(format!("{address} closes while {at:?} goes on"));
            }
        }
        let of_node = |picture: &Picture| {
            picture.addresses.get(&address).copied().unwrap_or_default() & NODE_LOCAL
        };
        if self.pictures.iter().all(|picture| of_node(picture) != 0) && flags & NODE_LOCAL == 0 {
            return Err(format!("{address} is the node's, but became {flags:#x}"));
        }
        Ok(())
    }

    fn ranges_of(&self, tables: &Tables, service: u32) -> Result<(), String> {
        for (at, frontend) in &tables.frontends {
            if frontend.service == service
                && let Some(met) = tables.resolve(at)?
            {
                self.ranges(tables, at, &met)?;
            }
        }
        Ok(())
    }

    /// A filtered address admits no source that no picture admits, and every one that all of them admit.
    fn ranges(&self, tables: &Tables, at: &Dialled, met: &Resolved) -> Result<(), String> {
        if met.flags & SOURCE_RANGES == 0 {
            return Ok(());
        }
        let now = ranges(tables, met.service);
        let (mut some, mut all) = (BTreeSet::new(), None::<BTreeSet<_>>);
        for picture in self.pictures {
            let Some(port) = picture.ports.get(&met.owner) else {
                continue;
            };
            some.extend(port.ranges.iter().copied());
            // Unfiltered it admits whatever the others do.
            if !port.ranges.is_empty() {
                all = Some(match all {
                    None => port.ranges.clone(),
                    Some(all) => all.intersection(&port.ranges).copied().collect(),
                });
            }
        }
        if !now.is_subset(&some) {
            return Err(format!("{at:?} admits {now:?}, which no picture does"));
        }
        if self.strict && !all.unwrap_or_default().is_subset(&now) {
            return Err(format!("{at:?} admits no more than {now:?}"));
        }
        Ok(())
    }
}

impl Memory {
    /// An id with its generation names one endpoint of one service port, for ever.
    fn remember(&mut self, life: Life, owner: &PortName, target: Target) -> Result<(), String> {
        let named = self
            .named
            .entry(life)
            .or_insert_with(|| (owner.clone(), target));
        if (&named.0, named.1) != (owner, target) {
            return Err(format!(
                "{life:?} was {named:?} and is {target:?} of {owner:?} now"
            ));
        }
        self.current.insert((owner.clone(), target), life);
        Ok(())
    }

    /// An agent starts. It knows endpoints by the frontends that lead to them: of a service port without any, as one
    /// is for a moment when two change addresses, it can know none.
    pub fn start_anew(&mut self, tables: &Tables) {
        let frontends = tables.frontends.values();
        let led: BTreeSet<_> = frontends.map(|frontend| frontend.service).collect();
        let known = tables.names().filter(|(id, _)| led.contains(id));
        let known: BTreeSet<_> = known.map(|(_, name)| name).collect();
        self.current.retain(|(name, _), _| known.contains(name));
        self.lost.clear();
    }

    /// What does not serve in a picture ends, whether the tables come to equal it or an agent dies over it: serving
    /// again it may be another.
    pub fn settle(&mut self, picture: &Picture) {
        self.current
            .retain(|(name, target), _| serves(picture, name, target));
    }
}

fn serves(picture: &Picture, name: &PortName, target: &Target) -> bool {
    let port = picture.ports.get(name);
    let known = port.and_then(|port| port.known.get(target));
    known.is_some_and(|known| known.serving)
}

/// Whether a client meets what the picture says.
pub fn fits(view: &View, met: &Resolved) -> bool {
    let set = |wanted: &Option<BTreeSet<_>>, met: &BTreeMap<_, _>| {
        wanted.as_ref().is_none_or(|wanted| met.keys().eq(wanted))
    };
    view.owner == met.owner
        && view.flags == met.flags
        && view.affinity_seconds == met.affinity_seconds
        && set(&view.local, &met.local)
        && set(&view.cluster, &met.cluster)
}

/// The source ranges of a service id, lengths as of their own family.
pub fn ranges(tables: &Tables, service: u32) -> BTreeSet<(IpAddr, u8)> {
    let own = tables.ranges.iter().filter(|(id, ..)| *id == service);
    own.map(|(_, address, length)| {
        let mapped = if address.is_ipv4() { 96 } else { 0 };
        (*address, length.saturating_sub(mapped))
    })
    .collect()
}
