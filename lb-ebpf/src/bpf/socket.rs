//! Socket hooks: a program that dials a service gets a socket to an endpoint, and sees the service.
//!
//! `connect` and `sendmsg` replace the destination, `recvmsg` and `getpeername` show the service again.
//! What they must remember lives in storage of the socket itself. Addresses that are no service cost one
//! hash miss.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock_addr};
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval, bpf_sk_storage_delete,
    bpf_sk_storage_get,
};
use aya_ebpf::programs::SockAddrContext;
use core::ffi::c_void;
use core::ptr::{addr_of, addr_of_mut, null_mut, read_volatile, write_volatile};
use lb_ebpf::abi::address::{Address4, Address6};
use lb_ebpf::abi::affinity::netns_client;
use lb_ebpf::abi::endpoint::Endpoint;
use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::frontend;
use lb_ebpf::abi::settings::{SOCKETS_ALL, SOCKETS_HOST, Settings, TCP_PEER_SERVICE};
use lb_ebpf::abi::socket::{PAIRS, SocketMore, SocketMoreKey, SocketPairs, SocketPeer};
use lb_ebpf::abi::{TCP, UDP, address, counter};

use crate::lookup::{address_use, dialled_frontend, endpoint_serves, now, settings};
use crate::maps::{SOCKET_MORE, SOCKET_PAIRS, SOCKET_PEER, Tables};
use crate::report::count;
use crate::select::{Set, Verdict, choose};

/// The call goes on.
const ALLOW: i32 = 1;
/// The call fails with EPERM, or with what `bpf_set_retval` said.
const DENY: i32 = 0;

const ECONNREFUSED: i32 = 111;
const EPERM: i32 = 1;

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const IPPROTO_MPTCP: u32 = 262;

/// Whether the kernel has `bpf_set_retval` (5.18). The agent clears it on older ones at load time; refusing
/// is then left to the packet path. A load-time constant, so that the verifier never sees the call there.
#[unsafe(no_mangle)]
static HAVE_SET_RETVAL: u32 = 1;

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

/// Access to the fields of `bpf_sock_addr`, word by word as the verifier demands.
struct Call(*mut bpf_sock_addr);

