//! A plan that finds no room takes none: what it put under new keys goes again, so that other Services fit.
//!
//! What was there before the plan stays in force, also where the plan has written it anew.

use std::collections::HashMap;
use std::net::IpAddr;

use lb_ebpf::abi::frontend::Frontend;

use super::claims::FrontendId;
use super::ledger::{Debt, Ledger};
use super::{Plan, Write, record};
use crate::model::FrontendKind;
use crate::snapshot::ObjectName;

impl Ledger {
    /// As [`Ledger::failed`], for a plan of `service` that failed for want of room, its writes before `from` being done.
    /// Gives the writes that take back what is new; if one of those fails, hand it and the rest to [`Ledger::failed`].
    pub fn no_room(&mut self, service: &ObjectName, plan: Plan, from: usize) -> Vec<Write> {
        let opens = matches!(
            plan.writes.get(from),
            Some(Write::Frontend4 { .. } | Write::Frontend6 { .. } | Write::Address { .. })
        );
        // A plan that fails behind these serves all it wanted to.
        let fresh = if opens || from < plan.fresh.end {
            plan.fresh
        } else {
            0..0
        };
        let users = self.users(service);
        let (mut removals, mut unwritten) = (Vec::new(), Vec::new());
        let mut owed = Debt::default();
        for (at, write) in plan.writes.into_iter().enumerate() {
            let new = fresh.contains(&at);
            let removal = new
                .then(|| self.take_back(&write, &users, &mut owed))
                .flatten();
            match removal {
                Some(removal) => removals.push(removal),
                None if at >= from => unwritten.push(write),
                None => {}
            }
        }
        self.owe(service.clone(), owed);
        self.failed(Some(service), unwritten, plan.retire);
        if !opens {
            // It did not come to them.
            return Vec::new();
        }
        // Backwards: nobody is led to an address whose frontends are gone.
        removals.reverse();
        removals
    }

    /// Notes that the tables do not have what `write` put there, and gives the write that makes it so. `None` where
    /// others rely on it by now.
    fn take_back(
        &mut self,
        write: &Write,
        users: &HashMap<IpAddr, u32>,
        owed: &mut Debt,
    ) -> Option<Write> {
        let mut frontend = |key: FrontendId, frontend: Frontend| {
            if self.claims.written(key) != Some(frontend) {
                return None;
            }
            self.claims.clear_written(key);
            owed.frontends.push(key);
            Some(record::frontend(key, None))
        };
        match write {
            Write::Frontend4 { key, frontend: new } => frontend(record::id_of(key), *new),
            Write::Frontend6 { key, frontend: new } => frontend(record::id_of(key), *new),
            Write::Address { address, flags } => {
                let users = users.get(address).copied().unwrap_or_default();
                if !self.addresses.take_back(*address, *flags, users) {
                    return None;
                }
                owed.addresses.push(*address);
                Some(Write::Address {
                    address: *address,
                    flags: 0,
                })
            }
            _ => None,
        }
    }

    /// How many frontends of a Service each address has.
    fn users(&self, service: &ObjectName) -> HashMap<IpAddr, u32> {
        let ids = self.services.get(service).into_iter().flatten();
        let ports = ids.filter_map(|id| self.port(*id));
        let frontends = ports.flat_map(|port| &port.frontends);
        let mut users = HashMap::new();
        for frontend in frontends.filter(|frontend| frontend.kind != FrontendKind::NodePort) {
            *users.entry(frontend.address).or_default() += 1;
        }
        users
    }
}
