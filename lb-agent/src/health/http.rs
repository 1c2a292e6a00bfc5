//! A small HTTP/1 server for probes and scrapes.
//!
//! Made for short answers to strangers: every connection carries one request, has [`CONNECTION_TIME`] in
//! all, 16 KiB of header, and its body is never read; a listener serves [`CONNECTIONS`] at a time, and where there are
//! more the oldest ends: those that come to ask are answered at once, so the oldest is one that only stands there.
//! Dropping the future of a server closes its listener and every connection.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, info, warn};

/// Pause between attempts to bind, as kube-proxy's.
pub const BIND_RETRY: Duration = Duration::from_secs(5);

const CONNECTION_TIME: Duration = Duration::from_secs(10);
const CONNECTIONS: usize = 128;
const HEADER_BYTES: usize = 16 * 1024;
const BACKLOG: i32 = 128;

/// Answers a request. Must not block: it runs on the agent's own thread.
pub type Handler = Arc<dyn Fn(&Method, &str) -> Answer + Send + Sync>;

/// What a handler returns.
pub struct Answer {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: String,
}

/// Which clients a listener takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// An unspecified address means both families, as in Go's `net.Listen`.
    BothFamilies,
    /// The address's own family alone.
    OwnFamily,
}

impl Answer {
    /// Plain text.
    pub fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Answer {
            status,
            content_type: "text/plain; charset=utf-8",
            headers: Vec::new(),
            body: body.into(),
        }
    }

    /// JSON, with the header that keeps browsers from guessing.
    pub fn json(status: StatusCode, body: &serde_json::Value) -> Self {
        Answer {
            status,
            content_type: "application/json",
            headers: vec![(
                hyper::header::X_CONTENT_TYPE_OPTIONS,
                HeaderValue::from_static("nosniff"),
            )],
            body: body.to_string(),
        }
    }

    /// Nothing under this path.
    pub fn not_found() -> Self {
        Answer::text(StatusCode::NOT_FOUND, "404 page not found\n")
    }
}

/// Serves for ever; an address that cannot be bound is reported and tried again.
pub async fn serve(what: &'static str, address: SocketAddr, handler: Handler) {
    let mut complained = false;
    let listener = loop {
        match bind(address, Reach::BothFamilies) {
            Ok(listener) => break listener,
            Err(error) => {
                if !complained {
                    warn!(%address, %error, "{what} not served: {}; trying again every 5 s", bind_hint(&error));
                    complained = true;
                }
                tokio::time::sleep(BIND_RETRY).await;
            }
        }
    };
    info!(%address, "{what} served");
    serve_on(listener, handler).await;
}

/// Serves connections of a bound listener for ever.
pub async fn serve_on(listener: TcpListener, handler: Handler) {
    let mut connections = JoinSet::new();
    // The oldest first.
    let mut ages: VecDeque<AbortHandle> = VecDeque::with_capacity(CONNECTIONS);
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    if ages.len() >= CONNECTIONS {
                        ages.retain(|connection| !connection.is_finished());
                    }
                    // Kubelet must get through, whoever else holds connections open.
                    if ages.len() >= CONNECTIONS && let Some(oldest) = ages.pop_front() {
                        oldest.abort();
                    }
                    ages.push_back(connections.spawn(serve_connection(stream, Arc::clone(&handler))));
                }
                Err(error) => {
                    // Mostly "too many open files": a busy loop would make it worse.
                    debug!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

/// Binds and listens.
pub fn bind(address: SocketAddr, reach: Reach) -> io::Result<TcpListener> {
    if reach == Reach::BothFamilies && address.ip().is_unspecified() {
        match listen(
            SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), address.port()),
            Reach::BothFamilies,
        ) {
            // A kernel without IPv6: what follows serves IPv4 alone.
            Err(error) if address.is_ipv4() && lacks_ipv6(&error) => {}
            done => return done,
        }
    }
    listen(address, reach)
}

/// What to do about a failed bind.
pub fn bind_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another process listens there (kube-proxy, or a second agent?)"
        }
        io::ErrorKind::AddrNotAvailable => "no interface of this node has that address",
        io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE",
        _ => "the address cannot be bound",
    }
}

fn listen(address: SocketAddr, reach: Reach) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(reach == Reach::OwnFamily)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

async fn serve_connection(stream: TcpStream, handler: Handler) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = handler(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(respond(answer)) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEADER_BYTES)
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_TIME / 2)
        .serve_connection(TokioIo::new(stream), service);
    // Failures are the client's: it went away, was too slow or spoke something else.
    let _ = tokio::time::timeout(CONNECTION_TIME, connection).await;
}

fn respond(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.status;
    response.headers_mut().insert(
        hyper::header::CONTENT_TYPE,
        HeaderValue::from_static(answer.content_type),
    );
    response.headers_mut().extend(answer.headers);
    response
}
