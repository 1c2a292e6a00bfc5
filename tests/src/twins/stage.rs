//! The API server and the twin clusters, and how a state is put on and waited for.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lb_agent::snapshot::Family;
use serde_json::json;

pub use super::proxy::{Proxy, Xdp};
use super::relay;
use super::requests::{changes, slices_path, without_status};
use super::scene::{
    client, clients, let_pods_meet_themselves, quieten, refuse_redirects, servers,
    tell_of_every_stray,
};
use super::state::{Case, NAMESPACE, State};
use crate::address::{self, FAMILIES};
use crate::cluster::Cluster;
use crate::control_plane::batch::Request;
use crate::control_plane::client::Client;
use crate::control_plane::objects::{node, node_path};
use crate::control_plane::{ControlPlane, manifests};
use crate::kube_proxy::KubeProxy;
use crate::link::{self, Layout};
use crate::netns::Namespace;
use crate::peer::protocol::{Findings, Manner, Probe};
use crate::process::{enter, output};
use crate::scope::Scope;
use crate::traffic::Peer;

/// Nodes of each twin.
pub const NODES: u8 = 2;
/// Pods of each node.
pub const PODS: u8 = 3;
/// Ports that every pod and node serves, in TCP and UDP.
pub const TARGETS: [u16; 3] = [8080, 8081, 8090];

const CLUSTER_CIDR: &str = "10.244.0.0/16,fd44::/16";
const SOON: Duration = Duration::from_secs(60);

/// Where a client is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Who {
    Pod(u8, u8),
    Host(u8),
    Outside,
}

/// The clients of every twin.
pub const CLIENTS: [Who; 6] = [
    Who::Pod(1, 1),
    Who::Pod(1, 3),
    Who::Host(1),
    Who::Pod(2, 2),
    Who::Host(2),
    Who::Outside,
];

/// One cluster.
pub struct Twin {
    pub proxy: Proxy,
    clients: Vec<Peer>,
    _servers: Vec<Peer>,
    _kube_proxies: Vec<KubeProxy>,
    pub cluster: Cluster,
}

/// The API server and its clusters; the first twin is the one that others are compared with.
pub struct Stage {
    pub twins: Vec<Twin>,
    /// Whether it says what takes time.
    pub verbose: bool,
    pub(super) layout: Layout,
    pub(super) admin: Client,
    pub(super) zones: Vec<Option<String>>,
    generation: u16,
    _plane: ControlPlane,
    _space: Space,
}

/// The namespace the API server is in.
struct Space(Scope);

impl Twin {
    /// A process where a client is.
    pub(super) fn peer(&self, who: Who) -> Result<Peer> {
        client(&self.cluster, who)
    }
}

impl Stage {
    /// Builds everything. Moves the calling thread into a namespace of its own, and needs it as long as the stage.
    pub fn build(proxies: &[Proxy], layout: Layout) -> Result<Self> {
        let space = Space(Scope::new()?);
        let name = space.0.namespace("api");
        Namespace::create(std::slice::from_ref(&name))?;
        let namespace = Namespace::named(name);
        link::prepare(&namespace, false)?;
        enter(&namespace.open()?).context("entering the API server's namespace")?;
        // Old objects may hold addresses with leading zeros (spec A25), so they must be writable here.
        let plane = ControlPlane::start_with(
            Ipv4Addr::LOCALHOST.into(),
            &space.0.directory().join("plane"),
            &["--feature-gates=StrictIPCIDRValidation=false"],
        )?;
        let admin = plane.admin();
        for number in 1..=NODES {
            register(&admin, number)?;
        }
        admin.create(
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        )?;
        let mut stage = Self {
            twins: Vec::new(),
            verbose: false,
            layout,
            admin,
            zones: vec![None; usize::from(NODES)],
            generation: 0,
            _plane: plane,
            _space: space,
        };
        stage.raise_sentinel()?;
        let beeline = manifests::install(&stage._plane)?;
        let kube_proxy = stage._plane.kubeconfig("kube-proxy.kubeconfig", "admin")?;
        for &proxy in proxies {
            let by_xdp = matches!(
                proxy,
                Proxy::Beeline {
                    xdp: Xdp::Native,
                    ..
                }
            );
            let mut cluster = Cluster::builder()
                .tx_offload(!by_xdp)
                .nodes(NODES)
                .pods_per_node(PODS)
                .layout(layout)
                .without_agents()
                .build()?;
            if by_xdp {
                cluster.let_uplinks_send_for_xdp()?;
            }
            quieten(&cluster)?;
            tell_of_every_stray(cluster.lan())?;
            refuse_redirects(cluster.outside(), &["eth0"])?;
            for node in cluster.nodes() {
                refuse_redirects(node.namespace(), &["eth0"])?;
            }
            if layout == Layout::Bridge {
                let_pods_meet_themselves(&cluster)?;
            }
            cluster.route_services_to(1)?;
            for node in cluster.nodes() {
                relay::open(node.namespace(), stage._plane.socket())?;
            }
            let mut kube_proxies = Vec::new();
            match proxy {
                Proxy::KubeProxy(mode) => {
                    for node in cluster.nodes() {
                        kube_proxies.push(KubeProxy::start(node, &kube_proxy, mode, CLUSTER_CIDR)?);
                    }
                    kube_proxies
                        .iter_mut()
                        .try_for_each(KubeProxy::wait_ready)?;
                }
                Proxy::Beeline {
                    socket_lb,
                    snat_local,
                    xdp,
                } => {
                    let snat = if snat_local { "kube-proxy" } else { "preserve" };
                    let arguments = [
                        "--cluster-cidr",
                        CLUSTER_CIDR,
                        "--snat-local",
                        snat,
                        xdp.flag(),
                    ]
                    .map(String::from);
                    cluster.start_agents(&beeline, socket_lb, &arguments)?;
                }
            }
            stage.twins.push(Twin {
                proxy,
                clients: clients(&cluster)?,
                _servers: servers(&cluster)?,
                _kube_proxies: kube_proxies,
                cluster,
            });
        }
        Ok(stage)
    }

