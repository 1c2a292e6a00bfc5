//! Upstream's table of who is masqueraded: three clients, three services with three kinds of addresses, in four
//! configurations (spec §5.9 and §1.E.1). Endpoints of the node count too, as with kube-proxy (`--snat-local kube-proxy`).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use lb_agent::snapshot::Family;
use lb_tests::address::{self, FAMILIES};
use lb_tests::agent::SocketLb;
use lb_tests::cluster::Cluster;
use lb_tests::in_both_layouts;
use lb_tests::link::Layout;
use lb_tests::manifests::Service;
use lb_tests::pod::Pod;
use lb_tests::scenario::{PORT, TARGET, Web};
use lb_tests::table::{Outcome, Table};
use lb_tests::traffic::Peer;

/// What tells one configuration from another.
#[derive(Clone, Copy)]
struct Configuration {
    /// Whether pods are told from others.
    detector: bool,
    masquerade_all: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    Pod,
    Node,
    External,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Dialled {
    ClusterIp,
    NodePort,
    Vip,
}

/// The services: both policies Cluster, external policy Local, internal policy Local.
const BOTH_CLUSTER: u8 = 1;
const EXTERNAL_LOCAL: u8 = 2;
const INTERNAL_LOCAL: u8 = 3;

/// A cell of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cell {
    /// Whether the endpoint of the other node answers too.
    remote: bool,
    masqueraded: bool,
}

impl Configuration {
    fn arguments(self) -> Vec<&'static str> {
        let mut arguments = vec!["--snat-local", "kube-proxy"];
        arguments.extend(["--detect-local-mode", "ClusterCIDR"]);
        if self.detector {
            arguments.extend(["--cluster-cidr", "10.244.0.0/16,fd44::/16"]);
        }
        if self.masquerade_all {
            arguments.push("--masquerade-all");
        }
        arguments
    }

    fn cell(self, source: Source, dialled: Dialled, service: u8) -> Cell {
        if dialled == Dialled::ClusterIp {
            return Cell {
                remote: service != INTERNAL_LOCAL,
                masqueraded: match source {
                    Source::Pod => self.masquerade_all,
                    // Whatever tells pods from others: see docs/differences.md.
                    Source::Node => true,
                    Source::External => self.masquerade_all || self.detector,
                },
            };
        }
        if service != EXTERNAL_LOCAL || source == Source::Node {
            return Cell {
                remote: true,
                masqueraded: true,
            };
        }
        Cell {
            remote: source == Source::Pod && self.detector,
            masqueraded: false,
        }
    }
}

fn service(number: u8) -> Service {
    let service =
        Service::cluster_ip(&format!("s{number}"), number).node_port(30_000 + u16::from(number));
    let service = FAMILIES.into_iter().fold(service, |service, family| {
        service.load_balancer(address::load_balancer(family, number))
    });
    match number {
        EXTERNAL_LOCAL => service.external_local(),
        INTERNAL_LOCAL => service.internal_local(),
        _ => service,
    }
}

/// The cluster of a configuration, with what all rows need.
struct Stage<'a> {
    cluster: &'a Cluster,
    layout: Layout,
    near: &'a Pod,
    far: &'a Pod,
}

impl Stage<'_> {
    fn address(&self, dialled: Dialled, service: u8, family: Family) -> SocketAddr {
        match dialled {
            Dialled::ClusterIp => SocketAddr::new(address::service(family, service), PORT),
            Dialled::NodePort => SocketAddr::new(
                self.cluster.node(1).address(family),
                30_000 + u16::from(service),
            ),
            Dialled::Vip => SocketAddr::new(address::load_balancer(family, service), PORT),
        }
    }

    /// The address a client has of its own.
    fn own(&self, source: Source, family: Family) -> IpAddr {
        match source {
            Source::Pod => self.cluster.pod(1, 1).address(family),
            Source::Node => self.cluster.node(1).address(family),
            Source::External => self.cluster.client_address(family),
        }
    }

    /// What a masqueraded client looks like here, and on the other node.
    fn masks(&self, family: Family) -> (IpAddr, IpAddr) {
        let node = self.cluster.node(1).address(family);
        match self.layout {
            Layout::Bridge => (address::pod_gateway(family, 1), node),
            Layout::PointToPoint => (node, node),
        }
    }

    fn outcome(&self, cell: Cell, source: Source, family: Family) -> Outcome {
        let own = self.own(source, family);
        let (near, far) = if cell.masqueraded {
            self.masks(family)
        } else {
            (own, own)
        };
        let mut servers = vec![(self.near.name(), near)];
        if cell.remote {
            servers.push((self.far.name(), far));
        }
        Outcome::answered(servers)
    }
}

