//! The tables against a picture, when all is written.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_agent::model::HealthCheck;
use lb_agent::snapshot::Family;
use lb_ebpf::abi::UDP;
use lb_ebpf::abi::address::{CLUSTER_IP, EXTERNAL, NODE, NODE_LOCAL, TOMBSTONE};
use lb_ebpf::abi::endpoint::{IN_CLUSTER, IN_LOCAL, SERVING};

use super::guard::{Memory, fits, ranges};
use super::tables::{Life, Tables};
use crate::oracle::Target;
use crate::oracle::picture::{Picture, Port, PortName, View};

/// What differs, if anything does.
pub fn tables(tables: &Tables, picture: &Picture, memory: &Memory) -> Result<(), String> {
    frontends(tables, picture)?;
    names_and_ranges(tables, picture)?;
    addresses(tables, picture)?;
    states(tables, picture, memory)?;
    let known = udp_targets(picture);
    match tables
        .tombstones
        .keys()
        .find(|target| known.contains(*target))
    {
        Some(target) => Err(format!("{target:?} has a tombstone and is an endpoint")),
        None => Ok(()),
    }
}

fn frontends(tables: &Tables, picture: &Picture) -> Result<(), String> {
    let there: BTreeSet<_> = tables.frontends.keys().collect();
    let wanted: BTreeSet<_> = picture.claims.keys().collect();
    if there != wanted {
        let missing: Vec<_> = wanted.difference(&there).collect();
        let left: Vec<_> = there.difference(&wanted).collect();
        return Err(format!(
            "frontends missing: {missing:?}, left behind: {left:?}"
        ));
    }
    for at in there {
        let (Some(met), Some(view)) = (tables.resolve(at)?, picture.view(at)) else {
            continue;
        };
        if !fits(view, &met) {
            return Err(format!("{at:?} leads to {met:?}\n  and not to {view:?}"));
        }
    }
    Ok(())
}

fn names_and_ranges(tables: &Tables, picture: &Picture) -> Result<(), String> {
    let names: BTreeMap<&PortName, u32> = tables.names().map(|(id, name)| (name, id)).collect();
    let all = tables.names().count();
    if !names.keys().copied().eq(picture.ports.keys()) || names.len() != all {
        return Err(format!(
            "{all} names: {names:?}\n  for {:?}",
            picture.ports.keys()
        ));
    }
    for (name, port) in &picture.ports {
        let got = ranges(tables, names[name]);
        if got != port.ranges {
            return Err(format!("{name:?} admits {got:?}, not {:?}", port.ranges));
        }
    }
    let ids: BTreeSet<u32> = names.values().copied().collect();
    match tables.ranges.iter().find(|(id, ..)| !ids.contains(id)) {
        Some(range) => Err(format!("source range {range:?} is nobody's")),
        None => Ok(()),
    }
}

fn addresses(tables: &Tables, picture: &Picture) -> Result<(), String> {
    let told = CLUSTER_IP | EXTERNAL | NODE | NODE_LOCAL;
    let got: BTreeMap<IpAddr, u32> = tables
        .addresses
        .iter()
        .map(|(address, flags)| (*address, flags & told))
        .filter(|(_, flags)| *flags != 0)
        .collect();
    if got != picture.addresses {
        return Err(format!(
            "addresses are {got:?}\n  and not {:?}",
            picture.addresses
        ));
    }
    let marked = tables
        .addresses
        .iter()
        .filter(|(_, flags)| **flags & TOMBSTONE != 0);
    let marked: BTreeSet<&IpAddr> = marked.map(|(address, _)| address).collect();
    let buried: BTreeSet<&IpAddr> = tables
        .tombstones
        .keys()
        .map(|(address, _)| address)
        .collect();
    if marked != buried {
        return Err(format!(
            "addresses {marked:?} have tombstones, which are at {buried:?}"
        ));
    }
    Ok(())
}

/// What every id that was ever met says now.
fn states(tables: &Tables, picture: &Picture, memory: &Memory) -> Result<(), String> {
    for (life, (name, target)) in &memory.named {
        let state = tables.state(life.0);
        if state.generation != life.1 {
            continue;
        }
        let port = picture.ports.get(name);
        let wanted = |set: fn(&Port) -> &Option<BTreeSet<Target>>| {
            port.and_then(|port| set(port).as_ref())
                .map(|set| set.contains(target))
        };
        let known = port.and_then(|port| port.known.get(target));
        let serving = known.is_some_and(|known| known.serving);
        let unknown = port.is_none();
        for (bit, wanted) in [
            (SERVING, Some(serving)),
            (
                IN_LOCAL,
                wanted(|port| &port.local).or(unknown.then_some(false)),
            ),
            (
                IN_CLUSTER,
                wanted(|port| &port.cluster).or(unknown.then_some(false)),
            ),
        ] {
            if wanted.is_some_and(|wanted| wanted != (state.flags & bit != 0)) {
                return Err(format!("{life:?}, {target:?} of {name:?}, says {state:?}"));
            }
        }
    }
    let live: Vec<Life> = tables
        .live_states()
        .map(|(id, state)| (id, state.generation))
        .collect();
    let most: usize = picture.ports.values().map(|port| port.known.len()).sum();
    if live.len() > most {
        return Err(format!(
            "{} endpoints live on, of {most}: {live:?}",
            live.len()
        ));
    }
    Ok(())
}

