//! Finds the API server without a ClusterIP, which nobody serves before we do.
//!
//! Addresses are tried in the order of [`Origin`] until one answers, for ever: the API server may come later than
//! we do. Whichever answers must prove by its certificate that the service account's CA knows it, so an address may
//! come from anywhere. What the cluster itself says (endpoints of the Service `kubernetes`) is kept on disk: after a
//! reboot it may be all there is.

use std::fmt;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kube::config::Kubeconfig;
use kube::{Client, Config};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::connection;
use super::outage::Backoff;
use crate::config::{ApiServer, ServerAddress};
use crate::snapshot::{Protocol, Slice};

/// A server that takes longer to say its version is no better than none.
const ANSWER: Duration = Duration::from_secs(5);
const TELL_EVERY: Duration = Duration::from_secs(60);
const FILE: &str = "api-servers";
/// Every API server's certificate has this name, as pods dial it so.
const SERVICE_NAME: &str = "kubernetes.default.svc";

/// An address to try.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Candidate {
    address: ServerAddress,
    origin: Origin,
}

/// Who named an address.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Origin {
    /// The operator.
    Given,
    /// This kubeconfig.
    Kubeconfig(PathBuf),
    /// An endpoint of the Service `kubernetes`, seen earlier.
    Remembered,
    /// kubelet: `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`.
    Environment,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address.as_str();
        match &self.origin {
            Origin::Given => write!(f, "{address} (given)"),
            Origin::Kubeconfig(file) => write!(f, "{address} ({})", file.display()),
            Origin::Remembered => write!(f, "{address} (remembered)"),
            Origin::Environment => write!(f, "{address} (KUBERNETES_SERVICE_HOST)"),
        }
    }
}

/// A client, and what it talks to.
pub(super) struct Found {
    pub client: Client,
    pub candidate: Candidate,
}

/// Finds servers, and remembers where they are.
pub(super) struct Finder {
    settings: ApiServer,
    /// What the file holds; `None` until we have read or written it.
    kept: Mutex<Option<String>>,
}

impl Finder {
    /// Fails without a service account.
    pub(super) fn new(settings: ApiServer) -> anyhow::Result<Self> {
        Config::incluster_dns().context(
            "no service account found: run in a pod, or give --kubeconfig FILE or --manifests DIR",
        )?;
        let finder = Self {
            settings,
            kept: Mutex::new(None),
        };
        anyhow::ensure!(
            !finder.candidates().is_empty(),
            "nothing tells where the API server is: give --api-server"
        );
        Ok(finder)
    }

