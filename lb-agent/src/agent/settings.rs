//! What the programs are told, from configuration, cluster and system.

use std::net::IpAddr;

use lb_ebpf::abi::address::{Address4, Address6};
use lb_ebpf::abi::settings::{
    MASQUERADE_ALL, PODS_BY_ADDRESS, PREFIXES, Prefix4, Prefix6, SNAT_LOCAL, SOCKETS_ALL,
    SOCKETS_HOST, STACK_FORWARDS, Settings, TCP_PEER_SERVICE,
};
use tracing::warn;

use super::ports::source_ports;
use super::timeouts::Timeouts;
use crate::config::{Config, Forwarding, SnatLocal, SocketLb, SocketPeer};
use crate::snapshot::Cidr;

/// Settings for a configuration, the cluster's service CIDRs, and the prefixes of local pods if those tell.
pub(super) fn settings(
    config: &Config,
    host_netns: u64,
    service_cidrs: &[Cidr],
    pod_cidrs: Option<&[Cidr]>,
) -> Settings {
    let timeouts = Timeouts::read(&config.conntrack);
    let pool = source_ports();
    let mut flags = match config.socket_lb {
        SocketLb::All => SOCKETS_ALL | SOCKETS_HOST,
        SocketLb::Host => SOCKETS_HOST,
        SocketLb::Off => 0,
    };
    if config.socket_lb_peer == SocketPeer::Service {
        flags |= TCP_PEER_SERVICE;
    }
    if config.masquerade_all {
        flags |= MASQUERADE_ALL;
    }
    if config.snat_local == SnatLocal::KubeProxy {
        flags |= SNAT_LOCAL;
    }
    if config.forwarding == Forwarding::Stack {
        flags |= STACK_FORWARDS;
    }
    if pod_cidrs.is_some() {
        flags |= PODS_BY_ADDRESS;
    }
    let mut settings = Settings {
        host_netns,
        flags,
        timeout_new: timeouts.new,
        timeout_udp: timeouts.udp,
        timeout_tcp: timeouts.tcp,
        timeout_closing: timeouts.closing,
        timeout_closed: timeouts.closed,
        nat_port_first: *pool.start(),
        nat_port_last: *pool.end(),
        ..Settings::default()
    };
    put_prefixes(
        service_cidrs,
        &mut settings.service_cidrs4,
        &mut settings.service_cidrs6,
    );
    put_prefixes(
        pod_cidrs.unwrap_or_default(),
        &mut settings.pod_cidrs4,
        &mut settings.pod_cidrs6,
    );
    settings
}

/// The cluster did not name its service CIDRs yet: those in force stay.
pub(super) fn keep_service_cidrs(settings: &mut Settings, former: &Settings) {
    settings.service_cidrs4 = former.service_cidrs4;
    settings.service_cidrs6 = former.service_cidrs6;
}

/// Writes prefixes to their slots. A prefix of length 0 would claim the whole world and is left out.
fn put_prefixes(cidrs: &[Cidr], v4: &mut [Prefix4; PREFIXES], v6: &mut [Prefix6; PREFIXES]) {
    let (mut next4, mut next6) = (0, 0);
    for cidr in cidrs.iter().filter(|cidr| cidr.length > 0) {
        let room = match cidr.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(cidr.length))
                    .unwrap_or(0);
                let prefix = Prefix4 {
                    address: Address4 {
                        octets: (u32::from(address) & mask).to_be_bytes(),
                    },
                    mask: Address4 {
                        octets: mask.to_be_bytes(),
                    },
                };
                put(v4, &mut next4, prefix)
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(cidr.length))
                    .unwrap_or(0);
                let prefix = Prefix6 {
                    address: Address6 {
                        octets: (u128::from(address) & mask).to_be_bytes(),
                    },
                    mask: Address6 {
                        octets: mask.to_be_bytes(),
                    },
                };
                put(v6, &mut next6, prefix)
            }
        };
        if !room {
            warn!(
                cidr = %format_args!("{}/{}", cidr.address, cidr.length),
                limit = PREFIXES,
                "more service or pod CIDRs of a family than the datapath holds; this one is left out"
            );
        }
    }
}

fn put<T>(slots: &mut [T], next: &mut usize, value: T) -> bool {
    match slots.get_mut(*next) {
        Some(slot) => {
            *slot = value;
            *next += 1;
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_become_value_and_mask() {
        let (mut v4, mut v6) = (
            [Prefix4::default(); PREFIXES],
            [Prefix6::default(); PREFIXES],
        );
        let cidrs = [
            Cidr {
                address: "10.96.1.2".parse().unwrap(),
                length: 16,
            },
            Cidr {
                address: "0.0.0.0".parse().unwrap(),
                length: 0,
            },
            Cidr {
                address: "fd96::1".parse().unwrap(),
                length: 112,
            },
        ];
        put_prefixes(&cidrs, &mut v4, &mut v6);
        assert_eq!(v4[0].address.octets, [10, 96, 0, 0]);
        assert_eq!(v4[0].mask.octets, [255, 255, 0, 0]);
        assert_eq!(v4[1], Prefix4::default());
        assert_eq!(v6[0].mask.octets[13..], [255, 0, 0]);
        assert_eq!(v6[0].address.octets[15], 0);
    }
}
