//! What a real API server is not easily brought to do. The usual way is tested against a real one.

use std::net::SocketAddr;
use std::time::Instant;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// What a server says to one request.
enum Answer {
    Whole(u16, Value),
    /// These events, and nothing more.
    Stream(Vec<Value>),
    /// A stream that ends before it has said anything.
    Cut,
}

/// Answers each request by its target. Each connection carries one.
async fn serve(listener: TcpListener, answer: impl Fn(&str) -> Answer) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let answer = answer(head.split(' ').nth(1).unwrap());
        tokio::spawn(write(stream, answer));
    }
}

async fn write(mut stream: TcpStream, answer: Answer) {
    let chunked = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let text = match &answer {
        Answer::Whole(code, body) => {
            let body = body.to_string();
            format!(
                "HTTP/1.1 {code} x\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            )
        }
        Answer::Stream(events) => {
            let lines = events.iter().map(|event| format!("{event}\n"));
            let chunks = lines.map(|line| format!("{:x}\r\n{line}\r\n", line.len()));
            format!("{chunked}{}", chunks.collect::<String>())
        }
        Answer::Cut => format!("{chunked}0\r\n\r\n"),
    };
    stream.write_all(text.as_bytes()).await.unwrap();
    if let Answer::Stream(_) = answer {
        std::future::pending::<()>().await;
    }
}

/// A server of before streaming lists and ServiceCIDRs, with one Service.
fn answer_old(target: &str) -> Answer {
    if target.contains("servicecidrs") {
        Answer::Whole(404, status(404, "NotFound"))
    } else if is_streamed(target) {
        Answer::Whole(422, status(422, "Invalid"))
    } else if is_watch(target) {
        Answer::Stream(Vec::new())
    } else {
        Answer::Whole(200, list(target))
    }
}

fn is_streamed(target: &str) -> bool {
    target.contains("sendInitialEvents=true")
}

fn is_watch(target: &str) -> bool {
    target.contains("watch=true")
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": reason})
}

fn list(target: &str) -> Value {
    let items = if target.starts_with("/api/v1/services?") {
        // The selectors of A1 and A2 as they go over the wire.
        assert!(
            target.contains("labelSelector=%21service.kubernetes.io%2Fservice-proxy-name"),
            "{target}"
        );
        assert!(
            target.contains("fieldSelector=spec.clusterIP%21%3DNone"),
            "{target}"
        );
        let metadata = json!({"name": "web", "namespace": "shop", "resourceVersion": "1"});
        json!([{"metadata": metadata, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}])
    } else if target.contains("endpointslices") {
        assert!(
            target.contains("labelSelector=%21service.kubernetes.io%2Fheadless"),
            "{target}"
        );
        json!([])
    } else {
        assert!(
            target.contains("fieldSelector=metadata.name%3Dnode-a"),
            "{target}"
        );
        json!([])
    };
    json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items})
}

async fn source(address: SocketAddr) -> KubernetesSource {
    let file = std::env::temp_dir().join(format!("beeline-kubeconfig-{}", address.port()));
    let kubeconfig = json!({
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    });
    std::fs::write(&file, kubeconfig.to_string()).unwrap();
    let settings = Settings {
        access: Access::Kubeconfig(file.clone()),
        node_name: "node-a".into(),
        options: Options::default(),
    };
    let source = KubernetesSource::new(settings, Arc::default())
        .await
        .unwrap();
    std::fs::remove_file(file).unwrap();
    source
}

#[tokio::test]
async fn an_old_server_gives_pages_and_no_service_cidrs() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(serve(listener, answer_old));
    let (sender, mut events) = mpsc::channel(64);
    let running = tokio::spawn(source(address).await.run(sender));

    let mut snapshot = crate::snapshot::Snapshot::default();
    let mut complete = Vec::new();
    while complete.len() < 4 {
        let event = timeout(Duration::from_secs(20), events.recv())
            .await
            .expect("no more events")
            .unwrap();
        if let Event::Complete(kind) = &event {
            complete.push(*kind);
        }
        snapshot.apply(event);
    }
    assert!(snapshot.synced(), "also without a Node object");
    assert_eq!(
        snapshot
            .services()
            .map(|service| &*service.name.name)
            .collect::<Vec<_>>(),
        ["web"]
    );

    drop(events);
    running.await.unwrap().unwrap();
    server.abort();
}

