//! The devices of a test's node, and what it routes.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::process::ip_batch;

/// A pod's veth, an uplink with addresses and a router, a way to another network, whose router is known, too, and one
/// that takes small packets alone.
pub(super) fn lay_wires() -> Result<()> {
    let lines = [
        "link add pod0 type veth peer name pod0-inside",
        "link add out0 address 02:00:00:00:00:02 type veth peer name out0-beyond",
        "link set lo up",
        "link set pod0 up",
        "link set pod0-inside up",
        "link set out0 up",
        "link set out0-beyond up",
        "link add out1 address 02:00:00:00:00:02 type veth peer name out1-beyond",
        "link set out1 up",
        "link set out1-beyond up",
        "address add 192.0.3.1/24 dev out1",
        "address add 2001:db8:3::1/64 dev out1 nodad",
        "address add 192.0.2.1/24 dev out0",
        "address add 2001:db8::1/64 dev out0 nodad",
        "route add default via 192.0.2.254",
        "route add default via 2001:db8::fe dev out0",
        "route add 10.3.0.0/16 via 192.0.3.254",
        "route add fd03::/64 via 2001:db8:3::fe dev out1",
        "route add 10.4.0.0/16 via 192.0.2.254 mtu lock 1300",
        "route add fd04::/64 via 2001:db8::fe dev out0 mtu lock 1300",
        "route add 10.5.0.0/16 dev pod0",
        "route add fd05::/64 dev pod0",
        "neighbour add 192.0.2.254 lladdr 02:00:00:00:00:fe dev out0 nud permanent",
        "neighbour add 2001:db8::fe lladdr 02:00:00:00:00:fe dev out0 nud permanent",
        "neighbour add 192.0.3.254 lladdr 02:00:00:00:03:fe dev out1 nud permanent",
        "neighbour add 2001:db8:3::fe lladdr 02:00:00:00:03:fe dev out1 nud permanent",
    ];
    ip_batch(None, &lines.map(str::to_owned))?;
    set_forwarding(true)
}

/// Of the calling thread's network namespace.
pub(super) fn set_forwarding(on: bool) -> Result<()> {
    for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        let path = Path::new("/proc/sys/net").join(switch);
        let value = if on { "1" } else { "0" };
        fs::write(&path, value).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
