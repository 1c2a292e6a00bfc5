//! The programs' entry points. Each is a line: what they do is in the modules.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "a key by value would be one more copy on a stack of 512 bytes"
)]

mod answer;
mod atomic;
mod direct;
mod door;
mod early;
mod egress;
mod extension;
mod fast;
mod flow;
mod forward;
mod header;
mod icmp_error;
mod icmp_forward;
mod ingress;
mod lookup;
mod maps;
mod masquerade;
mod newcomer;
mod opening;
mod outbound;
mod own;
mod packet;
mod recall;
mod report;
mod rewrite;
mod route_cache;
mod select;
mod service_cidr;
mod shard;
mod skb;
mod socket;
mod source_range;
mod sweep;
mod target;
mod work;
mod xdp;

use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr, classifier, xdp};
use aya_ebpf::programs::{SockAddrContext, SockContext, TcContext, XdpContext};

use lb_ebpf::abi::flow::{OUTSIDE, POD};

use crate::packet::ETHERNET;
use crate::skb::Skb;
use crate::xdp::Xdp;

/// `TCX_NEXT` / `TC_ACT_UNSPEC`: the packet goes on to the next program.
const NEXT: i32 = -1;

/// `TC_ACT_SHOT`: the packet ends here.
const DROP: i32 = 2;

#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    socket::connect4(&ctx)
}

#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    socket::connect6(&ctx)
}

#[cgroup_sock_addr(sendmsg4)]
fn sendmsg4(ctx: SockAddrContext) -> i32 {
    socket::sendmsg4(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
fn sendmsg6(ctx: SockAddrContext) -> i32 {
    socket::sendmsg6(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
fn recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::recvmsg4(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
fn recvmsg6(ctx: SockAddrContext) -> i32 {
    socket::recvmsg6(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
fn peername4(ctx: SockAddrContext) -> i32 {
    socket::peername4(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
fn peername6(ctx: SockAddrContext) -> i32 {
    socket::peername6(&ctx)
}

#[cgroup_sock(sock_release)]
fn released(ctx: SockContext) -> i32 {
    socket::released(&ctx);
    1
}

#[classifier]
fn pod_ingress(ctx: TcContext) -> i32 {
    ingress::ingress::<POD, ETHERNET>(&Skb::new(&ctx))
}

#[classifier]
fn pod_egress(ctx: TcContext) -> i32 {
    egress::egress::<POD, ETHERNET>(&Skb::new(&ctx))
}

#[classifier]
fn out_ingress(ctx: TcContext) -> i32 {
    ingress::ingress::<OUTSIDE, ETHERNET>(&Skb::new(&ctx))
}

#[classifier]
fn out_egress(ctx: TcContext) -> i32 {
    egress::egress::<OUTSIDE, ETHERNET>(&Skb::new(&ctx))
}

#[classifier]
fn l3_ingress(ctx: TcContext) -> i32 {
    ingress::ingress::<OUTSIDE, 0>(&Skb::new(&ctx))
}

#[classifier]
fn l3_egress(ctx: TcContext) -> i32 {
    egress::egress::<OUTSIDE, 0>(&Skb::new(&ctx))
}

#[classifier]
fn lo_egress(ctx: TcContext) -> i32 {
    own::passes_loopback(&Skb::new(&ctx))
}

#[xdp(frags)]
fn out_xdp(ctx: XdpContext) -> u32 {
    early::early(Xdp::new(&ctx))
}

/// For generic mode: before a program that takes frames in pieces the kernel may copy the packet (6.9 and newer),
/// and of the copy the tc programs behind see the headers in the wrong place.
#[xdp]
fn out_xdp_generic(ctx: XdpContext) -> u32 {
    early::early(Xdp::new(&ctx))
}

#[classifier]
fn sweep_arm(_ctx: TcContext) -> i32 {
    sweep::arm()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
