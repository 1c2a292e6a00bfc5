//! `cargo xtask bench packet`: what the packet programs cost, by `BPF_PROG_TEST_RUN` on the loaded object.
//!
//! Every figure is the difference to an empty program that got the same packets in the same way a moment before
//! and after. Lanes take turns within a round; what is told is the median over the rounds.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use lb_agent::snapshot::Family;
use lb_ebpf::abi::counter;
use lb_ebpf::abi::flow::{MASQUERADE, OUTSIDE};
use serde_json::json;

use super::Output;
use super::live;
use super::record::Record;
use super::report::at;
use crate::object::budget::write_times;
use crate::object::{
    Described, Ends, Entry, Met, Net, Node, Stream, Times, on_a_node_by, tcp_service, udp_service,
};
use crate::packet::{Packet, tcp, udp};

/// Settings of a run.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Rounds, in each of which every lane has its turn
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Services beside those that are dialled
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(0..=12_000))]
    services: u32,
    /// Writes each lane's cost, by that of an empty program, to this file: tests/budget.toml
    #[arg(long)]
    budget: Option<PathBuf>,
    /// Only lanes whose names contain this
    #[arg(long, default_value = "")]
    only: String,
    /// A table for people, or one JSON object per line
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Flows of a lane whose flows are many, and of one whose flows stay in the processor's caches.
const LANE: usize = 65_536;
const HOT: usize = 1_024;
/// Packets of one turn.
const TURN: usize = 65_536;
/// Flows that are opened in one turn.
const OPENED: usize = 4_096;
/// Endpoints of Services whose flows are masqueraded: more flows than ports need more than one.
const ENDPOINTS: u16 = 64;

/// What must have become of the packets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Untouched,
    Translated,
    /// Translated, and as many flows are new.
    Opened,
}

struct Lane {
    name: String,
    stream: Stream,
    fate: Fate,
    /// Nanoseconds above the floor.
    goal: Option<f64>,
    times: Vec<Times>,
}

/// Measures, prints and keeps.
pub fn run(options: &Options) -> Result<()> {
    let mut record = Record::create("packet", options.output)?;
    let mut lanes = Vec::new();
    for net in [Net::v4(), Net::v6()] {
        for setting in [nobody, pod, outside_local, outside_remote] {
            on_a_node_by(Entry::Tc, |node| {
                let measured = prepare(node, &net, options)
                    .and_then(|()| setting(node, &net))
                    .and_then(|mut lanes| {
                        lanes.retain(|lane| lane.name.contains(&options.only));
                        measure(node, lanes, options.rounds)
                    });
                lanes.extend(measured.expect("measured"));
            });
        }
    }
    for lane in &lanes {
        for (round, times) in lane.times.iter().enumerate() {
            record.line(&json!({
                "lane": lane.name, "round": round, "packets": lane.stream.len(),
                "floor_ns": times.floor, "whole_ns": times.whole,
            }))?;
        }
    }
    if let Some(path) = &options.budget {
        let shown = || path.display().to_string();
        let text = fs::read_to_string(path).with_context(shown)?;
        let times: Vec<(String, f64)> = lanes
            .iter()
            .map(|lane| (lane.name.clone(), lane.times_floor()))
            .collect();
        fs::write(path, write_times(&text, &times)).with_context(shown)?;
    }
    if options.output == Output::Table {
        println!(
            "{:<58} {:>8} {:>15} {:>7} {:>7}",
            "", "ns", "quartiles", "floor", "× floor"
        );
        lanes.iter().for_each(tell);
    }
    live::run(options.rounds, &options.only, &mut record)?;
    record.finish()
}

/// What does not depend on the lane.
fn prepare(node: &mut Node, net: &Net, options: &Options) -> Result<()> {
    node.set(|settings| {
        // The sweep is to find nothing.
        settings.timeout_new = 7200;
        settings.timeout_udp = 7200;
    });
    for number in 0..options.services {
        node.serve(bystander(net, number));
    }
    Ok(())
}