    /// Replaces what the API server holds, and waits until every proxy has it. Returns the state as it was taken:
    /// without what the API server refused, whose complaints come along.
    pub fn put(&mut self, state: &State) -> Result<(State, Vec<String>)> {
        self.forget_flows()?;
        let mut taken = state.clone();
        let mut complaints = Vec::new();
        let mut requests = vec![
            Request::delete(format!("/api/v1/namespaces/{NAMESPACE}/services")),
            Request::delete(slices_path(NAMESPACE)),
        ];
        let zones_changed = taken.zones != self.zones;
        if zones_changed {
            for (number, zone) in (1..).zip(&taken.zones) {
                requests.push(Request::merge(
                    node_path(&format!("node{number}")),
                    json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}}),
                ));
            }
            self.zones.clone_from(&taken.zones);
        }
        // Slices first or the Service first: both orders must do.
        let mut places: BTreeMap<usize, Place> = BTreeMap::new();
        for (index, case) in state.cases.iter().enumerate() {
            if index % 2 == 0 {
                places.insert(requests.len(), Place::Service(index));
                requests.push(create_service(case));
            }
            for (number, slice) in case.slices.iter().enumerate() {
                places.insert(requests.len(), Place::Slice(index, number));
                requests.push(Request::post(slices_path(NAMESPACE), slice.clone()));
            }
            if index % 2 != 0 {
                places.insert(requests.len(), Place::Service(index));
                requests.push(create_service(case));
            }
            if let Some(status) = case.service.get("status") {
                places.insert(requests.len(), Place::Service(index));
                requests.push(Request::merge(
                    format!(
                        "/api/v1/namespaces/{NAMESPACE}/services/{}/status",
                        case.name()
                    ),
                    json!({"status": status}),
                ));
            }
        }
        let answers = self.admin.batch(&requests)?;
        let mut refused = Vec::new();
        for (number, answer) in answers.into_iter().enumerate() {
            match (answer, places.get(&number)) {
                (Ok(_), _) => {}
                (Err(complaint), Some(place)) => {
                    complaints.push(complaint);
                    refused.push(*place);
                }
                (Err(complaint), None) => bail!("the API server says: {complaint}"),
            }
        }
        taken.remove(&refused);
        self.pass_sentinel()?;
        if zones_changed {
            // Nothing a client sees tells that a node's label has arrived.
            thread::sleep(Duration::from_millis(1500));
        }
        Ok((taken, complaints))
    }

    /// Changes what the API server holds from one state to another of the same Services, object by object, and waits
    /// until every proxy has it. Returns the API server's complaints; what it refused stays as it was.
    pub fn change(&mut self, from: &State, to: &State) -> Result<Vec<String>> {
        self.forget_flows()?;
        let mut requests = Vec::new();
        for (old, new) in from.cases.iter().zip(&to.cases) {
            requests.extend(changes(old, new));
        }
        let answers = self.admin.batch(&requests)?;
        self.pass_sentinel()?;
        Ok(answers.into_iter().filter_map(Result::err).collect())
    }

    /// Writes to the API server, all of which it must take, and waits until every proxy has it.
    pub(super) fn write(&mut self, requests: &[Request]) -> Result<()> {
        for answer in self.admin.batch(requests)? {
            answer.map_err(anyhow::Error::msg)?;
        }
        self.pass_sentinel()
    }

    /// Asks in all twins at once: for each twin, the findings of each client's probes.
    pub fn ask(&self, probes: &[Vec<Probe>]) -> Result<Vec<Vec<Vec<Findings>>>> {
        thread::scope(|scope| {
            let asking: Vec<_> = self
                .twins
                .iter()
                .map(|twin| {
                    let each = twin.clients.iter().zip(probes);
                    each.map(|(client, probes)| scope.spawn(move || client.survey(probes.clone())))
                        .collect::<Vec<_>>()
                })
                .collect();
            asking
                .into_iter()
                .map(|twin| {
                    twin.into_iter()
                        .map(|client| client.join().expect("a survey does not panic"))
                        .collect()
                })
                .collect()
        })
    }

    /// Addresses and client ports are used again after a while; what was tracked of their last life is no part of a
    /// state. How flows live through changes is what stories ask.
    fn forget_flows(&self) -> Result<()> {
        for twin in &self.twins {
            for node in twin.cluster.nodes() {
                output(node.place()?.command("conntrack")?.arg("--flush"))?;
                if matches!(twin.proxy, Proxy::Beeline { .. }) {
                    node.agent()?.command(&["flow", "flush", "--yes"])?;
                }
            }
        }
        Ok(())
    }

    /// A Service by whose port one sees how far the proxies are.
    fn raise_sentinel(&self) -> Result<()> {
        let addresses = FAMILIES.map(|family| sentinel(family).to_string());
        let mut requests = vec![Request::post(
            "/api/v1/namespaces/default/services",
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": "sentinel"},
                "spec": {
                    "clusterIP": addresses[0], "clusterIPs": addresses,
                    "ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 1}],
                },
            }),
        )];
        for (family, name) in FAMILIES.into_iter().zip(["IPv4", "IPv6"]) {
            requests.push(Request::post(
                slices_path("default"),
                json!({
                    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                    "metadata": {"name": slice_name(family), "labels": {"kubernetes.io/service-name": "sentinel"}},
                    "addressType": name, "ports": [{"name": "", "port": TARGETS[0]}],
                    "endpoints": [{"addresses": [address::pod(family, 1, 2).to_string()], "conditions": {"ready": true}}],
                }),
            ));
        }
        for answer in self.admin.batch(&requests)? {
            answer.map_err(anyhow::Error::msg)?;
        }
        Ok(())
    }

    /// Changes the sentinel after everything else and waits until both its halves, which come by watches of their
    /// own, have arrived on every node.
    fn pass_sentinel(&mut self) -> Result<()> {
        self.generation += 1;
        let port = 1 + self.generation;
        let target = TARGETS[usize::from(self.generation) % 2];
        let mut requests = vec![Request::merge(
            "/api/v1/namespaces/default/services/sentinel",
            json!({"spec": {"ports": [{"port": port}]}}),
        )];
        for family in FAMILIES {
            requests.push(Request::merge(
                format!("{}/{}", slices_path("default"), slice_name(family)),
                json!({"ports": [{"name": "", "port": target}]}),
            ));
        }
        for answer in self.admin.batch(&requests)? {
            answer.map_err(anyhow::Error::msg)?;
        }
        let start = Instant::now();
        let probes: Vec<Probe> = FAMILIES
            .map(|family| Probe {
                to: SocketAddr::new(sentinel(family), port),
                manner: Manner::Tcp,
                tries: 1,
                timeout_ms: 300,
            })
            .into();
        // A pod on each node sees through that node's proxy.
        let watchers = [(1, 0), (2, 3)];
        loop {
            let mut waiting = Vec::new();
            for twin in &self.twins {
                for (node, client) in watchers {
                    let findings = twin.clients[client].survey(probes.clone())?;
                    let there = findings.iter().all(|found| {
                        found
                            .answers
                            .first()
                            .is_some_and(|seen| seen.own.port() == target)
                    });
                    if !there {
                        waiting.push(format!("{:?} on node{node}: {findings:?}", twin.proxy));
                    }
                }
            }
            if waiting.is_empty() {
                return Ok(());
            }
            ensure!(
                start.elapsed() < SOON,
                "a change has not arrived within {SOON:?}:\n{}",
                waiting.join("\n")
            );
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// An object of a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Service(usize),
    Slice(usize, usize),
}

impl State {
    /// Takes out what was refused: a Service with its slices, or one slice.
    fn remove(&mut self, refused: &[Place]) {
        for (index, case) in self.cases.iter_mut().enumerate() {
            let mut number = 0;
            case.slices.retain(|_| {
                number += 1;
                !refused.contains(&Place::Slice(index, number - 1))
            });
        }
        let mut index = 0;
        self.cases.retain(|_| {
            index += 1;
            !refused.contains(&Place::Service(index - 1))
        });
    }
}

fn create_service(case: &Case) -> Request {
    let service = without_status(&case.service);
    Request::post(format!("/api/v1/namespaces/{NAMESPACE}/services"), service)
}

fn slice_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "sentinel-4",
        Family::V6 => "sentinel-6",
    }
}

fn sentinel(family: Family) -> IpAddr {
    address::service(family, 255)
}

fn register(admin: &Client, number: u8) -> Result<()> {
    let name = format!("node{number}");
    admin.create(&node(&name))?;
    let addresses = FAMILIES.map(|family| {
        json!({"type": "InternalIP", "address": address::node(family, number).to_string()})
    });
    admin.patch(
        &format!("{}/status", node_path(&name)),
        &json!({"status": {"addresses": addresses}}),
    )?;
    Ok(())
}

impl Drop for Space {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove() {
            eprintln!("removing the API server's namespace: {error:#}");
        }
    }
}
