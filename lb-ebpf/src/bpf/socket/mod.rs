//! Socket hooks: a program that dials a service gets a socket to an endpoint, and sees the service.
//!
//! `connect` and `sendmsg` replace the destination, `recvmsg` and `getpeername` show the service again.
//! What they must remember lives in a slot of the socket's, or in storage of the socket itself. Addresses that are no service cost one
//! hash miss.

mod call;
mod remember;
mod slot;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::programs::{SockAddrContext, SockContext};
use core::hint::black_box;
use core::ptr::null_mut;
use lb_ebpf::abi::affinity::netns_client;
use lb_ebpf::abi::endpoint::Endpoint;
use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::frontend;
use lb_ebpf::abi::settings::{SOCKETS_ALL, SOCKETS_HOST, Settings, TCP_PEER_SERVICE};
use lb_ebpf::abi::{UDP, address, counter};

use self::call::{ALLOW, Call};
use self::remember::{difference, find, pair, remember, sender, service_of};
use crate::lookup::{address_use, dialled_frontend, endpoint_serves, settings, still_means};
use crate::maps::Tables;
use crate::report::count;
use crate::select::{Set, Verdict, choose};

/// Uses of addresses on which there may be frontends.
const SERVED: u32 = address::CLUSTER_IP | address::EXTERNAL | address::NODE | address::LOOPBACK;

/// What a hook does with a destination.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Leave,
    Refuse,
    Forbid,
    Dial,
}

/// An action and, for [`Action::Dial`], the endpoint; see [`crate::select::Choice`] for why not an enum.
struct Decision<F: Tables> {
    action: Action,
    endpoint: Endpoint<F>,
    generation: u32,
}

impl<F: Tables> Decision<F> {
    #[inline(always)]
    fn just(action: Action) -> Self {
        Self {
            action,
            endpoint: Endpoint::default(),
            generation: 0,
        }
    }
}

/// A dialled address.
#[derive(Clone, Copy)]
struct Dialled<F: Family> {
    address: F::Addr,
    port: u16,
    protocol: u8,
}

/// IPv4 `connect`.
#[inline(always)]
pub(crate) fn connect4(ctx: &SockAddrContext) -> i32 {
    let call = Call::new(ctx);
    connect::<V4>(&call, call.v4(), |call, address| call.set_v4(address))
}

/// IPv6 `connect`, which also dials IPv4-mapped addresses.
#[inline(always)]
pub(crate) fn connect6(ctx: &SockAddrContext) -> i32 {
    let call = Call::new(ctx);
    match call.mapped() {
        Some(address) => connect::<V4>(&call, address, |call, address| call.set_mapped(address)),
        None => connect::<V6>(&call, call.v6(), |call, address| call.set_v6(address)),
    }
}

/// IPv4 `sendmsg`; the kernel also runs it for IPv4-mapped destinations of IPv6 sockets.
#[inline(always)]
pub(crate) fn sendmsg4(ctx: &SockAddrContext) -> i32 {
    let call = Call::new(ctx);
    sendmsg::<V4>(&call, call.v4(), |call, address| call.set_v4(address))
}

/// IPv6 `sendmsg`.
#[inline(always)]
pub(crate) fn sendmsg6(ctx: &SockAddrContext) -> i32 {
    let call = Call::new(ctx);
    match call.mapped() {
        Some(address) => sendmsg::<V4>(&call, address, |call, address| call.set_mapped(address)),
        None => sendmsg::<V6>(&call, call.v6(), |call, address| call.set_v6(address)),
    }
}

/// IPv4 `recvmsg`.
#[inline(always)]
pub(crate) fn recvmsg4(ctx: &SockAddrContext) -> i32 {
    show4(&Call::new(ctx), sender::<V4>)
}

/// IPv6 `recvmsg`, which also reports IPv4-mapped senders.
#[inline(always)]
pub(crate) fn recvmsg6(ctx: &SockAddrContext) -> i32 {
    show6(&Call::new(ctx), sender::<V4>, sender::<V6>)
}

