//! `/healthz`, `/livez` and `/readyz` on port 10256 (spec §3.5, KEP-3836).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::http::{self, Answer, Handler};
use super::{Health, Verdict, timestamp};
use crate::metrics::Metrics;

/// Serves the probes for ever.
pub async fn serve(address: SocketAddr, health: Health, metrics: Metrics) {
    http::serve("health probes", address, handler(health, metrics)).await;
}

/// The router.
pub fn handler(health: Health, metrics: Metrics) -> Handler {
    Arc::new(move |_method, path| {
        let verdict = health.verdict();
        match path {
            "/healthz" => {
                let answer = healthz(&verdict, SystemTime::now());
                metrics.healthz_answered(answer.status.as_u16());
                answer
            }
            "/livez" => {
                let answer = livez(&verdict, SystemTime::now());
                metrics.livez_answered(answer.status.as_u16());
                answer
            }
            "/readyz" => readyz(&verdict),
            _ => Answer::not_found(),
        }
    })
}

fn healthz(verdict: &Verdict, now: SystemTime) -> Answer {
    let ok = verdict.healthy && verdict.node_eligible;
    let mut body = body(verdict, ok, now);
    body.insert("nodeEligible".into(), verdict.node_eligible.into());
    Answer::json(status(ok), &Value::Object(body))
}

fn livez(verdict: &Verdict, now: SystemTime) -> Answer {
    Answer::json(
        status(verdict.healthy),
        &Value::Object(body(verdict, verdict.healthy, now)),
    )
}

fn readyz(verdict: &Verdict) -> Answer {
    match (verdict.ready, verdict.healthy) {
        (true, true) => Answer::text(StatusCode::OK, "ok\n"),
        (true, false) => Answer::text(
            StatusCode::SERVICE_UNAVAILABLE,
            "an update waits to be written to the kernel\n",
        ),
        (false, _) => Answer::text(
            StatusCode::SERVICE_UNAVAILABLE,
            "the first complete list is not in the kernel yet\n",
        ),
    }
}

fn body(verdict: &Verdict, ok: bool, now: SystemTime) -> Map<String, Value> {
    let mut body = Map::new();
    let newest = verdict
        .families
        .iter()
        .flatten()
        .map(|family| family.last_updated)
        .max();
    // Older kube-proxies told when the sync loop ran last, so whoever reads this expects a recent time
    // from a healthy proxy. Go's zero time stands for "never".
    let last_updated = match (ok, newest) {
        (true, _) => timestamp(now),
        (false, Some(time)) => timestamp(time),
        (false, None) => "0001-01-01T00:00:00Z".to_owned(),
    };
    body.insert("lastUpdated".into(), last_updated.into());
    body.insert("currentTime".into(), timestamp(now).into());
    body.insert("healthy".into(), verdict.healthy.into());
    let status: Map<String, Value> = ["IPv4", "IPv6"]
        .into_iter()
        .zip(verdict.families)
        .filter_map(|(name, family)| {
            let family = family?;
            let value =
                json!({ "lastUpdated": timestamp(family.last_updated), "healthy": family.healthy });
            Some((name.to_owned(), value))
        })
        .collect();
    if !status.is_empty() {
        body.insert("status".into(), status.into());
    }
    body
}

fn status(ok: bool) -> StatusCode {
    if ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::health::FamilyVerdict;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
    }

    fn verdict(healthy: bool, node_eligible: bool) -> Verdict {
        Verdict {
            healthy,
            node_eligible,
            ready: true,
            families: [
                Some(FamilyVerdict {
                    last_updated: at(0),
                    healthy: true,
                }),
                Some(FamilyVerdict {
                    last_updated: at(5),
                    healthy,
                }),
            ],
        }
    }

    fn read(answer: &Answer) -> Value {
        serde_json::from_str(&answer.body).unwrap()
    }

    #[test]
    fn healthy_body_says_updated_now() {
        let answer = healthz(&verdict(true, true), at(60));
        assert_eq!(answer.status, 200);
        assert_eq!(
            read(&answer),
            json!({
                "lastUpdated": "2023-11-14T22:14:20Z",
                "currentTime": "2023-11-14T22:14:20Z",
                "nodeEligible": true,
                "healthy": true,
                "status": {
                    "IPv4": { "lastUpdated": "2023-11-14T22:13:20Z", "healthy": true },
                    "IPv6": { "lastUpdated": "2023-11-14T22:13:25Z", "healthy": true },
                },
            })
        );
    }

    #[test]
    fn a_draining_node_fails_healthz_but_not_livez() {
        let draining = verdict(true, false);
        let answer = healthz(&draining, at(60));
        assert_eq!(answer.status, 503);
        assert_eq!(read(&answer)["healthy"], true);
        assert_eq!(read(&answer)["lastUpdated"], "2023-11-14T22:13:25Z");

        let live = livez(&draining, at(60));
        assert_eq!(live.status, 200);
        assert_eq!(read(&live).get("nodeEligible"), None);
    }

    #[test]
    fn a_stale_family_fails_everything() {
        let stale = verdict(false, true);
        for answer in [
            healthz(&stale, at(60)),
            livez(&stale, at(60)),
            readyz(&stale),
        ] {
            assert_eq!(answer.status, 503);
        }
        assert_eq!(
            read(&livez(&stale, at(60)))["status"]["IPv6"]["healthy"],
            false
        );
    }

    #[test]
    fn before_the_first_sync_livez_is_fine_and_readyz_is_not() {
        let fresh = Verdict {
            healthy: true,
            node_eligible: false,
            ready: false,
            families: [None, None],
        };
        assert_eq!(livez(&fresh, at(0)).status, 200);
        assert_eq!(read(&livez(&fresh, at(0))).get("status"), None);
        assert_eq!(readyz(&fresh).status, 503);
        assert_eq!(
            read(&healthz(&fresh, at(0)))["lastUpdated"],
            "0001-01-01T00:00:00Z"
        );
    }
}
