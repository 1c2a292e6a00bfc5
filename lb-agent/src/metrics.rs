//! Every metric, in one list; the handle the agent writes them through; their text.
//!
//! Names that begin with `kubeproxy_` are kube-proxy's, with its types, labels and buckets, so that
//! dashboards and scalability tests read them unchanged (spec §3.6). `beeline_` ones are ours.

pub mod serve;
mod text;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::snapshot;

/// Handle to all metrics; a clone is another reference to the same numbers.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    list: List,
    registry: Registry,
}

type FloatGauge = Gauge<f64, AtomicU64>;
type ByFamily<M> = Family<FamilyLabel, M, fn() -> M>;

/// Declares the metrics: kind, field, type, constructor, final name, help.
macro_rules! list {
    ($($kind:ident $field:ident: $ty:ty = $new:expr, $name:literal, $help:literal;)+) => {
        struct List { $($field: $ty),+ }

        /// Name, type and help of every metric, for the reference page.
        pub const ALL: &[(&str, &str, &str)] = &[$(($name, stringify!($kind), $help)),+];

        fn register(registry: &mut Registry) -> List {
            $(
                let $field: $ty = $new;
                registry.register(list!(@registered $kind $name), $help, $field.clone());
            )+
            List { $($field),+ }
        }
    };
    // The encoder appends the suffix to counters, and to nothing else.
    (@registered counter $name:literal) => { $name.strip_suffix("_total").unwrap_or($name) };
    (@registered gauge $name:literal) => { $name };
    (@registered histogram $name:literal) => { $name };
}