/// A Service that nobody dials.
fn bystander(net: &Net, number: u32) -> Described {
    let (high, low) = ((number / 250) as u8, (number % 250) as u8 + 1);
    let (address, endpoint): (IpAddr, IpAddr) = match net.family {
        Family::V4 => (
            Ipv4Addr::new(10, 96, 16 + high, low).into(),
            Ipv4Addr::new(10, 3, high, low).into(),
        ),
        Family::V6 => {
            let last = 0x1000 + number as u16;
            (
                Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, last).into(),
                Ipv6Addr::new(0xfd03, 0, 0, 0, 0, 0, 0, last).into(),
            )
        }
    };
    tcp_service(&format!("bystander-{number}"), net.family)
        .cluster_ip(SocketAddr::new(address, 80))
        .endpoint(SocketAddr::new(endpoint, 8080))
}

/// Packets that are no Service's business.
fn nobody(_: &mut Node, net: &Net) -> Result<Vec<Lane>> {
    let mut lanes = Vec::new();
    for flows in [HOT, LANE] {
        let ends = ends(flows, 0, (net.client.port(), net.stranger.port()));
        let packet = tcp(net.client, net.stranger);
        for (met, where_met) in [
            (Met::PodIngress, "pod ingress"),
            (Met::OutIngress, "uplink ingress"),
            (Met::PodEgress, "pod egress"),
            (Met::OutEgress, "uplink egress"),
        ] {
            let name = format!("no service, {where_met}, {}", size(flows));
            let stream = Stream::to(met, &packet, &ends)?;
            lanes.push(lane(net, name, stream, Fate::Untouched, Some(30.0)));
        }
    }
    Ok(lanes)
}

/// A pod dials a Service.
fn pod(node: &mut Node, net: &Net) -> Result<Vec<Lane>> {
    node.serve(
        tcp_service("web", net.family)
            .cluster_ip(net.service)
            .endpoint(net.endpoint),
    );
    node.serve(
        udp_service("names", net.family)
            .cluster_ip(net.service)
            .endpoint(net.endpoint),
    );
    let (asked, answer) = (tcp(net.client, net.service), tcp(net.endpoint, net.client));
    let mut lanes = plain_flows(
        node,
        net,
        "pod",
        (Met::PodIngress, asked),
        (Met::PodEgress, answer),
    )?;
    let (asked, answer) = (udp(net.client, net.service), udp(net.endpoint, net.client));
    lanes.extend(plain_flows(
        node,
        net,
        "pod, UDP",
        (Met::PodIngress, asked),
        (Met::PodEgress, answer),
    )?);
    Ok(lanes)
}

/// An outside client dials an endpoint of this node.
fn outside_local(node: &mut Node, net: &Net) -> Result<Vec<Lane>> {
    node.serve(
        tcp_service("web", net.family)
            .node_port(net.node_port.port())
            .local_endpoint(net.local_endpoint),
    );
    let (asked, answer) = (
        tcp(net.outside, net.node_port),
        tcp(net.local_endpoint, net.outside),
    );
    plain_flows(
        node,
        net,
        "NodePort, local endpoint",
        (Met::OutIngress, asked),
        (Met::OutEgress, answer),
    )
}