/// IPv4 `getpeername`.
#[inline(always)]
pub(crate) fn peername4(ctx: &SockAddrContext) -> i32 {
    show4(&Call::new(ctx), service_of::<V4>)
}

/// IPv6 `getpeername`, also of sockets that dialled an IPv4-mapped address.
#[inline(always)]
pub(crate) fn peername6(ctx: &SockAddrContext) -> i32 {
    show6(&Call::new(ctx), service_of::<V4>, service_of::<V6>)
}

/// A socket that is released: nobody will ask any more.
#[inline(always)]
pub(crate) fn released(ctx: &SockContext) {
    // SAFETY: the context is the hook's.
    slot::free(unsafe { bpf_get_socket_cookie(ctx.as_ptr()) });
}

/// Address and port of a peer.
type Peer<F> = (<F as Family>::Addr, u16);

/// Shows the peer that `known` names for the call's.
#[inline(always)]
fn show4(call: &Call, known: impl FnOnce(&Call, <V4 as Family>::Addr) -> Option<Peer<V4>>) -> i32 {
    if let Some((address, port)) = known(call, call.v4()) {
        call.set_v4(address);
        call.set_port(port);
    }
    ALLOW
}

/// As [`show4`], for calls that carry either family.
#[inline(always)]
fn show6(
    call: &Call,
    mapped: impl FnOnce(&Call, <V4 as Family>::Addr) -> Option<Peer<V4>>,
    plain: impl FnOnce(&Call, <V6 as Family>::Addr) -> Option<Peer<V6>>,
) -> i32 {
    if let Some(address) = call.mapped() {
        if let Some((address, port)) = mapped(call, address) {
            call.set_mapped(address);
            call.set_port(port);
        }
    } else if let Some((address, port)) = plain(call, call.v6()) {
        call.set_v6(address);
        call.set_port(port);
    }
    ALLOW
}

/// `connect()`; `write` puts an address into the call.
#[inline(always)]
fn connect<F: Tables>(call: &Call, address: F::Addr, write: impl FnOnce(&Call, F::Addr)) -> i32 {
    let dialled = Dialled::<F> {
        address,
        port: call.port(),
        protocol: call.protocol(),
    };
    if dialled.protocol == 0 {
        return ALLOW;
    }
    let Decision {
        action,
        endpoint,
        generation,
    } = decide(call, &dialled);
    match action {
        Action::Leave => {
            // A socket that was connected to a service before must not show it any more. TCP sockets
            // cannot do that without closing.
            if dialled.protocol == UDP {
                call.forget_peer();
            }
            ALLOW
        }
        Action::Refuse => {
            count(counter::CONNECT_REJECTED);
            call.refuse()
        }
        Action::Forbid => {
            count(counter::CONNECT_REJECTED);
            call.forbid()
        }
        Action::Dial => {
            let wanted = dialled.protocol == UDP
                || settings().is_some_and(|settings| settings.flags & TCP_PEER_SERVICE != 0);
            if wanted {
                call.remember_peer(&pair(&dialled, &endpoint, generation));
            }
            write(call, endpoint.address);
            call.set_port(endpoint.port);
            count(counter::CONNECT_TRANSLATED);
            ALLOW
        }
    }
}

