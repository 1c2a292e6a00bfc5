//! The stories: what operators do to a Service while clients use it.
//!
//! Each begins with one endpoint, so that who serves is no matter of chance; and every act is one write to the API
//! server per family, so that no proxy passes through a state that another does not.

use super::flow::Way;
use super::plot::{Condition, Kind, Plot, Policy, Presence, ready};
use super::question::Aim;
use super::stage::{TARGETS, Who};

/// One story.
pub struct Story {
    pub name: &'static str,
    /// How it begins.
    pub plot: Plot,
    /// Who goes on talking all the time: in both families.
    pub flows: Vec<(Who, Aim, Way)>,
    pub acts: Vec<Act>,
}

/// One change of the Service, and of the nodes' zones.
pub struct Act {
    pub says: &'static str,
    pub change: fn(&mut Plot),
    /// The zone that node1 is in from now on.
    pub zone: Option<&'static str>,
}

const POD: Who = Who::Pod(1, 1);
const HOST: Who = Who::Host(1);
const OUTSIDE: Who = Who::Outside;

const fn act(says: &'static str, change: fn(&mut Plot)) -> Act {
    Act {
        says,
        change,
        zone: None,
    }
}

/// All of them. UDP clients keep one source port each; nobody else in the twins uses these.
pub fn all() -> Vec<Story> {
    vec![
        endpoint_leaves_under_connections(),
        rolling_update(),
        udp_endpoint_replaced(),
        udp_gap_without_endpoints(),
        udp_endpoint_becomes_ready(),
        target_port_changes(),
        service_made_again(),
        service_and_endpoint_gone(),
        hidden_by_label(),
        type_changes(),
        external_policy_flips(),
        internal_policy_flips(),
        node_relabelled(),
    ]
}

/// Connections outlive their endpoint's place in the Service (spec E12); new ones go to the other endpoint.
fn endpoint_leaves_under_connections() -> Story {
    Story {
        name: "endpoint-leaves-under-connections",
        plot: Plot::of(1, Kind::LoadBalancer, &[ready(2, 1)]),
        flows: vec![
            (POD, Aim::ClusterIp, Way::Connection),
            (HOST, Aim::ClusterIp, Way::Connection),
            (POD, Aim::NodePort(1), Way::Connection),
            (OUTSIDE, Aim::NodePort(1), Way::Connection),
            (OUTSIDE, Aim::Vip, Way::Connection),
        ],
        acts: vec![
            act("another endpoint takes its place", |plot| {
                plot.endpoints = vec![ready(1, 2)];
            }),
            act("nobody serves", |plot| plot.endpoints.clear()),
            act("the first is back", |plot| {
                plot.endpoints = vec![ready(2, 1)]
            }),
        ],
    }
}

/// What a Deployment does: no new connection may fail on the way (upstream: "should not have connectivity disruption
/// during rolling update").
fn rolling_update() -> Story {
    Story {
        name: "rolling-update",
        plot: Plot::of(2, Kind::NodePort, &[ready(2, 1)]),
        flows: vec![
            (POD, Aim::ClusterIp, Way::Fresh),
            (HOST, Aim::ClusterIp, Way::Fresh),
            (OUTSIDE, Aim::NodePort(1), Way::Fresh),
            (POD, Aim::ClusterIp, Way::Connection),
        ],
        acts: vec![
            act("the new pod is ready", |plot| {
                plot.endpoints = vec![ready(2, 1), ready(1, 2)];
            }),
            act("the old one terminates", |plot| {
                plot.endpoints[0].condition = Condition::Terminating;
            }),
            act("the old one is gone", |plot| {
                plot.endpoints = vec![ready(1, 2)]
            }),
            act("the last one terminates and serves on", |plot| {
                plot.endpoints = vec![ready(1, 2).but(Condition::Terminating)];
            }),
        ],
    }
}

/// Upstream: "should be able to preserve UDP traffic when server pod cycles" for ClusterIP, NodePort and
/// load-balancer Services (spec E13).
fn udp_endpoint_replaced() -> Story {
    Story {
        name: "udp-endpoint-replaced",
        plot: Plot::of(3, Kind::LoadBalancer, &[ready(2, 1)]),
        flows: vec![
            (POD, Aim::ClusterIp, Way::Bound(40_030)),
            (POD, Aim::ClusterIp, Way::Dialled),
            (HOST, Aim::ClusterIp, Way::Bound(40_031)),
            (POD, Aim::NodePort(1), Way::Bound(40_032)),
            (OUTSIDE, Aim::NodePort(1), Way::Bound(40_033)),
            (OUTSIDE, Aim::Vip, Way::Bound(40_034)),
        ],
        acts: vec![
            act("another endpoint takes its place", |plot| {
                plot.endpoints = vec![ready(1, 2)];
            }),
            act("it terminates, and nobody else is there", |plot| {
                plot.endpoints[0].condition = Condition::Terminating;
            }),
            act("the first is back", |plot| {
                plot.endpoints = vec![ready(2, 1)]
            }),
        ],
    }
}

