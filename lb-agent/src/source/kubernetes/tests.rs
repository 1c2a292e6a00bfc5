//! What a real API server is not easily brought to do. The usual way is tested against a real one.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// A server of before streaming lists and ServiceCIDRs, with one Service.
async fn serve_old(listener: TcpListener) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(answer_old(stream));
    }
}

async fn answer_old(mut stream: TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.split(' ').nth(1).unwrap();
    let (code, body) = if target.contains("servicecidrs") {
        (404, status(404, "NotFound"))
    } else if target.contains("sendInitialEvents=true") {
        (422, status(422, "Invalid"))
    } else if target.contains("watch=true") {
        // Open, and silent.
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        return std::future::pending().await;
    } else {
        (200, list(target))
    };
    let body = body.to_string();
    let answer = format!(
        "HTTP/1.1 {code} x\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await.unwrap();
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
    let server = tokio::spawn(serve_old(listener));
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
