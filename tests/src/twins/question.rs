//! What clients ask of a state: every way to every address of every Service, and some to what is no Service's.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lb_agent::snapshot::Family;

use super::stage::{CLIENTS, NODES, Who};
use super::state::{Case, State};
use crate::address::{self, FAMILIES};
use crate::fuzz::random::Random;
use crate::peer::protocol::{Manner, Probe};

/// One question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    /// Index among [`CLIENTS`].
    pub client: usize,
    /// Index of the case it is about.
    pub case: Option<usize>,
    pub aim: Aim,
    pub to: SocketAddr,
    pub manner: Manner,
    /// Endpoints that might answer, at most.
    pub endpoints: usize,
    /// Whether the Service has affinity.
    pub sticky: bool,
    /// The client is an endpoint whose slice does not say on which node it is.
    pub unnamed_self: bool,
}

/// What kind of address is dialled.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Aim {
    ClusterIp,
    /// A ClusterIP at a port, or with a protocol, that its Service does not have.
    Undefined,
    /// A NodePort at the primary address of this node.
    NodePort(u8),
    /// A NodePort at the pods' gateway address of this node.
    GatewayPort(u8),
    /// A NodePort at the loopback address.
    LoopbackPort,
    ExternalIp,
    Vip,
    /// An external address or VIP at a port that its Service does not have.
    ExternalUndefined,
    /// An address of the Service CIDR that nobody has.
    Unallocated,
}

impl Question {
    /// Who asks.
    pub fn who(&self) -> Who {
        CLIENTS[self.client]
    }

    /// Whether it is asked in UDP.
    pub fn udp(&self) -> bool {
        matches!(self.manner, Manner::UdpConnected | Manner::UdpUnconnected)
    }

    /// Makes it a question about another state of the same Services.
    #[must_use]
    pub fn about(mut self, state: &State) -> Self {
        if let Some(case) = self.case.map(|case| &state.cases[case]) {
            let family = if self.to.is_ipv4() {
                Family::V4
            } else {
                Family::V6
            };
            self.sticky = case.has_affinity();
            self.endpoints = case.endpoints(family);
            self.unnamed_self = unnamed(case, self.who());
        }
        self
    }

    /// Whether this state leaves the answer to chance.
    pub fn is_open(&self, state: &State) -> bool {
        match (self.case, self.aim) {
            (Some(case), Aim::NodePort(node)) => bypassed(&state.cases[case], self.who(), node),
            _ => false,
        }
    }

    /// The first try: few sockets, as all probes of a Service together see its endpoints often.
    pub fn quickly(&self) -> Probe {
        let tries = if self.sticky {
            5
        } else {
            2 * self.endpoints as u32 + 3
        };
        self.probe(tries, 1)
    }

    /// So often that an endpoint among equals is missed once in a million times (n·(1 − 1/n)^20n < 10⁻⁶), with
    /// patience for a busy machine.
    pub fn thoroughly(&self) -> Probe {
        // A client port that comes again belongs to the flow it was, whatever affinity says now: few of them.
        let tries = if self.sticky {
            6
        } else {
            20 * self.endpoints as u32 + 5
        };
        self.probe(tries, 3)
    }

    fn probe(&self, tries: u32, patience: u64) -> Probe {
        let timeout_ms = match self.manner {
            // A refusal by ICMP that arrives while `connect` holds the socket is lost, and the next SYN is sent
            // after a second (spec §8, D2).
            Manner::Tcp => 1200 + 200 * patience,
            Manner::UdpConnected | Manner::UdpUnconnected | Manner::Echo => 300 * patience,
        };
        Probe {
            to: self.to,
            manner: self.manner,
            tries,
            timeout_ms,
        }
    }
}

/// All questions about a state, of which `share` percent are kept.
pub fn questions(state: &State, random: &mut Random, share: usize) -> Vec<Question> {
    let mut all = Vec::new();
    for (index, case) in state.cases.iter().enumerate() {
        for client in 0..CLIENTS.len() {
            about(case, index, client, random, &mut all);
            ping(case, index, client, random, &mut all);
        }
    }
    for client in 0..CLIENTS.len() {
        for family in FAMILIES {
            let udp = random_bool(random);
            let manner = if random.once_in(4) {
                Manner::Echo
            } else {
                some_manner(random, udp)
            };
            all.push(Question {
                client,
                case: None,
                aim: Aim::Unallocated,
                to: SocketAddr::new(unallocated(family), 80),
                manner,
                endpoints: 0,
                sticky: false,
                unnamed_self: false,
            });
        }
    }
    all.retain(|_| random.below(100) < share);
    all
}

