//! What the API server says about a Service, and what `beeline service get` reads back from the kernel.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use lb_tests::control_plane::objects::{endpoint, service, service_path, slice, slice_path};
use lb_tests::control_plane::rig::Rig;
use lb_tests::control_plane::sandbox::{self, NODE, eventually};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

/// Spec A26, A10. Upstream: "should be able to change the type and ports of a TCP service".
#[test]
fn frontends_follow_the_type() {
    sandbox::run(|sandbox| {
        let rig = Rig::start(sandbox)?;
        rig.admin.create(&service("web"))?;
        rig.admin
            .create(&slice("web-1", "web", 8080, &["192.0.2.11"]))?;
        let vips = rig.vips("web")?;
        let cluster_ips = [
            format!("ClusterIP {} 80", vips.v4),
            format!("ClusterIP {} 80", vips.v6),
        ];
        expect_frontends(&rig, &cluster_ips)?;

        let stored = rig
            .admin
            .patch(&service_path("web"), &json!({"spec": {"type": "NodePort"}}))?;
        let node_port = stored["spec"]["ports"][0]["nodePort"].to_string();
        let mut with_node_port = cluster_ips.to_vec();
        with_node_port.extend(["0.0.0.0", "::"].map(|any| format!("NodePort {any} {node_port}")));
        expect_frontends(&rig, &with_node_port)?;

        rig.admin.patch(
            &service_path("web"),
            &json!({"spec": {"type": "ClusterIP"}}),
        )?;
        expect_frontends(&rig, &cluster_ips)?;

        rig.admin.delete(&service_path("web"))?;
        eventually("no table names it", SOON, || {
            let services = rig.sandbox.beeline_json(&["service", "list"])?;
            Ok(items(&services).all(|item| item["name"] != "web"))
        })
    });
}

/// Spec A22, D3.
#[test]
fn endpoints_and_verdicts_follow_slices_and_policy() {
    sandbox::run(|sandbox| {
        let rig = Rig::start(sandbox)?;
        rig.admin.create(&service("web"))?;
        rig.admin
            .create(&slice("web-1", "web", 8080, &["192.0.2.11", "192.0.2.12"]))?;
        expect(&rig, "IPv4", &["192.0.2.11", "192.0.2.12"], "translate")?;
        expect(&rig, "IPv6", &[], "REJECT")?;

        // Nobody is here: silence (D3). Endpoints elsewhere are out of reach, so no table has them.
        rig.admin.patch(
            &service_path("web"),
            &json!({"spec": {"internalTrafficPolicy": "Local"}}),
        )?;
        expect(&rig, "IPv4", &[], "DROP")?;
        let mut here = endpoint("192.0.2.12");
        here["nodeName"] = json!(NODE);
        rig.admin.patch(
            &slice_path("web-1"),
            &json!({"endpoints": [endpoint("192.0.2.11"), here]}),
        )?;
        expect(&rig, "IPv4", &["192.0.2.12"], "translate")?;
        rig.admin.delete(&slice_path("web-1"))?;
        expect(&rig, "IPv4", &[], "REJECT")
    });
}

/// Soon, Service `web` has exactly these frontends: type, address and port.
fn expect_frontends(rig: &Rig<'_>, expected: &[String]) -> Result<()> {
    let expected: BTreeSet<String> = expected.iter().cloned().collect();
    eventually(&format!("web has {expected:?}"), SOON, || {
        let service = rig.sandbox.beeline_json(&["service", "get", "web"])?;
        let frontends =
            items(&service).flat_map(|item| item["frontends"].as_array().into_iter().flatten());
        let met: BTreeSet<String> = frontends
            .map(|frontend| {
                format!(
                    "{} {} {}",
                    text(&frontend["type"]),
                    text(&frontend["address"]),
                    frontend["port"]
                )
            })
            .collect();
        ensure!(met == expected, "met {met:?}");
        Ok(true)
    })
}

/// Soon, Service `web` has these endpoints in one family, and its ClusterIP that verdict.
fn expect(rig: &Rig<'_>, family: &str, endpoints: &[&str], verdict: &str) -> Result<()> {
    eventually(
        &format!("web has {endpoints:?} and {verdict} in {family}"),
        SOON,
        || {
            let service = rig.sandbox.beeline_json(&["service", "get", "web"])?;
            let mut of_family = items(&service).filter(|item| item["family"] == family);
            let Some(item) = of_family.next() else {
                anyhow::bail!("met {service}");
            };
            let listed = item["endpoints"].as_array().into_iter().flatten();
            let met: BTreeSet<&str> = listed.map(|endpoint| text(&endpoint["address"])).collect();
            ensure!(
                met.iter().eq(endpoints.iter()) && item["frontends"][0]["verdict"] == verdict,
                "met {item}"
            );
            Ok(true)
        },
    )
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}
