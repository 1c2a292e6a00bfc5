//! `cargo xtask cluster …`: a Kubernetes cluster on one machine, each node in namespaces of its own.
//!
//! ```text
//! programs ─► images ─► network ─► control plane ─► nodes ─► proxy and name service
//! ```
//!
//! It is for what namespaces with an agent alone cannot show: deployment as a DaemonSet, with the rights and probes
//! of `manifests/`; kubelet, CNI plugins and container runtime as neighbours; upstream's own tests (`crate::e2e`).
//! Everything is built from the Go modules in `tests/e2e` and from Debian packages, below `target/cluster`.

use std::ffi::OsString;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Subcommand;

use crate::demo;
use crate::progress::{elapsed, say};
use crate::setup::{self, Need};

mod archive;
mod cgroups;
mod control_plane;
mod deploy;
mod images;
mod inside;
mod network;
mod network_policies;
mod node;
mod place;
mod process;
pub(crate) mod programs;
mod registry;
mod settings;
mod trial;

pub(crate) use place::{home, kubeconfig, outside, program};
pub(crate) use process::in_network;
pub(crate) use settings::Settings;

#[derive(Subcommand)]
pub(crate) enum Cluster {
    /// Start the cluster; what is up already with these settings stays.
    Up(Settings),
    /// End it and remove everything but what was built.
    Down,
    /// Show what runs.
    Status,
    /// Replace every agent by a new one of the same image, as an update does.
    Restart,
    /// Build Beeline anew and replace the agents by it.
    Deploy,
    /// End a node as a power cut does, and start it again.
    Reboot {
        /// Which node.
        node: u8,
    },
    /// Replace agents, roll out the name service and cut a node's power, under traffic that is counted.
    Trial,
    /// kubectl of the administrator.
    #[command(disable_help_flag = true)]
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// A command on a node.
    On {
        node: u8,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
    /// The first process of a node; `up` starts it.
    #[command(hide = true)]
    Node { number: u8 },
}

/// Runs one of the commands.
pub(crate) fn run(cluster: &Cluster) -> Result<()> {
    ensure!(
        setup::is_root(),
        "the cluster is made of namespaces, so it needs root: {}",
        demo::as_root("cluster up")
    );
    match cluster {
        Cluster::Up(settings) => up(settings),
        Cluster::Down => down(),
        Cluster::Status => status(),
        Cluster::Restart => {
            running()?;
            deploy::restart()?;
            say("every agent was replaced");
            Ok(())
        }
        Cluster::Deploy => {
            let settings = running()?;
            deploy::build_image(&settings)?;
            deploy::proxy(&settings)?;
            deploy::restart()?;
            say("deployed");
            Ok(())
        }
        Cluster::Reboot { node } => reboot(*node),
        Cluster::Trial => trial::run_trial(),
        Cluster::Kubectl { arguments } => {
            running()?;
            crate::execute(control_plane::kubectl().args(arguments))
        }
        Cluster::On { node, command } => {
            running()?;
            let (program, arguments) = command.split_first().context("which command?")?;
            crate::execute(node::inside(*node, program)?.args(arguments))
        }
        Cluster::Node { number } => inside::run_node(*number),
    }
}

/// Makes sure that upstream's tests are built, and that a running cluster has the images they ask for.
pub(crate) fn prepare_tests() -> Result<()> {
    programs::build()?;
    programs::build_tests()?;
    if images::build()? == images::Made::Anew
        && let Some(settings) = Settings::load()?
    {
        say("the nodes take the images in");
        for number in settings.numbers() {
            node::import(number, &images::archive())?;
        }
    }
    Ok(())
}

/// Starts the cluster unless it is up.
pub(crate) fn up(settings: &Settings) -> Result<()> {
    if let Some(present) = Settings::load()? {
        ensure!(
            present == *settings,
            "a cluster of other settings is up ({present}): cargo xtask cluster down"
        );
        if is_complete(&present) {
            say(format_args!("the cluster is up: {present}"));
            return Ok(());
        }
        say("a cluster is there, but not complete: it is made anew");
        down()?;
    }
    setup::run(&[Need::Build, Need::Cluster])?;
    programs::build()?;
    images::build()?;
    deploy::build_image(settings)?;
    if settings.network_policies {
        network_policies::build_image()?;
    }

    let begun = elapsed();
    fs::create_dir_all(place::state().join("log"))?;
    settings.save()?;
    create(settings).with_context(|| {
        format!(
            "the cluster did not come up; logs are in {}, `cargo xtask cluster down` removes it",
            place::state().join("log").display()
        )
    })?;
    say(format_args!(
        "the cluster is up after {} s: {settings}",
        (elapsed() - begun).as_secs()
    ));
    Ok(())
}

fn create(settings: &Settings) -> Result<()> {
    network::create(settings)?;
    let keys = control_plane::Keys::make()?;
    // Nodes unpack images while the control plane starts.
    for number in settings.numbers() {
        node::boot(settings, number)?;
    }
    control_plane::create(settings, &keys)?;
    say("the control plane is ready");
    for number in settings.numbers() {
        node::wait_registered(settings, number)?;
    }
    process::run(control_plane::kubectl().args([
        "wait",
        "--for=condition=Ready",
        "node",
        "--all",
        "--timeout=120s",
    ]))?;
    say("the nodes are ready");
    deploy::names()?;
    deploy::proxy(settings)?;
    if settings.proxy == settings::Proxy::None {
        return Ok(());
    }
    if settings.network_policies {
        network_policies::deploy(settings)?;
    }
    deploy::wait_names()
}

/// Removes whatever there is of a cluster.
fn down() -> Result<()> {
    for number in 1..=9 {
        deploy::stop_kube_proxy(number)?;
        node::halt(number)?;
    }
    control_plane::remove()?;
    network::remove()?;
    if place::state().exists() {
        fs::remove_dir_all(place::state()).context("removing the cluster's state")?;
    }
    say("no cluster is up");
    Ok(())
}

/// Ends a node with all its namespaces and starts it from its disk.
fn reboot(number: u8) -> Result<()> {
    let settings = running()?;
    ensure!(
        settings.numbers().any(|known| known == number),
        "there are nodes 1 to {}",
        settings.nodes
    );
    node::halt(number)?;
    say(format_args!("{} is down", place::node(number)));
    node::boot(&settings, number)?;
    node::wait_registered(&settings, number)?;
    say(format_args!("{} boots", place::node(number)));
    Ok(())
}

/// Settings of the cluster that is up.
fn running() -> Result<Settings> {
    Settings::load()?.context("no cluster is up: cargo xtask cluster up")
}

fn is_complete(settings: &Settings) -> bool {
    let parts = control_plane::PARTS.iter().copied().map(String::from);
    parts
        .chain(settings.numbers().map(place::node))
        .all(|name| process::number(&name).is_some())
}

fn status() -> Result<()> {
    let Some(settings) = Settings::load()? else {
        let left = network::namespaces();
        if !left.is_empty() {
            bail!(
                "no cluster is up, but there are {}: cargo xtask cluster down",
                left.join(", ")
            );
        }
        println!("no cluster is up");
        return Ok(());
    };
    println!("{settings}; Kubernetes {}", programs::version()?);
    let parts = control_plane::PARTS.iter().copied().map(String::from);
    for name in parts.chain(settings.numbers().map(place::node)) {
        let state = process::number(&name).map_or("not running".to_owned(), |number| {
            format!("process {number}")
        });
        println!("{name:<24} {state}");
    }
    crate::execute(control_plane::kubectl().args([
        "get",
        "nodes,pods",
        "--all-namespaces",
        "-o",
        "wide",
    ]))
}

/// Runs a command of the machine and shows its output only where it fails.
pub(crate) fn quietly(command: &mut Command) -> Result<String> {
    process::run(command)
}