impl Call {
    #[inline(always)]
    fn new(ctx: &SockAddrContext) -> Self {
        Self(ctx.sock_addr)
    }

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        SockAddrContext::new(self.0).as_ptr()
    }

    #[inline(always)]
    fn v4(&self) -> Address4 {
        // SAFETY: a field of the hook's context.
        Address4::from_word(unsafe { read_volatile(addr_of!((*self.0).user_ip4)) })
    }

    #[inline(always)]
    fn set_v4(&self, address: Address4) {
        // SAFETY: a writable field of the hook's context.
        unsafe { write_volatile(addr_of_mut!((*self.0).user_ip4), address.word()) };
    }

    #[inline(always)]
    fn v6(&self) -> Address6 {
        // SAFETY: fields of the hook's context.
        let words = unsafe {
            [
                read_volatile(addr_of!((*self.0).user_ip6[0])),
                read_volatile(addr_of!((*self.0).user_ip6[1])),
                read_volatile(addr_of!((*self.0).user_ip6[2])),
                read_volatile(addr_of!((*self.0).user_ip6[3])),
            ]
        };
        Address6::from_words(words)
    }

    #[inline(always)]
    fn set_v6(&self, address: Address6) {
        let w = address.words();
        // SAFETY: writable fields of the hook's context.
        unsafe {
            write_volatile(addr_of_mut!((*self.0).user_ip6[0]), w[0]);
            write_volatile(addr_of_mut!((*self.0).user_ip6[1]), w[1]);
            write_volatile(addr_of_mut!((*self.0).user_ip6[2]), w[2]);
            write_volatile(addr_of_mut!((*self.0).user_ip6[3]), w[3]);
        }
    }

    /// The IPv4 address inside `::ffff:a.b.c.d`.
    #[inline(always)]
    fn mapped(&self) -> Option<Address4> {
        // SAFETY: fields of the hook's context.
        let (a, b, c) = unsafe {
            (
                read_volatile(addr_of!((*self.0).user_ip6[0])),
                read_volatile(addr_of!((*self.0).user_ip6[1])),
                read_volatile(addr_of!((*self.0).user_ip6[2])),
            )
        };
        if a == 0 && b == 0 && c == 0xffff_u32.to_be() {
            // SAFETY: as above.
            return Some(Address4::from_word(unsafe {
                read_volatile(addr_of!((*self.0).user_ip6[3]))
            }));
        }
        None
    }

    #[inline(always)]
    fn set_mapped(&self, address: Address4) {
        // SAFETY: a writable field of the hook's context.
        unsafe { write_volatile(addr_of_mut!((*self.0).user_ip6[3]), address.word()) };
    }

    #[inline(always)]
    fn port(&self) -> u16 {
        // SAFETY: a field of the hook's context; its low half holds the port in network order.
        u16::from_be(unsafe { read_volatile(addr_of!((*self.0).user_port)) } as u16)
    }

    #[inline(always)]
    fn set_port(&self, port: u16) {
        // SAFETY: a writable field of the hook's context.
        unsafe { write_volatile(addr_of_mut!((*self.0).user_port), u32::from(port.to_be())) };
    }

    /// [`TCP`], [`UDP`], or 0 for what we do not serve here.
    #[inline(always)]
    fn protocol(&self) -> u8 {
        // SAFETY: fields of the hook's context.
        let (kind, protocol) = unsafe {
            (
                read_volatile(addr_of!((*self.0).type_)),
                read_volatile(addr_of!((*self.0).protocol)),
            )
        };
        match (kind, protocol) {
            (SOCK_STREAM, p) if p == u32::from(TCP) || p == IPPROTO_MPTCP => TCP,
            (SOCK_DGRAM, p) if p == u32::from(UDP) => UDP,
            _ => 0,
        }
    }

    #[inline(always)]
    fn netns(&self) -> u64 {
        // SAFETY: the context is the hook's.
        unsafe { bpf_get_netns_cookie(self.context()) }
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the context is the hook's.
        unsafe { bpf_get_socket_cookie(self.context()) }
    }

    #[inline(always)]
    fn storage<T>(&self, table: *const c_void, create: bool) -> *mut T {
        let flags = if create {
            u64::from(BPF_SK_STORAGE_GET_F_CREATE)
        } else {
            0
        };
        // SAFETY: `sk` is the hook's socket, the table is a socket storage of `T`.
        unsafe {
            let sk = (*self.0).__bindgen_anon_1.sk;
            bpf_sk_storage_get(table.cast_mut(), sk.cast(), null_mut(), flags).cast()
        }
    }

    #[inline(always)]
    fn peer(&self, create: bool) -> *mut SocketPeer {
        self.storage((&raw const SOCKET_PEER).cast(), create)
    }

    #[inline(always)]
    fn forget_peer(&self) {
        // SAFETY: as in `storage`.
        unsafe {
            let sk = (*self.0).__bindgen_anon_1.sk;
            bpf_sk_storage_delete((&raw const SOCKET_PEER).cast_mut().cast(), sk.cast());
        }
    }

    /// Fails the call with ECONNREFUSED, as a port nobody listens on would.
    #[inline(always)]
    fn refuse(&self) -> i32 {
        // SAFETY: a constant that the agent may have changed before loading.
        if unsafe { read_volatile(&raw const HAVE_SET_RETVAL) } == 0 {
            return ALLOW;
        }
        // SAFETY: the hooks that call this are connect and sendmsg, where the helper is allowed.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
        DENY
    }

    /// Fails the call with EPERM, as netfilter's OUTPUT hook does for a silent drop (spec §8, D2).
    #[inline(always)]
    fn forbid(&self) -> i32 {
        // SAFETY: as in `refuse`.
        if unsafe { read_volatile(&raw const HAVE_SET_RETVAL) } != 0 {
            // SAFETY: as in `refuse`.
            unsafe { bpf_set_retval(-EPERM) };
        }
        DENY
    }
}