/// Lanes of flows whose client's address is kept.
fn plain_flows(
    node: &mut Node,
    net: &Net,
    name: &str,
    (way_in, asked): (Met, Packet),
    (way_back, answer): (Met, Packet),
) -> Result<Vec<Lane>> {
    let ports = |packet: &Packet| packet.ports().context("a packet without ports");
    let (there, back) = (ports(&asked)?, ports(&answer)?);
    let opening = |packet: &Packet| {
        if packet.is_tcp() {
            packet.clone().syn()
        } else {
            packet.clone()
        }
    };
    let answering = |packet: &Packet| {
        if packet.is_tcp() {
            packet.clone().syn_ack()
        } else {
            packet.clone()
        }
    };
    let known = |flows: usize| (ends(flows, 0, there), ends(flows, 0, back));
    let (many_there, many_back) = known(LANE);
    node.open_flows(&Stream::from(way_in, &opening(&asked), &many_there)?)?;
    node.send(
        &Stream::to(way_back, &answering(&answer), &many_back)?,
        0,
        LANE,
    )?;
    let mut lanes = Vec::new();
    for flows in [HOT, LANE] {
        let (there, back) = known(flows);
        lanes.push(lane(
            net,
            format!("{name}: known flow, {}", size(flows)),
            Stream::from(way_in, &asked, &there)?,
            Fate::Translated,
            Some(120.0),
        ));
        lanes.push(lane(
            net,
            format!("{name}: answer, {}", size(flows)),
            Stream::to(way_back, &answer, &back)?,
            Fate::Translated,
            Some(120.0),
        ));
    }
    lanes.push(lane(
        net,
        format!("{name}: new flow beside {}", size(LANE)),
        Stream::from(way_in, &opening(&asked), &ends(LANE, LANE as u32, there))?,
        Fate::Opened,
        Some(700.0),
    ));
    Ok(lanes)
}

/// An outside client dials endpoints of other nodes, by the fast way.
fn outside_remote(node: &mut Node, net: &Net) -> Result<Vec<Lane>> {
    const NAME: &str = "NodePort, remote endpoint";
    // Each flow takes a port of the pool, which costs what leaves from such a port a further look.
    node.set(|settings| (settings.nat_port_first, settings.nat_port_last) = (10_000, 60_000));
    let mut service = tcp_service("web", net.family).node_port(net.node_port.port());
    for number in 0..ENDPOINTS {
        let mut endpoint = net.endpoint;
        endpoint.set_port(8000 + number);
        service = service.endpoint(endpoint);
    }
    node.serve(service);
    let there = (net.outside.port(), net.node_port.port());
    let asked = tcp(net.outside, net.node_port);
    node.open_flows(&Stream::from(
        Met::OutIngress,
        &asked.clone().syn(),
        &ends(LANE, 0, there),
    )?)?;
    let answer = tcp(net.endpoint, SocketAddr::new(net.node, 1));
    let mut back: Vec<Ends> = node
        .flows()
        .iter()
        .filter(|flow| flow.scope == OUTSIDE && flow.flags & MASQUERADE != 0)
        .map(|flow| Ends {
            address: tail(flow.new_destination.ip()),
            ports: wire_ports((flow.new_destination.port(), flow.new_source.port())),
        })
        .collect();
    ensure!(back.len() == LANE, "{} flows, not {LANE}", back.len());
    // As they come from the table they lie side by side in memory.
    back = (0..LANE)
        .map(|number| back[shuffled(number, LANE)])
        .collect();
    let from_endpoint =
        |packet: &Packet, ends: &[Ends]| Stream::from(Met::OutIngress, packet, ends);
    node.send(&from_endpoint(&answer.clone().syn_ack(), &back)?, 0, LANE)?;
    let mut lanes = Vec::new();
    for flows in [HOT, LANE] {
        lanes.push(lane(
            net,
            format!("{NAME}: known flow, {}", size(flows)),
            Stream::from(Met::OutIngress, &asked, &ends(flows, 0, there))?,
            Fate::Translated,
            None,
        ));
        lanes.push(lane(
            net,
            format!("{NAME}: answer, {}", size(flows)),
            from_endpoint(&answer, &back[..flows])?,
            Fate::Translated,
            None,
        ));
    }
    lanes.push(lane(
        net,
        format!("{NAME}: new flow beside {}", size(LANE)),
        Stream::from(
            Met::OutIngress,
            &asked.syn(),
            &ends(LANE, LANE as u32, there),
        )?,
        Fate::Opened,
        None,
    ));
    Ok(lanes)
}

