//! Health-check node ports (spec H7-H11, H15): what an external load balancer is told, by every node, in both families.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::proxy::Proxy;
use super::stage::{NODES, Stage, Twin};
use super::state::{NAMESPACE, list};
use crate::address::{self, FAMILIES};
use crate::agent::get;
use crate::kube_proxy::Mode;
use crate::link::Layout;

/// Rounds before a disagreement is believed: nothing tells when a count has arrived.
const ROUNDS: usize = 5;

/// What a health-check port says.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Told {
    Answer {
        status: String,
        headers: Vec<String>,
        body: Value,
    },
    Nothing(String),
}

/// How many ports were asked, and what differed.
pub(super) struct Checked {
    pub asked: usize,
    pub faults: Vec<String>,
}

/// Asks every port of every node in all twins.
pub(super) fn check(stage: &Stage) -> Result<Checked> {
    let services = stage
        .admin
        .get(&format!("/api/v1/namespaces/{NAMESPACE}/services"))?;
    let mut targets = Vec::new();
    for service in list(&services["items"]) {
        let port = service["spec"]["healthCheckNodePort"].as_u64();
        let Some(port) = port.and_then(|port| u16::try_from(port).ok()) else {
            continue;
        };
        let name = service["metadata"]["name"].as_str().unwrap_or("?");
        for family in FAMILIES {
            for node in 1..=NODES {
                let mut addresses = vec![address::node(family, node)];
                let has_gateway = stage.layout == Layout::Bridge;
                if has_gateway && stage.twins[0].proxy == Proxy::KubeProxy(Mode::Nftables) {
                    // Another address of the node than the primary one (H6); in iptables mode all are listened on.
                    addresses.push(address::pod_gateway(family, node));
                }
                let to = addresses.into_iter().map(|to| SocketAddr::new(to, port));
                targets.extend(to.map(|to| (name, to)));
            }
        }
    }
    let mut faults = Vec::new();
    for round in 0..ROUNDS {
        if round > 0 {
            thread::sleep(Duration::from_millis(300));
        }
        faults.clear();
        let mut told = Vec::new();
        for twin in &stage.twins {
            told.push(ask(twin, &targets)?);
        }
        for (index, (name, to)) in targets.iter().enumerate() {
            for (twin, own) in stage.twins.iter().zip(&told).skip(1) {
                if own[index] != told[0][index] {
                    faults.push(format!(
                        "  {name}: health-check port {to}\n    kube-proxy: {:?}\n    {}: {:?}",
                        told[0][index], twin.proxy, own[index]
                    ));
                }
            }
        }
        if faults.is_empty() {
            break;
        }
    }
    Ok(Checked {
        asked: targets.len(),
        faults,
    })
}

/// From outside, as load balancers do.
fn ask(twin: &Twin, targets: &[(&str, SocketAddr)]) -> Result<Vec<Told>> {
    twin.cluster.outside().run(|| {
        Ok(targets
            .iter()
            .map(|(_, to)| match get(*to, "/healthz") {
                Ok(answer) => understood(&answer),
                Err(error) => Told::Nothing(format!("{:?}", error.kind())),
            })
            .collect())
    })
}

/// The parts that load balancers read (spec H8, H9).
fn understood(answer: &str) -> Told {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default();
    let mut headers: Vec<String> = lines
        .map(str::to_ascii_lowercase)
        .filter(|line| {
            ["content-type:", "x-"]
                .iter()
                .any(|start| line.starts_with(start))
        })
        .collect();
    headers.sort();
    Told::Answer {
        status: status.split(' ').nth(1).unwrap_or_default().to_owned(),
        headers,
        body: serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_answers_differ_by_what_load_balancers_read_alone() {
        let one = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Weight: 1\r\nDate: today\r\n\r\n{\"a\": 1}";
        let same = "HTTP/1.1 200 Fine\r\nX-Weight: 1\r\ncontent-type: application/json\r\n\r\n{ \"a\":1 }\n";
        assert_eq!(understood(one), understood(same));
        for (from, to) in [
            ("200", "503"),
            ("X-Weight: 1", "X-Weight: 2"),
            ("{\"a\": 1}", "{}"),
        ] {
            assert_ne!(understood(one), understood(&one.replace(from, to)));
        }
    }
}
