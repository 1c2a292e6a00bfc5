//! The agent's metrics: the handle they are written through. What there is stands in [`ALL`].
//!
//! Names that begin with `kubeproxy_` are kube-proxy's, with its types, labels and buckets, so that
//! dashboards and scalability tests read them unchanged (spec §3.6). `beeline_` ones are ours.

mod list;
mod process;
pub mod serve;
mod text;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::registry::Registry;

use crate::snapshot;
pub use list::ALL;
use list::{
    BuildLabel, CodeLabel, EventLabel, FamilyLabel, KindLabel, List, PolicyLabel, ReasonLabel,
    TableLabel, ip_family, register,
};

/// Handle to all metrics; a clone is another reference to the same numbers.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    list: List,
    registry: Registry,
}

/// Which traffic policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    Internal,
    External,
}

/// How much a round looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// Everything was compared.
    Full,
    /// Only what had changed.
    Partial,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let list = register(&mut registry);
        let build = BuildLabel {
            version: env!("CARGO_PKG_VERSION").into(),
            abi: lb_ebpf::abi::ABI_VERSION,
        };
        list.build_info.get_or_create(&build).set(1);
        list.start_time.set(unix(SystemTime::now()));
        for (_, label, _) in lb_ebpf::abi::counter::ALL {
            drop(list.datapath.get_or_create(&EventLabel { event: label }));
        }
        use snapshot::Kind::{Node, ServiceCidrs, Services, Slices};
        for kind in [Services, Slices, Node, ServiceCidrs] {
            // Until a server was found, too.
            list.source_connected.get_or_create(&kind.into()).set(0);
        }
        Metrics(Arc::new(Inner { list, registry }))
    }
}

impl Metrics {
    /// A change of this family was received.
    pub fn queued(&self, family: snapshot::Family) {
        self.list()
            .last_queued
            .get_or_create(&family.into())
            .set(unix(SystemTime::now()));
    }

    /// A round of writes for this family succeeded.
    pub fn synced(&self, family: snapshot::Family, took: Duration, extent: Extent) {
        let (list, label, seconds) = (self.list(), FamilyLabel::from(family), took.as_secs_f64());
        list.sync.get_or_create(&label).observe(seconds);
        let by_extent = match extent {
            Extent::Full => &list.sync_full,
            Extent::Partial => &list.sync_partial,
        };
        by_extent.get_or_create(&label).observe(seconds);
    }

    /// Everything received for this family is in the kernel.
    pub fn in_sync(&self, family: snapshot::Family) {
        self.list()
            .last_sync
            .get_or_create(&family.into())
            .set(unix(SystemTime::now()));
    }

