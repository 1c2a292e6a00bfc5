use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::snapshot::{Hints, Node, Service, Slice};

mod hostile;
mod node;
mod service;
mod slice;

/// A converter, and the counts of what it refused.
fn converter() -> (Converter, Arc<Refused>) {
    let refused = Arc::new(Refused::default());
    (Converter::new(Options::default(), refused.clone()), refused)
}

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Lays `over` on top of `base`, as deep as both are objects.
fn merged(mut base: Value, over: Value) -> Value {
    match (&mut base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                let below = base.remove(&key).unwrap_or(Value::Null);
                base.insert(key, merged(below, value));
            }
        }
        (base, over) => *base = over,
    }
    base
}

/// A dual-stack Service, changed by `over`.
fn service_json(over: Value) -> Value {
    let base = json!({
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "10.96.0.10",
            "clusterIPs": ["10.96.0.10", "fd00:96::10"],
            "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        },
    });
    merged(base, over)
}

fn read_service(over: Value) -> Option<Service> {
    match converter().0.service(&object(service_json(over))) {
        Some(Event::Service(service)) => Some(*service),
        Some(Event::ServiceGone(name)) => {
            assert_eq!((&*name.namespace, &*name.name), ("shop", "web"));
            None
        }
        other => panic!("{other:?}"),
    }
}

fn slice_json(over: Value) -> Value {
    let base = json!({
        "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.0.0.1"]}],
    });
    merged(base, over)
}

fn read_slice(over: Value) -> Option<Slice> {
    match converter().0.slice(&object(slice_json(over))) {
        Some(Event::Slice(slice)) => Some(*slice),
        Some(Event::SliceGone(name)) => {
            assert_eq!((&*name.namespace, &*name.name), ("shop", "web-1"));
            None
        }
        other => panic!("{other:?}"),
    }
}

fn read_node(value: Value) -> Node {
    match converter()
        .0
        .node(&object(merged(json!({"metadata": {"name": "a"}}), value)))
    {
        Some(Event::Node(node)) => *node,
        other => panic!("{other:?}"),
    }
}

fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(T::to_string).collect()
}

fn prefixes(items: &[Cidr]) -> Vec<String> {
    items
        .iter()
        .map(|cidr| format!("{}/{}", cidr.address, cidr.length))
        .collect()
}

/// What `act` logs, as plain lines.
fn logged(act: impl FnOnce()) -> String {
    // While there is only one dispatcher, tracing asks whichever thread comes first whether anybody listens, and
    // another test's thread has none. A second one makes it ask all.
    static SECOND: std::sync::OnceLock<tracing::Dispatch> = std::sync::OnceLock::new();
    SECOND.get_or_init(|| {
        tracing::Dispatch::new(
            tracing_subscriber::fmt()
                .with_writer(std::io::sink)
                .finish(),
        )
    });

    let lines = Arc::new(Mutex::new(Vec::new()));
    let writer = Lines(lines.clone());
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, act);
    let lines = lines.lock().unwrap();
    String::from_utf8(lines.clone()).unwrap()
}

#[derive(Clone)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
