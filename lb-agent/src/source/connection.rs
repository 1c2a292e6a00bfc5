//! The API client's connections: dead servers are noticed, attempts are not logged one by one, and lists are no older than
//! the asking.
//!
//! kube's own stack offers no TCP keepalive, so a server that lost its power would go unnoticed until a watch runs
//! out, and it logs every failed request; [`super::outage`] tells of those once a minute.

use std::time::Duration;

use hyper::Request;
use hyper::http::uri::{PathAndQuery, Uri};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::{Client, Config};
use tower::BoxError;
use tower::util::{MapErr, MapRequest};

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

/// A client for what the configuration names. It asks no proxy: that of the environment (HTTPS_PROXY) is about the world
/// outside.
pub(super) fn client(config: Config) -> kube::Result<Client> {
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
    let service = MapRequest::new(service, most_recent);
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

/// Asks for a streamed list as the cluster is, not as this server knows it: kube asks for version 0, which any age of the
/// server's cache satisfies, and what a list lacks is deleted here. Without a version the server looks into etcd first
/// (KEP-3157), so one that is cut off from it gives no list.
fn most_recent(mut request: Request<Body>) -> Request<Body> {
    if let Some(uri) = without_version(request.uri()) {
        *request.uri_mut() = uri;
    }
    request
}

/// The address of a streamed list without its version; `None` for all others.
fn without_version(uri: &Uri) -> Option<Uri> {
    let query = uri.query()?;
    let parts = query.split('&');
    if !parts.clone().any(|part| part == "sendInitialEvents=true") {
        return None;
    }
    let kept: Vec<&str> = parts.filter(|part| *part != "resourceVersion=0").collect();
    let mut new = uri.clone().into_parts();
    let path = format!("{}?{}", uri.path(), kept.join("&"));
    new.path_and_query = Some(PathAndQuery::try_from(path).ok()?);
    Uri::from_parts(new).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(uri: &str) -> String {
        let request = Request::builder().uri(uri).body(Body::empty()).unwrap();
        most_recent(request).uri().to_string()
    }

    #[test]
    fn a_streamed_list_is_asked_for_without_a_version() {
        assert_eq!(
            asked(
                "https://api:6443/api/v1/services?watch=true&sendInitialEvents=true&\
                 resourceVersionMatch=NotOlderThan&resourceVersion=0"
            ),
            "https://api:6443/api/v1/services?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
        );
    }

    #[test]
    fn other_requests_are_left_alone() {
        for uri in [
            "/version",
            "/api/v1/services?watch=true&resourceVersion=0",
            "/api/v1/services?watch=true&resourceVersion=17",
            "/api/v1/services?limit=500",
        ] {
            assert_eq!(asked(uri), uri);
        }
    }
}