/// Upstream: the same "with InternalTrafficPolicy set to Local"; here with nobody at all in between (spec E13.5).
fn udp_gap_without_endpoints() -> Story {
    Story {
        name: "udp-gap-without-endpoints",
        plot: Plot::of(4, Kind::LoadBalancer, &[ready(2, 1)]),
        flows: vec![
            (POD, Aim::ClusterIp, Way::Bound(40_040)),
            (HOST, Aim::ClusterIp, Way::Bound(40_041)),
            (OUTSIDE, Aim::NodePort(1), Way::Bound(40_042)),
            (OUTSIDE, Aim::Vip, Way::Bound(40_043)),
        ],
        acts: vec![
            act("nobody serves", |plot| plot.endpoints.clear()),
            act("another endpoint comes", |plot| {
                plot.endpoints = vec![ready(1, 2)]
            }),
            act("nobody serves again", |plot| plot.endpoints.clear()),
            act("the first is back", |plot| {
                plot.endpoints = vec![ready(2, 1)]
            }),
        ],
    }
}

/// Upstream: "should be able to preserve UDP traffic when initial unready endpoints get ready" (spec E13.7).
fn udp_endpoint_becomes_ready() -> Story {
    Story {
        name: "udp-endpoint-becomes-ready",
        plot: Plot::of(5, Kind::NodePort, &[ready(2, 1).but(Condition::Unready)]),
        flows: vec![
            (POD, Aim::ClusterIp, Way::Bound(40_050)),
            (HOST, Aim::ClusterIp, Way::Bound(40_051)),
            (OUTSIDE, Aim::NodePort(1), Way::Bound(40_052)),
        ],
        acts: vec![
            act("it is ready", |plot| plot.endpoints = vec![ready(2, 1)]),
            act("its probe fails", |plot| {
                plot.endpoints[0].condition = Condition::Unready;
            }),
            act("it is ready again", |plot| {
                plot.endpoints = vec![ready(2, 1)]
            }),
        ],
    }
}

/// Upstream: "should be able to cleanup conntrack entries when UDP service target port changes for a NodePort
/// service".
fn target_port_changes() -> Story {
    Story {
        name: "target-port-changes",
        plot: Plot::of(6, Kind::NodePort, &[ready(2, 1)]),
        flows: vec![
            (POD, Aim::ClusterIp, Way::Connection),
            (POD, Aim::ClusterIp, Way::Bound(40_060)),
            (OUTSIDE, Aim::NodePort(1), Way::Bound(40_061)),
        ],
        acts: vec![
            act("endpoints listen elsewhere", |plot| {
                plot.target = TARGETS[1]
            }),
            act("and where they did before", |plot| plot.target = TARGETS[0]),
        ],
    }
}

/// Upstream: "should work after the service has been recreated"; here the flows stay, as do the endpoints (spec A27).
fn service_made_again() -> Story {
    Story {
        name: "service-made-again",
        plot: Plot::of(7, Kind::NodePort, &[ready(2, 1)]),
        flows: vec![
            (POD, Aim::ClusterIp, Way::Connection),
            (OUTSIDE, Aim::NodePort(1), Way::Connection),
            (POD, Aim::ClusterIp, Way::Bound(40_070)),
            (HOST, Aim::ClusterIp, Way::Bound(40_071)),
            (OUTSIDE, Aim::NodePort(1), Way::Bound(40_072)),
        ],
        acts: vec![
            act("the Service is deleted", |plot| {
                plot.presence = Presence::Deleted;
            }),
            act("a Service of that name and address is made", |plot| {
                plot.presence = Presence::There;
            }),
        ],
    }
}

/// The same, and another endpoint when the Service comes again: no flow may stay on the old one (spec E13.6).
fn service_and_endpoint_gone() -> Story {
    Story {
        name: "service-and-endpoint-gone",
        plot: Plot::of(8, Kind::LoadBalancer, &[ready(2, 1)]),
        flows: vec![
            (POD, Aim::ClusterIp, Way::Bound(40_080)),
            (OUTSIDE, Aim::NodePort(1), Way::Bound(40_081)),
            (OUTSIDE, Aim::Vip, Way::Bound(40_082)),
        ],
        acts: vec![
            act("the Service is deleted", |plot| {
                plot.presence = Presence::Deleted;
            }),
            act("its endpoint goes", |plot| plot.endpoints.clear()),
            act("a Service of that name and address is made", |plot| {
                plot.presence = Presence::There;
            }),
            act("it gets another endpoint", |plot| {
                plot.endpoints = vec![ready(1, 2)];
            }),
        ],
    }
}

