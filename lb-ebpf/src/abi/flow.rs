//! Flows of the packet path.

use super::family::Family;

/// One direction of a flow, as its packets look when the program meets them.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FlowKey<F: Family> {
    /// Source address.
    pub source: F::Addr,
    /// Destination address.
    pub destination: F::Addr,
    /// Source port, host order.
    pub source_port: u16,
    /// Destination port, host order.
    pub destination_port: u16,
    /// [`super::TCP`], [`super::UDP`] or [`super::SCTP`].
    pub protocol: u8,
    /// [`POD`] or [`OUTSIDE`]: an entry is used only on the side where it was made.
    pub scope: u8,
    /// Zero in keys. In an entry of replies, where a key is the value: [`crate::noted::mark`].
    pub noted: u16,
}

/// Scope: met on a pod-facing device.
pub const POD: u8 = 1;
/// Scope: met on an uplink.
pub const OUTSIDE: u8 = 2;
/// Scope of the further entry of a masqueraded flow: what comes back from the endpoint to this node's address. What
/// leaves, the client's address still in it, is a reply turned round.
pub const MASQUERADED: u8 = 3;

/// What to make of a packet under the forward key; replies get the inverse.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flow<F: Family> {
    /// Source address after translation.
    pub new_source: F::Addr,
    /// Destination address after translation.
    pub new_destination: F::Addr,
    /// Source port after translation, host order.
    pub new_source_port: u16,
    /// Destination port after translation, host order.
    pub new_destination_port: u16,
    /// How far the conversation is: [`NEW`] to [`RESET_DENIED`].
    pub state: u8,
    /// Bits of this module.
    pub flags: u8,
    /// Zero.
    pub zero: u16,
    /// Service port id.
    pub service: u32,
    /// Endpoint id.
    pub endpoint: u32,
    /// Endpoint generation at selection; a UDP flow whose endpoint moved on picks anew.
    pub endpoint_generation: u32,
    /// Last packet in either direction, seconds; written at most once a second, and for answers in an established TCP
    /// connection once in eight ([`crate::noted`]).
    pub last_seen: u32,
    /// First packet, seconds.
    pub created: u32,
    /// [`key_check`] of the key; read last, as an element may be reused under a reader.
    pub check: u32,
}

/// Ties a [`Flow`] to its key, and chooses its shard.
#[inline(always)]
pub fn key_check<F: Family>(key: &FlowKey<F>) -> u32 {
    let ports = (key.source_port as u32) << 16 | key.destination_port as u32;
    let kind = (key.protocol as u32) << 8 | key.scope as u32;
    let mut h = F::fold(key.source).wrapping_mul(0x9e37_79b1);
    h = (h ^ F::fold(key.destination))
        .rotate_left(13)
        .wrapping_mul(0x85eb_ca6b);
    h = (h ^ ports).rotate_left(15).wrapping_mul(0xc2b2_ae35) ^ kind;
    h ^ h >> 16
}

/// The endpoint is the client itself: translated packets go back out of the device they came from.
pub const HAIRPIN: u8 = 1;
/// The endpoint is on this node.
pub const LOCAL_ENDPOINT: u8 = 2;
/// `new_source` is an address of this node. Where the flow is met only its port is put in; the address follows
/// on egress of the device the packet leaves by, so that the host's stack sees client and endpoint.
pub const MASQUERADE: u8 = 4;
/// The client is this node itself: what comes back is given all its own addresses where it comes in.
pub const OWN_CLIENT: u8 = 8;
/// What the client, this node, dialled is an address of its own: the flow's packets pass the loopback device, and
/// what comes back is handed over there.
pub const OWN_ADDRESS: u8 = 32;
/// No service is involved: the client speaks to the endpoint itself, from a port that a flow through a service has
/// there already. Only its port is changed. `service` and `endpoint` are [`NOBODY`].
pub const DIRECT: u8 = 16;

/// No service port, no endpoint id.
pub const NOBODY: u32 = u32::MAX;

/// State: only the client has spoken.
pub const NEW: u8 = 0;
/// State: both sides have spoken, and the client again since the endpoint did: it gets the answers.
pub const ESTABLISHED: u8 = 1;
/// State (TCP): the client sent FIN.
pub const CLIENT_CLOSED: u8 = 2;
/// State (TCP): the endpoint sent FIN.
pub const ENDPOINT_CLOSED: u8 = 3;
/// State (TCP): both sent FIN.
pub const CLOSED: u8 = 4;
/// State: the endpoint has answered, the client not yet. A client that only pretends to be there gets no further, so
/// this lives as short as [`NEW`].
pub const ANSWERED: u8 = 5;

/// State (TCP): one side sent RST. Whether it counted nobody knows but who got it: old ones, and forged ones, do not.
pub const RESET: u8 = 6;
/// State (TCP): the client spoke on after a RST. If the endpoint does so too, the connection stands as before.
pub const RESET_DENIED: u8 = 7;

/// Whether a flow's conversation is over, as far as its packets tell.
#[inline(always)]
pub const fn has_ended(state: u8) -> bool {
    matches!(state, CLOSED | RESET | RESET_DENIED)
}

/// Whether a flow's client has yet to show that it gets answers.
#[inline(always)]
pub const fn is_unproven(state: u8) -> bool {
    matches!(state, NEW | ANSWERED)
}

/// A flow that was opened, in the order of opening, as long as it may be unproven.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Newcomer<F: Family> {
    /// The flow's key.
    pub key: FlowKey<F>,
    /// [`Flow::created`], as another flow may have the key by now.
    pub created: u32,
}

crate::assert_layout!(
    FlowKey<super::family::V4> = 16,
    FlowKey<super::family::V6> = 40,
    Flow<super::family::V4> = 40,
    Flow<super::family::V6> = 64,
    Newcomer<super::family::V4> = 20,
    Newcomer<super::family::V6> = 44,
);
