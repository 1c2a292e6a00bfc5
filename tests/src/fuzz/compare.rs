//! Holds the kernel's flows and remembered clients against the oracle's.

use std::net::IpAddr;

use anyhow::Result;
use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::flow::{self, Flow, FlowKey};

use super::kernel::Kernel;
use crate::oracle::packet::Oracle;
use crate::oracle::packet::flows::{Flow as Known, Side, State};
use crate::oracle::packet::wire::Tuple;

/// The kernel's record of a flow, in the oracle's words.
#[derive(Clone, PartialEq, Debug)]
struct Found {
    side: u8,
    protocol: u8,
    asked: Tuple,
    sent: Tuple,
    state: u8,
    flags: u8,
    service: u32,
    endpoint: u32,
    generation: u32,
}

pub(super) fn flows(kernel: &Kernel, oracle: &Oracle) -> Result<Result<(), String>> {
    let mut found: Vec<Found> = Vec::new();
    found.extend(read::<V4>(kernel, 0)?);
    found.extend(read::<V6>(kernel, 1)?);
    let live = oracle.flows.all().filter(|f| f.is_live(oracle.now));
    for known in live {
        let record = found.iter().find(|f| {
            (f.side, f.protocol, f.asked) == (side(known), known.protocol(), known.asked())
        });
        let Some(record) = record else {
            return Ok(Err(format!("the flow {known:?} is missing")));
        };
        let wanted = expected(known, record);
        if *record != wanted {
            return Ok(Err(format!("the flow is {record:?}, not {wanted:?}")));
        }
    }
    for record in found {
        let known = oracle.flows.all().any(|f| {
            (record.side, record.protocol, record.asked) == (side(f), f.protocol(), f.asked())
        });
        if !known {
            return Ok(Err(format!("nobody knows the flow {record:?}")));
        }
    }
    Ok(Ok(()))
}

/// Tells the oracle which ports flows got that stepped aside: no packet shows them yet, and chance may have given them to
/// others next.
pub(super) fn learn_ports(kernel: &Kernel, oracle: &mut Oracle) -> Result<Result<(), String>> {
    let aside: Vec<Known> = oracle
        .flows
        .all()
        .filter(|flow| flow.renumbered)
        .cloned()
        .collect();
    for known in aside {
        let found = match known.asked().source.is_ipv4() {
            true => read::<V4>(kernel, 0)?,
            false => read::<V6>(kernel, 1)?,
        };
        let record = found.iter().find(|f| {
            (f.side, f.protocol, f.asked) == (side(&known), known.protocol(), known.asked())
        });
        // One that is missing is told of in the end.
        if let Some(record) = record
            && let Err(why) = oracle.learn_port(known, record.sent.source_port)
        {
            return Ok(Err(why));
        }
    }
    Ok(Ok(()))
}

fn read<F: Family>(kernel: &Kernel, which: usize) -> Result<Vec<Found>>
where
    FlowKey<F>: lb_ebpf::abi::Record,
    Flow<F>: lb_ebpf::abi::Record,
{
    let plain = |address: F::Addr| IpAddr::from(F::wide(address));
    let entries = kernel.entries::<FlowKey<F>, Flow<F>>(which)?;
    let found = entries.into_iter().map(|(key, flow)| Found {
        side: key.scope,
        protocol: key.protocol,
        asked: Tuple {
            source: plain(key.source),
            destination: plain(key.destination),
            source_port: key.source_port,
            destination_port: key.destination_port,
        },
        sent: Tuple {
            source: plain(flow.new_source),
            destination: plain(flow.new_destination),
            source_port: flow.new_source_port,
            destination_port: flow.new_destination_port,
        },
        state: flow.state,
        flags: flow.flags,
        service: flow.service,
        endpoint: flow.endpoint,
        generation: flow.endpoint_generation,
    });
    Ok(found.collect())
}

fn side(flow: &Known) -> u8 {
    match flow.key.0 {
        Side::Pod => flow::POD,
        Side::Outside => flow::OUTSIDE,
    }
}

/// The record the oracle wants; whether the endpoint is local is the record's own affair.
fn expected(known: &Known, record: &Found) -> Found {
    let sent = known.outside().unwrap_or(known.sent);
    let flags = (u8::from(known.hairpin) * flow::HAIRPIN)
        | (u8::from(known.direct) * flow::DIRECT)
        | (u8::from(known.masquerade.is_some()) * flow::MASQUERADE)
        | record.flags & flow::LOCAL_ENDPOINT;
    Found {
        side: side(known),
        protocol: known.protocol(),
        asked: known.asked(),
        sent,
        state: match known.state {
            State::New => flow::NEW,
            State::Answered => flow::ANSWERED,
            State::Established => flow::ESTABLISHED,
            State::ClientClosed => flow::CLIENT_CLOSED,
            State::EndpointClosed => flow::ENDPOINT_CLOSED,
            State::Closed => flow::CLOSED,
            State::Reset => flow::RESET,
            State::ResetDenied => flow::RESET_DENIED,
        },
        flags,
        service: known.service,
        endpoint: known.endpoint,
        generation: known.generation,
    }
}
