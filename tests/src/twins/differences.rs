//! What may differ between kube-proxy and Beeline. Each rule has a row in `docs/differences.md`, which gives the
//! reason; nothing else may differ.
//!
//! A rule is tried only where two outcomes are unequal. It changes ours into what kube-proxy's would be if the
//! difference were not, and no more.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_agent::snapshot::Family;

use super::outcome::{Answered, Outcome, Refusal};
use super::question::{Aim, Question};
use super::stage::{Proxy, Who};
use crate::address::{self, CLIENT, FAMILIES};
use crate::agent::SocketLb;
use crate::peer::protocol::FailureKind::{Denied, Refused, TimedOut};
use crate::peer::protocol::Manner;

/// A comparison: a question, and how our side runs.
pub struct Comparison<'a> {
    pub question: &'a Question,
    pub socket_lb: SocketLb,
    pub snat_local: bool,
}

type Rule = fn(&Comparison<'_>, &Outcome, &mut Outcome);

/// Every rule, under the name that its row in the document has.
pub const RULES: &[(&str, Rule)] = &[
    ("affinity-choice", affinity_choice),
    ("udp-refusal-on-node", udp_refusal_on_node),
    ("udp-silence-on-node", udp_silence_on_node),
    ("socket-source", socket_source),
    ("self-unnamed", self_unnamed),
    ("self-source", self_source),
    ("own-server-source", own_server_source),
    ("client-kept", client_kept),
    ("tcp-reset", tcp_reset),
    ("refused-by-call", refused_by_call),
];

/// The rules that make `ours` equal to `theirs`; `None` if they do not.
pub fn reconcile(
    question: &Question,
    proxy: Proxy,
    theirs: &Outcome,
    ours: &Outcome,
) -> Option<Vec<&'static str>> {
    if theirs == ours {
        return Some(Vec::new());
    }
    let Proxy::Beeline {
        socket_lb,
        snat_local,
        xdp: _,
    } = proxy
    else {
        return None;
    };
    let comparison = Comparison {
        question,
        socket_lb,
        snat_local,
    };
    let mut ours = ours.clone();
    let mut used = Vec::new();
    for (name, rule) in RULES {
        let before = ours.clone();
        rule(&comparison, theirs, &mut ours);
        if ours != before {
            used.push(*name);
        }
        if ours == *theirs {
            return Some(used);
        }
    }
    None
}

/// Which endpoint a client sticks to is chance; one that answers past the node that translates (spec E11), or is the
/// client itself and not known as such (`self_unnamed`), is never heard.
fn affinity_choice(comparison: &Comparison<'_>, theirs: &Outcome, ours: &mut Outcome) {
    let question = comparison.question;
    let past = matches!(
        (question.who(), question.aim),
        (Who::Pod(own, _), Aim::NodePort(node)) if own != node
    );
    let single = |outcome: &Outcome| {
        outcome.answers.len() == 1 && outcome.failures.is_empty()
            || (past || question.unnamed_self) && outcome.is_just(TimedOut)
    };
    if question.sticky && single(theirs) && single(ours) {
        ours.clone_from(theirs);
    }
}

fn udp_refusal_on_node(comparison: &Comparison<'_>, theirs: &Outcome, ours: &mut Outcome) {
    if of_node(comparison)
        && comparison.question.udp()
        && theirs.is_just(Denied)
        && ours.is_just(Refused)
    {
        ours.clone_from(theirs);
    }
}

fn udp_silence_on_node(comparison: &Comparison<'_>, theirs: &Outcome, ours: &mut Outcome) {
    // An address of a Service that labels hide is one that nobody has.
    let unmet = comparison.socket_lb == SocketLb::Off
        || matches!(
            comparison.question.aim,
            Aim::Unallocated | Aim::ClusterIp | Aim::Undefined
        );
    // A ping is refused where it is answered for, and that is not on the node it comes from.
    let ping = comparison.question.manner == Manner::Echo;
    if (unmet && comparison.question.udp() || ping)
        && of_node(comparison)
        && theirs.is_just(Denied)
        && ours.is_just(TimedOut)
    {
        ours.clone_from(theirs);
    }
}

/// A translated socket speaks from its own address.
fn socket_source(comparison: &Comparison<'_>, theirs: &Outcome, ours: &mut Outcome) {
    let Who::Pod(node, _) = comparison.question.who() else {
        return;
    };
    if comparison.socket_lb == SocketLb::All {
        let own = own_addresses(comparison.question.who());
        adopt(theirs, ours, |their, our| {
            node_addresses(node).contains(&their.client) && own.contains(&our.client)
        });
    }
}

/// A pod that reaches itself.
fn self_source(comparison: &Comparison<'_>, theirs: &Outcome, ours: &mut Outcome) {
    let who = comparison.question.who();
    if let Who::Pod(node, index) = who {
        let name = format!("node{node}-pod{index}");
        let own = own_addresses(who);
        let service = comparison.question.to.ip();
        adopt(theirs, ours, |their, our| {
            their.server == name && (our.client == service || own.contains(&our.client))
        });
    }
}