/// `sendmsg()` with a destination, on an unconnected UDP socket.
#[inline(always)]
fn sendmsg<F: Tables>(call: &Call, address: F::Addr, write: impl FnOnce(&Call, F::Addr)) -> i32 {
    let dialled = Dialled::<F> {
        address,
        port: call.port(),
        protocol: UDP,
    };
    let uses = address_use::<F>(&dialled.address);
    if uses & SERVED == 0 {
        return ALLOW;
    }
    let pairs = call.pairs(false);
    let mut stale = null_mut();
    if !pairs.is_null() {
        let service = F::wide(dialled.address);
        // SAFETY: storage of this socket; two threads that send at once may read a half-written record, whose
        // endpoint id and generation then do not fit.
        unsafe {
            let known = find(pairs, |known| {
                u32::from(known.service_port ^ dialled.port)
                    | difference(&known.service_address, &service)
            });
            if !known.is_null() {
                let service = (*known).service;
                if endpoint_serves((*known).endpoint, (*known).endpoint_generation)
                    && still_means::<F>(uses, &dialled.address, dialled.port, service)
                {
                    write(call, F::narrow((*known).endpoint_address));
                    call.set_port((*known).endpoint_port);
                    count(counter::SENDMSG_TRANSLATED);
                    return ALLOW;
                }
                stale = known;
            }
        }
    }
    let Decision {
        action,
        endpoint,
        generation,
    } = decide(call, &dialled);
    match action {
        Action::Leave => ALLOW,
        Action::Refuse => {
            count(counter::SENDMSG_REJECTED);
            call.refuse()
        }
        Action::Forbid => {
            count(counter::SENDMSG_REJECTED);
            call.forbid()
        }
        Action::Dial => {
            remember(call, stale, pair(&dialled, &endpoint, generation));
            write(call, endpoint.address);
            call.set_port(endpoint.port);
            count(counter::SENDMSG_TRANSLATED);
            ALLOW
        }
    }
}

/// What to do about a dialled address.
#[inline(always)]
fn decide<F: Tables>(call: &Call, dialled: &Dialled<F>) -> Decision<F> {
    let mut uses = address_use::<F>(&dialled.address);
    if uses & SERVED == 0 {
        return Decision::just(Action::Leave);
    }
    let Some(settings) = settings() else {
        return Decision::just(Action::Leave);
    };
    let netns = call.netns();
    let host = netns == settings.host_netns;
    if !serves(settings, host) {
        return Decision::just(Action::Leave);
    }
    // Every network namespace has loopback addresses of its own; those of the host's are meant.
    // Asked anew each time, or the compiler would make two programs of the rest.
    let on_loopback = |uses| black_box(uses) & address::LOOPBACK != 0;
    if on_loopback(uses) {
        if !host {
            return Decision::just(Action::Leave);
        }
        uses |= address::NODE;
    }
    let Some(found) = dialled_frontend::<F>(uses, dialled.address, dialled.port, dialled.protocol)
    else {
        // An undefined port of a ClusterIP is refused (spec D4); of other addresses it is not ours (D6).
        return if uses & address::CLUSTER_IP != 0 {
            Decision::just(Action::Refuse)
        } else {
            Decision::just(Action::Leave)
        };
    };
    // Pods meet source ranges and silent drops on the packet path, where their address is known. The host's
    // own sockets mostly have none, so they are decided here.
    if found.flags & frontend::SOURCE_RANGES != 0 {
        if !host {
            return Decision::just(Action::Leave);
        }
        if found.flags & frontend::NODE_ALLOWED == 0 {
            return if dialled.protocol == UDP {
                Decision::just(Action::Forbid)
            } else {
                Decision::just(Action::Leave)
            };
        }
    }
    // The external traffic policy does not bind pods and the node itself (spec D13, D14), but on loopback (G9).
    let binds = found.flags & frontend::KIND == frontend::CLUSTER_IP || on_loopback(uses);
    let set = if binds && found.flags & frontend::LOCAL_POLICY != 0 {
        Set::Local
    } else {
        Set::Cluster
    };
    // To affinity all processes are one client there (G9).
    let client = if on_loopback(uses) {
        netns_client(netns)
    } else {
        call.client(netns)
    };
    let choice = choose::<F>(&found, set, &client);
    match choice.verdict {
        Verdict::Translate => Decision {
            action: Action::Dial,
            endpoint: choice.endpoint,
            generation: choice.generation,
        },
        Verdict::Reject => Decision::just(Action::Refuse),
        Verdict::Drop if on_loopback(uses) => Decision::just(Action::Refuse),
        Verdict::Drop if host && dialled.protocol == UDP => Decision::just(Action::Forbid),
        Verdict::Drop => Decision::just(Action::Leave),
    }
}

#[inline(always)]
fn serves(settings: &Settings, host: bool) -> bool {
    settings.flags & SOCKETS_ALL != 0 || (host && settings.flags & SOCKETS_HOST != 0)
}
