//! What the system tells of the node: names of its devices, and the kernel.

use std::collections::BTreeMap;

use lb_ebpf::abi::device;

use super::{DeviceLine, named};
use crate::cli::read::Inventory;
use crate::sys::netlink;

/// Names of the interfaces that the tables and links tell of, by index. Asked of the kernel: `/sys` may show another
/// network namespace's.
pub(super) fn interface_names(inventory: &Inventory) -> BTreeMap<u32, String> {
    let devices = inventory.devices.iter().map(|(index, _)| *index);
    let hooks = inventory.hooks.iter().filter_map(|hook| hook.interface);
    let named = devices
        .chain(hooks)
        .filter_map(|index| Some((index, netlink::device_name(index)?)));
    named.collect()
}

/// The kernel's release.
pub(super) fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "?".into(), |text| text.trim().to_owned())
}

/// A device as it is shown.
pub(super) fn device_line(
    index: u32,
    device: &device::Device,
    interfaces: &BTreeMap<u32, String>,
) -> DeviceLine {
    DeviceLine {
        name: named(index, interfaces),
        role: match device.role {
            device::POD => "pod",
            device::UPLINK => "uplink",
            device::LOOPBACK => "loopback",
            _ => "?",
        },
        mtu: device.mtu,
        xdp: None,
        without_xdp: None,
    }
}
