//! Probes, health-check node ports and metrics, over real sockets on loopback.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser as _;
use lb_agent::cli::{self, Cli, Exit};
use lb_agent::config::{
    BindAddress, Config, Conntrack, Devices, Forwarding, LocalPods, NodePortAddresses, SnatLocal,
    SocketLb, SocketPeer, SourceConfig, Xdp,
};
use lb_agent::health::http::{self, Reach};
use lb_agent::health::service::{HealthPort, ServiceHealth};
use lb_agent::health::{Health, probes};
use lb_agent::metrics::{Metrics, serve};
use lb_agent::model::HealthCheck;
use lb_agent::snapshot::{Family, ObjectName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const V4: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Sends a request as it stands and returns the whole answer; `None` if nothing listens.
async fn ask(address: SocketAddr, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

async fn get(address: SocketAddr, path: &str) -> Option<String> {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
}

/// Asks until the answer starts with `expected` (or, for `None`, until nobody answers).
async fn wait_for(address: SocketAddr, expected: Option<&str>) -> Option<String> {
    let mut last = None;
    for _ in 0..200 {
        last = get(address, "/any/path").await;
        match (&last, expected) {
            (None, None) => return None,
            (Some(answer), Some(start)) if answer.starts_with(start) => return last,
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("waited for {expected:?} from {address}, last answer: {last:?}");
}

fn free_port() -> u16 {
    // Wildcard of both families, so that nobody else holds the port in either.
    std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn config() -> Config {
    Config {
        source: SourceConfig::Manifests("/etc/beeline".into()),
        node_name: "node-1".into(),
        bpffs: "/sys/fs/bpf".into(),
        cgroup: None,
        socket_lb: SocketLb::All,
        socket_lb_peer: SocketPeer::Service,
        devices: Devices::Auto,
        xdp: Xdp::Auto,
        nodeport_addresses: NodePortAddresses::default(),
        bind_address: None,
        local_pods: LocalPods::Devices,
        masquerade_all: false,
        snat_local: SnatLocal::Preserve,
        forwarding: Forwarding::Fast,
        conntrack: Conntrack::default(),
        healthz_bind: BindAddress(None),
        metrics_bind: BindAddress(None),
    }
}

fn check(family: Family, port: u16, local_endpoints: usize) -> HealthPort {
    let check = HealthCheck {
        service: ObjectName {
            namespace: "shop".into(),
            name: "web".into(),
        },
        family,
        port,
        local_endpoints,
    };
    HealthPort::of(&check, None).remove(0)
}

#[tokio::test]
async fn probes_follow_the_agents_state() {
    let (health, metrics) = (Health::default(), Metrics::default());
    let listener = http::bind(V4, Reach::BothFamilies).unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(http::serve_on(
        listener,
        probes::handler(health.clone(), metrics.clone()),
    ));

    assert!(
        get(address, "/livez")
            .await
            .unwrap()
            .starts_with("HTTP/1.1 200 OK")
    );
    assert!(
        get(address, "/healthz")
            .await
            .unwrap()
            .starts_with("HTTP/1.1 503 ")
    );
    assert!(
        get(address, "/readyz")
            .await
            .unwrap()
            .starts_with("HTTP/1.1 503 ")
    );

    health.updated(Family::V4);
    health.set_node_eligible(true);
    health.set_ready();
    let answer = get(address, "/healthz").await.unwrap().to_lowercase();
    assert!(answer.starts_with("http/1.1 200 ok"), "{answer}");
    assert!(
        answer.contains("content-type: application/json\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains("x-content-type-options: nosniff\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains("\"nodeeligible\":true") && answer.contains("\"ipv4\":{"),
        "{answer}"
    );
    assert!(
        get(address, "/readyz")
            .await
            .unwrap()
            .starts_with("HTTP/1.1 200 OK")
    );
    assert!(
        get(address, "/else")
            .await
            .unwrap()
            .starts_with("HTTP/1.1 404 ")
    );

    let text = metrics.render();
    assert!(
        text.contains("kubeproxy_proxy_healthz_total{code=\"503\"} 1"),
        "{text}"
    );
    assert!(
        text.contains("kubeproxy_proxy_livez_total{code=\"200\"} 1"),
        "{text}"
    );
}

#[tokio::test]
async fn an_unspecified_address_serves_both_families_and_a_taken_one_is_tried_again() {
    let port = free_port();
    let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
    let squatter = http::bind(address, Reach::BothFamilies).unwrap();
    let server = tokio::spawn(probes::serve(
        address,
        Health::default(),
        Metrics::default(),
    ));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!server.is_finished());
    drop(squatter);
    for ip in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        wait_for(SocketAddr::new(ip, port), Some("HTTP/1.1 404")).await;
    }
    server.abort();
}

/// Upstream: "should check kube-proxy urls".
#[tokio::test]
async fn metrics_and_neighbours_are_served() {
    let (health, metrics) = (Health::default(), Metrics::default());
    health.describe(|status| status.source = "manifests in /etc/beeline".into());
    let scrapes = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&scrapes);
    let before = Arc::new(move |metrics: &Metrics| {
        metrics.datapath(&[1 + counted.fetch_add(1, Ordering::Relaxed)])
    });
    let listener = http::bind(V4, Reach::BothFamilies).unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(http::serve_on(
        listener,
        serve::handler(&config(), metrics, health, before),
    ));

    let text = get(address, "/metrics").await.unwrap();
    assert!(
        text.contains("content-type: text/plain; version=0.0.4"),
        "{text}"
    );
    assert!(
        text.contains("beeline_datapath_events_total{event=\"connect_translated\"} 1\n"),
        "{text}"
    );
    assert_eq!(scrapes.load(Ordering::Relaxed), 1);
    assert!(
        get(address, "/proxyMode")
            .await
            .unwrap()
            .ends_with("\r\n\r\nbeeline")
    );
    assert!(
        get(address, "/healthz")
            .await
            .unwrap()
            .ends_with("\r\n\r\nok")
    );
    assert!(
        get(address, "/configz")
            .await
            .unwrap()
            .contains("\"nodeName\":\"node-1\"")
    );
    let status = get(address, "/status").await.unwrap();
    assert!(
        status.contains("\"kind\":\"AgentStatus\"") && status.contains("manifests in /etc/beeline"),
        "{status}"
    );
}

#[tokio::test]
async fn status_asks_the_living_agent() {
    let health = Health::default();
    health.describe(|status| {
        status.node_name = "node-1".into();
        status.source_connected = true;
        let reason = "externalIP 127.0.0.1 is a loopback address";
        status.set_refused([("Service shop/odd".into(), reason.into())].into());
    });
    health.set_ready();
    let handlers = [
        probes::handler(health.clone(), Metrics::default()),
        serve::handler(
            &config(),
            Metrics::default(),
            health,
            Arc::new(|_: &Metrics| ()),
        ),
    ];
    let [probes, metrics] = handlers.map(|handler| {
        let listener = http::bind(V4, Reach::BothFamilies).unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(http::serve_on(listener, handler));
        address
    });
    let line =
        format!("beeline status --bpffs /nonexistent --healthz {probes} --metrics {metrics}");
    let cli = Cli::try_parse_from(line.split(' ')).unwrap();
    let printed = tokio::task::spawn_blocking(move || cli::answer(&cli.command).unwrap())
        .await
        .unwrap();
    assert_eq!(printed.exit, Exit::Problems);
    for line in [
        "PROBLEM   Service shop/odd: externalIP 127.0.0.1 is a loopback address",
        "Agent     healthy, ",
    ] {
        assert!(
            printed.text.contains(line),
            "no {line:?} in\n{}",
            printed.text
        );
    }
    assert!(
        !printed.text.contains("does not answer"),
        "{}",
        printed.text
    );
}

/// Spec H7, H13, A23.
#[tokio::test]
async fn health_check_ports_open_count_move_and_close() {
    let health = Health::default();
    let service_health = ServiceHealth::start(health.clone());
    let (first, second) = (free_port(), free_port());
    let v4 = |port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    let v6 = |port| SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port);

    // Each family answers with its own count.
    service_health.set(vec![
        check(Family::V4, first, 2),
        check(Family::V6, first, 0),
    ]);
    let answer = wait_for(v4(first), Some("HTTP/1.1 200"))
        .await
        .unwrap()
        .to_lowercase();
    assert!(
        answer.contains("x-load-balancing-endpoint-weight: 2\r\n"),
        "{answer}"
    );
    assert!(answer.contains("\"localendpoints\":2"), "{answer}");
    wait_for(v6(first), Some("HTTP/1.1 503")).await;
    let post = ask(
        v4(first),
        "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    )
    .await
    .unwrap();
    assert!(post.starts_with("HTTP/1.1 200"), "{post}");

    // A change of the count keeps the listener; a family that is gone stops listening.
    service_health.set(vec![check(Family::V4, first, 0)]);
    wait_for(v4(first), Some("HTTP/1.1 503")).await;
    wait_for(v6(first), None).await;

    // Another port closes the old one.
    service_health.set(vec![check(Family::V4, second, 1)]);
    wait_for(v4(second), Some("HTTP/1.1 200")).await;
    wait_for(v4(first), None).await;

    drop(service_health);
    wait_for(v4(second), None).await;
}

/// Spec H13.
#[tokio::test]
async fn a_health_check_port_that_moves_to_another_service_answers_at_once() {
    let service_health = ServiceHealth::start(Health::default());
    let port = free_port();
    let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    let of = |name: &str| HealthPort {
        service: ObjectName {
            namespace: "shop".into(),
            name: name.into(),
        },
        ..check(Family::V4, port, 1)
    };
    for name in ["web", "mail", "web"] {
        service_health.set(vec![of(name)]);
        let named = async {
            loop {
                let answer = get(address, "/").await.unwrap_or_default();
                if answer.contains(&format!("\"name\":\"{name}\"")) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        // A port that could not be bound is tried again after five seconds.
        let moved = tokio::time::timeout(http::BIND_RETRY / 2, named).await;
        assert!(moved.is_ok(), "{name} does not answer");
    }
}

/// Spec H6.
#[tokio::test]
async fn health_check_ports_open_on_the_addresses_named_alone() {
    let service_health = ServiceHealth::start(Health::default());
    let port = free_port();
    let on = |octet| SocketAddr::new(Ipv4Addr::new(127, 0, 0, octet).into(), port);
    let named = HealthPort {
        address: on(2),
        ..check(Family::V4, port, 1)
    };
    service_health.set(vec![named]);
    wait_for(on(2), Some("HTTP/1.1 200")).await;
    wait_for(on(1), None).await;
}

/// Spec H12.
#[tokio::test]
async fn a_taken_health_check_port_is_opened_once_it_is_free() {
    let port = free_port();
    let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
    let squatter = http::bind(address, Reach::OwnFamily).unwrap();
    let service_health = ServiceHealth::start(Health::default());
    service_health.set(vec![check(Family::V4, port, 1)]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(squatter);
    wait_for(
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
        Some("HTTP/1.1 200"),
    )
    .await;
}

#[tokio::test]
async fn garbage_silence_and_floods_do_not_stop_a_server() {
    let listener = http::bind(V4, Reach::BothFamilies).unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(http::serve_on(
        listener,
        probes::handler(Health::default(), Metrics::default()),
    ));

    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let _ = ask(address, "\0\u{7f}nonsense\r\n\r\n").await;
    let long = format!(
        "GET /livez HTTP/1.1\r\nX: {}\r\n\r\n",
        "a".repeat(64 * 1024)
    );
    let refused = ask(address, &long).await.unwrap_or_default();
    assert!(!refused.starts_with("HTTP/1.1 200"), "{refused}");
    assert!(
        get(address, "/livez")
            .await
            .unwrap()
            .starts_with("HTTP/1.1 200")
    );
}