    /// A change whose trigger time (B18) is known is in the kernel now. One from before this process counts for
    /// nothing; a clock that runs behind the control plane's counts as no delay.
    pub fn network_programmed(&self, family: snapshot::Family, trigger_ns: i64) {
        let trigger = Duration::from_nanos(trigger_ns.max(0).unsigned_abs());
        if trigger.as_secs_f64() < self.list().start_time.get() {
            return;
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let delay = now.saturating_sub(trigger).as_secs_f64();
        self.list()
            .network_programming
            .get_or_create(&family.into())
            .observe(delay);
    }

    /// A change is in the kernel; `took` counts from its receipt.
    pub fn programmed(&self, took: Duration) {
        self.list().programming.observe(took.as_secs_f64());
    }

    /// Changes received.
    pub fn changes_seen(&self, services: u64, slices: u64) {
        self.list().service_changes.inc_by(services);
        self.list().endpoint_changes.inc_by(slices);
    }

    /// Changes received that are not in the kernel.
    pub fn changes_pending(&self, services: usize, slices: usize) {
        self.list().service_changes_pending.set(saturate(services));
        self.list().endpoint_changes_pending.set(saturate(slices));
    }

    /// Service ports under a Local policy that have no endpoint here.
    pub fn no_local_endpoints(&self, policy: Policy, family: snapshot::Family, count: usize) {
        let traffic_policy = match policy {
            Policy::Internal => "internal",
            Policy::External => "external",
        };
        let label = PolicyLabel {
            traffic_policy,
            ip_family: ip_family(family),
        };
        self.list()
            .no_local_endpoints
            .get_or_create(&label)
            .set(saturate(count));
    }

    /// `/healthz` was answered.
    pub fn healthz_answered(&self, code: u16) {
        self.list().healthz.get_or_create(&CodeLabel { code }).inc();
    }

    /// `/livez` was answered.
    pub fn livez_answered(&self, code: u16) {
        self.list().livez.get_or_create(&CodeLabel { code }).inc();
    }

    /// See `beeline_ready`.
    pub fn set_ready(&self) {
        self.list().ready.set(1);
    }

    /// How much is in the kernel.
    pub fn size(&self, service_ports: usize, endpoints: usize) {
        self.list().services.set(saturate(service_ports));
        self.list().endpoints.set(saturate(endpoints));
    }

    /// How full a table is.
    pub fn table(&self, table: &'static str, entries: usize, capacity: usize) {
        let label = TableLabel { table };
        self.list()
            .table_entries
            .get_or_create(&label)
            .set(saturate(entries));
        self.list()
            .table_capacity
            .get_or_create(&label)
            .set(saturate(capacity));
    }

    /// Records of a table were written or removed.
    pub fn table_written(&self, table: &'static str, records: u64) {
        self.list()
            .table_writes
            .get_or_create(&TableLabel { table })
            .inc_by(records);
    }

    /// The kernel refused a write.
    pub fn table_write_failed(&self, table: &'static str) {
        self.list()
            .table_failures
            .get_or_create(&TableLabel { table })
            .inc();
    }

    /// Totals of the kernel's counters, indexed by number as in [`lb_ebpf::abi::counter`].
    pub fn datapath(&self, totals: &[u64]) {
        for (number, label, _) in lb_ebpf::abi::counter::ALL {
            if let Some(total) = totals.get(*number as usize) {
                let counter = self
                    .list()
                    .datapath
                    .get_or_create(&EventLabel { event: label });
                // The kernel's total outlives agents, so it is copied, not added.
                counter.inner().store(*total, Ordering::Relaxed);
            }
        }
    }

    /// Objects and parts of them that were refused since the start; `reason` is one of few, e.g. `address`.
    pub fn refused(&self, reason: &'static str, total: u64) {
        let counter = self.list().refused.get_or_create(&ReasonLabel { reason });
        counter.inner().store(total, Ordering::Relaxed);
    }

    /// Whether a kind of object can be followed at present.
    pub fn source_connected(&self, kind: snapshot::Kind, connected: bool) {
        self.list()
            .source_connected
            .get_or_create(&kind.into())
            .set(i64::from(connected));
    }

    /// A change came in.
    pub fn source_event(&self, kind: snapshot::Kind) {
        let label = KindLabel::from(kind);
        self.list().source_events.get_or_create(&label).inc();
        self.list()
            .source_last_event
            .get_or_create(&label)
            .set(unix(SystemTime::now()));
    }

    /// A complete list came in.
    pub fn source_list(&self, kind: snapshot::Kind) {
        self.list().source_lists.get_or_create(&kind.into()).inc();
    }

    /// All metrics in the Prometheus text format.
    pub fn render(&self) -> String {
        process::observe(self.list());
        text::render(&self.0.registry)
    }

    fn list(&self) -> &List {
        &self.0.list
    }
}

fn unix(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

fn saturate(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::snapshot::Family::{V4, V6};
    use crate::snapshot::Kind;

    /// A metrics handle on which everything was recorded once.
    fn full() -> Metrics {
        let metrics = Metrics::default();
        metrics.queued(V4);
        metrics.synced(V4, Duration::from_millis(3), Extent::Full);
        metrics.synced(V6, Duration::from_micros(300), Extent::Partial);
        metrics.in_sync(V4);
        metrics.in_sync(V6);
        // Before this process: counts for nothing.
        metrics.network_programmed(V4, 0);
        metrics.network_programmed(V4, i64::MAX);
        metrics.programmed(Duration::from_micros(25));
        metrics.changes_seen(2, 5);
        metrics.changes_pending(1, 3);
        metrics.no_local_endpoints(Policy::External, V6, 4);
        metrics.healthz_answered(503);
        metrics.livez_answered(200);
        metrics.set_ready();
        metrics.size(7, 30);
        metrics.table("frontends4", 7, 1024);
        metrics.table_written("frontends4", 9);
        metrics.table_write_failed("frontends4");
        metrics.datapath(&[41]);
        metrics.refused("loopback_address", 1);
        metrics.source_connected(Kind::Slices, true);
        metrics.source_event(Kind::Slices);
        metrics.source_list(Kind::Slices);
        metrics
    }

    #[test]
    fn every_metric_is_rendered_under_its_exact_name_type_and_help() {
        let text = full().render();
        let lines: HashSet<&str> = text.lines().collect();
        for (name, kind, help) in ALL {
            assert!(
                lines.contains(format!("# TYPE {name} {kind}").as_str()),
                "no type of {name} in\n{text}"
            );
            assert!(
                lines.contains(format!("# HELP {name} {help}").as_str()),
                "no help of {name} in\n{text}"
            );
            let sample = if *kind == "histogram" {
                format!("{name}_bucket{{")
            } else {
                (*name).to_owned()
            };
            let found = lines.iter().any(|line| {
                line.strip_prefix(sample.as_str())
                    .is_some_and(|rest| kind == &"histogram" || rest.starts_with([' ', '{']))
            });
            assert!(found, "no sample of {name} in\n{text}");
        }
    }

    #[test]
    fn samples_read_as_kube_proxy_writes_them() {
        let text = full().render();
        for line in [
            r#"kubeproxy_sync_proxy_rules_endpoint_changes_total 5"#,
            r#"kubeproxy_sync_proxy_rules_endpoint_changes_pending 3"#,
            r#"kubeproxy_sync_proxy_rules_service_changes_total 2"#,
            r#"kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy="external",ip_family="IPv6"} 4"#,
            r#"kubeproxy_proxy_healthz_total{code="503"} 1"#,
            r#"kubeproxy_proxy_livez_total{code="200"} 1"#,
            r#"kubeproxy_sync_full_proxy_rules_duration_seconds_bucket{le="0.004",ip_family="IPv4"} 1"#,
            r#"kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv6"} 1"#,
            r#"kubeproxy_network_programming_duration_seconds_bucket{le="1",ip_family="IPv4"} 1"#,
            r#"beeline_table_write_failures_total{table="frontends4"} 1"#,
            r#"beeline_datapath_events_total{event="connect_translated"} 41"#,
            r#"beeline_datapath_events_total{event="icmp_translated"} 0"#,
            r#"beeline_source_connected{kind="endpointslices"} 1"#,
            r#"beeline_refused_objects_total{reason="loopback_address"} 1"#,
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line} in\n{text}");
        }
        assert!(!text.contains("# EOF") && !text.contains("_total_total"));
    }

    #[test]
    fn buckets_are_kube_proxys() {
        let bounds = |metric: &str| -> Vec<String> {
            let text = full().render();
            let start = format!("{metric}_bucket{{le=\"");
            let mut bounds: Vec<String> = text
                .lines()
                .filter(|line| line.contains("IPv4") || !line.contains("ip_family"))
                .filter_map(|line| Some(line.strip_prefix(&start)?.split('"').next()?.to_owned()))
                .collect();
            assert_eq!(bounds.pop().as_deref(), Some("+Inf"));
            bounds
        };
        let network = bounds("kubeproxy_network_programming_duration_seconds");
        assert_eq!(network.len(), 2 + 59 + 12 + 7);
        assert_eq!(network[..4], ["0.25", "0.5", "1", "2"]);
        assert_eq!(network[60..64], ["59", "60", "65", "70"]);
        assert_eq!(
            network[72..],
            ["115", "120", "150", "180", "210", "240", "270", "300"]
        );
        let sync = bounds("kubeproxy_sync_proxy_rules_duration_seconds");
        assert_eq!(
            (sync.len(), sync[0].as_str(), sync[14].as_str()),
            (15, "0.001", "16.384")
        );
        let ours = bounds("beeline_programming_duration_seconds");
        assert_eq!(
            (ours.len(), ours[0].as_str(), ours[19].as_str()),
            (20, "0.00001", "5.24288")
        );
    }
}