/// What to do about a dialled address.
#[inline(always)]
fn decide<F: Tables>(call: &Call, dialled: &Dialled<F>) -> Decision<F> {
    let uses = address_use::<F>(&dialled.address);
    if uses & (address::CLUSTER_IP | address::EXTERNAL | address::NODE) == 0 {
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
    // The external traffic policy does not bind pods and the node itself (spec D13, D14).
    let internal = found.flags & frontend::KIND == frontend::CLUSTER_IP;
    let set = if internal && found.flags & frontend::LOCAL_POLICY != 0 {
        Set::Local
    } else {
        Set::Cluster
    };
    let choice = choose::<F>(&found, set, &netns_client(netns));
    match choice.verdict {
        Verdict::Translate => Decision {
            action: Action::Dial,
            endpoint: choice.endpoint,
            generation: choice.generation,
        },
        Verdict::Reject => Decision::just(Action::Refuse),
        Verdict::Drop if host && dialled.protocol == UDP => Decision::just(Action::Forbid),
        Verdict::Drop => Decision::just(Action::Leave),
    }
}

#[inline(always)]
fn serves(settings: &Settings, host: bool) -> bool {
    settings.flags & SOCKETS_ALL != 0 || (host && settings.flags & SOCKETS_HOST != 0)
}

#[inline(always)]
fn pair<F: Tables>(dialled: &Dialled<F>, endpoint: &Endpoint<F>, generation: u32) -> SocketPeer {
    SocketPeer {
        endpoint_address: F::wide(endpoint.address),
        service_address: F::wide(dialled.address),
        endpoint_port: endpoint.port,
        service_port: dialled.port,
        endpoint: endpoint.id,
        endpoint_generation: generation,
        service: endpoint.service,
    }
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
                let record = call.peer(true);
                if !record.is_null() {
                    // SAFETY: storage of this socket, which is locked during connect.
                    unsafe { core::ptr::write(record, pair(&dialled, &endpoint, generation)) };
                }
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
    if address_use::<F>(&dialled.address)
        & (address::CLUSTER_IP | address::EXTERNAL | address::NODE)
        == 0
    {
        return ALLOW;
    }
    let pairs: *mut SocketPairs = call.storage((&raw const SOCKET_PAIRS).cast(), false);
    let mut stale = null_mut();
    if !pairs.is_null() {
        let service = F::wide(dialled.address);
        // SAFETY: storage of this socket; two threads that send at once may read a half-written record, whose
        // endpoint id and generation then do not fit.
        unsafe {
            let known = find(pairs, |known| {
                known.service_port == dialled.port && same(&known.service_address, &service)
            });
            if !known.is_null() {
                if endpoint_serves((*known).endpoint, (*known).endpoint_generation) {
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

/// Keeps a pair with the socket, in place of the stale one if there is one; what it pushes out goes to the
/// common table.
#[inline(always)]
fn remember(call: &Call, stale: *mut SocketPeer, pair: SocketPeer) {
    if !stale.is_null() {
        // SAFETY: a record in the storage of this socket.
        unsafe { core::ptr::write(stale, pair) };
        return;
    }
    let pairs: *mut SocketPairs = call.storage((&raw const SOCKET_PAIRS).cast(), true);
    if pairs.is_null() {
        count(counter::SOCKET_PAIR_LOST);
        return;
    }
    // SAFETY: storage of this socket, for all accesses below; indexes are masked to its length.
    unsafe {
        // From memory, so that the verifier takes it for any number, and masked.
        let slot = read_volatile(&raw const (*pairs).next);
        write_volatile(&raw mut (*pairs).next, slot.wrapping_add(1));
        let slot = &raw mut (*pairs).pairs[(slot & (PAIRS as u32 - 1)) as usize];
        if (*slot).endpoint_port != 0 {
            let key = SocketMoreKey {
                cookie: call.cookie(),
                endpoint_address: (*slot).endpoint_address,
                endpoint_port: (*slot).endpoint_port,
                zero: [0; 3],
            };
            let value = SocketMore {
                service_address: (*slot).service_address,
                service_port: (*slot).service_port,
                zero: 0,
                created: now(),
            };
            if SOCKET_MORE.insert(key, value, 0).is_err() {
                count(counter::SOCKET_PAIR_LOST);
            }
        }
        core::ptr::write(slot, pair);
    }
}

/// The service behind the endpoint that a socket heard from or is connected to.
#[inline(always)]
fn service_of<F: Tables>(call: &Call, address: F::Addr) -> Option<(F::Addr, u16)> {
    let port = call.port();
    let wide = F::wide(address);
    let peer = call.peer(false);
    if !peer.is_null() {
        // SAFETY: storage of this socket.
        let known = unsafe { &*peer };
        if known.endpoint_port == port && same(&known.endpoint_address, &wide) {
            return Some((F::narrow(known.service_address), known.service_port));
        }
    }
    None
}

/// As [`service_of`], and among the pairs of an unconnected socket.
#[inline(always)]
fn sender<F: Tables>(call: &Call, address: F::Addr) -> Option<(F::Addr, u16)> {
    if let Some(found) = service_of::<F>(call, address) {
        return Some(found);
    }
    let pairs: *mut SocketPairs = call.storage((&raw const SOCKET_PAIRS).cast(), false);
    if pairs.is_null() {
        return None;
    }
    let port = call.port();
    let wide = F::wide(address);
    // SAFETY: storage of this socket.
    unsafe {
        let known = find(pairs, |known| {
            known.endpoint_port == port && same(&known.endpoint_address, &wide)
        });
        if !known.is_null() {
            return Some((F::narrow((*known).service_address), (*known).service_port));
        }
    }
    // SAFETY: storage of this socket.
    if unsafe { (*pairs).next } <= PAIRS as u32 {
        return None;
    }
    let key = SocketMoreKey {
        cookie: call.cookie(),
        endpoint_address: wide,
        endpoint_port: port,
        zero: [0; 3],
    };
    let more = SOCKET_MORE.get_ptr(key)?;
    // SAFETY: an element of the table; nobody deletes one whose socket still lives but the sweep, long after.
    unsafe { Some((F::narrow((*more).service_address), (*more).service_port)) }
}

/// The first record that fits, or null.
///
/// Written out instead of a loop: the compiler would step a pointer past the last record, and the verifier
/// refuses that to programs without `CAP_PERFMON`.
///
/// # Safety
/// `pairs` points to the storage of a socket.
#[inline(always)]
unsafe fn find(pairs: *mut SocketPairs, fits: impl Fn(&SocketPeer) -> bool) -> *mut SocketPeer {
    // SAFETY: as the caller promises.
    let [a, b, c, d, e, f, g, h] = unsafe { &mut (*pairs).pairs };
    match () {
        () if fits(a) => a,
        () if fits(b) => b,
        () if fits(c) => c,
        () if fits(d) => d,
        () if fits(e) => e,
        () if fits(f) => f,
        () if fits(g) => g,
        () if fits(h) => h,
        () => null_mut(),
    }
}

#[inline(always)]
fn same(a: &Address6, b: &Address6) -> bool {
    let (a, b) = (a.words(), b.words());
    (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
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
    let call = Call::new(ctx);
    if let Some((address, port)) = sender::<V4>(&call, call.v4()) {
        call.set_v4(address);
        call.set_port(port);
    }
    ALLOW
}

/// IPv6 `recvmsg`, which also reports IPv4-mapped senders.
#[inline(always)]
pub(crate) fn recvmsg6(ctx: &SockAddrContext) -> i32 {
    let call = Call::new(ctx);
    if let Some(mapped) = call.mapped() {
        if let Some((address, port)) = sender::<V4>(&call, mapped) {
            call.set_mapped(address);
            call.set_port(port);
        }
    } else if let Some((address, port)) = sender::<V6>(&call, call.v6()) {
        call.set_v6(address);
        call.set_port(port);
    }
    ALLOW
}

/// IPv4 `getpeername`.
#[inline(always)]
pub(crate) fn peername4(ctx: &SockAddrContext) -> i32 {
    let call = Call::new(ctx);
    if let Some((address, port)) = service_of::<V4>(&call, call.v4()) {
        call.set_v4(address);
        call.set_port(port);
    }
    ALLOW
}

/// IPv6 `getpeername`.
#[inline(always)]
pub(crate) fn peername6(ctx: &SockAddrContext) -> i32 {
    let call = Call::new(ctx);
    if let Some(mapped) = call.mapped() {
        if let Some((address, port)) = service_of::<V4>(&call, mapped) {
            call.set_mapped(address);
            call.set_port(port);
        }
    } else if let Some((address, port)) = service_of::<V6>(&call, call.v6()) {
        call.set_v6(address);
        call.set_port(port);
    }
    ALLOW
}
