//! Address prefixes in the settings: those that service addresses come from, where whatever is in them is a
//! service's or nobody's (spec D5), and those of local pods, if addresses tell them (spec E6, E7, E10).

use lb_ebpf::abi::address::{Address4, Address6, CLUSTER_IP, EXTERNAL, NODE, NODE_LOCAL};
use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::settings::{PREFIXES, Prefix4, Prefix6, Settings};

use crate::maps::Tables;

/// Membership in the prefixes of the settings.
pub(crate) trait ServiceCidrs: Tables {
    fn in_service_cidr(settings: &Settings, address: Self::Addr) -> bool;
    /// Whether a pod CIDR has the address; `None` if this family has none.
    fn in_pod_cidr(settings: &Settings, address: Self::Addr) -> Option<bool>;
}

/// Whether a packet that nobody translated must not leave: the next router would send it back (spec D4, D5). `uses` are
/// those of its destination.
#[inline(always)]
pub(crate) fn must_stay<F: ServiceCidrs>(
    settings: &Settings,
    uses: u32,
    destination: F::Addr,
) -> bool {
    uses & CLUSTER_IP != 0
        || uses & (EXTERNAL | NODE | NODE_LOCAL) == 0 && F::in_service_cidr(settings, destination)
}

impl ServiceCidrs for V4 {
    #[inline(always)]
    fn in_service_cidr(settings: &Settings, address: <V4 as Family>::Addr) -> bool {
        within4(&settings.service_cidrs4, address)
    }

    #[inline(always)]
    fn in_pod_cidr(settings: &Settings, address: <V4 as Family>::Addr) -> Option<bool> {
        let prefixes = &settings.pod_cidrs4;
        (prefixes[0].mask.word() != 0).then(|| within4(prefixes, address))
    }
}

impl ServiceCidrs for V6 {
    #[inline(always)]
    fn in_service_cidr(settings: &Settings, address: <V6 as Family>::Addr) -> bool {
        within6(&settings.service_cidrs6, address)
    }

    #[inline(always)]
    fn in_pod_cidr(settings: &Settings, address: <V6 as Family>::Addr) -> Option<bool> {
        let prefixes = &settings.pod_cidrs6;
        (prefixes[0].mask.words()[0] != 0).then(|| within6(prefixes, address))
    }
}

#[inline(always)]
fn within4(prefixes: &[Prefix4; PREFIXES], address: Address4) -> bool {
    for prefix in prefixes {
        let mask = prefix.mask.word();
        if mask == 0 {
            return false;
        }
        if address.word() & mask == prefix.address.word() {
            return true;
        }
    }
    false
}

#[inline(always)]
fn within6(prefixes: &[Prefix6; PREFIXES], address: Address6) -> bool {
    let a = address.words();
    for prefix in prefixes {
        let (m, p) = (prefix.mask.words(), prefix.address.words());
        if m[0] == 0 {
            return false;
        }
        if (a[0] & m[0]) ^ p[0] | (a[1] & m[1]) ^ p[1] | (a[2] & m[2]) ^ p[2] | (a[3] & m[3]) ^ p[3]
            == 0
        {
            return true;
        }
    }
    false
}
