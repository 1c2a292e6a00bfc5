//! `cargo xtask bench lanes`: what a connection, a request, a stream and a datagram cost through a Service, beside
//! what they cost without.
//!
//! A *lane* is one client in one cluster ([`rig`]) that does one thing ([`worker`]). Lanes of one path and one work
//! take turns of some milliseconds, in an order that is turned round every other time, so that whatever the machine
//! does beside happens to all of them. Rates are compared within a round.

mod histogram;
pub(super) mod kube;
mod objects;
mod process;
mod rig;
mod worker;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use self::histogram::Histogram;
use self::kube::Kube;
use self::process::{Client, Server};
use self::rig::{Path, Proxy, Side};
pub use self::worker::{ClientOptions, ServerOptions, client, server};
use self::worker::{Turn, Work};
use super::Output;
use super::record::Record;
use super::report::at;
use crate::kube_proxy::Mode;
use crate::wait::eventually;

/// Settings of a run.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Numbers of Services, ascending
    #[arg(long, value_delimiter = ',', default_value = "10,1000,10000,30000")]
    services: Vec<usize>,
    /// kube-proxies take part up to this many; 0: none is started
    #[arg(long, default_value_t = 10_000)]
    kube_proxy_services: usize,
    /// Only paths and works whose names, as in "ClusterIP, connect", contain this
    #[arg(long, default_value = "")]
    only: String,
    /// Rounds, in each of which every lane has its turn
    #[arg(long, default_value_t = 40)]
    rounds: usize,
    /// Milliseconds of a turn
    #[arg(long, default_value_t = 15)]
    turn: u64,
    /// Few rounds, and no more than 1,000 Services
    #[arg(long)]
    quick: bool,
    /// A table for people, or one JSON object per line
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// A round in which the direct lane is farther than this from its median was disturbed.
const DRIFT: f64 = 0.05;
/// Share of time that the machine below may have taken away in a round.
const STOLEN: f64 = 0.01;
/// How long a cluster may take to serve what it was given.
const SOON: Duration = Duration::from_secs(120);
/// A kube-proxy that serves the last of new Services may still be writing.
const SETTLE: Duration = Duration::from_secs(2);
/// Services in one file of manifests.
const PER_FILE: usize = 500;

struct Lane {
    proxy: Proxy,
    path: Path,
    work: Work,
    /// Where among the rules the dialled Service is, if that counts.
    place: &'static str,
    client: Client,
    turns: Vec<Turn>,
}

/// Measures, prints and keeps.
pub fn run(options: &Options) -> Result<()> {
    let mut options = options.clone();
    if options.quick {
        options.rounds = options.rounds.min(10);
        options.services.retain(|&services| services <= 1_000);
    }
    let mut record = Record::create("lanes", options.output)?;
    let (timed, _) = worker::processors()?;
    let kube = (options.kube_proxy_services > 0)
        .then(Kube::start)
        .transpose()?;
    let mut sides: Vec<Side> = Vec::new();
    for proxy in [
        Proxy::Nobody,
        Proxy::Conntrack,
        Proxy::Kube(Mode::IptablesLegacy),
        Proxy::Kube(Mode::Iptables),
        Proxy::Kube(Mode::Nftables),
        Proxy::Sockets,
        Proxy::Packets,
    ] {
        if kube.is_none() && matches!(proxy, Proxy::Kube(_)) {
            continue;
        }
        let side = Side::build(proxy, kube.as_ref())
            .with_context(|| format!("building {}", proxy.name()))?;
        if let Some(kube) = &kube
            && sides.is_empty()
        {
            kube.register(&side.nodes())?;
        }
        sides.push(side);
    }
    let mut servers = Vec::new();
    for side in &sides {
        for (place, address) in side.servers()? {
            servers.push(Server::start(&place, timed, address)?);
        }
    }
    let mut before = 0;
    for &services in &options.services {
        eprintln!("{services} Services");
        if services > options.kube_proxy_services {
            // Its rules stay, its processes would only disturb.
            sides.retain(|side| side.kube_proxy.is_none());
        }
        publish(&sides, kube.as_ref(), before..services)?;
        before = services;
        settle(&mut sides, services, timed)?;
        for path in Path::ALL {
            for work in Work::ALL {
                let name = format!("{}, {}", path.name(), work.name());
                if !name.contains(&options.only) {
                    continue;
                }
                let lanes = lanes(&sides, path, work, services, timed)?;
                measure(lanes, services, &options, &mut record)?;
            }
        }
        sides
            .iter()
            .filter_map(|side| side.kube_proxy.as_ref())
            .try_for_each(|kube_proxy| kube_proxy.resume())?;
    }
    drop(servers);
    drop(sides);
    record.finish()
}

