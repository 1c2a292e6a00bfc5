//! What a process costs, and what it says of itself.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Resident bytes of a process.
pub(super) fn resident(process: u32) -> Result<u64> {
    let status =
        fs::read_to_string(format!("/proc/{process}/status")).context("read the agent's status")?;
    let kib = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .trim()
                .strip_suffix(" kB")?
                .trim()
                .parse::<u64>()
                .ok()
        })
        .context("no VmRSS in the agent's status")?;
    Ok(kib * 1024)
}

/// Processor time a process has used, all its threads.
pub(super) fn processor_time(process: u32) -> Result<Duration> {
    let mut total = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let file = thread?.path().join("schedstat");
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        total += text
            .split(' ')
            .next()
            .unwrap_or_default()
            .parse::<u64>()
            .context("parse schedstat")?;
    }
    Ok(Duration::from_nanos(total))
}

/// The agent's metrics of this moment.
pub(super) struct Metrics(String);

impl Metrics {
    /// Asks the agent of this network namespace.
    pub(super) fn read() -> Result<Self> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 10249))
            .context("ask the agent for its metrics")?;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(Self(page))
    }

    /// The sum of a metric over its labels.
    pub(super) fn sum(&self, name: &str) -> f64 {
        self.samples(name).map(|(_, value)| value).sum()
    }

    /// Observations at or below each bound of a histogram without labels; the last bound is infinite.
    fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        self.samples(&format!("{name}_bucket"))
            .filter_map(|(labels, count)| {
                let bound = labels.split("le=\"").nth(1)?.split('"').next()?;
                Some((bound.parse().unwrap_or(f64::INFINITY), count))
            })
            .collect()
    }

    fn samples<'a>(&'a self, name: &str) -> impl Iterator<Item = (&'a str, f64)> {
        self.0.lines().filter_map(move |line| {
            let rest = line
                .strip_prefix(name)
                .filter(|rest| rest.starts_with(['{', ' ']))?;
            let (labels, value) = rest.rsplit_once(' ')?;
            Some((labels, value.parse().ok()?))
        })
    }
}

/// Upper bounds in seconds of quantiles of what a histogram took in between two moments.
pub(super) fn quantiles(before: &Metrics, after: &Metrics, name: &str, wanted: &[f64]) -> Vec<f64> {
    let grown: Vec<(f64, f64)> = before
        .buckets(name)
        .into_iter()
        .zip(after.buckets(name))
        .map(|((_, then), (bound, now))| (bound, now - then))
        .collect();
    let total = grown.last().map_or(0.0, |(_, count)| *count);
    wanted
        .iter()
        .map(|quantile| {
            let reached = grown.iter().find(|(_, count)| *count >= quantile * total);
            reached.map_or(f64::INFINITY, |(bound, _)| *bound)
        })
        .collect()
}
