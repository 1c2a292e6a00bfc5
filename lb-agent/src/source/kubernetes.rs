//! The cluster as the API server shows it: four watches, each a complete list followed by changes.
//!
//! Objects are converted on receipt and dropped. Nothing is ever reported gone because the API server could not
//! be reached: the last state stays, for ever (J3).

use std::fmt::Debug;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use k8s_openapi::Metadata;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::api_server::{Candidate, Finder, Found};
use super::convert::{Converter, Options};
use super::credentials::Credentials;
use super::outage::{Backoff, Outage};
use super::{Refused, Source};
use crate::config::ApiServer;
use crate::snapshot::{Event, Kind};

/// A1 as §8 corrects it: Services of other proxies are not ours, whatever the label's value.
pub const SERVICE_LABELS: &str = "!service.kubernetes.io/service-proxy-name";
/// A2.
pub const SERVICE_FIELDS: &str = "spec.clusterIP!=None";
/// §8: for slices the other label alone counts.
pub const SLICE_LABELS: &str = "!service.kubernetes.io/headless";

/// Silence within a complete list. Servers older than streaming lists send the objects and then no end mark.
const LIST_STALL: Duration = Duration::from_secs(20);
/// A watch that meets no error for this long works. Quiet ones give no other sign.
const QUIET: Duration = Duration::from_secs(95);
/// How long nothing may come from a server before another one is looked for, and how often.
const LOST: Duration = Duration::from_secs(10);
/// A server that does not answer for so long may do so because credentials are out of date: those in files that changed,
/// and those that a program gave.
const RENEW: Duration = Duration::from_secs(30);
const RENEW_ANYWAY: Duration = Duration::from_secs(300);
/// How often to ask again for a kind the server does not know (ServiceCIDR came with 1.33).
const ABSENT_RETRY: Duration = Duration::from_secs(600);

/// Log filter that keeps kube from telling each failed attempt; [`Outage`] tells of them once a minute.
pub const LOG_FILTER: &str = "kube_client=error,kube_runtime=error";

/// How to reach the API server, and who asks.
#[derive(Clone, Debug)]
pub struct Settings {
    pub access: Access,
    /// Name of our own Node object.
    pub node_name: String,
    pub options: Options,
}

/// With whose rights, and where.
#[derive(Clone, Debug)]
pub enum Access {
    /// As this file says.
    Kubeconfig(PathBuf),
    /// As the pod's service account, wherever the API server is found.
    ServiceAccount(ApiServer),
}

enum Server {
    Known(Credentials, Client),
    Sought(Finder),
}

/// A source that watches the API server.
pub struct KubernetesSource {
    server: Server,
    node_name: String,
    converter: Converter,
}

impl KubernetesSource {
    /// Reads the configuration. Does not connect: the API server may come later than we do (spec §3.3).
    pub async fn new(settings: Settings, refused: Arc<Refused>) -> anyhow::Result<Self> {
        let server = match settings.access {
            Access::Kubeconfig(file) => {
                let credentials = Credentials::new(file);
                let client = credentials.client().await?;
                Server::Known(credentials, client)
            }
            Access::ServiceAccount(settings) => Server::Sought(Finder::new(settings)?),
        };
        Ok(Self {
            server,
            node_name: settings.node_name,
            converter: Converter::new(settings.options, refused),
        })
    }
}

impl Source for KubernetesSource {
    async fn run(self, events: mpsc::Sender<Event>) -> anyhow::Result<()> {
        let Self {
            server,
            node_name,
            converter,
        } = self;
        let (known, finder) = match server {
            Server::Known(credentials, client) => (Some((credentials, client)), None),
            Server::Sought(finder) => (None, Some(finder)),
        };
        let follower = Follower {
            converter: Mutex::new(converter),
            outage: Mutex::new(Outage::default()),
            events: events.clone(),
            finder,
        };
        let all = async {
            match (known, &follower.finder) {
                (Some((credentials, client)), _) => {
                    follower.follow_known(credentials, client, &node_name).await;
                }
                (None, Some(finder)) => follower.follow_found(finder, &node_name).await,
                (None, None) => {}
            }
        };
        tokio::select! {
            () = all => {}
            () = events.closed() => {}
        }
        Ok(())
    }
}

/// One kind of object to watch.
struct Watched<K> {
    kind: Kind,
    api: Api<K>,
    config: watcher::Config,
    /// The server may not have it.
    optional: bool,
    convert: fn(&mut Converter, &K) -> Option<Event>,
    gone: fn(&mut Converter, &ObjectMeta) -> Option<Event>,
}

