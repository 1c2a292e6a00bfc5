//! A plan that finds no room takes none: what it put under new keys goes again, so that other Services fit.
//!
//! What was there before the plan stays in force, also where the plan has written it anew.

use std::collections::HashMap;
use std::net::IpAddr;

use lb_ebpf::abi::frontend::Frontend;

use super::claims::FrontendId;
use super::ledger::{Debt, Ledger};
use super::{Plan, Retired, Write, record};
use crate::model::FrontendKind;
use crate::snapshot::ObjectName;

/// What is to be done about a plan that found no room.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct TakenBack {
    /// What takes back what is new. If one of these fails, hand it and the rest to [`Ledger::failed`], with `retire`.
    pub writes: Vec<Write>,
    /// For [`Ledger::release`], after the writes and a grace period.
    pub retire: Retired,
    /// Whether something may still lead to what this plan, or others carried out together with it, gave up.
    pub owes: bool,
}

impl Ledger {
    /// As [`Ledger::failed`], for a plan of `service` that failed for want of room, its writes before `from` being done.
    pub fn no_room(&mut self, service: &ObjectName, plan: Plan, from: usize) -> TakenBack {
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
        if !opens {
            // It did not come to them.
            removals.clear();
        }
        // Backwards: nobody is led to an address whose frontends are gone.
        removals.reverse();
        if !opens || unwritten.iter().any(leads) {
            self.failed(Some(service), unwritten, plan.retire);
            return TakenBack {
                writes: removals,
                owes: true,
                ..TakenBack::default()
            };
        }
        // Every frontend leads to what is current, so what was given up is nobody's. Kept with the debt, some for every
        // try, it would fill the tables. What is left takes no room; addresses wait for their frontends.
        let (addresses, rest): (Vec<_>, Vec<_>) = unwritten
            .into_iter()
            .partition(|write| matches!(write, Write::Address { .. }));
        removals.extend(rest);
        self.failed(Some(service), addresses, Retired::default());
        TakenBack {
            writes: removals,
            retire: plan.retire,
            owes: false,
        }
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

fn leads(write: &Write) -> bool {
    matches!(
        write,
        Write::Frontend4 { .. }
            | Write::Frontend6 { .. }
            | Write::Frontend4Gone { .. }
            | Write::Frontend6Gone { .. }
    )
}
