//! What may differ between kube-proxy and Beeline for flows that go on through changes. Each rule has a row in
//! `docs/differences.md`, after those of new connections (`differences`).

use super::differences::reconcile;
use super::flow::Way;
use super::mode_differences::in_iptables_mode;
use super::outcome::Outcome;
use super::plot::{Condition, Plot};
use super::question::Question;
use super::stage::Proxy;
use crate::agent::SocketLb;
use crate::peer::protocol::FailureKind::{Broken, Denied, Refused, TimedOut};

/// A flow, and its Service as it is now.
pub struct Turn<'a> {
    pub flow_way: Way,
    pub question: &'a Question,
    pub plot: &'a Plot,
    /// Whom we are compared with.
    pub beside: Proxy,
}

type Rule = fn(&Turn<'_>, SocketLb, &Outcome, &Outcome) -> bool;

/// Every rule, under the name that its row in the document has.
pub const FLOW_RULES: &[(&str, Rule)] = &[
    ("udp-follows-service", udp_follows_service),
    ("connected-udp", connected_udp),
];

/// The rules that make a flow's outcomes the same; `None` if they do not.
pub fn agree(
    turn: &Turn<'_>,
    proxy: Proxy,
    theirs: &Outcome,
    ours: &Outcome,
) -> Option<Vec<&'static str>> {
    let Proxy::Beeline { socket_lb, .. } = proxy else {
        return None;
    };
    // Whom each connection gets is chance.
    if turn.flow_way == Way::Fresh && theirs.failures.is_empty() && ours.failures.is_empty() {
        return Some(Vec::new());
    }
    let agreed = reconcile(turn.question, proxy, theirs, ours)
        .or_else(|| in_iptables_mode(turn.beside, turn.question, theirs, ours));
    agreed.or_else(|| {
        FLOW_RULES
            .iter()
            .find(|(_, rule)| rule(turn, socket_lb, theirs, ours))
            .map(|(name, _)| vec![*name])
    })
}

/// kube-proxy leaves UDP flows on an endpoint that their Service no longer has (spec §8, E13).
fn udp_follows_service(turn: &Turn<'_>, _: SocketLb, theirs: &Outcome, ours: &Outcome) -> bool {
    let served = turn.plot.offers(turn.question.aim)
        && turn
            .plot
            .endpoints
            .iter()
            .any(|end| end.condition != Condition::Unready);
    let udp = matches!(turn.flow_way, Way::Bound(_) | Way::Dialled);
    let turned_away = [Refused, TimedOut, Denied]
        .into_iter()
        .any(|kind| ours.is_just(kind));
    udp && !served && theirs.failures.is_empty() && turned_away
}

/// No hook runs when a connected socket sends: it stays where it is, or is told that its endpoint is gone.
fn connected_udp(turn: &Turn<'_>, socket_lb: SocketLb, theirs: &Outcome, ours: &Outcome) -> bool {
    let stays = ours.failures.is_empty() || ours.is_just(Refused) || ours.is_just(Broken);
    turn.flow_way == Way::Dialled
        && socket_lb == SocketLb::All
        && theirs.failures.is_empty()
        && stays
}
