//! What comes in from a pod or the world: new conversations are given an endpoint, known ones keep theirs.

use std::net::IpAddr;

use lb_ebpf::abi::counter;

use super::flows::{Flow, FlowKey, Remembered, Side, Speaker, is_clean_syn};
use super::tables::{Endpoint, Frontend, Kind, Prefix, Service, Use};
use super::wire::{Frame, Tuple, UDP};
use super::{DROP, Judgement, Met, NEXT, OPENED, Oracle, REDIRECT, answer};

/// Who is to be seen as the sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sender {
    /// The client, whatever the endpoint.
    Client,
    /// This node, unless the client can be kept.
    Node,
}

impl Oracle {
    pub(super) fn judge_ingress(&mut self, met: &Met<'_>, tuple: Option<Tuple>) -> Judgement {
        let packet = &met.frame.packet;
        let Some(tuple) = tuple else {
            return self.judge_unknown_protocol(met);
        };
        let key = (met.hook.side(), packet.protocol, tuple);
        let uses = self.tables.uses(tuple.destination);
        let none = Use {
            tombstone: uses.tombstone,
            ..Use::default()
        };
        if uses == none {
            return self.judge_direct(met, key);
        }
        if let Some(flow) = self.hairpin_reply(&key) {
            self.hear(&flow.key, Speaker::Endpoint, packet.flags());
            return met.returns_as(flow.asked().reversed());
        }
        if let Some(flow) = self.flows.returning(packet.protocol, tuple).cloned() {
            self.hear(&flow.key, Speaker::Endpoint, packet.flags());
            return met.continues_as(flow.sent.reversed());
        }
        if let Some(flow) = self.forward(&key) {
            // A retried SYN need not go to an endpoint that is gone (E24).
            let stuck = flow.state == OPENED && self.is_gone(&flow);
            let renewed = (flow.is_closing() || stuck) && packet.flags().is_some_and(is_clean_syn);
            if !renewed {
                return self.goes_on(met, flow);
            }
            // What is known of the old connection stays until a new one takes its place, or until its time comes.
            if !flow.is_live(self.now + 2) {
                self.flows.close(&key);
            }
        }
        if !packet.is_first() {
            // The first one opened nothing, so this one cannot.
            return met.passes();
        }
        self.judge_new(met, key)
    }

    /// A client's next packet in a conversation.
    pub(super) fn goes_on(&mut self, met: &Met<'_>, flow: Flow) -> Judgement {
        self.hear(&flow.key, Speaker::Client, met.frame.packet.flags());
        continues(met, &flow)
    }

    /// The port that a flow which stepped aside got.
    pub fn learn_port(&mut self, mut flow: Flow, port: u16) -> Judgement {
        flow.sent.source_port = port;
        flow.renumbered = false;
        self.judge_port(&flow.key, flow.sent, true)?;
        self.flows.open(flow);
        Ok(())
    }

    /// A pod that is its own endpoint answers the Service's address.
    fn hairpin_reply(&self, key: &FlowKey) -> Option<Flow> {
        let flow = self.flows.reply(key)?;
        flow.hairpin.then(|| flow.clone())
    }

    /// Echo requests and protocols without ports: D4, D5, E18.
    pub(super) fn judge_unknown_protocol(&mut self, met: &Met<'_>) -> Judgement {
        let destination = met.frame.packet.destination;
        let uses = self.tables.uses(destination);
        if uses.cluster_ip {
            return self.judge_refusal(met);
        }
        if self.tables.is_nobodys(destination) {
            self.count(counter::CIDR_DROPPED);
            return met.is_dropped();
        }
        met.passes()
    }

    fn judge_new(&mut self, met: &Met<'_>, key: FlowKey) -> Judgement {
        let (side, protocol, tuple) = key;
        let tables = self.tables.clone();
        let dialled = tables.dialled(tuple.destination, tuple.destination_port, protocol);
        let Some((service, frontend)) = dialled else {
            if self.has_vanished(&key) {
                return refused(met);
            }
            let uses = tables.uses(tuple.destination);
            if !uses.cluster_ip && !tables.is_nobodys(tuple.destination) {
                // What comes now is somebody else's from its first packet on.
                self.flows.close(&key);
            }
            return self.judge_unknown_protocol(met);
        };
        let flags = met.frame.packet.flags();
        let barred = frontend.kind == Kind::LoadBalancer
            && !service.ranges.is_empty()
            && !service.ranges.iter().any(|r| r.holds(tuple.source));
        let opens = protocol == UDP || flags.is_some_and(is_clean_syn);
        if !opens {
            return met.passes();
        }
        if frontend.kind == Kind::NodePort && self.is_answered(&key) {
            return met.passes();
        }
        if barred {
            self.count(counter::SOURCE_RANGE_DROPPED);
            return met.is_dropped();
        }
        if !service.has_any() {
            return self.judge_refusal(met);
        }
        let (local, sender) = self.policy((side, tuple.source), service, frontend.kind);
        let set = service.set(local);
        if set.is_empty() {
            self.count(counter::PACKET_DROPPED);
            return met.is_dropped();
        }
        self.judge_choice(met, key, (service, frontend), (local, &set, sender))
    }

