//! The table and plots of `bench lanes`.

use std::fmt::Write as _;

use serde_json::Value;

use super::plot::{self, Bar, Shade};

/// A lane as its summary tells.
struct Lane<'a> {
    services: u64,
    path: &'a str,
    work: &'a str,
    proxy: String,
    rate: f64,
    ratio: [f64; 3],
    latency: [f64; 4],
    rounds: u64,
}

fn summaries(lines: &[Value]) -> Vec<Lane<'_>> {
    let numbers = |value: &Value| -> Vec<f64> {
        let list = value.as_array().into_iter().flatten();
        list.map(|number| number.as_f64().unwrap_or(f64::NAN))
            .collect()
    };
    lines
        .iter()
        .filter_map(|line| {
            let place = line["place"].as_str().unwrap_or_default();
            let proxy = line["proxy"].as_str()?;
            Some(Lane {
                services: line["services"].as_u64()?,
                path: line["path"].as_str()?,
                work: line["work"].as_str()?,
                proxy: if place.is_empty() {
                    proxy.to_owned()
                } else {
                    format!("{proxy}, {place}")
                },
                rate: line["rate"].as_f64()?,
                ratio: numbers(&line["ratio"]).try_into().ok()?,
                latency: numbers(&line["latency_us"]).try_into().ok()?,
                rounds: line["rounds"].as_u64()?,
            })
        })
        .collect()
}

/// Every lane, and a plot of new connections for each path.
pub(super) fn table(lines: &[Value]) -> (String, Vec<(String, String)>) {
    let lanes = summaries(lines);
    let mut groups: Vec<(&str, &str)> = Vec::new();
    for lane in &lanes {
        if !groups.contains(&(lane.path, lane.work)) {
            groups.push((lane.path, lane.work));
        }
    }
    let (mut text, mut plots) = (String::new(), Vec::new());
    for (path, work) in groups {
        let _ = writeln!(
            text,
            "**{path}, {work}**\n\n\
             | Services | lane | per second | of direct (quartiles) | p50 µs | p90 | p99 | p99.9 | rounds |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
        );
        let here = lanes
            .iter()
            .filter(|lane| (lane.path, lane.work) == (path, work));
        let mut bars = Vec::new();
        for lane in here {
            let [low, middle, high] = lane.ratio;
            let [p50, p90, p99, p999] = lane.latency;
            let _ = writeln!(
                text,
                "| {} | {} | {:.0} | {middle:.3} ({low:.3}–{high:.3}) | {p50:.1} | {p90:.1} | {p99:.1} | {p999:.1} | {} |",
                lane.services, lane.proxy, lane.rate, lane.rounds
            );
            bars.push(Bar {
                label: format!("{} · {}", lane.services, lane.proxy),
                value: middle,
                range: (low, high),
                ours: lane.proxy.starts_with("beeline"),
            });
        }
        if work == "connect" {
            let stem = path
                .to_lowercase()
                .replace([',', ' '], "-")
                .replace("--", "-");
            let title = format!("{path}: new connections, of what a direct one allows");
            for shade in [Shade::Light, Shade::Dark] {
                plots.push((
                    format!("{stem}-{}.svg", shade.name()),
                    plot::bars(&title, &bars, shade),
                ));
            }
            let _ = writeln!(
                text,
                "\n<picture><source media=\"(prefers-color-scheme: dark)\" srcset=\"benchmarks/{stem}-dark.svg\">\
                 <img alt=\"{title}\" src=\"benchmarks/{stem}-light.svg\"></picture>"
            );
        }
        text.push('\n');
    }
    (text.trim_end().to_owned(), plots)
}