    /// A client of the first server that answers.
    pub(super) async fn find(&self) -> Found {
        let mut backoff = Backoff::default();
        let mut told: Option<Instant> = None;
        loop {
            let mut failures = Vec::new();
            for candidate in self.candidates() {
                match ask(&candidate).await {
                    Ok(client) => {
                        info!(server = %candidate, "found the API server");
                        return Found { client, candidate };
                    }
                    Err(error) => failures.push(format!("{candidate}: {error:#}")),
                }
            }
            if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                told = Some(Instant::now());
                warn!(
                    tried = failures.join("; "),
                    hint = "name one with --api-server (ConfigMap beeline-api-server, BEELINE_API_SERVER)",
                    "no API server answers; the last known state stays in force"
                );
            }
            sleep(backoff.next()).await;
        }
    }

    /// Another server than this one, if one answers.
    pub(super) async fn other_than(&self, lost: &Candidate) -> Option<Found> {
        for candidate in self.candidates() {
            if candidate.address == lost.address {
                continue;
            }
            match ask(&candidate).await {
                Ok(client) => {
                    info!(server = %candidate, lost = %lost, "went over to another API server");
                    return Some(Found { client, candidate });
                }
                Err(error) => debug!(server = %candidate, %error, "no API server there"),
            }
        }
        None
    }

    /// What to try, in this order.
    fn candidates(&self) -> Vec<Candidate> {
        if let Some(address) = &self.settings.given {
            return vec![Candidate {
                address: address.clone(),
                origin: Origin::Given,
            }];
        }
        let mut candidates: Vec<Candidate> = Vec::new();
        let mut add = |address: Option<ServerAddress>, origin: Origin| {
            let new = address.filter(|new| candidates.iter().all(|known| known.address != *new));
            candidates.extend(new.map(|address| Candidate { address, origin }));
        };
        for file in &self.settings.kubeconfigs {
            add(server_of(file), Origin::Kubeconfig(file.clone()));
        }
        for address in self.remembered() {
            add(Some(address), Origin::Remembered);
        }
        let environment = Config::incluster_env().ok();
        let address = environment.and_then(|config| config.cluster_url.to_string().parse().ok());
        add(address, Origin::Environment);
        candidates
    }

    /// Begins with a random one, so that the nodes of a cluster do not all ask the same.
    fn remembered(&self) -> Vec<ServerAddress> {
        let text = fs::read_to_string(self.settings.state.join(FILE)).unwrap_or_default();
        let mut addresses: Vec<ServerAddress> =
            text.lines().filter_map(|line| line.parse().ok()).collect();
        if !addresses.is_empty() {
            let first = RandomState::new().hash_one(0) % addresses.len() as u64;
            addresses.rotate_left(usize::try_from(first).unwrap_or(0));
        }
        addresses
    }

    /// Keeps the addresses a slice of the Service `kubernetes` names.
    pub(super) fn note(&self, slice: &Slice) {
        if &*slice.name.namespace != "default" || &*slice.service != "kubernetes" {
            return;
        }
        let text = addresses(slice);
        let mut kept = self.kept.lock().unwrap_or_else(|held| held.into_inner());
        if text.is_empty() || kept.as_ref() == Some(&text) {
            return;
        }
        if let Err(error) = self.keep(&text) {
            warn!(
                directory = %self.settings.state.display(),
                %error,
                "cannot keep the API server's addresses for the time after a reboot; --state-dir names another place"
            );
        }
        // A failure is told once for each change.
        *kept = Some(text);
    }

    /// In one step: a reader finds the old file or the new one.
    fn keep(&self, text: &str) -> std::io::Result<()> {
        let directory = &self.settings.state;
        if fs::read_to_string(directory.join(FILE)).is_ok_and(|old| old == text) {
            return Ok(());
        }
        fs::create_dir_all(directory)?;
        let new = directory.join(format!("{FILE}.new"));
        fs::write(&new, text)?;
        fs::File::open(&new)?.sync_all()?;
        fs::rename(&new, directory.join(FILE))
    }
}

/// One URL a line.
fn addresses(slice: &Slice) -> String {
    let ports = slice.ports.iter();
    let ports: Vec<u16> = ports
        .filter(|port| &*port.name == "https" && port.protocol == Protocol::Tcp)
        .map(|port| port.port)
        .collect();
    let ready = slice.endpoints.iter().filter(|endpoint| endpoint.ready);
    let mut lines: Vec<String> = ready
        .flat_map(|endpoint| {
            let of = |port: &u16| format!("https://{}\n", SocketAddr::new(endpoint.address, *port));
            ports.iter().map(of)
        })
        .collect();
    lines.sort();
    lines.concat()
}

/// The server that a kubeconfig's current context leads to.
fn server_of(file: &PathBuf) -> Option<ServerAddress> {
    let config = match Kubeconfig::read_from(file) {
        Ok(config) => config,
        Err(error) => {
            debug!(file = %file.display(), %error, "names no API server");
            return None;
        }
    };
    let current = config.current_context.as_ref()?;
    let context = config
        .contexts
        .iter()
        .find(|named| named.name == *current)?;
    let cluster = &context.context.as_ref()?.cluster;
    let named = config
        .clusters
        .iter()
        .find(|named| named.name == *cluster)?;
    named.cluster.as_ref()?.server.as_ref()?.parse().ok()
}

/// A client, if the server proves itself and answers. That it refuses us is an answer, too.
async fn ask(candidate: &Candidate) -> anyhow::Result<Client> {
    let mut config = Config::incluster_dns()?;
    config.cluster_url = candidate.address.uri();
    config.tls_server_name = (candidate.origin == Origin::Remembered).then(|| SERVICE_NAME.into());
    let client = connection::client(config)?;
    match timeout(ANSWER, client.apiserver_version()).await {
        Ok(Ok(_) | Err(kube::Error::Api(_))) => Ok(client),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => anyhow::bail!("no answer within {} s", ANSWER.as_secs()),
    }
}

#[cfg(test)]
mod tests;
