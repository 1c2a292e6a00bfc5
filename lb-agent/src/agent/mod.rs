//! The agent: follows the cluster and this node, and keeps the kernel's tables true.
//!
//! One task owns everything that changes (see [`sync::Sync`]); sources, servers and the grace thread only send to
//! it. Nothing is taken down when it ends: the kernel goes on forwarding by the last state.

mod adoption;
mod conntrack;
mod gauges;
mod node;
mod ports;
mod settings;
mod sockets;
mod sync;
mod timeouts;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{info, warn};

use crate::config::{Config, SourceConfig};
use crate::datapath::{self, Datapath, Grace, Interfaces, Picture, Tenure};
use crate::health::{self, Health};
use crate::metrics::{self, Metrics};
use crate::snapshot::Event;
use crate::source::kubernetes::KubernetesSource;
use crate::source::{Options, Refused, Source as _, directory::DirectorySource, kubernetes};
use crate::sys::{limits, memory};

use self::sync::Sync;

/// Events taken in at once, so that a burst costs one round of writes.
const BURST: usize = 4096;
/// Events that may wait before a source has to.
const BACKLOG: usize = 16_384;
/// Upkeep: lingering addresses, tombstones, what failed.
const UPKEEP: Duration = Duration::from_secs(5);
/// How long a former agent may take to end. Its pod gets five seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the agent until it is told to end.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let health = Health::default();
    let metrics = Metrics::default();
    let refused = Arc::new(Refused::default());
    describe(&config, &health);
    // First of all: flows live no longer than netfilter's.
    initialise(&config);
    if let Err(error) = limits::raise_descriptors() {
        warn!(%error, "could not raise the limit of open files; tables of many Services may need more");
    }

    // The cluster is read while the kernel checks the programs, which a first start waits for most.
    let (events, mut inbox) = mpsc::channel(BACKLOG);
    let mut source = tokio::spawn(follow_cluster(config.clone(), events, refused.clone()));
    let settings = datapath::Config {
        bpffs: config.bpffs.clone(),
        packet_hook: None,
    };
    let opened = spawn_blocking(move || {
        let tenure = Tenure::take(&settings.bpffs, PATIENCE)?;
        datapath::Result::Ok((tenure, Datapath::begin(&settings)?))
    });
    let (mut tenure, datapath) = opened.await.context("opening the datapath panicked")??;
    // Loading takes many times what stays.
    memory::give_back();
    info!(
        adopted = datapath.adopted(),
        packet_hook = ?datapath.packet_hook(),
        "opened the datapath"
    );
    let _flows = Arc::clone(&datapath.tables().flows).follow()?;
    let (grace, mut reusable) = Grace::start()?;
    let mut sync = Sync::new(&config, datapath, grace, health.clone(), metrics.clone())?;
    let shared = sync.gauges();
    serve(&config, &health, &metrics, refused, shared);

    let (pictures, mut seen) = mpsc::channel(1);
    tokio::spawn(follow_node(pictures));
    let mut upkeep = interval_at(Instant::now() + UPKEEP, UPKEEP);
    upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let mut burst = Vec::with_capacity(BURST);
    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            // Before its objects: what has no sender any more is always ready, and empty.
            ended = &mut source => {
                ended.context("the source panicked")?.context("the source of cluster objects ended")?;
                anyhow::bail!("the source of cluster objects ended");
            }
            Some(retired) = reusable.recv() => sync.release(retired),
            received = inbox.recv_many(&mut burst, BURST) => {
                if received > 0 {
                    sync.take(&mut burst)?;
                }
            }
            Some(picture) = seen.recv() => sync.see_node(picture)?,
            _ = upkeep.tick() => {
                tenure.keep()?;
                sync.upkeep()?;
            }
        }
    }
    info!("ending; traffic goes on by the last state");
    Ok(())
}

/// Changes the settings of the system that the configuration asks for, where we may.
pub fn initialise(config: &Config) {
    conntrack::apply(&config.conntrack);
    ports::reserve();
}

fn describe(config: &Config, health: &Health) {
    health.describe(|status| {
        status.version = env!("CARGO_PKG_VERSION").to_owned();
        status.pid = std::process::id();
        status.node_name.clone_from(&config.node_name);
        status.source = config.source.to_string();
    });
}

/// Starts the HTTP servers.
fn serve(
    config: &Config,
    health: &Health,
    metrics: &Metrics,
    refused: Arc<Refused>,
    gauges: gauges::Gauges,
) {
    if let Some(address) = config.healthz_bind.0 {
        tokio::spawn(health::probes::serve(
            address,
            health.clone(),
            metrics.clone(),
        ));
    }
    if let Some(address) = config.metrics_bind.0 {
        let (config, metrics, health) = (config.clone(), metrics.clone(), health.clone());
        let refresh: metrics::serve::BeforeScrape = Arc::new(move |metrics| {
            gauges.refresh(metrics);
            for (reason, total) in refused.totals() {
                metrics.refused(reason, total);
            }
        });
        tokio::spawn(async move {
            metrics::serve::serve(address, &config, metrics, health, refresh).await;
        });
    }
}

/// Reports the cluster's objects.
async fn follow_cluster(
    config: Config,
    events: mpsc::Sender<Event>,
    refused: Arc<Refused>,
) -> anyhow::Result<()> {
    let options = Options::default();
    let access = match config.source {
        SourceConfig::Manifests(directory) => {
            return DirectorySource::new(directory, config.node_name, options, refused)
                .run(events)
                .await;
        }
        SourceConfig::Kubeconfig(file) => kubernetes::Access::Kubeconfig(file),
        SourceConfig::InCluster(api_server) => kubernetes::Access::ServiceAccount(api_server),
    };
    let settings = kubernetes::Settings {
        access,
        node_name: config.node_name,
        options,
    };
    KubernetesSource::new(settings, refused)
        .await?
        .run(events)
        .await
}

/// Reports this node's devices and addresses, now and whenever they change.
async fn follow_node(pictures: mpsc::Sender<Picture>) {
    loop {
        if let Err(error) = report_node(&pictures).await {
            warn!(%error, "could not follow this node's devices; trying again");
        }
        if pictures.is_closed() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn report_node(pictures: &mpsc::Sender<Picture>) -> anyhow::Result<()> {
    let interfaces = Interfaces::open()?;
    loop {
        if pictures.send(interfaces.read().await?).await.is_err() {
            return Ok(());
        }
        interfaces.changed().await?;
    }
}
