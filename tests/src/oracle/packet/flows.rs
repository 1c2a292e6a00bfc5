//! Flows, fragments and affinity as the oracle remembers them, with their times.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::wire::{ACK, FIN, RST, SYN, TCP, Tuple};

/// Seconds; chosen so that no sum of the ages a test uses comes near one of them.
pub mod timeout {
    pub const NEW: i64 = 23;
    pub const UDP: i64 = 67;
    pub const TCP: i64 = 199;
    pub const CLOSING: i64 = 103;
    pub const CLOSED: i64 = 17;
    /// As `lb_ebpf::abi::fragment::LIFETIME`.
    pub const FRAGMENT: i64 = 30;
}

/// Where a packet is met.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Side {
    Pod,
    Outside,
}

/// How far a conversation is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    New,
    /// The endpoint has spoken, the client not since.
    Answered,
    Established,
    ClientClosed,
    EndpointClosed,
    Closed,
    /// Somebody sent a RST, which may have been no true one.
    Reset,
    /// The client talks on all the same.
    ResetDenied,
}

impl State {
    /// Nobody is expected to say anything more.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Closed | Self::Reset | Self::ResetDenied)
    }
}

/// Who sent a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Speaker {
    Client,
    Endpoint,
}

/// What a flow is found by: side, protocol, and addresses as the client wrote them.
pub type FlowKey = (Side, u8, Tuple);

/// A translated conversation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flow {
    pub key: FlowKey,
    /// Client to endpoint, as the packet continues from where it is met.
    pub sent: Tuple,
    /// This node's address that takes the client's place on the way out.
    pub masquerade: Option<IpAddr>,
    /// Goes back to where it came from.
    pub hairpin: bool,
    /// No Service is involved: the client dialled the endpoint from a port that another conversation has there.
    pub direct: bool,
    /// It made way for a direct conversation: its source port is another one, not known yet.
    pub renumbered: bool,
    pub state: State,
    pub service: u32,
    pub endpoint: u32,
    pub generation: u32,
    pub first: i64,
    pub last: i64,
}

impl Flow {
    pub fn protocol(&self) -> u8 {
        self.key.1
    }

    pub fn asked(&self) -> Tuple {
        self.key.2
    }

    /// As the packet leaves this node.
    pub fn outside(&self) -> Option<Tuple> {
        self.masquerade.map(|source| Tuple {
            source,
            ..self.sent
        })
    }

    pub fn is_live(&self, now: i64) -> bool {
        let life = match (self.state, self.protocol() == TCP) {
            // netfilter's SYN_RECV, and UDP before it is a stream: who only asks is soon forgotten (F29).
            (State::New | State::Answered, _) => timeout::NEW,
            // Nothing is on its way any more after a reset.
            (State::Reset | State::ResetDenied, _) => timeout::NEW,
            (State::Established, true) => timeout::TCP,
            (State::Established, false) if self.last - self.first <= 2 => timeout::NEW,
            (State::Established, false) => timeout::UDP,
            (State::ClientClosed | State::EndpointClosed, _) => timeout::CLOSING,
            (State::Closed, _) => timeout::CLOSED,
        };
        now - self.last < life
    }

    /// A SYN may open the same conversation anew.
    pub fn is_closing(&self) -> bool {
        !matches!(
            self.state,
            State::New | State::Answered | State::Established
        )
    }

    /// Notes a packet: its time, and for TCP what its flags mean.
    pub fn heard(&mut self, speaker: Speaker, flags: Option<u8>, now: i64) {
        // A reset keeps nothing alive that is over.
        let reset = self.protocol() == TCP && flags.is_some_and(|f| f & RST != 0);
        if !reset || !self.state.is_over() {
            self.last = now;
        }
        self.state = next_state(self.protocol() == TCP, self.state, speaker, flags);
    }
}

/// RFC 9293 as far as a by-stander can follow it: what matters is which sides have said that they are done.
fn next_state(tcp: bool, state: State, speaker: Speaker, flags: Option<u8>) -> State {
    let (fin, rst) = flags.map_or((false, false), |f| (f & FIN != 0, f & RST != 0));
    if tcp && (rst || state.is_over()) {
        let acknowledges = flags.is_some_and(|f| f & (ACK | SYN | FIN) == ACK);
        return match (state, rst, fin) {
            (State::Closed, ..) => State::Closed,
            // Who never acknowledged an answer may be anybody (R9): what he says ends nothing.
            (State::New | State::Answered, true, _) if speaker == Speaker::Client => state,
            (_, true, _) | (State::Reset, _, true) => State::Reset,
            (_, _, true) => State::Closed,
            (State::Reset, ..) if acknowledges && speaker == Speaker::Client => State::ResetDenied,
            (State::ResetDenied, ..) if acknowledges && speaker == Speaker::Endpoint => {
                State::Established
            }
            (same, ..) => same,
        };
    }
    // TCP's third segment, or whatever else a UDP client says after an answer.
    let confirms = !tcp || flags.is_some_and(|f| f & ACK != 0 && f & SYN == 0);
    let state = match (state, speaker) {
        (State::New, Speaker::Endpoint) => State::Answered,
        (State::Answered, Speaker::Client) if confirms => State::Established,
        (same, _) => same,
    };
    match (fin, state, speaker) {
        (false, same, _) => same,
        (true, State::ClientClosed, Speaker::Endpoint)
        | (true, State::EndpointClosed, Speaker::Client) => State::Closed,
        (true, State::Established, Speaker::Client) => State::ClientClosed,
        (true, State::New | State::Answered | State::Established, Speaker::Endpoint) => {
            State::EndpointClosed
        }
        (true, same, _) => same,
    }
}

