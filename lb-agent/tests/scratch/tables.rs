//! A fresh datapath, another build's object for it, and something to write into its tables.

use std::path::Path;

use lb_agent::datapath::attach::PacketHook;
use lb_agent::datapath::{Config, Datapath, object};
use lb_agent::plan::Write;
use lb_ebpf::abi::address::Address4;
use lb_ebpf::abi::family::V4;
use lb_ebpf::abi::frontend::{Frontend, FrontendKey};

pub(crate) fn open(bpffs: &Path, packet_hook: Option<PacketHook>) -> Datapath {
    Datapath::open(&Config {
        bpffs: bpffs.to_owned(),
        packet_hook,
    })
    .unwrap_or_else(|error| panic!("{error}"))
}

/// An object that is another one only by name: its bytes differ behind what is read.
#[allow(dead_code, reason = "each test binary uses its part of this module")]
pub(crate) fn rebuilt() -> &'static [u8] {
    let mut object = object::embedded().expect("built").to_vec();
    object.extend_from_slice(b"another build");
    object.leak()
}

#[allow(dead_code, reason = "each test binary uses its part of this module")]
pub(crate) fn frontend4(last: u8, service: u32) -> Write {
    let address = Address4 {
        octets: [10, 96, service.to_be_bytes()[2], last],
    };
    let key = FrontendKey::<V4> {
        address,
        port: service as u16,
        protocol: 6,
        zero: 0,
    };
    Write::Frontend4 {
        key,
        frontend: Frontend {
            service,
            ..Frontend::default()
        },
    }
}
