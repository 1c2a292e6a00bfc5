//! XDP on live frames: what is left of the pace of a program that sends every frame without a look.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::record::Record;
use super::report::at;
use crate::object::{Entry, Live, Net, Node, Times, on_a_node_by, tcp_service, udp_service};
use crate::packet::{tcp, udp};

/// Frames of a turn.
const TURN: u32 = 1 << 18;

/// As much of the bare program's pace as is to be left.
const GOAL: f64 = 0.21;

struct Lane {
    name: String,
    times: Vec<Times>,
}

/// Measures, prints and keeps, as [`super::packet::run`] does. Lanes whose names do not contain `only` are left out.
pub(super) fn run(rounds: u32, only: &str, record: &mut Record) -> Result<()> {
    let mut lanes = Vec::new();
    for net in [Net::v4(), Net::v6()] {
        on_a_node_by(Entry::Tc, |node| {
            lanes.extend(measure(node, &net, rounds, only).expect("measured"));
        });
    }
    for lane in &lanes {
        for (round, times) in lane.times.iter().enumerate() {
            record.line(&json!({
                "live": lane.name, "round": round, "frames": TURN,
                "bare_ns": times.floor, "whole_ns": times.whole,
            }))?;
        }
    }
    if lanes.is_empty() {
        return Ok(());
    }
    record.tell(format_args!(
        "\n{:<58} {:>8} {:>8} {:>7} {:>15}",
        "XDP, live frames, one processor", "ns", "bare ns", "share", "quartiles"
    ));
    for lane in &lanes {
        record.tell(format_args!("{}", row(lane)));
    }
    Ok(())
}

/// Frames of one flow to an endpoint elsewhere, which go back out of their device, and of its answers.
fn measure(node: &mut Node, net: &Net, rounds: u32, only: &str) -> Result<Vec<Lane>> {
    let mut lanes = Vec::new();
    for service in [tcp_service, udp_service] {
        let service = service("web", net.family);
        node.serve(service.load_balancer(net.vip).endpoint(net.endpoint));
    }
    // Together with six bytes every frame's length is a multiple of four.
    for (protocol, asked) in [
        ("TCP", tcp(net.outside, net.vip).carrying(&[7; 6])),
        ("UDP", udp(net.outside, net.vip).carrying(&[7; 6])),
    ] {
        let opening = if asked.is_tcp() {
            asked.clone().syn()
        } else {
            asked.clone()
        };
        node.meets_xdp(&opening);
        let flows = node.flows();
        let flow = flows
            .iter()
            .find(|flow| (flow.protocol == 6) == asked.is_tcp());
        let port = flow.context("no flow was opened")?.new_source.port();
        let answer = asked
            .clone()
            .from(net.endpoint)
            .to(SocketAddr::new(net.node, port));
        for (direction, packet) in [("known flow", asked), ("answer", answer)] {
            let family = if net.is_v4() { "IPv4" } else { "IPv6" };
            let name = format!("{family} {protocol}, remote endpoint: {direction}");
            if !name.contains(only) {
                continue;
            }
            let live: Live = node.live(&packet)?;
            let times = (0..rounds)
                .map(|_| node.time_live(&live, TURN))
                .collect::<Result<_>>()?;
            lanes.push(Lane { name, times });
        }
    }
    Ok(lanes)
}

fn row(lane: &Lane) -> String {
    let sorted = |value: fn(&Times) -> f64| {
        let mut values: Vec<f64> = lane.times.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let whole = at(&sorted(|times| f64::from(times.whole)), 0.5);
    let bare = at(&sorted(|times| f64::from(times.floor)), 0.5);
    let shares = sorted(|times| f64::from(times.floor) / f64::from(times.whole.max(1)));
    let share = at(&shares, 0.5);
    let verdict = if share >= GOAL { "met" } else { "MISSED" };
    format!(
        "{:<58} {whole:>8.0} {bare:>8.0} {share:>7.2} {:>7.2}–{:<7.2}  goal {GOAL}: {verdict}",
        lane.name,
        at(&shares, 0.25),
        at(&shares, 0.75)
    )
}