/// Waits for an event, passing over others.
async fn wait_for(events: &mut mpsc::Receiver<Event>, wanted: Event) {
    loop {
        let event = timeout(Duration::from_secs(30), events.recv())
            .await
            .unwrap_or_else(|_| panic!("no {wanted:?}"))
            .unwrap();
        if event == wanted {
            return;
        }
    }
}

/// Serves no list at the first six attempts, between which at least four pauses grow to a second and a half in sum.
async fn lists_come_ever_slower(fail: impl Fn(&str) -> Option<Answer> + Send + 'static) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let noted = attempts.clone();
    let server = tokio::spawn(serve(listener, move |target: &str| {
        let mut attempts = noted.lock().unwrap();
        let failure = fail(target).filter(|_| attempts.len() < 6);
        let counts = failure.is_some() && target.starts_with("/api/v1/services?");
        attempts.extend(counts.then(Instant::now));
        failure.unwrap_or_else(|| answer_old(target))
    }));
    let (sender, mut events) = mpsc::channel(64);
    let running = tokio::spawn(source(address).await.run(sender));

    wait_for(&mut events, Event::Lost(Kind::Services)).await;
    wait_for(&mut events, Event::Found(Kind::Services)).await;
    wait_for(&mut events, Event::Complete(Kind::Services)).await;
    let attempts = attempts.lock().unwrap().clone();
    let took = attempts[5] - attempts[0];
    assert!(took > Duration::from_millis(1400), "{took:?}");

    drop(events);
    running.await.unwrap().unwrap();
    server.abort();
}

/// Spec J3. Such a list is announced before anything is asked, which is no sign of a server.
#[tokio::test]
async fn lists_in_pages_that_fail_are_an_outage() {
    lists_come_ever_slower(|target| {
        let failure = || Answer::Whole(503, status(503, "ServiceUnavailable"));
        (!is_streamed(target) && !is_watch(target)).then(failure)
    })
    .await;
}

/// Spec J3.
#[tokio::test]
async fn streamed_lists_that_break_off_are_an_outage() {
    lists_come_ever_slower(|target| is_streamed(target).then_some(Answer::Cut)).await;
}

/// A control plane taken back to a version without streaming lists, or with the feature turned off.
#[tokio::test]
async fn a_server_that_stops_streaming_lists_is_asked_for_pages() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let streamed = Mutex::new(std::collections::HashSet::new());
    let server = tokio::spawn(serve(listener, move |target: &str| {
        let path = target.split('?').next().unwrap().to_owned();
        if is_streamed(target) && streamed.lock().unwrap().insert(path) {
            let end = json!({"k8s.io/initial-events-end": "true"});
            let metadata = json!({"resourceVersion": "1", "annotations": end});
            Answer::Stream(vec![
                json!({"type": "BOOKMARK", "object": {"kind": "Service", "apiVersion": "v1", "metadata": metadata}}),
                json!({"type": "ERROR", "object": status(410, "Expired")}),
            ])
        } else {
            answer_old(target)
        }
    }));
    let (sender, mut events) = mpsc::channel(64);
    let running = tokio::spawn(source(address).await.run(sender));

    // The second list is the one in pages, with the one Service in it.
    let mut services = Vec::new();
    while services.is_empty() {
        wait_for(&mut events, Event::Complete(Kind::Services)).await;
        wait_for(&mut events, Event::Begin(Kind::Services)).await;
        while let Some(event) = events.recv().await {
            match event {
                Event::Service(service) => services.push(service.name.name.to_string()),
                Event::Complete(Kind::Services) => break,
                _ => {}
            }
        }
    }
    assert_eq!(services, ["web"]);

    drop(events);
    running.await.unwrap().unwrap();
    server.abort();
}

#[tokio::test]
async fn a_kubeconfig_that_is_not_there_is_named() {
    let settings = Settings {
        access: Access::Kubeconfig("/no/such/file".into()),
        node_name: "a".into(),
        options: Options::default(),
    };
    let error = KubernetesSource::new(settings, Arc::default())
        .await
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("/no/such/file") && error.to_string().contains("--kubeconfig")
    );
}
