//! The further keys of a flow, worked out from its record: the programs enter and remove them, the CLI removes them.
//!
//! They write to a place given instead of returning a value, as the programs have little stack.

use crate::abi::family::Family;
use crate::abi::flow::{Flow, FlowKey, MASQUERADE, MASQUERADED};

/// Whether a reply's entry names the flow under `key`.
#[inline(always)]
pub fn names<F: Family>(entry: &FlowKey<F>, key: &FlowKey<F>) -> bool {
    entry.source == key.source
        && entry.destination == key.destination
        && entry.source_port == key.source_port
        && entry.destination_port == key.destination_port
        && entry.protocol == key.protocol
        && entry.scope == key.scope
}

/// Writes the key that a flow's replies have where they are translated back.
#[inline(always)]
pub fn write_reply_key<F: Family>(out: &mut FlowKey<F>, flow: &Flow<F>, key: &FlowKey<F>) {
    out.source = flow.new_destination;
    let (client, new) = (F::read(&key.source), F::read(&flow.new_source));
    out.destination = if flow.flags & MASQUERADE != 0 {
        client
    } else {
        new
    };
    out.source_port = flow.new_destination_port;
    out.destination_port = flow.new_source_port;
    out.protocol = key.protocol;
    out.scope = key.scope;
    out.noted = 0;
}

/// Writes the key of a masqueraded flow's replies as they come in, addressed to this node.
#[inline(always)]
pub fn write_returning_key<F: Family>(out: &mut FlowKey<F>, flow: &Flow<F>, key: &FlowKey<F>) {
    out.source = flow.new_destination;
    out.destination = flow.new_source;
    out.source_port = flow.new_destination_port;
    out.destination_port = flow.new_source_port;
    out.protocol = key.protocol;
    out.scope = MASQUERADED;
    out.noted = 0;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::address::Address4;
    use crate::abi::family::V4;
    use crate::abi::flow::POD;

    fn address(last: u8) -> Address4 {
        Address4 {
            octets: [10, 0, 0, last],
        }
    }

    fn key(source: (u8, u16), destination: (u8, u16), scope: u8) -> FlowKey<V4> {
        FlowKey {
            source: address(source.0),
            destination: address(destination.0),
            source_port: source.1,
            destination_port: destination.1,
            protocol: 17,
            scope,
            noted: 0,
        }
    }

    #[test]
    fn a_masqueraded_flow_has_two_further_keys() {
        let forward = key((1, 4000), (96, 53), POD);
        let flow = Flow::<V4> {
            new_source: address(7),
            new_destination: address(2),
            new_source_port: 60_000,
            new_destination_port: 5353,
            flags: MASQUERADE,
            ..Flow::default()
        };
        let mut out = FlowKey::default();
        write_reply_key(&mut out, &flow, &forward);
        assert_eq!(out, key((2, 5353), (1, 60_000), POD));
        write_returning_key(&mut out, &flow, &forward);
        assert_eq!(out, key((2, 5353), (7, 60_000), MASQUERADED));
    }

    #[test]
    fn a_plain_flows_replies_go_to_its_new_source() {
        let forward = key((1, 4000), (96, 53), POD);
        let flow = Flow::<V4> {
            new_source: address(96),
            new_destination: address(1),
            new_source_port: 4000,
            new_destination_port: 5353,
            ..Flow::default()
        };
        let mut out = FlowKey::default();
        write_reply_key(&mut out, &flow, &forward);
        assert_eq!(out, key((1, 5353), (96, 4000), POD));
    }
}
