//! What kube-proxy does otherwise in iptables mode than in nftables mode, which Beeline follows (spec §8). Each rule has
//! a row in `docs/differences.md`, after all others.

use super::outcome::Outcome;
use super::question::{Aim, Question};
use super::stage::{Proxy, Who};
use crate::kube_proxy::Mode;
use crate::peer::protocol::FailureKind::{Denied, Refused, TimedOut, Unreachable};

type Rule = fn(&Question, &Outcome, &Outcome) -> bool;

/// Every rule, under the name that its row in the document has.
pub const MODE_RULES: &[(&str, Rule)] = &[
    ("iptables-nobodys-address", nobodys_address),
    ("iptables-node-port-address", node_port_address),
    ("iptables-node-to-external", node_to_external),
    ("iptables-source-ranges", source_ranges),
];

/// The rule that explains two outcomes, if `beside` runs in iptables mode.
pub fn in_iptables_mode(
    beside: Proxy,
    question: &Question,
    theirs: &Outcome,
    ours: &Outcome,
) -> Option<Vec<&'static str>> {
    match beside {
        Proxy::KubeProxy(Mode::Nftables) | Proxy::Beeline { .. } => None,
        Proxy::KubeProxy(Mode::Iptables | Mode::IptablesLegacy) => MODE_RULES
            .iter()
            .find(|(_, rule)| rule(question, theirs, ours))
            .map(|(name, _)| vec![*name]),
    }
}

/// Nothing answered, and nothing refused: the packet was routed away.
fn routed_away(outcome: &Outcome) -> bool {
    outcome.answers.is_empty()
        && !outcome.failures.is_empty()
        && outcome
            .failures
            .iter()
            .all(|kind| matches!(kind, Unreachable | TimedOut))
}

fn turned_away(outcome: &Outcome) -> bool {
    [Refused, TimedOut, Denied]
        .into_iter()
        .any(|kind| outcome.is_just(kind))
}

/// Undefined ports of ClusterIPs, pings to them, and addresses of the CIDR that nobody has leave by the default route.
fn nobodys_address(question: &Question, theirs: &Outcome, ours: &Outcome) -> bool {
    matches!(
        question.aim,
        Aim::Undefined | Aim::Unallocated | Aim::ClusterIp
    ) && routed_away(theirs)
        && turned_away(ours)
}

/// All addresses have NodePorts by default, and 127.0.0.1 too.
fn node_port_address(question: &Question, theirs: &Outcome, ours: &Outcome) -> bool {
    matches!(question.aim, Aim::GatewayPort(_) | Aim::LoopbackPort)
        && (!theirs.answers.is_empty() || routed_away(theirs))
        && ours.is_just(Refused)
}

/// What the node itself sends to an external address without endpoints leaves by the default route.
fn node_to_external(question: &Question, theirs: &Outcome, ours: &Outcome) -> bool {
    matches!(question.aim, Aim::Vip | Aim::ExternalIp)
        && matches!(question.who(), Who::Host(_))
        && routed_away(theirs)
        && turned_away(ours)
}

/// Without endpoints a refusal comes before source ranges are looked at.
fn source_ranges(question: &Question, theirs: &Outcome, ours: &Outcome) -> bool {
    question.aim == Aim::Vip && theirs.is_just(Refused) && ours.is_just(TimedOut)
}
