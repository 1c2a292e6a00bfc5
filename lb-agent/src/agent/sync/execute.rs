//! Carrying out plans, and what becomes of those that fail.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use tracing::{error, warn};

use super::failed::Blame;
use super::{RETRY, Sync, shown};
use crate::agent::{UPKEEP, sockets};
use crate::datapath;
use crate::plan::{Plan, Retired, TakenBack, Write};
use crate::snapshot::{ObjectName, Service};

impl Sync {
    /// Carries out plans; what fails is named and tried again later.
    pub(super) fn execute(&mut self, mut plans: Vec<(Option<ObjectName>, Plan)>) {
        let now = Instant::now();
        let writes: Vec<&[Write]> = plans
            .iter()
            .map(|(_, plan)| plan.writes.as_slice())
            .collect();
        let applied = self.datapath.apply(&writes);
        if applied.entries > 0 {
            self.metrics.table_written("all", applied.entries as u64);
        }
        let failures: HashMap<usize, &datapath::Failure> = applied
            .failures
            .iter()
            .map(|failure| (failure.plan, failure))
            .collect();
        let mut retire = Retired::default();
        let mut debtor = None;
        let mut vanished = HashSet::new();
        let mut taken_back = Vec::new();
        for (index, (name, plan)) in plans.drain(..).enumerate() {
            for problem in &plan.problems {
                warn!(%problem, "could not serve part of a Service");
                self.refusals
                    .refused(&problem.service().service, problem.to_string());
                self.failed
                    .insert(problem.service().service.clone(), Blame::Service, now);
            }
            if let Some(failure) = failures.get(&index) {
                self.metrics.table_write_failed(failure.table);
                let shown = name
                    .as_ref()
                    .map(shown)
                    .unwrap_or_else(|| "this node's addresses".into());
                error!(
                    service = shown,
                    %failure,
                    "could not write; what was there before stays in force, trying again every {} s",
                    UPKEEP.as_secs()
                );
                match &name {
                    Some(name) if failure.lacked_room() => {
                        let back = self.ledger.no_room(name, plan, failure.from);
                        if back.owes {
                            debtor = Some(debtor.flatten().or_else(|| Some(name.clone())));
                        }
                        taken_back.push((name.clone(), back));
                    }
                    _ => {
                        let mut unwritten = plan.writes;
                        unwritten.drain(..failure.from.min(unwritten.len()));
                        self.ledger.failed(name.as_ref(), unwritten, plan.retire);
                        debtor = Some(debtor.flatten().or_else(|| name.clone()));
                    }
                }
                match name {
                    Some(name) => {
                        self.refusals.refused(&name, failure.to_string());
                        self.failed.insert(name, Blame::of(failure), now);
                    }
                    None => self.node_changed = true,
                }
                self.retry_at = now + RETRY;
                continue;
            }
            if let (Some(name), true) = (&name, plan.problems.is_empty()) {
                self.refusals.accepted(name);
            }
            vanished.extend(sockets::vanished(&plan.writes));
            retire.append(plan.retire);
        }
        self.sockets.end(vanished);
        self.take_back(taken_back);
        match debtor {
            // A frontend that should have gone over to a failed Service may still lead to what others gave up.
            Some(debtor) => self.ledger.failed(debtor.as_ref(), Vec::new(), retire),
            None if retire.is_empty() => {}
            None => self.grace.retire(retire),
        }
    }

    /// Removes what Services without room have put into the tables, so that others fit.
    fn take_back(&mut self, all: Vec<(ObjectName, TakenBack)>) {
        let writes: Vec<&[Write]> = all.iter().map(|(_, back)| &back.writes[..]).collect();
        let mut failures: HashMap<usize, datapath::Failure> = self
            .datapath
            .apply(&writes)
            .failures
            .into_iter()
            .map(|failure| (failure.plan, failure))
            .collect();
        for (index, (service, mut back)) in all.into_iter().enumerate() {
            match failures.remove(&index) {
                Some(failure) => {
                    error!(service = shown(&service), %failure, "could not take back what did not fit");
                    back.writes.drain(..failure.from.min(back.writes.len()));
                    self.ledger.failed(Some(&service), back.writes, back.retire);
                }
                None if back.retire.is_empty() => {}
                None => self.grace.retire(back.retire),
            }
        }
    }
}

/// How many frontends a Service asks for, about.
pub(super) fn frontends(service: &Service) -> usize {
    service.ports.len() * (1 + service.external_ips.len() + service.load_balancer_ips.len())
}
