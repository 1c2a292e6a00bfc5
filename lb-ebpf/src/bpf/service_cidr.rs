//! The prefixes that service addresses come from: whatever is in them is a service's or nobody's (spec D5).

use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::settings::Settings;

use crate::maps::Tables;

/// Membership in the service CIDRs.
pub(crate) trait ServiceCidrs: Tables {
    fn in_service_cidr(settings: &Settings, address: Self::Addr) -> bool;
}

impl ServiceCidrs for V4 {
    #[inline(always)]
    fn in_service_cidr(settings: &Settings, address: <V4 as Family>::Addr) -> bool {
        for prefix in &settings.service_cidrs4 {
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
}

impl ServiceCidrs for V6 {
    #[inline(always)]
    fn in_service_cidr(settings: &Settings, address: <V6 as Family>::Addr) -> bool {
        let a = address.words();
        for prefix in &settings.service_cidrs6 {
            let (m, p) = (prefix.mask.words(), prefix.address.words());
            if m[0] == 0 {
                return false;
            }
            if (a[0] & m[0]) ^ p[0]
                | (a[1] & m[1]) ^ p[1]
                | (a[2] & m[2]) ^ p[2]
                | (a[3] & m[3]) ^ p[3]
                == 0
            {
                return true;
            }
        }
        false
    }
}