fn services(client: &Client) -> Watched<Service> {
    Watched {
        kind: Kind::Services,
        api: Api::all(client.clone()),
        config: watcher::Config::default()
            .labels(SERVICE_LABELS)
            .fields(SERVICE_FIELDS),
        optional: false,
        convert: Converter::service,
        gone: Converter::service_gone,
    }
}

fn slices(client: &Client) -> Watched<EndpointSlice> {
    Watched {
        kind: Kind::Slices,
        api: Api::all(client.clone()),
        config: watcher::Config::default().labels(SLICE_LABELS),
        optional: false,
        convert: Converter::slice,
        gone: Converter::slice_gone,
    }
}

fn own_node(client: &Client, name: &str) -> Watched<Node> {
    Watched {
        kind: Kind::Node,
        api: Api::all(client.clone()),
        config: watcher::Config::default().fields(&format!("metadata.name={name}")),
        optional: false,
        convert: Converter::node,
        gone: Converter::node_gone,
    }
}

fn service_cidrs(client: &Client) -> Watched<ServiceCIDR> {
    Watched {
        kind: Kind::ServiceCidrs,
        api: Api::all(client.clone()),
        config: watcher::Config::default(),
        optional: true,
        convert: Converter::service_cidr,
        gone: Converter::service_cidr_gone,
    }
}

/// What the watches share.
struct Follower {
    converter: Mutex<Converter>,
    outage: Mutex<Outage>,
    events: mpsc::Sender<Event>,
    /// Where the server had to be found.
    finder: Option<Finder>,
}

/// Why a watch was given up.
enum End {
    /// The server cannot stream lists.
    NoStreaming,
    /// A list began and never ended.
    Stalled,
    /// The server no longer knows our place in the log of changes.
    Outdated,
    /// The server does not know the kind.
    Absent,
    /// Nobody listens to us any more.
    Closed,
}

impl Follower {
    /// Follows whichever server answers; goes over to another when this one has been silent for a while.
    async fn follow_found(&self, finder: &Finder, node_name: &str) {
        let mut found = finder.find().await;
        loop {
            tokio::select! {
                () = self.follow_all(&found.client, node_name) => return,
                other = self.replacement(finder, &found.candidate) => found = other,
            }
        }
    }

    /// Follows the server of a kubeconfig, with new credentials when the old ones may be why it does not answer.
    async fn follow_known(&self, credentials: Credentials, mut client: Client, node_name: &str) {
        loop {
            tokio::select! {
                () = self.follow_all(&client, node_name) => return,
                fresh = self.renewal(&credentials) => client = fresh,
            }
        }
    }

    /// A client as the kubeconfig and what it names say now, once the server is lost.
    async fn renewal(&self, credentials: &Credentials) -> Client {
        let mut tried = Instant::now();
        loop {
            sleep(LOST).await;
            let is_due = credentials.changed() || tried.elapsed() >= RENEW_ANYWAY;
            if !is_due || !self.outage().is_total(RENEW) {
                continue;
            }
            tried = Instant::now();
            match credentials.client().await {
                Ok(client) => return client,
                Err(error) => warn!(
                    error = format!("{error:#}"),
                    "could not read credentials anew"
                ),
            }
        }
    }

    /// Another server, once this one is lost. The watches go on trying meanwhile: if it comes back first, they need
    /// no new lists.
    async fn replacement(&self, finder: &Finder, current: &Candidate) -> Found {
        loop {
            sleep(LOST).await;
            if self.outage().is_total(LOST)
                && let Some(other) = finder.other_than(current).await
                && self.outage().is_total(LOST)
            {
                return other;
            }
        }
    }

    async fn follow_all(&self, client: &Client, node_name: &str) {
        tokio::join!(
            self.follow(services(client)),
            self.follow(slices(client)),
            self.follow(own_node(client, node_name)),
            self.follow(service_cidrs(client)),
        );
    }

    /// Watches one kind until nobody listens.
    async fn follow<K>(&self, watched: Watched<K>)
    where
        K: kube::Resource
            + Metadata<Ty = ObjectMeta>
            + Clone
            + DeserializeOwned
            + Debug
            + Send
            + 'static,
    {
        let mut streaming = true;
        let mut backoff = Backoff::default();
        loop {
            match self.watch(&watched, streaming, &mut backoff).await {
                End::NoStreaming => {
                    debug!(kind = ?watched.kind, "the server streams no lists: fell back to pages");
                    streaming = false;
                }
                End::Stalled => streaming = !streaming,
                End::Outdated => {}
                End::Absent => {
                    self.worked(watched.kind).await;
                    info!(kind = ?watched.kind, "the server does not know this kind: taken for empty");
                    for event in [Event::Begin(watched.kind), Event::Complete(watched.kind)] {
                        if self.events.send(event).await.is_err() {
                            return;
                        }
                    }
                    sleep(ABSENT_RETRY).await;
                }
                End::Closed => return,
            }
        }
    }

