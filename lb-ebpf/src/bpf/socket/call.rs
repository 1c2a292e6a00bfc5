//! A socket call as its hook sees it: the fields of `bpf_sock_addr`, and the ways to refuse the call.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock_addr};
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval, bpf_sk_storage_delete,
    bpf_sk_storage_get,
};
use aya_ebpf::programs::SockAddrContext;
use core::ffi::c_void;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};
use lb_ebpf::abi::address::{Address4, Address6};
use lb_ebpf::abi::affinity::netns_client;
use lb_ebpf::abi::family::{Family as _, V4};
use lb_ebpf::abi::socket::{SocketPairs, SocketPeer};
use lb_ebpf::abi::{TCP, UDP};

use super::slot;
use crate::maps::{SOCKET_PAIRS, SOCKET_PEER};

/// The call goes on.
pub(super) const ALLOW: i32 = 1;
/// The call fails with EPERM, or with what `bpf_set_retval` said.
const DENY: i32 = 0;

const ECONNREFUSED: i32 = 111;
const EPERM: i32 = 1;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const IPPROTO_MPTCP: u32 = 262;

/// Access to the fields of `bpf_sock_addr`, word by word as the verifier demands.
pub(super) struct Call(*mut bpf_sock_addr);

impl Call {
    #[inline(always)]
    pub(super) fn new(ctx: &SockAddrContext) -> Self {
        Self(ctx.sock_addr)
    }

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        SockAddrContext::new(self.0).as_ptr()
    }

    #[inline(always)]
    pub(super) fn v4(&self) -> Address4 {
        // SAFETY: a field of the hook's context.
        Address4::from_word(unsafe { read_volatile(addr_of!((*self.0).user_ip4)) })
    }

    #[inline(always)]
    pub(super) fn set_v4(&self, address: Address4) {
        // SAFETY: a writable field of the hook's context.
        unsafe { write_volatile(addr_of_mut!((*self.0).user_ip4), address.word()) };
    }

    #[inline(always)]
    pub(super) fn v6(&self) -> Address6 {
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
    pub(super) fn set_v6(&self, address: Address6) {
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
    pub(super) fn mapped(&self) -> Option<Address4> {
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
    pub(super) fn set_mapped(&self, address: Address4) {
        // SAFETY: a writable field of the hook's context.
        unsafe { write_volatile(addr_of_mut!((*self.0).user_ip6[3]), address.word()) };
    }

    #[inline(always)]
    pub(super) fn port(&self) -> u16 {
        // SAFETY: a field of the hook's context; its low half holds the port in network order.
        u16::from_be(unsafe { read_volatile(addr_of!((*self.0).user_port)) } as u16)
    }

    #[inline(always)]
    pub(super) fn set_port(&self, port: u16) {
        // SAFETY: a writable field of the hook's context.
        unsafe { write_volatile(addr_of_mut!((*self.0).user_port), u32::from(port.to_be())) };
    }

    /// [`TCP`], [`UDP`], or 0 for what we do not serve here.
    #[inline(always)]
    pub(super) fn protocol(&self) -> u8 {
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
    pub(super) fn netns(&self) -> u64 {
        // SAFETY: the context is the hook's.
        unsafe { bpf_get_netns_cookie(self.context()) }
    }

    /// Who this is to session affinity: the address the socket is bound to, as the packet path sees it, or its
    /// network namespace as long as it has none (spec F9).
    #[inline(always)]
    pub(super) fn client(&self, netns: u64) -> Address6 {
        // SAFETY: `sk` is the hook's socket, whose fields the verifier lets us read word by word.
        let (family, v4, v6) = unsafe {
            let sk = (*self.0).__bindgen_anon_1.sk;
            (
                read_volatile(addr_of!((*sk).family)),
                read_volatile(addr_of!((*sk).src_ip4)),
                [
                    read_volatile(addr_of!((*sk).src_ip6[0])),
                    read_volatile(addr_of!((*sk).src_ip6[1])),
                    read_volatile(addr_of!((*sk).src_ip6[2])),
                    read_volatile(addr_of!((*sk).src_ip6[3])),
                ],
            )
        };
        if family == AF_INET && v4 != 0 {
            return V4::wide(Address4::from_word(v4));
        }
        if family == AF_INET6 && v6 != [0; 4] {
            return Address6::from_words(v6);
        }
        netns_client(netns)
    }

    #[inline(always)]
    pub(super) fn cookie(&self) -> u64 {
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
            bpf_sk_storage_get(table.cast_mut(), sk.cast(), core::ptr::null_mut(), flags).cast()
        }
    }

    #[inline(always)]
    fn peer(&self, create: bool) -> *mut SocketPeer {
        self.storage((&raw const SOCKET_PEER).cast(), create)
    }

    /// What a connected socket remembers, or null.
    #[inline(always)]
    pub(super) fn known_peer(&self) -> *mut SocketPeer {
        match slot::peer(self.cookie()) {
            Some(peer) => peer,
            None => self.peer(false),
        }
    }

    /// Remembers a peer; a socket for which there is no room shows its endpoint.
    #[inline(always)]
    pub(super) fn remember_peer(&self, peer: &SocketPeer) {
        if slot::keep(self.cookie(), peer) {
            return;
        }
        let record = self.peer(true);
        if !record.is_null() {
            // SAFETY: storage of this socket, which is locked during connect.
            unsafe { core::ptr::write(record, *peer) };
        }
    }

    #[inline(always)]
    pub(super) fn pairs(&self, create: bool) -> *mut SocketPairs {
        self.storage((&raw const SOCKET_PAIRS).cast(), create)
    }

    #[inline(always)]
    pub(super) fn forget_peer(&self) {
        slot::free(self.cookie());
        // SAFETY: as in `storage`.
        unsafe {
            let sk = (*self.0).__bindgen_anon_1.sk;
            bpf_sk_storage_delete((&raw const SOCKET_PEER).cast_mut().cast(), sk.cast());
        }
    }

    /// Fails the call with ECONNREFUSED, as a port nobody listens on would.
    #[inline(always)]
    pub(super) fn refuse(&self) -> i32 {
        // SAFETY: the hooks that call this are connect and sendmsg, where the helper is allowed.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
        DENY
    }

    /// Fails the call with EPERM, as netfilter's OUTPUT hook does for a silent drop (spec §8, D2).
    #[inline(always)]
    pub(super) fn forbid(&self) -> i32 {
        // SAFETY: as in `refuse`.
        unsafe { bpf_set_retval(-EPERM) };
        DENY
    }
}
