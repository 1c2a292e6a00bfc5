//! The agent on a real API server.
//!
//! Objects are written with the client library the agent uses, as one `curl` each would be what is measured. A
//! second watch beside the agent's tells when the server had told of a change: the rest is ours.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;

use super::report::Report;
use super::tables::Watcher;
use super::{Meter, Options, clean_up, delays, memory, start, workload};
use crate::control_plane::rig::create_node;
use crate::control_plane::sandbox::{API_ADDRESS, Sandbox};
use crate::control_plane::{ControlPlane, manifests};

const PART: &str = "API server";
/// Requests under way while objects are made.
const WRITERS: usize = 32;

pub(super) fn measure(sandbox: &Sandbox, options: &Options, report: &mut Report) -> Result<()> {
    let services = options.services as usize;
    let plane = ControlPlane::start(API_ADDRESS.into(), &sandbox.directory().join("plane"))?;
    create_node(&plane.admin())?;
    let kubeconfig = manifests::install(&plane)?;
    let admin = plane.kubeconfig("bench.kubeconfig", "admin")?;
    // One thread: it is in the sandbox's network namespace, others would not be.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    eprintln!("writing {services} Services to the API server");
    runtime
        .block_on(fill(&admin, services))
        .context("write the Services")?;

    let arguments = [OsStr::new("--kubeconfig"), kubeconfig.as_os_str()];
    let started = start(sandbox, &arguments)?;
    // The API server's own Service has no slice of a controller's: it is a frontend without endpoints.
    let size = format!("{services} × {}", workload::ENDPOINTS);
    report.add(
        PART,
        format!("{size}: first object received → maps complete, one core"),
        started.load.as_secs_f64(),
        "s",
    );
    report.goal(
        PART,
        format!("{size}: of that after the list's end"),
        started.writing.as_secs_f64(),
        "s",
        0.5,
    );
    report.add(
        PART,
        format!("{size}: process started → ready, one core"),
        started.ready.as_secs_f64(),
        "s",
    );
    let (resident, maps) = memory(sandbox, &started.agent)?;
    report.goal(
        PART,
        format!("{size}: resident memory"),
        resident,
        "MiB",
        80.0,
    );
    report.goal(PART, format!("{size}: map memory"), maps, "MiB", 25.0);

    let (watcher, meter) = (
        Watcher::start(&sandbox.bpffs())?,
        Meter::start(&started.agent)?,
    );
    let (answered, told) = runtime.block_on(churn(&admin, options, &watcher))?;
    let written = watcher.finish()?;
    meter.stop(&started.agent, PART, report)?;
    let mut ours = delays(&told, written.clone())?;
    report.latencies(
        PART,
        "API server answers → tables written, seen from outside",
        &mut delays(&answered, written)?,
    );
    report.latencies(
        PART,
        "another watch is told → tables written (ours)",
        &mut ours,
    );
    ensure!(
        started.agent.terminate()?.success(),
        "the agent did not end well"
    );
    clean_up(sandbox)
}

pub(super) async fn client(kubeconfig: &Path) -> Result<Client> {
    let config = Config::from_custom_kubeconfig(
        Kubeconfig::read_from(kubeconfig)?,
        &KubeConfigOptions::default(),
    )
    .await?;
    Ok(Client::try_from(config)?)
}

async fn fill(kubeconfig: &Path, services: usize) -> Result<()> {
    let client = client(kubeconfig).await?;
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let api: Api<Service> = Api::namespaced(client, "default");
    let write = async |number: usize| -> Result<()> {
        let service = serde_json::from_value(workload::service(number))?;
        let slice = serde_json::from_value(workload::slice(number, 0))?;
        api.create(&PostParams::default(), &service).await?;
        slices.create(&PostParams::default(), &slice).await?;
        Ok(())
    };
    stream::iter(0..services)
        .map(Ok)
        .try_for_each_concurrent(WRITERS, write)
        .await
}

type Moments = Vec<(usize, Instant)>;

/// Changes slices at a steady rate; when each answer came, and when the second watch was told.
async fn churn(
    kubeconfig: &Path,
    options: &Options,
    watcher: &Watcher,
) -> Result<(Moments, Moments)> {
    let api: Api<EndpointSlice> = Api::namespaced(client(kubeconfig).await?, "default");
    let services = options.services as usize;
    let total = (options.rate * options.seconds) as usize;
    let newest = api.list(&kube::api::ListParams::default().limit(1)).await?;
    let newest = newest
        .metadata
        .resource_version
        .context("the list has no resource version")?;
    let stream = api.watch(&WatchParams::default(), &newest).await?;

    let told = async {
        let mut stream = std::pin::pin!(stream);
        let numbers: HashMap<String, usize> = (0..services)
            .map(|number| (workload::name(number), number))
            .collect();
        let mut told = Moments::new();
        while told.len() < total {
            let event = stream.try_next().await?.context("the watch ended")?;
            if let WatchEvent::Modified(slice) = event
                && let Some(&number) = slice
                    .metadata
                    .name
                    .as_ref()
                    .and_then(|name| numbers.get(name))
            {
                told.push((number, Instant::now()));
            }
        }
        anyhow::Ok(told)
    };
    let interval = Duration::from_secs(1) / options.rate;
    let begin = tokio::time::Instant::now();
    let answered =
        stream::iter(0..total)
            .map(Ok)
            .try_fold(Moments::new(), async |mut answered, number| {
                tokio::time::sleep_until(begin + interval * number as u32).await;
                let service = number * 7 % services;
                watcher.expect(service)?;
                let endpoints = &workload::slice(service, 1 + number / services)["endpoints"];
                let patch = Patch::Merge(json!({ "endpoints": endpoints }));
                api.patch(&workload::name(service), &PatchParams::default(), &patch)
                    .await?;
                answered.push((service, Instant::now()));
                anyhow::Ok(answered)
            });
    tokio::try_join!(answered, told)
}
