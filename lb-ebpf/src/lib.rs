//! Beeline's kernel half as a library: the layouts that kernel and user space share, and the packet
//! logic that needs neither maps nor helpers, so that it can be tested on the host.
//!
//! Rules of this crate: no allocation, no panic, no floating point, no padding in a shared layout.
//! Addresses are byte arrays in network order (`bpftool` prints them readably), ports are integers in
//! host order, times are seconds of `CLOCK_MONOTONIC` as [`clock::seconds`] counts them.

#![cfg_attr(target_arch = "bpf", no_std)]

pub mod abi;
pub mod checksum;
pub mod clock;
pub mod flow_keys;
pub mod noted;
pub mod tcp_state;
pub mod volatile;
