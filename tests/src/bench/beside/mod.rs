//! `bench control --only beside`: how soon a change is met by a client, and what following the cluster costs, for
//! kube-proxy in its modes and for Beeline, one after the other on one API server.
//!
//! A probe ([`probe`]) connects to one Service all the time and is told by each answer which port of the endpoint it
//! was led to; changing the port in the slice is the change. Clocks are compared within one machine.

mod probe;
mod proxy;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams};
use lb_agent::snapshot::Family;
use lb_agent::sys::clock::monotonic;
use serde_json::{Value, json};

pub use self::probe::{ClientOptions, ServerOptions, client, server};
use self::probe::{PORTS, Probe};
use self::proxy::{Proxy, Running};
use super::lanes::kube::Kube;
use super::record::Record;
use super::report::{at, mebibytes};
use super::{Output, figures, milliseconds, workload};
use crate::cluster::Cluster;
use crate::link::Layout;

/// Where the probed Service is.
const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
const NAME: &str = "probed";
/// The longest that any of them may take for anything.
const PATIENCE: Duration = Duration::from_secs(300);
/// Before it serves, packets to the Service are lost: a client of that time tries again soon.
const COLD: Duration = Duration::from_millis(10);
/// What a client waits else, before it counts a failure.
const WARM: Duration = Duration::from_secs(1);

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// Changes of the probed Service, alone and while others change.
    pub(super) changes: usize,
    /// Changes of others a second.
    pub(super) rate: u32,
    /// Seconds of them.
    pub(super) seconds: u32,
}

/// Measures every proxy at every size, prints and keeps.
pub(super) fn run(sizes: &[usize], extent: Extent, output: Output) -> Result<()> {
    let mut record = Record::create("control", output)?;
    let kube = Kube::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let kubeconfig = kube.kubeconfig()?;
    let (mut before, mut registered) = (0, false);
    for &services in sizes {
        kube.put(&objects(before..services))?;
        before = services;
        for proxy in Proxy::ALL
            .into_iter()
            .filter(|proxy| services <= proxy.most())
        {
            let cluster = Cluster::builder()
                .nodes(2)
                .pods_per_node(2)
                .layout(Layout::PointToPoint)
                .without_agents()
                .build()?;
            if !registered {
                let nodes = cluster.nodes().iter();
                let nodes: Vec<_> = nodes.map(|n| (n.name(), n.address(Family::V4))).collect();
                kube.register(&nodes)?;
                kube.put(&probed(cluster.pod(1, 2).address(Family::V4)))?;
                registered = true;
            }
            kube.connect(&cluster)?;
            let measured = measure(cluster, proxy, services, extent, &runtime, &kubeconfig);
            let line = measured.with_context(|| format!("{} at {services}", proxy.name()))?;
            record.tell(format_args!("{line}"));
            record.line(&line)?;
        }
    }
    record.finish()
}