fn about(case: &Case, index: usize, client: usize, random: &mut Random, all: &mut Vec<Question>) {
    let unnamed_self = unnamed(case, CLIENTS[client]);
    let mut ask = |aim, ip: IpAddr, port: u16, udp: bool, random: &mut Random| {
        let family = if ip.is_ipv4() { Family::V4 } else { Family::V6 };
        let manner = some_manner(random, udp);
        all.push(Question {
            client,
            case: Some(index),
            aim,
            to: SocketAddr::new(ip, port),
            manner,
            endpoints: case.endpoints(family),
            sticky: case.has_affinity(),
            unnamed_self,
        });
    };
    let (externals, vips) = (case.external_ips(), case.vips());
    for port in case.ports() {
        for &ip in &case.cluster_ips() {
            ask(Aim::ClusterIp, ip, port.number, port.udp, random);
        }
        for &ip in &externals {
            ask(Aim::ExternalIp, ip, port.number, port.udp, random);
        }
        for &ip in &vips {
            ask(Aim::Vip, ip, port.number, port.udp, random);
        }
        if port.node_port == 0 {
            continue;
        }
        for family in FAMILIES {
            for node in 1..=NODES {
                if bypassed(case, CLIENTS[client], node) {
                    continue;
                }
                let ip = address::node(family, node);
                ask(Aim::NodePort(node), ip, port.node_port, port.udp, random);
                if random.once_in(4) {
                    let ip = address::pod_gateway(family, node);
                    ask(Aim::GatewayPort(node), ip, port.node_port, port.udp, random);
                }
            }
        }
        if matches!(CLIENTS[client], Who::Host(_)) && random.once_in(3) {
            let ip = Ipv4Addr::LOCALHOST.into();
            ask(Aim::LoopbackPort, ip, port.node_port, port.udp, random);
        }
    }
    let taken = |number: u16, udp: bool| {
        case.ports()
            .iter()
            .any(|port| port.number == number && port.udp == udp)
    };
    let udp = random_bool(random);
    let number = random.pick(&[80_u16, 53, 81, 9999]);
    if taken(number, udp) {
        return;
    }
    for &ip in &case.cluster_ips() {
        ask(Aim::Undefined, ip, number, udp, random);
    }
    for &ip in externals.iter().chain(&vips) {
        ask(Aim::ExternalUndefined, ip, number, udp, random);
    }
}

/// Echo requests to a Service's addresses, which are nobody's to answer (spec E18, D4, D6).
fn ping(case: &Case, index: usize, client: usize, random: &mut Random, all: &mut Vec<Question>) {
    let own = case
        .cluster_ips()
        .into_iter()
        .map(|ip| (Aim::Undefined, ip));
    let others = case.external_ips().into_iter().chain(case.vips());
    for (aim, ip) in own.chain(others.map(|ip| (Aim::ExternalUndefined, ip))) {
        if random.once_in(3) {
            all.push(Question {
                client,
                case: Some(index),
                aim,
                to: SocketAddr::new(ip, 0),
                manner: Manner::Echo,
                endpoints: 0,
                sticky: false,
                unnamed_self: false,
            });
        }
    }
}

/// A pod at another node's NodePort is taken for one of that node's (spec E11): endpoints elsewhere answer it
/// directly, which fails. It takes long to see all of that, and with affinity it is chance what one sees, so it is
/// asked where all endpoints are on that node.
fn bypassed(case: &Case, who: Who, node: u8) -> bool {
    let local = case.service["spec"]["externalTrafficPolicy"] == "Local";
    local && matches!(who, Who::Pod(own, _) if own != node) && !case.is_all_on(node)
}

fn unnamed(case: &Case, who: Who) -> bool {
    match who {
        Who::Pod(node, index) => FAMILIES
            .iter()
            .any(|&family| case.is_unnamed(address::pod(family, node, index), node)),
        Who::Host(_) | Who::Outside => false,
    }
}

fn some_manner(random: &mut Random, udp: bool) -> Manner {
    match (udp, random_bool(random)) {
        (false, _) => Manner::Tcp,
        (true, false) => Manner::UdpConnected,
        (true, true) => Manner::UdpUnconnected,
    }
}

fn random_bool(random: &mut Random) -> bool {
    random.once_in(2)
}

/// The last address of the Service CIDR but one, which no state uses.
fn unallocated(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 96, 255, 250]),
        Family::V6 => IpAddr::from([0xfd96, 0, 0, 0, 0, 0, 0, 0xfffa]),
    }
}
