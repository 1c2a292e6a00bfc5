//! `beeline bench quick`: what a connection through a Service costs on this very node, beside one to its endpoints.
//!
//! A few hundred connections with pauses between them, which no server and no node feels. A comparison under load is a
//! matter for a machine of its own: see docs/benchmarks.md.

use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::live::{LiveTables, ServicePort, Verdict};
use super::output::{self, Format};
use super::query::ServiceQuery;
use super::{CommandError, Exit, ListArgs, Printed, service};

/// Connections of each kind.
const CONNECTIONS: usize = 200;
/// Rest after each: at most this many hundred connections a second.
const PAUSE: Duration = Duration::from_millis(5);
/// A connection that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(1);

/// Connections of one kind.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Connections {
    to: &'static str,
    p50_microseconds: f64,
    p99_microseconds: f64,
    failed: usize,
}

/// Both kinds.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Comparison {
    service: String,
    frontend: SocketAddr,
    endpoints: usize,
    connections: [Connections; 2],
    /// Median through the Service by median to endpoints.
    ratio: f64,
}

/// Compares and tells.
pub(super) fn quick(
    tables: &LiveTables,
    query: &ServiceQuery,
    args: &ListArgs,
) -> Result<Printed, CommandError> {
    let services = service::select(tables, &args.query(Some(query)), args)?;
    let Some((service, frontend)) = services.iter().find_map(dialled) else {
        return Err(CommandError {
            what: format!("nothing of {query} can be compared"),
            cause: "it takes a TCP port with a ClusterIP and an endpoint that serves".into(),
            next: format!("beeline service get {query}"),
        });
    };
    let endpoints: Vec<SocketAddr> = endpoints(service).collect();
    // Alternately, so that whatever else happens on the node happens to both.
    let (mut direct, mut through) = (Vec::new(), Vec::new());
    for number in 0..CONNECTIONS {
        direct.push(connect(endpoints[number % endpoints.len()]));
        through.push(connect(frontend));
    }
    let connections = [told("endpoints", direct), told("service", through)];
    let comparison = Comparison {
        service: service.full_name(),
        frontend,
        endpoints: endpoints.len(),
        ratio: connections[1].p50_microseconds / connections[0].p50_microseconds,
        connections,
    };
    let failed: usize = comparison.connections.iter().map(|kind| kind.failed).sum();
    Ok(Printed {
        text: render(&comparison, args),
        exit: if failed == 0 {
            Exit::Fine
        } else {
            Exit::Problems
        },
    })
}

/// What of a service can be dialled.
fn dialled(service: &ServicePort) -> Option<(&ServicePort, SocketAddr)> {
    let frontend = service
        .frontends
        .iter()
        .find(|frontend| frontend.kind == "ClusterIP" && frontend.verdict == Verdict::Translate)?;
    let usable = service.protocol == "TCP" && endpoints(service).next().is_some();
    usable.then_some((service, SocketAddr::new(frontend.address, frontend.port)))
}

fn endpoints(service: &ServicePort) -> impl Iterator<Item = SocketAddr> {
    let serving =
        |endpoint: &&super::live::LiveEndpoint| endpoint.serving && endpoint.in_cluster_set;
    let serving = service.endpoints.iter().filter(serving);
    serving.map(|endpoint| SocketAddr::new(endpoint.address, endpoint.port))
}

/// How long a connection took to open, if it did.
fn connect(to: SocketAddr) -> Option<Duration> {
    let begin = Instant::now();
    let took = TcpStream::connect_timeout(&to, PATIENCE)
        .ok()
        .map(|_| begin.elapsed());
    thread::sleep(PAUSE);
    took
}

fn told(to: &'static str, outcomes: Vec<Option<Duration>>) -> Connections {
    let mut times: Vec<f64> = outcomes
        .iter()
        .flatten()
        .map(|time| time.as_secs_f64() * 1e6)
        .collect();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let last = times.len().saturating_sub(1) as f64;
        let found = times.get((share * last).round() as usize);
        found.copied().unwrap_or(f64::NAN)
    };
    Connections {
        to,
        p50_microseconds: at(0.5),
        p99_microseconds: at(0.99),
        failed: outcomes.len() - times.len(),
    }
}

fn render(comparison: &Comparison, args: &ListArgs) -> String {
    if args.show.output == Format::Json {
        return output::json_object("Comparison", &serde_json::json!(comparison));
    }
    let rows = comparison
        .connections
        .iter()
        .map(|kind| {
            let to = match kind.to {
                "service" => format!("{} at {}", comparison.service, comparison.frontend),
                _ => format!("its endpoints ({})", comparison.endpoints),
            };
            vec![
                to,
                format!("{:.1}", kind.p50_microseconds),
                format!("{:.1}", kind.p99_microseconds),
                kind.failed.to_string(),
            ]
        })
        .collect();
    let header = ["CONNECTIONS TO", "P50 µs", "P99 µs", "FAILED"];
    let table = output::columns(args.show.palette(), &header, rows);
    format!(
        "{table}\nA connection through the Service takes {:.2} of a direct one's time here.\n",
        comparison.ratio
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample;

    #[test]
    fn only_what_answers_in_tcp_is_dialled() {
        let services = sample::tables().services();
        let found: Vec<_> = services.iter().filter_map(dialled).collect();
        let [(service, frontend)] = found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(service.full_name(), "shop/web:http");
        assert_eq!(frontend, "10.96.0.10:80".parse().unwrap());
        assert!(endpoints(service).next().is_some());
    }

    #[test]
    fn failures_are_counted_and_not_timed() {
        let second = Some(Duration::from_secs(1));
        let told = told("service", vec![None, second, second]);
        assert_eq!((told.failed, told.p50_microseconds), (1, 1e6));
    }
}