    /// Whether this is a pod's and goes to where an endpoint was that no Service has any more; counts it.
    pub(super) fn has_vanished(&mut self, &(side, protocol, tuple): &FlowKey) -> bool {
        let place = (tuple.destination, tuple.destination_port);
        let told = side == Side::Pod && protocol == UDP;
        let vanished = told && self.tables.tombstones.contains(&place);
        if vanished {
            self.count(counter::TOMBSTONE_REJECTED);
            self.count(counter::PACKET_REJECTED);
        }
        vanished
    }

    /// Whether the client is a local pod (E6-E9); nobody knows without a detector (E10).
    fn is_local_pod(&self, (side, client): (Side, IpAddr)) -> Option<bool> {
        let rules = &self.tables.settings;
        if !rules.pods_by_address {
            return Some(side == Side::Pod);
        }
        let of_family = |prefix: &&Prefix| prefix.address.is_ipv4() == client.is_ipv4();
        let mut prefixes = rules.pod_cidrs.iter().filter(of_family).peekable();
        prefixes.peek()?;
        Some(prefixes.any(|prefix| prefix.holds(client)))
    }

    /// Which set, and who is seen (§1.E.1, D13-D16).
    fn policy(&self, client: (Side, IpAddr), service: &Service, kind: Kind) -> (bool, Sender) {
        let local_pod = self.is_local_pod(client);
        let all = self.tables.settings.masquerade_all;
        let local = service.is_local(kind);
        let sender = |masquerade| {
            if masquerade {
                Sender::Node
            } else {
                Sender::Client
            }
        };
        match (kind, local) {
            (Kind::ClusterIp, _) => (local, sender(all || local_pod == Some(false))),
            (_, false) => (false, Sender::Node),
            // A pod of another node meets this node's policy as any stranger does (G11).
            (_, true) if local_pod == Some(true) => (false, Sender::Client),
            (_, true) => (true, Sender::Client),
        }
    }

    /// The program chose an endpoint: it must be one of the set, or the one the client had before.
    fn judge_choice(
        &mut self,
        met: &Met<'_>,
        key: FlowKey,
        (service, _frontend): (&Service, &Frontend),
        (local, set, sender): (bool, &[&Endpoint], Sender),
    ) -> Judgement {
        let (side, _protocol, tuple) = key;
        let got = Frame::read(&met.seen.frame)
            .ok()
            .and_then(|frame| frame.packet.tuple());
        let Some(got) = got else {
            return Err("must be translated, but is unreadable".into());
        };
        let dialled = (got.destination, got.destination_port);
        let chosen = set.iter().find(|e| (e.address, e.port) == dialled);
        let Some(&chosen) = chosen else {
            return Err(format!(
                "must go to one of {:?}, but went to {dialled:?} (action {})",
                set.iter().map(|e| (e.address, e.port)).collect::<Vec<_>>(),
                met.seen.action
            ));
        };
        if service.affinity > 0 {
            self.judge_affinity(service, local, set, chosen, tuple)?;
        }
        let hairpin = chosen.address == tuple.source && side == Side::Pod;
        let masquerade = self.masquerade(chosen, sender, hairpin, tuple);
        if masquerade == Some(None) {
            self.count(counter::NO_SOURCE_ADDRESS);
            return met.is_dropped();
        }
        let masquerade = masquerade.flatten();
        let source = if hairpin {
            tuple.destination
        } else {
            tuple.source
        };
        let sent = Tuple {
            source,
            source_port: got.source_port,
            destination: chosen.address,
            destination_port: chosen.port,
        };
        self.judge_port(&key, sent, masquerade.is_some())?;
        let flow = Flow {
            key,
            sent,
            masquerade,
            hairpin,
            direct: false,
            renumbered: false,
            state: OPENED,
            service: service.id,
            endpoint: chosen.id,
            generation: chosen.generation,
            first: self.now,
            last: self.now,
        };
        continues(met, &flow)?;
        self.count(counter::FLOW_CREATED);
        self.flows.open(flow);
        Ok(())
    }

