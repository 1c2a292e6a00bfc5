//! Addresses and prefixes as they are written in API objects, and which of them we touch.
//!
//! Stored objects may hold IPv4 octets with leading zeros. kube-proxy reads them as decimal (spec A25,
//! CVE-2021-29923); `Ipv4Addr::from_str` refuses them, hence a parser of our own.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::snapshot::{Cidr, Family};

/// Why an address is not used.
///
/// The API server keeps most of these out of EndpointSlices, but not out of every field, and a directory has no
/// such guard. Translating to one of them would reach what only this node, or its link, may reach.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Unusable {
    Malformed,
    OtherFamily,
    Unspecified,
    Loopback,
    LinkLocal,
    Multicast,
    Broadcast,
    /// 0.0.0.0/8 means "this network" and 240.0.0.0/4 was never given out (RFC 6890): no pod has one.
    Reserved,
    /// IPv4-mapped IPv6 would smuggle an IPv4 destination past every IPv4 rule.
    Mapped,
    Zone,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unusable::Malformed => "is no IP address",
            Unusable::OtherFamily => "is not of the family the object says",
            Unusable::Unspecified => "is the unspecified address",
            Unusable::Loopback => "is a loopback address",
            Unusable::LinkLocal => "is a link-local address",
            Unusable::Multicast => "is a multicast address",
            Unusable::Broadcast => "is the broadcast address",
            Unusable::Reserved => "is of a reserved range",
            Unusable::Mapped => "is an IPv4-mapped IPv6 address",
            Unusable::Zone => "has a zone id",
        })
    }
}

/// An address that may be a service's or an endpoint's.
pub fn parse_usable(text: &str) -> Result<IpAddr, Unusable> {
    if text.contains('%') {
        return Err(Unusable::Zone);
    }
    let address = parse(text).ok_or(Unusable::Malformed)?;
    match unusable(address) {
        Some(reason) => Err(reason),
        None => Ok(address),
    }
}

/// An address prefix, without its host bits. `None` if it is none.
pub fn parse_cidr(text: &str) -> Option<Cidr> {
    let (address, length) = text.split_once('/')?;
    let address = parse(address)?;
    let length = decimal(length, 128)? as u8;
    let address = match address {
        IpAddr::V4(v4) if length <= 32 => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
        }
        IpAddr::V4(_) => return None,
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => return None,
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
    };
    Some(Cidr { address, length })
}

/// The family an object names in `ipFamilies` or `addressType`.
pub fn parse_family(text: &str) -> Option<Family> {
    match text {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    }
}

fn parse(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        text.parse().ok().map(IpAddr::V6)
    } else {
        parse_v4(text).map(IpAddr::V4)
    }
}

/// Four decimal numbers with any number of leading zeros.
fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = decimal(parts.next()?, 255)? as u8;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

fn decimal(text: &str, most: u32) -> Option<u32> {
    if text.is_empty() {
        return None;
    }
    text.bytes().try_fold(0, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| u32::from(byte - b'0'))?;
        Some(value * 10 + digit).filter(|value| *value <= most)
    })
}

fn unusable(address: IpAddr) -> Option<Unusable> {
    let (link_local, other) = match address {
        IpAddr::V4(v4) => (
            v4.is_link_local(),
            match v4.octets() {
                [255, 255, 255, 255] => Some(Unusable::Broadcast),
                // Class E, 240.0.0.0/4, is like any other to Linux, and some clusters have their pods there.
                [0, ..] => Some(Unusable::Reserved),
                _ => None,
            },
        ),
        IpAddr::V6(v6) => (
            v6.is_unicast_link_local(),
            v6.to_ipv4_mapped().map(|_| Unusable::Mapped),
        ),
    };
    if address.is_unspecified() {
        Some(Unusable::Unspecified)
    } else if address.is_loopback() {
        Some(Unusable::Loopback)
    } else if link_local {
        Some(Unusable::LinkLocal)
    } else if address.is_multicast() {
        Some(Unusable::Multicast)
    } else {
        other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a25_leading_zeros_are_decimal() {
        for (text, want) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.000.00.0001", Some("10.0.0.1")),
            ("10.020.030.040", Some("10.20.30.40")),
            ("0010.0.0.255", Some("10.0.0.255")),
            ("fd00::1", Some("fd00::1")),
            ("10.0.0.256", None),
            ("10.0.0.99999999999999999999", None),
            ("10.0.0", None),
            ("10.0.0.", None),
            ("10.0.0.1.2", None),
            ("10.0.0.+1", None),
            ("10.0.0.0x1", None),
            (" 10.0.0.1", None),
            ("10.0.0.1 ", None),
            ("10.0.0.١", None),
            ("", None),
            ("example.org", None),
            ("10.0.0.1:80", None),
        ] {
            assert_eq!(
                parse(text),
                want.map(|want| want.parse().unwrap()),
                "{text:?}"
            );
        }
    }

    #[test]
    fn addresses_nobody_else_can_reach_are_refused() {
        for (text, want) in [
            ("0.0.0.0", Unusable::Unspecified),
            ("::", Unusable::Unspecified),
            ("127.0.0.1", Unusable::Loopback),
            ("127.255.0.9", Unusable::Loopback),
            ("0127.0.0.1", Unusable::Loopback),
            ("::1", Unusable::Loopback),
            ("169.254.169.254", Unusable::LinkLocal),
            ("fe80::1", Unusable::LinkLocal),
            ("febf::1", Unusable::LinkLocal),
            ("224.0.0.1", Unusable::Multicast),
            ("239.255.255.255", Unusable::Multicast),
            ("ff02::1", Unusable::Multicast),
            ("255.255.255.255", Unusable::Broadcast),
            ("0.1.2.3", Unusable::Reserved),
            ("::ffff:10.0.0.1", Unusable::Mapped),
            ("::ffff:7f00:1", Unusable::Mapped),
            ("fe80::1%eth0", Unusable::Zone),
            ("10.0.0.1%1", Unusable::Zone),
            ("nonsense", Unusable::Malformed),
        ] {
            assert_eq!(parse_usable(text), Err(want), "{text}");
        }
    }

    #[test]
    fn class_e_is_like_any_other() {
        for text in ["240.0.0.1", "240.1.2.3", "255.255.255.254"] {
            assert_eq!(parse_usable(text), Ok(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn prefixes_lose_their_host_bits() {
        for (text, want) in [
            ("10.1.2.3/8", Some(("10.0.0.0", 8))),
            ("010.1.2.3/08", Some(("10.0.0.0", 8))),
            ("0.0.0.0/0", Some(("0.0.0.0", 0))),
            ("1.2.3.4/32", Some(("1.2.3.4", 32))),
            ("fd00:1:2::3/48", Some(("fd00:1:2::", 48))),
            ("::/0", Some(("::", 0))),
            ("fd00::1/128", Some(("fd00::1", 128))),
            ("10.0.0.0/33", None),
            ("fd00::/129", None),
            ("10.0.0.0/", None),
            ("10.0.0.0", None),
            ("10.0.0.0/-1", None),
            ("10.0.0.0/8/8", None),
            ("::ffff:10.0.0.0/104", None),
            ("fe80::%eth0/64", None),
        ] {
            let want = want.map(|(address, length)| Cidr {
                address: address.parse().unwrap(),
                length,
            });
            assert_eq!(parse_cidr(text), want, "{text}");
        }
    }
}
