//! The table of `bench packet`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use crate::bench::report::at;

/// By lane and family: nanoseconds above the floor, and by the floor, of each round.
type Costs<'a> = BTreeMap<(&'a str, &'a str), (Vec<f64>, Vec<f64>)>;

/// Medians over the rounds, a row for both families.
pub(super) fn table(lines: &[Value]) -> (String, Vec<(String, String)>) {
    let mut lanes: Vec<&str> = Vec::new();
    let mut costs: Costs<'_> = BTreeMap::new();
    for line in lines {
        let (Some(lane), Some(floor), Some(whole)) = (
            line["lane"].as_str(),
            line["floor_ns"].as_f64(),
            line["whole_ns"].as_f64(),
        ) else {
            continue;
        };
        let (family, lane) = lane.split_once(' ').unwrap_or(("", lane));
        if !lanes.contains(&lane) {
            lanes.push(lane);
        }
        let (net, ratios) = costs.entry((lane, family)).or_default();
        net.push(whole - floor);
        ratios.push(whole / floor.max(1.0));
    }
    let mut text = String::from(
        "| ns above an empty program: median (quartiles) | IPv4 | IPv6 | × floor |\n| --- | --- | --- | --- |\n",
    );
    for lane in lanes {
        let cell = |family: &str| {
            let Some((net, _)) = costs.get(&(lane, family)) else {
                return String::new();
            };
            let mut net = net.clone();
            net.sort_by(f64::total_cmp);
            let [low, middle, high] = [0.25, 0.5, 0.75].map(|share| at(&net, share));
            format!("{middle:.0} ({low:.0}–{high:.0})")
        };
        let mut ratios = costs
            .get(&(lane, "IPv4"))
            .map(|(_, ratios)| ratios.clone())
            .unwrap_or_default();
        ratios.sort_by(f64::total_cmp);
        let _ = writeln!(
            text,
            "| {lane} | {} | {} | {:.1} |",
            cell("IPv4"),
            cell("IPv6"),
            at(&ratios, 0.5)
        );
    }
    text.push_str(&live(lines));
    (text.trim_end().to_owned(), Vec::new())
}

/// What XDP leaves of a bare program's pace on live frames, a row for each lane.
fn live(lines: &[Value]) -> String {
    let mut lanes: Vec<(&str, Vec<[f64; 3]>)> = Vec::new();
    for line in lines {
        let (Some(lane), Some(bare), Some(whole)) = (
            line["live"].as_str(),
            line["bare_ns"].as_f64(),
            line["whole_ns"].as_f64(),
        ) else {
            continue;
        };
        let round = [bare / whole.max(1.0), whole, bare];
        match lanes.iter_mut().find(|(known, _)| *known == lane) {
            Some((_, rounds)) => rounds.push(round),
            None => lanes.push((lane, vec![round])),
        }
    }
    if lanes.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "\n| XDP, live frames, one processor | share of a bare redirect's pace: median (quartiles) | ns a frame | bare redirect |\n| --- | --- | --- | --- |\n",
    );
    for (lane, rounds) in lanes {
        let share_at = |which: usize, share: f64| {
            let mut values: Vec<f64> = rounds.iter().map(|round| round[which]).collect();
            values.sort_by(f64::total_cmp);
            at(&values, share)
        };
        let _ = writeln!(
            text,
            "| {lane} | {:.2} ({:.2}–{:.2}) | {:.0} | {:.0} |",
            share_at(0, 0.5),
            share_at(0, 0.25),
            share_at(0, 0.75),
            share_at(1, 0.5),
            share_at(2, 0.5)
        );
    }
    text
}