list! {
    histogram network_programming: ByFamily<Histogram> = by_family(network_programming_buckets),
        "kubeproxy_network_programming_duration_seconds",
        "Time from the change of a pod or Service, as its EndpointSlice's annotation tells, to the kernel holding it";
    histogram sync: ByFamily<Histogram> = by_family(sync_buckets),
        "kubeproxy_sync_proxy_rules_duration_seconds", "Duration of one round of writing changes to the kernel";
    histogram sync_full: ByFamily<Histogram> = by_family(sync_buckets),
        "kubeproxy_sync_full_proxy_rules_duration_seconds", "Duration of rounds that compared everything";
    histogram sync_partial: ByFamily<Histogram> = by_family(sync_buckets),
        "kubeproxy_sync_partial_proxy_rules_duration_seconds", "Duration of rounds that wrote only what changed";
    gauge last_sync: ByFamily<FloatGauge> = by_family(FloatGauge::default),
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds", "Unix time of the last successful round";
    gauge last_queued: ByFamily<FloatGauge> = by_family(FloatGauge::default),
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "Unix time of the last change that asked for a round";
    gauge endpoint_changes_pending: Gauge = Gauge::default(),
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending", "EndpointSlice changes not yet in the kernel";
    counter endpoint_changes: Counter = Counter::default(),
        "kubeproxy_sync_proxy_rules_endpoint_changes_total", "EndpointSlice changes seen";
    gauge service_changes_pending: Gauge = Gauge::default(),
        "kubeproxy_sync_proxy_rules_service_changes_pending", "Service changes not yet in the kernel";
    counter service_changes: Counter = Counter::default(),
        "kubeproxy_sync_proxy_rules_service_changes_total", "Service changes seen";
    gauge no_local_endpoints: Family<PolicyLabel, Gauge> = Family::default(),
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
        "Service ports with a Local traffic policy and no endpoint on this node";
    counter healthz: Family<CodeLabel, Counter> = Family::default(),
        "kubeproxy_proxy_healthz_total", "Answers of /healthz by HTTP status";
    counter livez: Family<CodeLabel, Counter> = Family::default(),
        "kubeproxy_proxy_livez_total", "Answers of /livez by HTTP status";

    gauge build_info: Family<BuildLabel, Gauge> = Family::default(),
        "beeline_build_info", "Always 1; version of the agent and of the table layouts";
    gauge ready: Gauge = Gauge::default(),
        "beeline_ready", "1 once the first complete picture of the cluster is in the kernel";
    histogram programming: Histogram = programming_buckets(),
        "beeline_programming_duration_seconds", "Time from a change received to the kernel holding it";
    gauge services: Gauge = Gauge::default(),
        "beeline_service_ports", "Service ports in the kernel, per family";
    gauge endpoints: Gauge = Gauge::default(),
        "beeline_endpoints", "Endpoints in the kernel, counted per service port and family";
    gauge table_entries: Family<TableLabel, Gauge> = Family::default(),
        "beeline_table_entries", "Entries in use, counted by the agent";
    gauge table_capacity: Family<TableLabel, Gauge> = Family::default(),
        "beeline_table_capacity", "Entries the table can hold before it has to grow";
    counter table_writes: Family<TableLabel, Counter> = Family::default(),
        "beeline_table_writes_total", "Records written or removed";
    counter table_failures: Family<TableLabel, Counter> = Family::default(),
        "beeline_table_write_failures_total", "Writes the kernel refused";
    counter datapath: Family<EventLabel, Counter> = Family::default(),
        "beeline_datapath_events_total", "What the programs in the kernel counted";
    counter refused: Family<ReasonLabel, Counter> = Family::default(),
        "beeline_refused_objects_total", "Objects, or parts of them, that were not put into the kernel";
    gauge source_connected: Family<KindLabel, Gauge> = Family::default(),
        "beeline_source_connected", "1 while changes of this kind of object can be followed";
    counter source_events: Family<KindLabel, Counter> = Family::default(),
        "beeline_source_events_total", "Changes received";
    counter source_lists: Family<KindLabel, Counter> = Family::default(),
        "beeline_source_lists_total", "Complete lists received; more than one means that following them was interrupted";
    gauge source_last_event: Family<KindLabel, FloatGauge> = Family::default(),
        "beeline_source_last_event_timestamp_seconds", "Unix time of the last change received";

    gauge start_time: FloatGauge = FloatGauge::default(),
        "process_start_time_seconds", "Unix time the agent started";
    gauge resident: Gauge = Gauge::default(),
        "process_resident_memory_bytes", "Resident memory of the agent";
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
        list.last_sync
            .get_or_create(&label)
            .set(unix(SystemTime::now()));
    }

    /// A change whose trigger time (B18) is known is in the kernel now. A clock that runs behind the
    /// control plane's counts as no delay.
    pub fn network_programmed(&self, family: snapshot::Family, trigger_ns: i64) {
        let trigger = Duration::from_nanos(trigger_ns.max(0).unsigned_abs());
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

    /// An object or a part of it was refused; `reason` is one of few, e.g. `loopback_address`.
    pub fn refused(&self, reason: &'static str) {
        self.list()
            .refused
            .get_or_create(&ReasonLabel { reason })
            .inc();
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
        if let Some(bytes) = resident_memory() {
            self.list().resident.set(bytes);
        }
        text::render(&self.0.registry)
    }

    fn list(&self) -> &List {
        &self.0.list
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct FamilyLabel {
    ip_family: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct PolicyLabel {
    traffic_policy: &'static str,
    ip_family: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct CodeLabel {
    code: u16,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct BuildLabel {
    version: String,
    abi: u32,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct TableLabel {
    table: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct EventLabel {
    event: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

impl From<snapshot::Family> for FamilyLabel {
    fn from(family: snapshot::Family) -> Self {
        FamilyLabel {
            ip_family: ip_family(family),
        }
    }
}

impl From<snapshot::Kind> for KindLabel {
    fn from(kind: snapshot::Kind) -> Self {
        let kind = match kind {
            snapshot::Kind::Services => "services",
            snapshot::Kind::Slices => "endpointslices",
            snapshot::Kind::Node => "node",
            snapshot::Kind::ServiceCidrs => "servicecidrs",
        };
        KindLabel { kind }
    }
}

fn ip_family(family: snapshot::Family) -> &'static str {
    match family {
        snapshot::Family::V4 => "IPv4",
        snapshot::Family::V6 => "IPv6",
    }
}

fn by_family<M>(new: fn() -> M) -> ByFamily<M> {
    Family::new_with_constructor(new)
}

/// 0.25 s, 0.5 s, each second to 59 s, every 5 s to 115 s, every 30 s to 300 s: kube-proxy's, on which the
/// network programming SLO is computed.
fn network_programming_buckets() -> Histogram {
    let seconds = (1..60)
        .chain((60..120).step_by(5))
        .chain((120..=300).step_by(30));
    Histogram::new([0.25, 0.5].into_iter().chain(seconds.map(f64::from)))
}

/// 1 ms to 16.384 s by doubling: kube-proxy's.
fn sync_buckets() -> Histogram {
    Histogram::new((0..15).map(|n| f64::from(1 << n) / 1000.0))
}

/// 10 µs to 5.24288 s by doubling.
fn programming_buckets() -> Histogram {
    Histogram::new((0..20).map(|n| f64::from(10 << n) / 1_000_000.0))
}

fn unix(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

fn saturate(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn resident_memory() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
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
        metrics.network_programmed(V4, 0);
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
        metrics.refused("loopback_address");
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
            r#"kubeproxy_network_programming_duration_seconds_bucket{le="1",ip_family="IPv4"} 0"#,
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