fn lane(net: &Net, name: String, stream: Stream, fate: Fate, goal: Option<f64>) -> Lane {
    let family = if net.is_v4() { "IPv4" } else { "IPv6" };
    Lane {
        name: format!("{family} {name}"),
        stream,
        fate,
        goal,
        times: Vec::new(),
    }
}

/// Ends from the one numbered `first` on, in an order that no prefetching guesses.
fn ends(count: usize, first: u32, ports: (u16, u16)) -> Vec<Ends> {
    let base = u32::from_be_bytes([10, 64, 0, 0]) + first;
    (0..count)
        .map(|number| Ends {
            address: (base + shuffled(number, count) as u32).to_be_bytes(),
            ports: wire_ports(ports),
        })
        .collect()
}

/// A permutation of the numbers below a power of two.
fn shuffled(number: usize, count: usize) -> usize {
    (number * 40_503) & (count - 1)
}

fn wire_ports((source, destination): (u16, u16)) -> [u8; 4] {
    let ([a, b], [c, d]) = (source.to_be_bytes(), destination.to_be_bytes());
    [a, b, c, d]
}

/// Last four bytes of an address.
fn tail(address: IpAddr) -> [u8; 4] {
    let bytes = match address {
        IpAddr::V4(address) => address.to_ipv6_compatible().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    [bytes[12], bytes[13], bytes[14], bytes[15]]
}

fn size(flows: usize) -> String {
    format!("{}k", flows / 1024)
}

fn measure(node: &mut Node, mut lanes: Vec<Lane>, rounds: u32) -> Result<Vec<Lane>> {
    for round in 0..rounds as usize {
        for lane in &mut lanes {
            let (first, count) = match lane.fate {
                Fate::Opened => (round * OPENED % LANE, OPENED),
                Fate::Untouched | Fate::Translated => (0, TURN),
            };
            let opened = node.count_of(counter::FLOW_CREATED);
            let timed = node.time(&lane.stream, first, count)?;
            let opened = node.count_of(counter::FLOW_CREATED) - opened;
            ensure!(
                timed.changed == (lane.fate != Fate::Untouched) && !timed.outcome.ends(),
                "{}: {}",
                lane.name,
                timed.outcome.story()
            );
            let expected = if lane.fate == Fate::Opened { OPENED } else { 0 };
            ensure!(
                opened == expected as u64,
                "{}: {opened} flows opened, not {expected}",
                lane.name
            );
            lane.times.push(timed.times);
        }
    }
    Ok(lanes)
}

impl Lane {
    /// A value of each round, sorted.
    fn sorted(&self, value: fn(&Times) -> f64) -> Vec<f64> {
        let mut values: Vec<f64> = self.times.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    /// The time of a run with the program by that of one with an empty one.
    fn times_floor(&self) -> f64 {
        let ratio = |times: &Times| f64::from(times.whole) / f64::from(times.floor.max(1));
        at(&self.sorted(ratio), 0.5)
    }
}

fn tell(lane: &Lane) {
    let sorted = |value| lane.sorted(value);
    let net = sorted(|times| f64::from(times.whole) - f64::from(times.floor));
    let floor = at(&sorted(|times| f64::from(times.floor)), 0.5);
    let ratio = lane.times_floor();
    let cost = at(&net, 0.5);
    let verdict = match lane.goal {
        Some(goal) if cost <= goal => format!("  goal {goal}: met"),
        Some(goal) => format!("  goal {goal}: MISSED"),
        None => String::new(),
    };
    println!(
        "{:<58} {cost:>8.0} {:>7.0}–{:<7.0} {floor:>7.0} {ratio:>7.1}{verdict}",
        lane.name,
        at(&net, 0.25),
        at(&net, 0.75)
    );
}