/// Gives all proxies more Services.
fn publish(sides: &[Side], kube: Option<&Kube>, numbers: std::ops::Range<usize>) -> Result<()> {
    if let Some(kube) = kube
        && sides.iter().any(|side| side.kube_proxy.is_some())
    {
        let mut objects: Vec<Value> = Vec::new();
        if numbers.start == 0 {
            for path in [Path::NodePortLocal, Path::NodePortRemote] {
                objects.extend(objects::with_node_ports(path));
            }
        }
        objects.extend(numbers.clone().flat_map(objects::service));
        kube.put(&objects).context("filling etcd")?;
    }
    sides
        .iter()
        .try_for_each(|side| write_manifests(side, numbers.clone()))
}

/// Waits until all proxies serve the last Service, and stops kube-proxies: a sync would disturb what is timed, and
/// give the rules another order.
fn settle(sides: &mut [Side], services: usize, processor: usize) -> Result<()> {
    let last = IpAddr::from(objects::address(services - 1));
    for side in sides.iter() {
        side.knows(last)?;
        let to = side.dialled(Path::ClusterIp, Work::Connect, last);
        served(side, Path::ClusterIp, Work::Connect, to, processor)?;
    }
    if sides.iter().any(|side| side.kube_proxy.is_some()) {
        thread::sleep(SETTLE);
    }
    sides
        .iter()
        .filter_map(|side| side.kube_proxy.as_ref())
        .try_for_each(|kube_proxy| kube_proxy.pause())
}

/// Gives a Beeline more Services.
fn write_manifests(side: &Side, numbers: std::ops::Range<usize>) -> Result<()> {
    if side.proxy.is_direct() || side.kube_proxy.is_some() {
        return Ok(());
    }
    let manifests = side.cluster.node(1).manifests();
    if numbers.start == 0 {
        for path in [Path::NodePortLocal, Path::NodePortRemote] {
            manifests.write(
                &format!("{}.yaml", path.node_port()),
                &documents(objects::with_node_ports(path)),
            )?;
        }
    }
    let numbers: Vec<usize> = numbers.collect();
    for chunk in numbers.chunks(PER_FILE) {
        let text = chunk
            .iter()
            .map(|&number| documents(objects::service(number)))
            .collect::<Vec<_>>()
            .join("---\n");
        manifests.write(&format!("lanes-{}.yaml", chunk[0]), &text)?;
    }
    Ok(())
}

fn documents(objects: [Value; 2]) -> String {
    let [service, slice] = objects;
    format!("{service}\n---\n{slice}\n")
}

/// Lanes of one path and one work, the direct one first.
fn lanes(
    sides: &[Side],
    path: Path,
    work: Work,
    services: usize,
    processor: usize,
) -> Result<Vec<Lane>> {
    let mut lanes = Vec::new();
    for side in sides {
        // The client's machine has no hooks: a NodePort is served by packets alone.
        if side.proxy == Proxy::Sockets && path != Path::ClusterIp {
            continue;
        }
        let dialled = match (path, work) {
            (Path::ClusterIp, Work::Connect) => side.targets(services)?,
            _ => vec![("", objects::EVERY_WORK.into())],
        };
        for (place, vip) in dialled {
            let to = side.dialled(path, work, vip);
            lanes.push(Lane {
                proxy: side.proxy,
                path,
                work,
                place,
                client: served(side, path, work, to, processor)?,
                turns: Vec::new(),
            });
        }
    }
    Ok(lanes)
}

/// A client that has been served.
fn served(side: &Side, path: Path, work: Work, to: SocketAddr, processor: usize) -> Result<Client> {
    let place = side.client(path)?;
    let found = eventually("the Service is served", SOON, || {
        let mut client = Client::start(&place, processor, work, to)?;
        let done = client.turn(1);
        Ok(done
            .is_ok_and(|turn| turn.done > 0 && turn.errors == 0)
            .then_some(client))
    });
    found.with_context(|| format!("{}: {work:?} at {to}", side.proxy.name()))
}

