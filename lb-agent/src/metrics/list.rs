//! The list: kind, type, name and help of every metric, and the labels they carry.
//!
//! Append only: a renamed metric breaks somebody's dashboard.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::snapshot;

type FloatGauge = Gauge<f64, AtomicU64>;
type ByFamily<M> = Family<FamilyLabel, M, fn() -> M>;

/// Declares the metrics: kind, field, type, constructor, final name, help.
macro_rules! list {
    ($($kind:ident $field:ident: $ty:ty = $new:expr, $name:literal, $help:literal;)+) => {
        pub(super) struct List { $(pub(super) $field: $ty),+ }

        /// Name, type and help of every metric, for the reference page.
        pub const ALL: &[(&str, &str, &str)] = &[$(($name, stringify!($kind), $help)),+];

        pub(super) fn register(registry: &mut Registry) -> List {
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
        "beeline_table_capacity", "Entries that the table may grow to";
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
    counter cpu: Counter<f64, AtomicU64> = Counter::default(),
        "process_cpu_seconds_total", "Processor time the agent used, in user and kernel mode";
    gauge open_files: Gauge = Gauge::default(),
        "process_open_fds", "Open file descriptors of the agent";
    gauge resident: Gauge = Gauge::default(),
        "process_resident_memory_bytes", "Resident memory of the agent";
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(super) struct FamilyLabel {
    pub(super) ip_family: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(super) struct PolicyLabel {
    pub(super) traffic_policy: &'static str,
    pub(super) ip_family: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(super) struct CodeLabel {
    pub(super) code: u16,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(super) struct BuildLabel {
    pub(super) version: String,
    pub(super) abi: u32,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(super) struct TableLabel {
    pub(super) table: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(super) struct EventLabel {
    pub(super) event: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(super) struct ReasonLabel {
    pub(super) reason: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(super) struct KindLabel {
    pub(super) kind: &'static str,
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

pub(super) fn ip_family(family: snapshot::Family) -> &'static str {
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