    /// F1-F4: who was here within the time goes where they went, as long as that endpoint is in the set. Each set
    /// remembers for itself, and asks the other where it has never known the client.
    fn judge_affinity(
        &mut self,
        service: &Service,
        local: bool,
        set: &[&Endpoint],
        chosen: &Endpoint,
        tuple: Tuple,
    ) -> Judgement {
        let serves = |r: &Remembered| {
            self.now - r.last < i64::from(service.affinity)
                && set
                    .iter()
                    .any(|e| e.id == r.endpoint && e.generation == r.generation)
        };
        let own = (tuple.source, service.id, local);
        let other = (tuple.source, service.id, !local);
        let known = [own, other]
            .into_iter()
            .find_map(|key| Some((key, *self.affinity.get(&key)?)))
            .filter(|(_, remembered)| serves(remembered));
        let key = known.map_or(own, |(key, _)| key);
        if let Some((_, remembered)) = known
            && remembered.endpoint != chosen.id
        {
            return Err(format!(
                "affinity wants endpoint {}, not {}",
                remembered.endpoint, chosen.id
            ));
        }
        let now = Remembered {
            endpoint: chosen.id,
            generation: chosen.generation,
            last: self.now,
        };
        self.affinity.insert(key, now);
        Ok(())
    }

    /// This node's address if it takes the client's place; `Some(None)` where there is none to take.
    fn masquerade(
        &self,
        chosen: &Endpoint,
        sender: Sender,
        hairpin: bool,
        tuple: Tuple,
    ) -> Option<Option<IpAddr>> {
        let itself = chosen.address == tuple.source;
        // A client that is its own endpoint elsewhere must meet another address, too (D12).
        let wanted = sender == Sender::Node || itself;
        let kept = chosen.host || (chosen.local && !self.tables.settings.snat_local);
        if !wanted || kept || hairpin {
            return None;
        }
        Some(self.tables.uplink[usize::from(!tuple.source.is_ipv4())])
    }

    /// The source port is the client's, or one of ours where that is taken or hidden behind this node.
    pub(super) fn judge_port(&self, key: &FlowKey, sent: Tuple, masqueraded: bool) -> Judgement {
        let (side, protocol, tuple) = *key;
        let reply = |sent: Tuple| (side, protocol, sent.reversed());
        let taken = |sent: Tuple| self.flows.holds_reply(&reply(sent), key, self.now);
        if taken(sent) {
            return Err(format!(
                "the reply of {sent:?} belongs to a conversation that goes on"
            ));
        }
        let (first, last) = self.tables.settings.ports;
        let from_pool = (first..=last).contains(&sent.source_port);
        if masqueraded && !from_pool {
            return Err(format!("source port {} is not ours", sent.source_port));
        }
        if !masqueraded && sent.source_port != tuple.source_port {
            let asked = Tuple {
                source_port: tuple.source_port,
                ..sent
            };
            if !from_pool || !taken(asked) {
                return Err(format!(
                    "source port {} became {} without need",
                    tuple.source_port, sent.source_port
                ));
            }
        }
        Ok(())
    }

    /// Refused by a verdict (D2, D4, D7).
    pub(super) fn judge_refusal(&mut self, met: &Met<'_>) -> Judgement {
        if met
            .frame
            .packet
            .flags()
            .is_some_and(|f| f & super::wire::RST != 0)
        {
            // RFC 9293: a reset is never answered.
            return met.is_dropped();
        }
        if !met.frame.packet.is_first() {
            // Nor is a fragment but the first (RFC 1122 §3.2.2).
            return met.is_dropped();
        }
        self.count(counter::PACKET_REJECTED);
        refused(met)
    }
}

pub(super) fn continues(met: &Met<'_>, flow: &Flow) -> Judgement {
    if flow.hairpin {
        met.returns_as(flow.sent)
    } else {
        met.continues_as(flow.sent)
    }
}

pub(super) fn refused(met: &Met<'_>) -> Judgement {
    match met.seen.action {
        REDIRECT => answer::check(met.frame, &met.seen.frame),
        NEXT | DROP => Err("must be refused, but was passed or dropped".into()),
        other => Err(format!("must be refused, but the action is {other}")),
    }
}