/// The same where the slice does not name the pod's node: kube-proxy does not masquerade it, so the answer takes a
/// short cut.
fn self_unnamed(comparison: &Comparison<'_>, theirs: &Outcome, ours: &mut Outcome) {
    let Who::Pod(node, index) = comparison.question.who() else {
        return;
    };
    let name = format!("node{node}-pod{index}");
    let others = |outcome: &Outcome| {
        let mut others = outcome.clone();
        others.answers.retain(|answer| answer.server != name);
        others.failures.remove(&TimedOut);
        others
    };
    if comparison.question.unnamed_self && others(theirs) == others(ours) {
        ours.clone_from(theirs);
    }
}

/// A process of the node that reaches a server of the node, by packets.
fn own_server_source(comparison: &Comparison<'_>, theirs: &Outcome, ours: &mut Outcome) {
    if let Who::Host(node) = comparison.question.who()
        && comparison.socket_lb == SocketLb::Off
    {
        let name = format!("node{node}");
        let service = comparison.question.to.ip();
        adopt(theirs, ours, |their, our| {
            their.server == name && our.client == service
        });
    }
}

/// `--snat-local=preserve`: an endpoint of the node that translates sees the client.
fn client_kept(comparison: &Comparison<'_>, theirs: &Outcome, ours: &mut Outcome) {
    if comparison.snat_local {
        return;
    }
    let question = comparison.question;
    let at = match (question.who(), question.aim) {
        (_, Aim::NodePort(node)) | (Who::Pod(node, _) | Who::Host(node), _) => node,
        // The client's routes lead there.
        (Who::Outside, _) => 1,
    };
    let own = own_addresses(question.who());
    let place = format!("node{at}");
    adopt(theirs, ours, |their, our| {
        their.server.starts_with(&place)
            && node_addresses(at).contains(&their.client)
            && own.contains(&our.client)
    });
}

/// TCP is refused as TCP does it.
fn tcp_reset(comparison: &Comparison<'_>, theirs: &Outcome, ours: &mut Outcome) {
    if comparison.question.manner == Manner::Tcp {
        adopt_refusals(comparison, theirs, ours, Refusal::Reset);
    }
}

/// Where hooks run in its calls, no packet has to be sent for a client to be refused.
fn refused_by_call(comparison: &Comparison<'_>, theirs: &Outcome, ours: &mut Outcome) {
    let hooked = comparison.socket_lb == SocketLb::All && comparison.question.who() != Who::Outside;
    if hooked && comparison.question.udp() {
        adopt_refusals(comparison, theirs, ours, Refusal::Call);
    }
}

/// Takes our way of refusing for theirs, which is "port unreachable".
fn adopt_refusals(
    comparison: &Comparison<'_>,
    theirs: &Outcome,
    ours: &mut Outcome,
    our_way: Refusal,
) {
    let family = Family::of(comparison.question.to.ip());
    let their_way = BTreeSet::from([Refusal::port_unreachable(family)]);
    if theirs.refusals == their_way && ours.refusals == BTreeSet::from([our_way]) {
        ours.refusals = their_way;
    }
}

/// Gives our answers the client's address of theirs where `allowed` says so about the two.
fn adopt(theirs: &Outcome, ours: &mut Outcome, allowed: impl Fn(&Answered, &Answered) -> bool) {
    let adopted = ours.answers.iter().map(|our| {
        let same = |their: &&Answered| {
            their.server == our.server && their.port == our.port && allowed(their, our)
        };
        match theirs.answers.iter().find(same) {
            Some(their) => Answered {
                client: their.client,
                ..our.clone()
            },
            None => our.clone(),
        }
    });
    ours.answers = adopted.collect();
}

fn of_node(comparison: &Comparison<'_>) -> bool {
    matches!(comparison.question.who(), Who::Host(_))
}

/// Addresses that a client has.
fn own_addresses(who: Who) -> Vec<IpAddr> {
    match who {
        Who::Pod(node, index) => FAMILIES
            .map(|family| address::pod(family, node, index))
            .into(),
        Who::Host(node) => node_addresses(node),
        Who::Outside => FAMILIES.map(|family| address::lan(family, CLIENT)).into(),
    }
}

fn node_addresses(node: u8) -> Vec<IpAddr> {
    FAMILIES
        .iter()
        .flat_map(|&family| {
            [
                address::node(family, node),
                address::pod_gateway(family, node),
            ]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::flow_differences::FLOW_RULES;
    use super::super::mode_differences::MODE_RULES;
    use super::*;

    /// The document gives the reason for each rule, and for nothing else.
    #[test]
    fn every_rule_has_a_row_and_every_row_a_rule() {
        let document = include_str!("../../../docs/differences.md");
        let rows: Vec<&str> = document
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .collect();
        let flows = FLOW_RULES.iter().map(|(name, _)| *name);
        let modes = MODE_RULES.iter().map(|(name, _)| *name);
        let rules: Vec<&str> = RULES
            .iter()
            .map(|(name, _)| *name)
            .chain(flows)
            .chain(modes)
            .collect();
        assert_eq!(rows, rules);
    }
}
