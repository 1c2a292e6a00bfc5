//! Service ports that do not get a frontend because another one has it (spec D22).
//!
//! Read from the claims as they stand, not told by plans: within a burst, who loses to whom depends on what is planned
//! first, and the plan that ends a conflict need not be the loser's.

use std::fmt;
use std::net::IpAddr;

use super::Shown;
use super::ledger::Ledger;
use crate::model::ServicePortId;

/// Two service ports want one frontend.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Conflict {
    pub loser: ServicePortId,
    pub address: IpAddr,
    pub port: u16,
    pub winner: ServicePortId,
}

impl Ledger {
    /// Another number whenever there may be other conflicts than before. Most plans change none, and there may be many.
    pub fn contests(&self) -> u64 {
        self.claims.contests()
    }

    /// All conflicts there are now, in no order.
    pub fn conflicts(&self) -> impl Iterator<Item = Conflict> {
        self.claims.contested().filter_map(|(key, owner, loser)| {
            Some(Conflict {
                loser: self.service_port(loser)?.clone(),
                address: key.address,
                port: key.port,
                winner: self.service_port(owner)?.clone(),
            })
        })
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            loser,
            address,
            port,
            winner,
        } = self;
        write!(
            f,
            "service port {} does not get {address} port {port}: {} has it; give one of them another address or port",
            Shown(loser),
            Shown(winner)
        )
    }
}