fn walk(layout: Layout, configuration: Configuration) -> Result<()> {
    let cluster = Cluster::builder()
        .layout(layout)
        .socket_lb(SocketLb::Off)
        .agent_arguments(&configuration.arguments())
        .build()?;
    cluster.route_services_to(1)?;
    let stage = Stage {
        cluster: &cluster,
        layout,
        near: cluster.pod(1, 2),
        far: cluster.pod(2, 1),
    };
    let endpoints = [stage.near, stage.far];
    let _webs = (
        Web::start_as(&cluster, service(BOTH_CLUSTER), &endpoints)?,
        Web::beside(&cluster, service(EXTERNAL_LOCAL), &endpoints)?,
        Web::beside(&cluster, service(INTERNAL_LOCAL), &endpoints)?,
    );
    let clients = [
        (Source::Pod, cluster.pod(1, 1).peer()?),
        (Source::Node, cluster.node(1).peer()?),
        (Source::External, cluster.client()?),
    ];
    let mut table = Table::new();
    for family in FAMILIES {
        for service in [BOTH_CLUSTER, EXTERNAL_LOCAL, INTERNAL_LOCAL] {
            for dialled in [Dialled::ClusterIp, Dialled::NodePort, Dialled::Vip] {
                for (source, client) in &clients {
                    let cell = configuration.cell(*source, dialled, service);
                    let to = stage.address(dialled, service, family);
                    if *source == Source::External && cell.remote && !cell.masqueraded {
                        answers_miss_the_node(&stage, client, to, family)?;
                        continue;
                    }
                    let name = format!("{source:?} → S{service} {dialled:?}");
                    table.soon(name, client, to, &stage.outcome(cell, *source, family));
                }
            }
        }
    }
    table.finish()
}

/// An outside client that was not masqueraded: an endpoint elsewhere answers it directly, as itself.
fn answers_miss_the_node(
    stage: &Stage<'_>,
    client: &Peer,
    to: SocketAddr,
    family: Family,
) -> Result<()> {
    let mut met = BTreeSet::new();
    for _ in 0..40 {
        let answer = client
            .udp(to)?
            .ask_at(to, "hello")
            .with_context(|| format!("external → {to}"))?;
        let from = if answer.server == stage.near.name() {
            to
        } else {
            stage.far.socket(family, TARGET)
        };
        let seen = stage.own(Source::External, family);
        ensure!(
            (answer.from, answer.seen.ip()) == (from, seen),
            "{answer:?}"
        );
        met.insert(answer.server);
    }
    ensure!(met.len() == 2, "only {met:?} answered at {to}");
    Ok(())
}

in_both_layouts! {
    /// The table itself.
    /// Spec E1, E6, §5.9.
    fn base(layout: Layout) {
        walk(layout, Configuration { detector: true, masquerade_all: false })
    }

    /// Nobody is known to be a pod.
    /// Spec E1, E10, §5.9.
    fn no_detector(layout: Layout) {
        walk(layout, Configuration { detector: false, masquerade_all: false })
    }

    /// Spec E1, E5, §5.9.
    fn masquerade_all(layout: Layout) {
        walk(layout, Configuration { detector: true, masquerade_all: true })
    }

    /// Spec E1, E5, E10, §5.9.
    fn masquerade_all_and_no_detector(layout: Layout) {
        walk(layout, Configuration { detector: false, masquerade_all: true })
    }
}
