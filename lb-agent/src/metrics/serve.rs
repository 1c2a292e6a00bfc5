//! `/metrics` and its neighbours on port 10249 (spec §3.5).

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::StatusCode;
use serde_json::json;

use super::{Metrics, text};
use crate::config::Config;
use crate::health::Health;
use crate::health::http::{self, Answer, Handler};

/// Brings numbers up to date that are only read when somebody looks, e.g. the kernel's counters.
pub type BeforeScrape = Arc<dyn Fn(&Metrics) + Send + Sync>;

/// Serves metrics for ever.
pub async fn serve(
    address: SocketAddr,
    config: &Config,
    metrics: Metrics,
    health: Health,
    before: BeforeScrape,
) {
    http::serve("metrics", address, handler(config, metrics, health, before)).await;
}

/// The router.
pub fn handler(config: &Config, metrics: Metrics, health: Health, before: BeforeScrape) -> Handler {
    let config = json!({ "beeline.dev": config });
    Arc::new(move |_method, path| match path {
        "/metrics" => {
            before(&metrics);
            Answer {
                content_type: text::CONTENT_TYPE,
                ..Answer::text(StatusCode::OK, metrics.render())
            }
        }
        // Clusters' tests ask which mode runs; only the status is judged.
        "/proxyMode" => Answer::text(StatusCode::OK, "beeline"),
        "/healthz" => Answer::text(StatusCode::OK, "ok"),
        "/configz" => Answer::json(StatusCode::OK, &config),
        "/status" => Answer::json(
            StatusCode::OK,
            &json!({ "apiVersion": crate::cli::API_VERSION, "kind": "AgentStatus", "status": health.status() }),
        ),
        _ => Answer::not_found(),
    })
}
