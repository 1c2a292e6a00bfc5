//! The source ports that masqueraded connections get.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::ops::RangeInclusive;

use tracing::{info, warn};

/// Kubernetes' default NodePorts.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// Fewer are soon used up towards one endpoint.
const ENOUGH: usize = 4_096;

/// What is taken where the system gives out nearly all ports to its own sockets.
const SHARED: RangeInclusive<u16> = 20_000..=29_999;

const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// The system gives these to none of its sockets but those that ask for one by number.
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Those of this system.
pub(super) fn source_ports() -> RangeInclusive<u16> {
    free_ports(ephemeral()).unwrap_or(SHARED)
}

/// Has the system keep its own sockets away from them, where it would not anyway.
pub(super) fn reserve() {
    let ephemeral = ephemeral();
    if free_ports(ephemeral.clone()).is_some() {
        return;
    }
    let (first, last) = (SHARED.start(), SHARED.end());
    let reserved = match read_list() {
        Ok(reserved) => reserved,
        Err(error) => {
            warn!(
                %error, first, last,
                "could not read net.ipv4.ip_local_reserved_ports, so the source ports of masqueraded connections are not \
                 added to it: a socket of this node may get the answers of a client's connection; add them to it"
            );
            return;
        }
    };
    let Some(wanted) = with(reserved.trim(), &SHARED) else {
        return;
    };
    match fs::write(RESERVED, &wanted) {
        Ok(()) => info!(
            first,
            last,
            "net.ipv4.ip_local_port_range leaves no room for the source ports of masqueraded connections: reserved some"
        ),
        Err(error) => warn!(
            %error,
            "net.ipv4.ip_local_port_range ({}-{}) leaves no room for the source ports of masqueraded connections, and \
             those they share with it could not be reserved: a socket of this node may get the answers of a client's \
             connection; set net.ipv4.ip_local_reserved_ports={wanted}",
            ephemeral.start(), ephemeral.end()
        ),
    }
}

/// All that is reserved. The kernel answers one read: what does not fit into it is left out, and a second finds the end.
fn read_list() -> io::Result<String> {
    // Every other port, which is the longest list, takes 200 kB.
    let mut list = vec![0; 256 * 1024];
    let length = File::open(RESERVED)?.read(&mut list)?;
    list.truncate(length);
    String::from_utf8(list).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn ephemeral() -> RangeInclusive<u16> {
    let read = || {
        let text = fs::read_to_string(EPHEMERAL).ok()?;
        let mut words = text.split_whitespace();
        Some(words.next()?.parse().ok()?..=words.next()?.parse().ok()?)
    };
    read().unwrap_or(32_768..=60_999)
}

/// The largest run of unprivileged ports that are neither ephemeral nor NodePorts, if it is large enough: a late answer to
/// one of ours must be no service, and a host's own socket must not get it.
fn free_ports(ephemeral: RangeInclusive<u16>) -> Option<RangeInclusive<u16>> {
    let mut best: Option<RangeInclusive<u16>> = None;
    let mut start = None;
    for port in 1024..=u16::MAX {
        let free = !ephemeral.contains(&port) && !NODE_PORTS.contains(&port);
        let first = *start.get_or_insert(port);
        if !free {
            start = None;
        } else if best
            .as_ref()
            .is_none_or(|best| best.len() < usize::from(port - first) + 1)
        {
            best = Some(first..=port);
        }
    }
    best.filter(|best| best.len() >= ENOUGH)
}

/// The list of reserved ports with these in it; `None` if they are already.
fn with(reserved: &str, ports: &RangeInclusive<u16>) -> Option<String> {
    let range = |entry: &str| -> Option<RangeInclusive<u16>> {
        let (first, last) = entry.split_once('-').unwrap_or((entry, entry));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    let mut known = reserved.split(',').filter_map(range);
    // The kernel lists runs, each as long as it can be.
    let has_them = known.any(|known| known.contains(ports.start()) && known.contains(ports.end()));
    let own = format!("{}-{}", ports.start(), ports.end());
    match reserved {
        _ if has_them => None,
        "" => Some(own),
        others => Some(format!("{others},{own}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_ports_avoid_ephemeral_ports_and_node_ports() {
        assert_eq!(free_ports(32_768..=60_999), Some(1024..=29_999));
        assert_eq!(free_ports(1024..=29_999), Some(32_768..=65_535));
        assert_eq!(free_ports(10_000..=65_535), Some(1024..=9_999));
    }

    #[test]
    fn a_few_left_over_ports_are_not_enough() {
        for ephemeral in [1024..=65_535, 1025..=65_535, 1024..=65_000, 4096..=65_535] {
            assert_eq!(free_ports(ephemeral), None);
        }
        assert!(SHARED.len() >= ENOUGH);
    }

    #[test]
    fn what_others_reserved_stays_so() {
        assert_eq!(with("", &SHARED).as_deref(), Some("20000-29999"));
        assert_eq!(
            with("80,8080-8090", &SHARED).as_deref(),
            Some("80,8080-8090,20000-29999")
        );
        assert_eq!(with("80,19999-30000", &SHARED), None);
        assert_eq!(
            with("20000-25000", &SHARED).as_deref(),
            Some("20000-25000,20000-29999")
        );
    }
}