/// A UDP endpoint that clients were sent to and that no Service has any more, then or later, is told of, unless
/// the service port they came by went.
pub fn tombstones(
    tables: &Tables,
    before: &Picture,
    after: &Picture,
    memory: &mut Memory,
) -> Result<(), String> {
    let udp = before.ports.iter().filter(|(name, _)| name.protocol == UDP);
    for (name, port) in udp {
        let used = port.cluster.iter().chain(&port.local).flatten();
        let has = |target: &Target| {
            let port = after.ports.get(name);
            port.is_some_and(|port| port.known.contains_key(target))
        };
        let lost = used.filter(|target| !has(target));
        memory
            .lost
            .extend(lost.map(|target| (name.clone(), *target)));
    }
    memory
        .lost
        .retain(|(name, _)| after.ports.contains_key(name));
    let known = udp_targets(after);
    for (name, target) in &memory.lost {
        if !known.contains(target) && !tables.tombstones.contains_key(target) {
            return Err(format!("{target:?} left {name:?} without a tombstone"));
        }
    }
    memory.lost.retain(|(_, target)| known.contains(target));
    Ok(())
}

fn udp_targets(picture: &Picture) -> BTreeSet<Target> {
    let udp = picture
        .ports
        .iter()
        .filter(|(name, _)| name.protocol == UDP);
    udp.flat_map(|(_, port)| port.known.keys().copied())
        .collect()
}

/// Health-check ports.
pub fn checks(got: &[HealthCheck], picture: &Picture) -> Result<(), String> {
    let got: BTreeMap<_, _> = got
        .iter()
        .map(|check| {
            let family = if check.family == Family::V4 { 4 } else { 6 };
            let (namespace, name) = (&check.service.namespace, &check.service.name);
            let name = (namespace.to_string(), name.to_string(), family);
            (name, (check.port, check.local_endpoints))
        })
        .collect();
    if got == picture.checks {
        Ok(())
    } else {
        Err(format!(
            "health checks are {got:?}\n  and not {:?}",
            picture.checks
        ))
    }
}

/// Service ports some of whose frontends lead elsewhere, be it to the same endpoints with other flags. All of them lead
/// to one block.
fn moved<'a>(before: &'a Picture, after: &'a Picture) -> BTreeSet<&'a PortName> {
    let mut moved = BTreeSet::new();
    for (one, other) in [(before, after), (after, before)] {
        for (at, views) in &one.claims {
            let others = other.claims.get(at).map_or(&[][..], Vec::as_slice);
            let changed = views.iter().filter(|view| !others.contains(view));
            moved.extend(changed.map(|view| &view.owner));
        }
    }
    moved
}

/// The most writes that a change may take: four for an endpoint, two for a service port, one for each frontend,
/// source range and address that differs.
pub fn most_writes(before: &Picture, after: &Picture) -> usize {
    let nothing = Port::default();
    let moved = moved(before, after);
    let names: BTreeSet<_> = before.ports.keys().chain(after.ports.keys()).collect();
    let mut most = 0;
    let mut touched = BTreeSet::new();
    for name in names {
        let (old, new) = (before.ports.get(name), after.ports.get(name));
        if old == new && !moved.contains(name) {
            continue;
        }
        touched.insert(name);
        let (old, new) = (old.unwrap_or(&nothing), new.unwrap_or(&nothing));
        let targets: BTreeSet<_> = old.known.keys().chain(new.known.keys()).collect();
        let changed = targets.into_iter().filter(|target| {
            let is_in = |set: &Option<BTreeSet<Target>>| {
                set.as_ref().is_some_and(|set| set.contains(*target))
            };
            let of = |port: &Port| {
                (
                    port.known.get(target).copied(),
                    is_in(&port.local),
                    is_in(&port.cluster),
                )
            };
            of(old) != of(new)
        });
        most += 2 + 4 * changed.count();
        most += old.ranges.symmetric_difference(&new.ranges).count();
    }
    let dialled: BTreeSet<_> = before.claims.keys().chain(after.claims.keys()).collect();
    // One Service's plan may give up an address before another's claims it.
    let mut handed_on = BTreeSet::new();
    for at in dialled {
        let views = |picture: &Picture| picture.claims.get(at).cloned().unwrap_or_default();
        let (old, new) = (views(before), views(after));
        let of_touched = old
            .iter()
            .chain(&new)
            .any(|view| touched.contains(&view.owner));
        if old != new || of_touched {
            // Each claimant's plan may give it to another one.
            most += old.len() + new.len();
        }
        let services = |views: &[View]| -> BTreeSet<_> {
            let services = views.iter().map(View::service);
            services
                .map(|(space, name)| (space.to_owned(), name.to_owned()))
                .collect()
        };
        if services(&old) != services(&new) && !at.address.is_unspecified() {
            handed_on.insert(at.address);
        }
    }
    let addresses: BTreeSet<_> = before
        .addresses
        .keys()
        .chain(after.addresses.keys())
        .collect();
    let changed = addresses
        .into_iter()
        .filter(|a| before.addresses.get(a) != after.addresses.get(a) || handed_on.contains(*a));
    most + 2 * changed.count()
}