fn measure(
    mut lanes: Vec<Lane>,
    services: usize,
    options: &Options,
    record: &mut Record,
) -> Result<()> {
    let mut stolen = Vec::new();
    for round in 0..options.rounds {
        let before = Processor::now()?;
        let mut order: Vec<usize> = (0..lanes.len()).collect();
        if round % 2 != 0 {
            order.reverse();
        }
        for index in order {
            let turn = lanes[index].client.turn(options.turn)?;
            lanes[index].turns.push(turn);
        }
        stolen.push(Processor::now()?.stolen_since(&before));
    }
    let direct: Vec<f64> = lanes[0].turns.iter().map(Turn::rate).collect();
    let usual = median(direct.clone());
    let kept: Vec<bool> = direct
        .iter()
        .zip(&stolen)
        .map(|(rate, stolen)| (rate / usual - 1.0).abs() <= DRIFT && *stolen <= STOLEN)
        .collect();
    for lane in &lanes {
        let mut latency = Histogram::default();
        for (round, turn) in lane.turns.iter().enumerate() {
            ensure!(
                turn.errors == 0,
                "{}, {}, {}: {} errors: that is no speed",
                lane.proxy.name(),
                lane.path.name(),
                lane.work.name(),
                turn.errors
            );
            if kept[round] {
                latency.merge(&turn.latency);
            }
            record.line(&json!({
                "services": services, "path": lane.path.name(), "work": lane.work.name(),
                "proxy": lane.proxy.name(), "place": lane.place, "round": round, "done": turn.done, "ns": turn.nanoseconds,
                "stolen": stolen[round], "kept": kept[round],
            }))?;
        }
        tell(lane, services, &direct, &kept, &latency, record)?;
    }
    Ok(())
}

fn tell(
    lane: &Lane,
    services: usize,
    direct: &[f64],
    kept: &[bool],
    latency: &Histogram,
    record: &mut Record,
) -> Result<()> {
    let of_kept = |values: Vec<f64>| -> Vec<f64> {
        let mut values: Vec<f64> = values
            .into_iter()
            .zip(kept)
            .filter_map(|(value, kept)| kept.then_some(value))
            .collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let rates = of_kept(lane.turns.iter().map(Turn::rate).collect());
    let ratios = of_kept(
        lane.turns
            .iter()
            .zip(direct)
            .map(|(turn, direct)| turn.rate() / direct)
            .collect(),
    );
    let quartiles = [0.25, 0.5, 0.75].map(|share| at(&ratios, share));
    let microseconds = [0.5, 0.9, 0.99, 0.999].map(|share| latency.quantile(share) / 1e3);
    record.line(&json!({
        "services": services, "path": lane.path.name(), "work": lane.work.name(), "proxy": lane.proxy.name(), "place": lane.place,
        "rounds": ratios.len(), "rate": at(&rates, 0.5), "ratio": quartiles, "latency_us": microseconds,
    }))?;
    record.tell(format_args!(
        "{services:>6} {:<36} {:<9} {:<34} {:>9.0}/s  {:.3} ({:.3}–{:.3}, {} rounds)  p50 {:.1} p99 {:.1} µs",
        lane.path.name(),
        lane.work.name(),
        format!("{} {}", lane.proxy.name(), lane.place),
        at(&rates, 0.5),
        quartiles[1],
        quartiles[0],
        quartiles[2],
        ratios.len(),
        microseconds[0],
        microseconds[2],
    ));
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    at(&values, 0.5)
}

/// Time of all processors by what it went to, in ticks.
struct Processor {
    total: u64,
    stolen: u64,
}

impl Processor {
    fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let first = text.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = first
            .split_whitespace()
            .skip(1)
            .filter_map(|word| word.parse().ok())
            .collect();
        Ok(Self {
            total: ticks.iter().take(8).sum(),
            // user, nice, system, idle, iowait, irq, softirq, steal
            stolen: ticks.get(7).copied().unwrap_or(0),
        })
    }

    fn stolen_since(&self, before: &Self) -> f64 {
        let total = self.total.saturating_sub(before.total).max(1);
        self.stolen.saturating_sub(before.stolen) as f64 / total as f64
    }
}