/// Upstream: "should implement service.kubernetes.io/service-proxy-name" (spec A1).
fn hidden_by_label() -> Story {
    Story {
        name: "hidden-by-label",
        plot: Plot::of(9, Kind::NodePort, &[ready(2, 1)]),
        flows: vec![
            (POD, Aim::ClusterIp, Way::Connection),
            (POD, Aim::ClusterIp, Way::Fresh),
            (POD, Aim::ClusterIp, Way::Bound(40_090)),
            (OUTSIDE, Aim::NodePort(1), Way::Bound(40_091)),
        ],
        acts: vec![
            act("the label of another proxy comes", |plot| {
                plot.presence = Presence::Hidden;
            }),
            act("the label goes", |plot| plot.presence = Presence::There),
        ],
    }
}

/// Upstream: "should be able to change the type and ports" of a Service (spec A26).
fn type_changes() -> Story {
    Story {
        name: "type-changes",
        plot: Plot::of(10, Kind::NodePort, &[ready(2, 1)]),
        flows: vec![
            (POD, Aim::ClusterIp, Way::Connection),
            (OUTSIDE, Aim::NodePort(1), Way::Connection),
            (OUTSIDE, Aim::NodePort(1), Way::Bound(40_100)),
            (POD, Aim::NodePort(1), Way::Bound(40_101)),
            (OUTSIDE, Aim::Vip, Way::Bound(40_102)),
        ],
        acts: vec![
            act("NodePort → ClusterIP", |plot| plot.kind = Kind::ClusterIp),
            act("ClusterIP → LoadBalancer", |plot| {
                plot.kind = Kind::LoadBalancer;
            }),
            act("LoadBalancer → NodePort", |plot| {
                plot.kind = Kind::NodePort
            }),
            act("NodePort → ClusterIP again", |plot| {
                plot.kind = Kind::ClusterIp;
            }),
        ],
    }
}

/// Flows keep what they were given (spec E12, D10), new connections meet what is said now (spec D8, D11, D15).
fn external_policy_flips() -> Story {
    Story {
        name: "external-policy-flips",
        plot: Plot::of(11, Kind::LoadBalancer, &[ready(2, 1)]),
        flows: vec![
            (OUTSIDE, Aim::NodePort(1), Way::Connection),
            (OUTSIDE, Aim::Vip, Way::Connection),
            (OUTSIDE, Aim::NodePort(1), Way::Bound(40_110)),
            (OUTSIDE, Aim::Vip, Way::Bound(40_111)),
            (POD, Aim::Vip, Way::Bound(40_112)),
            (HOST, Aim::NodePort(1), Way::Bound(40_113)),
        ],
        acts: vec![
            act("Cluster → Local, and nobody is on node1", |plot| {
                plot.external = Policy::Local;
            }),
            act("Local → Cluster", |plot| plot.external = Policy::Cluster),
        ],
    }
}

/// The same of internalTrafficPolicy (spec D3, A22); upstream has no test of a change of either.
fn internal_policy_flips() -> Story {
    Story {
        name: "internal-policy-flips",
        plot: Plot::of(12, Kind::ClusterIp, &[ready(2, 1)]),
        flows: vec![
            (POD, Aim::ClusterIp, Way::Connection),
            (HOST, Aim::ClusterIp, Way::Connection),
            (POD, Aim::ClusterIp, Way::Bound(40_120)),
            (HOST, Aim::ClusterIp, Way::Bound(40_121)),
            (POD, Aim::ClusterIp, Way::Dialled),
        ],
        acts: vec![
            act("Cluster → Local, and nobody is on node1", |plot| {
                plot.internal = Policy::Local;
            }),
            act("an endpoint comes to node1", |plot| {
                plot.endpoints.push(ready(1, 2));
            }),
            act("the other goes", |plot| plot.endpoints = vec![ready(1, 2)]),
            act("Local → Cluster", |plot| plot.internal = Policy::Cluster),
        ],
    }
}

/// Hints for a zone (spec C1, C2) follow the node's own at once (spec C8); flows stay where they are.
fn node_relabelled() -> Story {
    let ends = [ready(1, 2).meant_for("east"), ready(2, 1).meant_for("west")];
    Story {
        name: "node-relabelled",
        plot: Plot::of(13, Kind::ClusterIp, &ends),
        flows: vec![
            (POD, Aim::ClusterIp, Way::Connection),
            (POD, Aim::ClusterIp, Way::Bound(40_130)),
        ],
        acts: vec![
            Act {
                says: "node1 moves to the west",
                change: |_| {},
                zone: Some("west"),
            },
            Act {
                says: "node1 moves to where nobody serves",
                change: |_| {},
                zone: Some("north"),
            },
            Act {
                says: "node1 moves back",
                change: |_| {},
                zone: Some("east"),
            },
        ],
    }
}
