//! The address plan: what can be guessed from a number.
//!
//! | | IPv4 | IPv6 |
//! | --- | --- | --- |
//! | node N | 172.31.0.1N | fd31::1N |
//! | outside client, router | 172.31.0.100, .254 | fd31::100, fd31::254 |
//! | pods of node N | 10.244.N.0/24 | fd44:N::/64 |
//! | pod I of node N | 10.244.N.(10+I) | the same digits: fd44:N::(10+I) |
//! | services | 10.96.0.0/16 | fd96::/112 |
//! | load balancers | 198.51.100.0/24 | fd51::/64 |
//! | external addresses | 203.0.113.0/24 | fd13::/64 |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_agent::snapshot::Family;

/// The host part of the outside client's addresses.
pub const CLIENT: u8 = 100;

/// Both families, for tests that go through them.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// An address on the LAN.
pub fn lan(family: Family, host: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(172, 31, 0, host).into(),
        Family::V6 => Ipv6Addr::new(0xfd31, 0, 0, 0, 0, 0, 0, same_digits(host)).into(),
    }
}

/// A node's address; nodes count from 1.
pub fn node(family: Family, number: u8) -> IpAddr {
    lan(family, 10 + number)
}

/// The LAN's router.
pub fn router(family: Family) -> IpAddr {
    lan(family, 254)
}

/// The range of a node's pods.
pub fn pod_range(family: Family, node: u8) -> String {
    match family {
        Family::V4 => format!("10.244.{node}.0/24"),
        Family::V6 => format!("fd44:{node}::/64"),
    }
}

/// The node's own address on the pods' bridge.
pub fn pod_gateway(family: Family, node: u8) -> IpAddr {
    in_pod_range(family, node, 1)
}

/// A pod's address; pods count from 1 on each node.
pub fn pod(family: Family, node: u8, index: u8) -> IpAddr {
    in_pod_range(family, node, 10 + index)
}

/// A service address.
pub fn service(family: Family, host: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 0, host).into(),
        Family::V6 => Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, same_digits(host)).into(),
    }
}

/// The range of service addresses.
pub fn service_range(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.96.0.0/16",
        Family::V6 => "fd96::/112",
    }
}

/// An address that a load balancer gives.
pub fn load_balancer(family: Family, host: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(198, 51, 100, host).into(),
        Family::V6 => Ipv6Addr::new(0xfd51, 0, 0, 0, 0, 0, 0, same_digits(host)).into(),
    }
}

/// An address of nobody's that services may have as an external one.
pub fn external(family: Family, host: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(203, 0, 113, host).into(),
        Family::V6 => Ipv6Addr::new(0xfd13, 0, 0, 0, 0, 0, 0, same_digits(host)).into(),
    }
}

/// The IPv4-mapped IPv6 form of an IPv4 address: what a dual-stack socket dials.
pub fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        SocketAddr::V6(_) => address,
    }
}

fn in_pod_range(family: Family, node: u8, host: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 244, node, host).into(),
        Family::V6 => {
            Ipv6Addr::new(0xfd44, same_digits(node), 0, 0, 0, 0, 0, same_digits(host)).into()
        }
    }
}

/// The number whose hexadecimal digits look like `number` in decimal, so that both families read alike.
fn same_digits(number: u8) -> u16 {
    let number = u16::from(number);
    number / 100 * 0x100 + number / 10 % 10 * 0x10 + number % 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_show_the_same_digits() {
        assert_eq!(pod(Family::V4, 2, 3).to_string(), "10.244.2.13");
        assert_eq!(pod(Family::V6, 2, 3).to_string(), "fd44:2::13");
        assert_eq!(lan(Family::V6, CLIENT).to_string(), "fd31::100");
        assert_eq!(service(Family::V6, 96).to_string(), "fd96::96");
    }
}
