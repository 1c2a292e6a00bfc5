//! Results, for people and for programs.

use std::fs;
use std::time::Duration;

use serde_json::{Map, Value, json};

/// One measured figure.
pub(super) struct Figure {
    pub(super) part: &'static str,
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) unit: &'static str,
    /// At most this much, where the project promises it.
    pub(super) goal: Option<f64>,
}

/// All figures of a run.
pub(super) struct Report {
    json: bool,
    figures: Vec<Figure>,
}

impl Report {
    /// Prints the machine's facts first.
    pub(super) fn new(json: bool) -> Self {
        let facts = facts();
        if json {
            println!("{}", Value::Object(facts));
        } else {
            let shown: Vec<String> = facts
                .iter()
                .map(|(name, value)| {
                    format!(
                        "{name} {}",
                        value
                            .as_str()
                            .map_or_else(|| value.to_string(), String::from)
                    )
                })
                .collect();
            println!("{}", shown.join(", "));
        }
        Self {
            json,
            figures: Vec::new(),
        }
    }

    pub(super) fn add(
        &mut self,
        part: &'static str,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
    ) {
        self.push(part, name.into(), value, unit, None);
    }

    pub(super) fn goal(
        &mut self,
        part: &'static str,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        goal: f64,
    ) {
        self.push(part, name.into(), value, unit, Some(goal));
    }

    /// p50, p99 and the largest of durations, in milliseconds.
    pub(super) fn latencies(&mut self, part: &'static str, name: &str, milliseconds: &mut [f64]) {
        milliseconds.sort_by(f64::total_cmp);
        for (label, quantile) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
            self.add(
                part,
                format!("{name}, {label}"),
                at(milliseconds, quantile),
                "ms",
            );
        }
    }

    fn push(
        &mut self,
        part: &'static str,
        name: String,
        value: f64,
        unit: &'static str,
        goal: Option<f64>,
    ) {
        if self.json {
            println!(
                "{}",
                json!({"part": part, "name": name, "value": value, "unit": unit, "goal": goal})
            );
        } else {
            if self.figures.last().is_none_or(|last| last.part != part) {
                println!("\n{part}");
            }
            let verdict = match goal {
                Some(goal) if value <= goal => format!("  goal {goal} {unit}: met"),
                Some(goal) => format!("  goal {goal} {unit}: MISSED"),
                None => String::new(),
            };
            println!("  {name:<66} {value:>10.2} {unit:<7}{verdict}");
        }
        self.figures.push(Figure {
            part,
            name,
            value,
            unit,
            goal,
        });
    }

    /// Names of the goals that were missed.
    pub(super) fn missed(&self) -> Vec<String> {
        let missed = self
            .figures
            .iter()
            .filter(|figure| figure.goal.is_some_and(|goal| figure.value > goal));
        missed
            .map(|figure| {
                format!(
                    "{}: {} is {:.2} {}",
                    figure.part, figure.name, figure.value, figure.unit
                )
            })
            .collect()
    }
}

/// A quantile of sorted values.
pub(super) fn at(sorted: &[f64], quantile: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((quantile * last as f64).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

pub(super) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

pub(super) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// What a reader must know of the machine.
pub(super) fn facts() -> Map<String, Value> {
    let read = |path: &str| {
        fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let cpu = read("/proc/cpuinfo").lines().find_map(|line| {
        Some(
            line.strip_prefix("model name")?
                .split_once(':')?
                .1
                .trim()
                .to_owned(),
        )
    });
    let load = read("/proc/loadavg")
        .split(' ')
        .next()
        .unwrap_or_default()
        .to_owned();
    let mut facts = Map::new();
    facts.insert("kernel".into(), read("/proc/sys/kernel/osrelease").into());
    facts.insert(
        "cores".into(),
        std::thread::available_parallelism()
            .map_or(0, usize::from)
            .into(),
    );
    facts.insert(
        "processor".into(),
        cpu.unwrap_or_else(|| std::env::consts::ARCH.into()).into(),
    );
    facts.insert("load before".into(), load.into());
    facts.insert("date".into(), date().into());
    facts
}

/// Today, as ISO 8601 has it.
fn date() -> String {
    let seconds = std::time::UNIX_EPOCH
        .elapsed()
        .map_or(0, |time| time.as_secs());
    let mut days = (seconds / 86_400) as i64;
    // Years of 365 days and leap days, from 1970 on.
    let length = |year: i64| 365 + i64::from(year % 4 == 0 && (year % 100 != 0 || year % 400 == 0));
    let mut year = 1970;
    while days >= length(year) {
        days -= length(year);
        year += 1;
    }
    let february = length(year) - 337;
    let mut month = 1;
    for days_of_month in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < days_of_month {
            break;
        }
        days -= days_of_month;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", days + 1)
}