fn measure(
    mut cluster: Cluster,
    proxy: Proxy,
    services: usize,
    extent: Extent,
    runtime: &tokio::runtime::Runtime,
    kubeconfig: &Path,
) -> Result<Value> {
    eprintln!("{services} Services, {}", proxy.name());
    let (client, pod) = (cluster.pod(1, 1).place()?.clone(), cluster.pod(1, 2));
    let _server = Probe::server(pod.place()?, pod.address(Family::V4))?;
    let to = SocketAddr::new(SERVICE, 80);
    let writer = runtime.block_on(Writer::new(kubeconfig))?;
    let (mut now, mut loads) = (0, vec![load()]);
    runtime.block_on(writer.lead_to(now))?;

    let first = Probe::client(&client, to, COLD)?;
    let begin = monotonic();
    let mut running = Running::start(proxy, &mut cluster, kubeconfig)?;
    let cold = first.met(PORTS[now].1, PATIENCE)?.saturating_sub(begin);
    drop(first);
    running.wait_ready()?;
    thread::sleep(super::SETTLE);
    let resident = mebibytes(figures::resident(running.id()?)?);
    loads.push(load());

    let mut probe = Probe::client(&client, to, WARM)?;
    probe.met(PORTS[now].1, PATIENCE)?;
    let change = |now: &mut usize| -> Result<f64> {
        *now = 1 - *now;
        let answered = runtime.block_on(writer.lead_to(*now))?;
        let met = probe.met(PORTS[*now].1, PATIENCE)?;
        Ok(milliseconds(met.saturating_sub(answered)) - milliseconds(answered.saturating_sub(met)))
    };
    let mut alone = Vec::new();
    for number in 0..extent.changes {
        // At no fixed distance from whatever they do at times.
        thread::sleep(Duration::from_millis(40 + number as u64 * 7 % 40));
        alone.push(change(&mut now)?);
    }
    loads.push(load());

    // Others change from a thread of their own, which stays in this one's network namespace.
    let (others, rate) = (kubeconfig.to_owned(), extent);
    let spent = running.processor_time()?;
    let churn = thread::spawn(move || churn(&others, services, rate));
    let mut busy = Vec::new();
    while !churn.is_finished() {
        busy.push(change(&mut now)?);
        thread::sleep(Duration::from_millis(40 + busy.len() as u64 * 7 % 40));
    }
    let changed = churn
        .join()
        .map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    // What was told last is part of it.
    thread::sleep(Duration::from_secs(2));
    let spent = running.processor_time()?.saturating_sub(spent);
    let spent = spent.as_secs_f64() * 1e3 / (changed + busy.len()) as f64;
    loads.push(load());

    let (_, failed_before) = probe.count()?;
    running.stop(&mut cluster)?;
    now = 1 - now;
    runtime.block_on(writer.lead_to(now))?;
    let begin = monotonic();
    let running = Running::start(proxy, &mut cluster, kubeconfig)?;
    let restart = probe.met(PORTS[now].1, PATIENCE)?.saturating_sub(begin);
    probe.check_alive()?;
    let (tries, failed) = probe.count()?;
    drop(running);
    loads.push(load());
    Ok(json!({
        "services": services, "proxy": proxy.name(), "ours": proxy == Proxy::Beeline,
        "cold start s": cold.as_secs_f64(),
        "effect ms": quantiles(&mut alone), "effect under changes ms": quantiles(&mut busy),
        "changes": alone.len(), "changes under changes": busy.len(), "others a second": extent.rate,
        "restart s": restart.as_secs_f64(), "failed": failed - failed_before, "probes": tries,
        "failed before": failed_before,
        "resident MiB": resident, "cpu s per 1000": spent, "loads": loads,
    }))
}

/// p50, p99, and the largest.
fn quantiles(values: &mut [f64]) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [0.5, 0.99, 1.0].map(|quantile| at(values, quantile))
}

/// The machine's load of the last minute, others' work included.
fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text
        .split(' ')
        .next()
        .and_then(|number| number.parse().ok());
    first.unwrap_or(f64::NAN)
}

/// Services of ten endpoints each, with what the API server would have given them.
fn objects(numbers: std::ops::Range<usize>) -> Vec<Value> {
    numbers
        .flat_map(|number| {
            let address = workload::address(number);
            [
                service(&workload::name(number), address.into()),
                workload::slice(number, 0),
            ]
        })
        .collect()
}

fn service(name: &str, address: IpAddr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
        },
    })
}

/// The probed Service, and its slice with one endpoint.
fn probed(endpoint: IpAddr) -> [Value; 2] {
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": NAME, "namespace": "default",
            "labels": {"kubernetes.io/service-name": NAME},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": PORTS[0].0, "protocol": "TCP"}],
        "endpoints": [{
            "addresses": [endpoint], "nodeName": "node1",
            "conditions": {"ready": true, "serving": true, "terminating": false},
        }],
    });
    [service(NAME, SERVICE), slice]
}

/// Writes slices as the agents' own client library does.
struct Writer(Api<EndpointSlice>);

impl Writer {
    async fn new(kubeconfig: &Path) -> Result<Self> {
        Ok(Self(Api::namespaced(
            super::api::client(kubeconfig).await?,
            "default",
        )))
    }

    /// Leads the probe to another port; when the server answered.
    async fn lead_to(&self, which: usize) -> Result<Duration> {
        let port = json!({"ports": [{"name": "http", "port": PORTS[which].0, "protocol": "TCP"}]});
        self.patch(NAME, &port).await
    }

    async fn patch(&self, name: &str, patch: &Value) -> Result<Duration> {
        self.0
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(monotonic())
    }
}

/// Changes other Services' slices at a steady pace; how many.
fn churn(kubeconfig: &Path, services: usize, extent: Extent) -> Result<usize> {
    ensure!(services > 0, "there is nothing to change");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let writer = Writer::new(kubeconfig).await?;
        let interval = Duration::from_secs(1) / extent.rate;
        let (begin, total) = (Instant::now(), (extent.rate * extent.seconds) as usize);
        for number in 0..total {
            tokio::time::sleep_until((begin + interval * number as u32).into()).await;
            let service = number * 7 % services;
            let slice = workload::slice(service, 1 + number / services);
            let patch = json!({"endpoints": slice["endpoints"]});
            writer.patch(&workload::name(service), &patch).await?;
        }
        Ok(total)
    })
}
