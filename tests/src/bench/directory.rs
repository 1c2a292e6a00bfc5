//! The agent on a directory of manifests.

use std::ffi::OsStr;
use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::figures::Metrics;
use super::report::{Report, milliseconds};
use super::tables::{self, Watcher};
use super::{Meter, Options, clean_up, delays, memory, paced, replace, start, workload};
use crate::control_plane::sandbox::Sandbox;

const PART: &str = "directory of manifests";
/// "With few Services" means so many.
const FEW: usize = 10;

pub(super) fn measure(sandbox: &Sandbox, options: &Options, report: &mut Report) -> Result<()> {
    let services = options.services as usize;
    let directory = |name: &str| sandbox.directory().join(name);

    let empty = directory("empty");
    fs::create_dir_all(&empty)?;
    let agent = start(sandbox, &arguments(empty.as_os_str()))?.agent;
    let (resident, maps) = memory(sandbox, &agent)?;
    report.add(PART, "resident memory, no Service", resident, "MiB");
    report.goal(PART, "map memory, no Service", maps, "MiB", 3.0);
    end(agent, sandbox)?;

    let few = directory("few");
    workload::write_directory(&few, FEW)?;
    let agent = start(sandbox, &arguments(few.as_os_str()))?.agent;
    let (resident, maps) = memory(sandbox, &agent)?;
    report.goal(
        PART,
        format!("resident memory, {FEW} Services"),
        resident,
        "MiB",
        15.0,
    );
    report.add(PART, format!("map memory, {FEW} Services"), maps, "MiB");
    end(agent, sandbox)?;

    let many = directory("many");
    workload::write_directory(&many, services)?;
    let started = start(sandbox, &arguments(many.as_os_str()))?;
    tables::check(&sandbox.bpffs(), services)?;
    let size = format!("{services} × {}", workload::ENDPOINTS);
    report.goal(
        PART,
        format!("{size}: list received → maps complete, one core"),
        started.load.as_secs_f64(),
        "s",
        0.5,
    );
    report.add(
        PART,
        format!("{size}: of that after the list's end"),
        started.writing.as_secs_f64(),
        "s",
    );
    report.add(
        PART,
        format!("{size}: process started → ready, files parsed, one core"),
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
    ensure!(
        started.agent.terminate()?.success(),
        "the agent did not end well"
    );

    let started = start(sandbox, &arguments(many.as_os_str()))?;
    report.add(
        PART,
        format!("{size}: restart: list received → ready, one core"),
        started.load.as_secs_f64(),
        "s",
    );
    report.add(
        PART,
        format!("{size}: restart: process started → ready, one core"),
        started.ready.as_secs_f64(),
        "s",
    );
    let writes = Metrics::read()?.sum("beeline_table_writes_total");
    report.goal(
        PART,
        format!("{size}: restart: entries written"),
        writes,
        "",
        0.0,
    );
    let (resident, _) = memory(sandbox, &started.agent)?;
    report.goal(
        PART,
        format!("{size}: resident memory after a restart"),
        resident,
        "MiB",
        80.0,
    );

    let (watcher, meter) = (
        Watcher::start(&sandbox.bpffs())?,
        Meter::start(&started.agent)?,
    );
    let mut replaced = Vec::new();
    paced(options, |number| {
        let service = number * 7 % services;
        watcher.expect(service)?;
        let file = many.join(format!("{}.yaml", workload::name(service)));
        replace(&file, &workload::manifest(service, 1 + number / services))?;
        replaced.push((service, Instant::now()));
        Ok(())
    })?;
    let written = watcher.finish()?;
    meter.stop(&started.agent, PART, report)?;
    let mut delays = delays(&replaced, written)?;
    report.latencies(
        PART,
        "file replaced → tables written, seen from outside",
        &mut delays,
    );
    let last = replaced.last().context("no event")?.1 - replaced.first().context("no event")?.1;
    let rate = (replaced.len() - 1) as f64 * 1e3 / milliseconds(last);
    report.add(PART, "events per second", rate, "/s");
    end(started.agent, sandbox)
}

fn arguments(directory: &OsStr) -> [&OsStr; 2] {
    [OsStr::new("--manifests"), directory]
}

fn end(agent: crate::control_plane::sandbox::Agent, sandbox: &Sandbox) -> Result<()> {
    ensure!(agent.terminate()?.success(), "the agent did not end well");
    clean_up(sandbox)
}
