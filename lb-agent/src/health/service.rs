//! Health-check node ports: tells external load balancers whether this node has endpoints of a Service
//! (spec H6-H13, and H15 as §8 corrects it: each family listens and counts for itself).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::Health;
use super::http::{self, Answer, Handler, Reach};
use crate::model::HealthCheck;
use crate::snapshot::{Family, ObjectName};

/// A health-check node port on one address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthPort {
    pub service: ObjectName,
    /// The unspecified address for all of its family.
    pub address: SocketAddr,
    pub local_endpoints: usize,
}

impl HealthPort {
    /// A check's ports on these addresses; on all of its family if there is no list (H6).
    pub fn of(check: &HealthCheck, addresses: Option<&[IpAddr]>) -> Vec<Self> {
        let all = [match check.family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }];
        let on = addresses.unwrap_or(&all).iter();
        on.map(|address| HealthPort {
            service: check.service.clone(),
            address: SocketAddr::new(*address, check.port),
            local_endpoints: check.local_endpoints,
        })
        .collect()
    }
}

/// The listeners of this node. They close when this is dropped.
pub struct ServiceHealth {
    desired: watch::Sender<Vec<HealthPort>>,
    task: JoinHandle<()>,
}

impl ServiceHealth {
    /// Starts with no listener. Must be called within a Tokio runtime.
    pub fn start(health: Health) -> Self {
        let (desired, changes) = watch::channel(Vec::new());
        let task = tokio::spawn(follow(changes, health));
        ServiceHealth { desired, task }
    }

    /// Replaces the whole set. Returns at once; ports open and close in the background, and one that
    /// cannot be opened is tried again until it can.
    pub fn set(&self, desired: Vec<HealthPort>) {
        self.desired.send_if_modified(|known| {
            let news = *known != desired;
            *known = desired;
            news
        });
    }
}

impl Drop for ServiceHealth {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What makes two listeners the same: a change of the port closes and opens (H13).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key {
    service: ObjectName,
    address: SocketAddr,
}

struct Listener {
    local_endpoints: Arc<AtomicUsize>,
    /// `None` while the port cannot be bound.
    task: Option<JoinHandle<()>>,
}

impl Listener {
    /// Gives the port back to the system. An aborted task holds it until the runtime comes to drop the task.
    async fn close(mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            // An error says that it was aborted.
            let _ = task.await;
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn follow(mut changes: watch::Receiver<Vec<HealthPort>>, health: Health) {
    let mut listeners = HashMap::new();
    loop {
        let desired = changes.borrow_and_update().clone();
        let all_open = reconcile(&mut listeners, &desired, &health).await;
        let changed = tokio::select! {
            changed = changes.changed() => changed,
            () = tokio::time::sleep(http::BIND_RETRY), if !all_open => Ok(()),
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Returns whether every wanted port is open.
async fn reconcile(
    listeners: &mut HashMap<Key, Listener>,
    desired: &[HealthPort],
    health: &Health,
) -> bool {
    let wanted: HashMap<Key, usize> = desired
        .iter()
        .map(|check| (key(check), check.local_endpoints))
        .collect();
    // Close first, and wait for it: a port may move from one Service to another.
    let closed: Vec<_> = listeners
        .extract_if(|key, _| !wanted.contains_key(key))
        .collect();
    for (key, listener) in closed {
        listener.close().await;
        debug!(service = %name(&key.service), address = %key.address, "health-check port closed");
    }
    let mut all_open = true;
    for (key, local_endpoints) in wanted {
        match listeners.get_mut(&key) {
            Some(listener) => {
                listener
                    .local_endpoints
                    .store(local_endpoints, Ordering::Relaxed);
                if listener.task.is_none() {
                    listener.task = open(&key, &listener.local_endpoints, health, Complain::No);
                }
                all_open &= listener.task.is_some();
            }
            None => {
                let count = Arc::new(AtomicUsize::new(local_endpoints));
                let task = open(&key, &count, health, Complain::Yes);
                all_open &= task.is_some();
                listeners.insert(
                    key,
                    Listener {
                        local_endpoints: count,
                        task,
                    },
                );
            }
        }
    }
    all_open
}

/// Whether a failure is news.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Complain {
    Yes,
    No,
}

fn open(
    key: &Key,
    count: &Arc<AtomicUsize>,
    health: &Health,
    complain: Complain,
) -> Option<JoinHandle<()>> {
    match http::bind(key.address, Reach::OwnFamily) {
        Ok(listener) => {
            info!(service = %name(&key.service), address = %key.address, "health-check port opened");
            let handler = handler(key.service.clone(), Arc::clone(count), health.clone());
            Some(tokio::spawn(http::serve_on(listener, handler)))
        }
        Err(error) => {
            if complain == Complain::Yes {
                warn!(
                    service = %name(&key.service), address = %key.address, %error,
                    "health-check port not opened: {}; external load balancers will take this node for \
                     unhealthy; free the port or change spec.healthCheckNodePort; trying again every 5 s",
                    http::bind_hint(&error)
                );
            }
            None
        }
    }
}

/// Any path, any method (H7).
fn handler(service: ObjectName, count: Arc<AtomicUsize>, health: Health) -> Handler {
    Arc::new(move |_method, _path| {
        // H11: freshness alone, node eligibility is /healthz's business.
        answer(
            &service,
            count.load(Ordering::Relaxed),
            health.verdict().healthy,
        )
    })
}

fn answer(service: &ObjectName, local_endpoints: usize, proxy_healthy: bool) -> Answer {
    let ok = local_endpoints > 0 && proxy_healthy;
    let status = if ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut answer = Answer::json(
        status,
        &json!({
            "service": { "namespace": &*service.namespace, "name": &*service.name },
            "localEndpoints": local_endpoints,
            "serviceProxyHealthy": proxy_healthy,
        }),
    );
    let weight = HeaderName::from_static("x-load-balancing-endpoint-weight");
    answer
        .headers
        .push((weight, HeaderValue::from(local_endpoints)));
    answer
}

fn key(port: &HealthPort) -> Key {
    Key {
        service: port.service.clone(),
        address: port.address,
    }
}

fn name(object: &ObjectName) -> String {
    format!("{}/{}", object.namespace, object.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> ObjectName {
        ObjectName {
            namespace: "shop".into(),
            name: "web".into(),
        }
    }

    /// Spec H7, H8, H9.
    #[test]
    fn the_answer_names_service_count_and_weight() {
        let good = answer(&web(), 2, true);
        assert_eq!(good.status, 200);
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&good.body).unwrap(),
            json!({ "service": { "namespace": "shop", "name": "web" }, "localEndpoints": 2, "serviceProxyHealthy": true })
        );
        let weight = good
            .headers
            .iter()
            .find(|(name, _)| name == "x-load-balancing-endpoint-weight");
        assert_eq!(weight.map(|(_, value)| value.to_str().unwrap()), Some("2"));
    }

    /// Spec H7, H11.
    #[test]
    fn no_local_endpoint_or_a_stale_proxy_is_503() {
        assert_eq!(answer(&web(), 0, true).status, 503);
        assert_eq!(answer(&web(), 2, false).status, 503);
    }
}