    async fn watch<K>(&self, watched: &Watched<K>, streaming: bool, backoff: &mut Backoff) -> End
    where
        K: kube::Resource
            + Metadata<Ty = ObjectMeta>
            + Clone
            + DeserializeOwned
            + Debug
            + Send
            + 'static,
    {
        let kind = watched.kind;
        let config = watched.config.clone();
        let config = if streaming {
            config.streaming_lists()
        } else {
            config
        };
        let mut stream = pin!(watcher(watched.api.clone(), config));
        let mut listing = true;
        // A list was announced and neither ended nor failed yet.
        let mut begun = false;
        loop {
            let limit = if listing { LIST_STALL } else { QUIET };
            // A timeout loses nothing: the stream keeps the unfinished request.
            let Ok(next) = timeout(limit, stream.next()).await else {
                if listing {
                    self.failed(kind, "the server sends no complete list").await;
                    return End::Stalled;
                }
                self.worked(kind).await;
                continue;
            };
            let event = match next {
                Some(Ok(event)) => event,
                Some(Err(error)) => {
                    begun = false;
                    match status_code(&error) {
                        Some(404) if watched.optional => return End::Absent,
                        // Also after a complete list: the next one may meet another server, or the same with another
                        // version.
                        Some(400 | 422) if streaming => return End::NoStreaming,
                        Some(410) if !listing => {
                            sleep(backoff.next()).await;
                            return End::Outdated;
                        }
                        _ => self.failed(kind, &error.to_string()).await,
                    }
                    sleep(backoff.next()).await;
                    continue;
                }
                None => return End::Stalled,
            };
            match event {
                watcher::Event::Init => {
                    listing = true;
                    // The watcher itself asks again at once, and reports nothing.
                    if std::mem::replace(&mut begun, true) {
                        self.failed(kind, "the server breaks off its lists").await;
                        sleep(backoff.next()).await;
                    }
                }
                watcher::Event::InitDone => (listing, begun) = (false, false),
                watcher::Event::InitApply(_)
                | watcher::Event::Apply(_)
                | watcher::Event::Delete(_) => {}
            }
            // A list in pages is announced before it is asked for, and may fail at any page: only its end shows that the
            // server answers.
            if !listing {
                self.worked(kind).await;
                *backoff = Backoff::default();
            }
            if let Some(event) = self.convert(watched, event)
                && self.events.send(event).await.is_err()
            {
                return End::Closed;
            }
        }
    }

    fn convert<K: Metadata<Ty = ObjectMeta>>(
        &self,
        watched: &Watched<K>,
        event: watcher::Event<K>,
    ) -> Option<Event> {
        let mut converter = self
            .converter
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match event {
            watcher::Event::Init => Some(Event::Begin(watched.kind)),
            watcher::Event::InitDone => Some(Event::Complete(watched.kind)),
            watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
                let event = (watched.convert)(&mut converter, &object);
                if let (Some(Event::Slice(slice)), Some(finder)) = (&event, &self.finder) {
                    finder.note(slice);
                }
                event
            }
            watcher::Event::Delete(object) => (watched.gone)(&mut converter, object.metadata()),
        }
    }

    async fn failed(&self, kind: Kind, error: &str) {
        let lost = self.outage().failed(kind, error);
        if lost {
            // Should the other side have ended, the next report will notice.
            let _ = self.events.send(Event::Lost(kind)).await;
        }
    }

    async fn worked(&self, kind: Kind) {
        let found = self.outage().worked(kind);
        if found {
            let _ = self.events.send(Event::Found(kind)).await;
        }
    }

    fn outage(&self) -> std::sync::MutexGuard<'_, Outage> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// HTTP status of an answer that is an error.
fn status_code(error: &watcher::Error) -> Option<u16> {
    use watcher::Error::{
        InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed,
    };
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status)) => Some(status.code),
        WatchError(status) => Some(status.code),
        InitialListFailed(_) | WatchStartFailed(_) | WatchFailed(_) | NoResourceVersion => None,
    }
}

#[cfg(test)]
mod tests;