/// A SYN that asks for a new connection and nothing else.
pub fn is_clean_syn(flags: u8) -> bool {
    flags & (SYN | ACK | FIN | RST) == SYN
}

/// The answer to a clean SYN that takes the connection.
pub fn is_accepting(flags: u8) -> bool {
    flags & (SYN | ACK | FIN | RST) == SYN | ACK
}

/// The table of flows with the index by which replies find theirs.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Flows {
    flows: BTreeMap<FlowKey, Flow>,
    /// Side, protocol and addresses of a reply.
    replies: BTreeMap<FlowKey, FlowKey>,
    /// Masqueraded conversations by what leaves, still under the client's address.
    leaving: BTreeMap<(u8, Tuple), FlowKey>,
    /// The same by what comes back to this node.
    returning: BTreeMap<(u8, Tuple), FlowKey>,
}

impl Flows {
    pub fn known(&self, key: &FlowKey) -> Option<&Flow> {
        self.flows.get(key)
    }

    /// A reply never leaves untranslated as long as its flow is known at all, so its age does not matter (E14).
    pub fn reply(&self, key: &FlowKey) -> Option<&Flow> {
        let flow = self.flows.get(self.replies.get(key)?)?;
        (!flow.renumbered && (key.0, key.1, flow.sent.reversed()) == *key).then_some(flow)
    }

    pub fn leaving(&self, protocol: u8, tuple: Tuple) -> Option<&Flow> {
        let flow = self.flows.get(self.leaving.get(&(protocol, tuple))?)?;
        (flow.masquerade.is_some() && flow.sent == tuple).then_some(flow)
    }

    pub fn returning(&self, protocol: u8, tuple: Tuple) -> Option<&Flow> {
        let flow = self.flows.get(self.returning.get(&(protocol, tuple))?)?;
        (flow.outside().map(Tuple::reversed) == Some(tuple)).then_some(flow)
    }

    pub fn get_mut(&mut self, key: &FlowKey) -> Option<&mut Flow> {
        self.flows.get_mut(key)
    }

    pub fn all(&self) -> impl Iterator<Item = &Flow> {
        self.flows.values()
    }

    /// A live conversation other than `key`'s own that has this reply. Half closed, it goes on; closed, its reply is free.
    pub fn holds_reply(&self, reply: &FlowKey, key: &FlowKey, now: i64) -> bool {
        self.reply(reply)
            .is_some_and(|flow| flow.key != *key && flow.is_live(now) && !flow.state.is_over())
    }

    /// Opens a conversation in place of whatever was under its keys.
    pub fn open(&mut self, flow: Flow) {
        self.close(&flow.key);
        let (side, protocol, _) = flow.key;
        let reply = (side, protocol, flow.sent.reversed());
        // Whoever held the reply before us is no longer a conversation.
        if let Some(old) = self.replies.get(&reply).copied() {
            self.close(&old);
        }
        if let Some(outside) = flow.outside() {
            let back = (protocol, outside.reversed());
            if let Some(old) = self.returning.get(&back).copied() {
                self.close(&old);
            }
        }
        self.replies.insert(reply, flow.key);
        if let Some(outside) = flow.outside() {
            self.leaving.insert((protocol, flow.sent), flow.key);
            self.returning
                .insert((protocol, outside.reversed()), flow.key);
        }
        self.flows.insert(flow.key, flow);
    }

    /// Leaves a conversation's reply to whom it belongs; the next packet shows which other one it has.
    pub fn renumber(&mut self, key: &FlowKey) {
        self.replies.retain(|_, forward| forward != key);
        if let Some(flow) = self.flows.get_mut(key) {
            flow.renumbered = true;
        }
    }

    pub fn close(&mut self, key: &FlowKey) {
        self.flows.remove(key);
        self.replies.retain(|_, forward| forward != key);
        self.leaving.retain(|_, forward| forward != key);
        self.returning.retain(|_, forward| forward != key);
    }
}

/// What the fragments of one packet share.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FragmentKey {
    pub side: Side,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub identification: u32,
    pub protocol: u8,
}

/// Which endpoint a client got last from a service port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remembered {
    pub endpoint: u32,
    pub generation: u32,
    pub last: i64,
}
