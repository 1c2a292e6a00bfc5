//! What clients send to endpoints directly, from a port that a flow through a service already uses there.
//!
//! To the endpoint both would be one conversation. As netfilter would, we give the later one another source port: a
//! flow without a service. The other order, a direct conversation that began before the flow, shows in what the
//! endpoint answers; see `egress`.

use lb_ebpf::abi::endpoint::Endpoint;
use lb_ebpf::abi::flow::{HAIRPIN, NOBODY, has_ended};
use lb_ebpf::abi::{TCP, UDP, counter};
use lb_ebpf::tcp_state::is_clean_syn;

use crate::NEXT;
use crate::answer::Answer;
use crate::flow::{end, has_expired, write_turned};
use crate::header::{Part, transport};
use crate::ingress::{has_left, step, unknown_address};
use crate::lookup::{now, settings};
use crate::report::count;
use crate::service_cidr::ServiceCidrs;
use crate::skb::Skb;
use crate::target;

/// Takes a packet to an address that is no service's and may be one that flows lead to.
#[inline(never)]
pub(crate) fn passes<F: Answer + ServiceCidrs, const SCOPE: u8>(skb: Skb) -> i32 {
    let (Some(settings), Some(work)) = (settings(), F::work()) else {
        return NEXT;
    };
    work.ended = false;
    let network = &work.network;
    let protocol = network.protocol;
    if protocol == F::ICMP && target::at::<F>(&network.destination).direct != 0 {
        // Perhaps about what a flow without a service brought.
        work.uses = 0;
        return step::OTHER_PROTOCOL;
    }
    // A later fragment has no port that could be another one.
    if (protocol != TCP && protocol != UDP) || network.part == Part::Later {
        return unknown_address::<F>(settings, &work.network);
    }
    let Some(transport) = transport(&skb, network, SCOPE) else {
        return unknown_address::<F>(settings, &work.network);
    };
    work.transport = transport;
    work.set_key(SCOPE);
    let now = now();
    let target = target::at::<F>(&work.network.destination);
    if target.direct != 0 && work.goes_on(settings, transport.flags, now) {
        return step::TO_ENDPOINT;
    }
    if has_left::<F, SCOPE>(work, work.uses) {
        return step::REJECT;
    }
    if protocol == TCP && !is_clean_syn(transport.flags) {
        return unknown_address::<F>(settings, &work.network);
    }
    write_turned(&mut work.reply, &work.key);
    let in_the_way = work.find_reply().is_some() && work.flow.flags & HAIRPIN == 0;
    if in_the_way
        && (has_ended(work.flow.state) || has_expired(&work.flow, settings, protocol, now))
    {
        // Nothing but its record is left, which would take this conversation's answers for its own.
        end(work);
        return unknown_address::<F>(settings, &work.network);
    }
    if !in_the_way {
        return unknown_address::<F>(settings, &work.network);
    }
    work.own = false;
    work.own_address = false;
    work.direct = true;
    work.masquerade = false;
    work.endpoint = Endpoint {
        address: work.network.destination,
        port: transport.destination_port,
        flags: 0,
        id: NOBODY,
        service: NOBODY,
    };
    work.generation = 0;
    count(counter::DIRECT_RENUMBERED);
    step::OPEN
}
