//! The API client's connections: dead servers are noticed, and attempts are not logged one by one.
//!
//! kube's own stack offers no TCP keepalive, so a server that lost its power would go unnoticed until a watch runs
//! out, and it logs every failed request; [`super::outage`] tells of those once a minute.

use std::time::Duration;

use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::{Client, Config};
use tower::BoxError;
use tower::util::MapErr;

/// A connection attempt, TLS included, takes no longer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Unanswered requests and probes that mean the machine behind a connection is gone.
const DEAD_AFTER: Duration = Duration::from_secs(20);
const PROBE_AFTER: Duration = Duration::from_secs(10);
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBES: u32 = 2;
/// Silence that means the server hangs though its machine answers. It sends a bookmark into each watch once
/// a minute.
const READ_TIMEOUT: Duration = Duration::from_secs(90);
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// A client for what the configuration names. Proxies are left to kube's stack.
pub(super) fn client(mut config: Config) -> kube::Result<Client> {
    if config.proxy_url.is_some() {
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        config.write_timeout = Some(WRITE_TIMEOUT);
        config.reset_reader_on_write = true;
        config.default_retry = false;
        return Client::try_from(config);
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(PROBE_AFTER));
    tcp.set_keepalive_interval(Some(PROBE_EVERY));
    tcp.set_keepalive_retries(Some(PROBES));
    tcp.set_tcp_user_timeout(Some(DEAD_AFTER));

    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_read_timeout(Some(READ_TIMEOUT));
    connector.set_write_timeout(Some(WRITE_TIMEOUT));
    // Else the time a pooled connection lay idle would count.
    connector.set_reset_reader_on_write(true);

    let service = legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(connector);
    // The layers above agree on this error.
    let service = MapErr::new(service, BoxError::from);
    let builder = ClientBuilder::new(service, config.default_namespace.clone())
        .with_layer(&config.extra_headers_layer()?);
    Ok(match config.auth_layer()? {
        Some(auth) => builder
            .with_layer(&auth)
            .with_layer(&config.base_uri_layer())
            .build(),
        None => builder.with_layer(&config.base_uri_layer()).build(),
    })
}
