//! Objects the API server stores but nobody should write: the agent lives, the rest keeps working, and what
//! was refused is named.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_tests::control_plane::objects::{endpoint, service, service_path, slice, slice_path};
use lb_tests::control_plane::rig::Rig;
use lb_tests::control_plane::sandbox::{self, Outcome, eventually};
use serde_json::{Value, json};

const WEB: &str = "192.0.2.11:8080";

/// Spec B5, B11.
#[test]
fn odd_slices_harm_nobody() {
    sandbox::run(|sandbox| {
        let mut rig = with_web(sandbox)?;
        let web = rig.vips("web")?.v4;
        for (name, change) in odd_slices() {
            let mut odd = slice(name, "odd", 8080, &["192.0.2.12"]);
            for (field, value) in change.as_object().into_iter().flatten() {
                odd[field] = value.clone();
            }
            // The list is of what gets past validation; a newer server may be stricter and the list shorter.
            rig.admin
                .create(&odd)
                .with_context(|| format!("slice {name}"))?;
        }
        rig.admin.create(&service("odd"))?;
        // Without a number, a name we dial or a family of ours, a slice adds nothing.
        rig.expect_answers(
            &rig.vips("odd")?.v4,
            &["192.0.2.12:8080", "192.0.2.13:8080"],
        )?;
        still_works(&mut rig, &web)
    });
}

/// Spec B17.
#[test]
fn addresses_nobody_may_be_sent_to_are_refused_by_name() {
    sandbox::run(|sandbox| {
        let mut rig = with_web(sandbox)?;
        let web = rig.vips("web")?.v4;
        rig.admin.create(&service("mixed"))?;
        // Multicast gets past validation.
        rig.admin.create(&slice(
            "mixed-v4",
            "mixed",
            8080,
            &["239.1.2.3", "192.0.2.12"],
        ))?;
        rig.admin.create(&slice(
            "mixed-v6",
            "mixed",
            8080,
            &["ff05::1", "2001:db8::12"],
        ))?;
        let mixed = rig.vips("mixed")?;
        rig.expect_answers(&mixed.v4, &["192.0.2.12:8080"])?;
        rig.expect_answers(&mixed.v6, &["[2001:db8::12]:8080"])?;
        for (name, address) in [("mixed-v4", "239.1.2.3"), ("mixed-v6", "ff05::1")] {
            eventually("the refusal is logged", Duration::from_secs(5), || {
                let log = rig.agent.log();
                Ok(log
                    .lines()
                    .any(|line| line.contains(name) && line.contains(address)))
            })
            .with_context(|| format!("no line names {name} and {address}"))?;
        }
        still_works(&mut rig, &web)
    });
}

/// Whoever may write a Service's status could otherwise take over the node's own loopback, as kube-proxy
/// lets them.
#[test]
fn a_load_balancer_address_cannot_capture_loopback() {
    sandbox::run(|sandbox| {
        let mut rig = with_web(sandbox)?;
        let web = rig.vips("web")?.v4;
        sandbox.serve("127.0.0.1", 80)?;
        load_balancer(
            &rig,
            "evil",
            &["127.0.0.1", "0.0.0.0", "224.0.0.5", "fe80::1"],
        )?;
        rig.expect_answers(&rig.vips("evil")?.v4, &["192.0.2.12:8080"])?;
        assert_eq!(
            rig.connect("127.0.0.1")?,
            Outcome::Answer("127.0.0.1:80".into())
        );
        still_works(&mut rig, &web)
    });
}

/// kube-proxy leaves open who wins (D22). The API server gave the address to one Service alone, so that one
/// does. `evil` sorts before `web` and comes later: neither may decide.
/// Spec D22.
#[test]
fn another_services_cluster_ip_cannot_be_taken_over() {
    sandbox::run(|sandbox| {
        let mut rig = with_web(sandbox)?;
        let web = rig.vips("web")?.v4;
        load_balancer(&rig, "evil", &[&web])?;
        rig.admin.patch(
            &service_path("evil"),
            &json!({"spec": {"externalIPs": [web]}}),
        )?;
        rig.admin.patch(
            &slice_path("evil-1"),
            &json!({"endpoints": [endpoint("192.0.2.13")]}),
        )?;
        // Tells that all of it was seen.
        rig.expect_answers(&rig.vips("evil")?.v4, &["192.0.2.13:8080"])?;
        rig.expect_answers(&web, &[WEB])?;
        rig.admin.delete(&service_path("evil"))?;
        still_works(&mut rig, &web)
    });
}

#[test]
fn huge_objects_are_served_and_removed() {
    sandbox::run(|sandbox| {
        let mut rig = with_web(sandbox)?;
        let web = rig.vips("web")?.v4;
        let mut ports = service("ports");
        // What a Service may have is bounded by its size alone.
        ports["spec"]["ports"] = (1..=1000)
            .map(|port| json!({"name": format!("p{port}"), "port": port}))
            .collect();
        rig.admin.create(&ports)?;
        let mut many = slice("many-1", "many", 8080, &["198.18.0.1"]);
        many["endpoints"] = (0..1000)
            .map(|host| endpoint(&format!("198.18.{}.{}", host / 250, host % 250 + 1)))
            .collect();
        rig.admin.create(&many)?;
        rig.admin.create(&service("many"))?;
        rig.expect_refused(&rig.vips("ports")?.v4)?;
        // One of a thousand endpoints answers, then only that one is left.
        rig.admin.patch(
            &slice_path("many-1"),
            &json!({"endpoints": [endpoint("192.0.2.12")]}),
        )?;
        rig.expect_answers(&rig.vips("many")?.v4, &["192.0.2.12:8080"])?;
        rig.admin.delete(&service_path("ports"))?;
        still_works(&mut rig, &web)
    });
}

/// Each gets past validation (v1.37.2). The one good endpoint of each is 192.0.2.12 unless it says otherwise.
fn odd_slices() -> Vec<(&'static str, Value)> {
    let bare = |address: &str| json!({"addresses": [address]});
    let port = |port: Value| json!({"ports": [port]});
    vec![
        (
            "same-address-twice",
            json!({"endpoints": [endpoint("192.0.2.12"), endpoint("192.0.2.12")]}),
        ),
        ("same-address-in-another-slice", json!({})),
        ("no-ports", json!({"ports": []})),
        ("null-ports", json!({"ports": null})),
        (
            "port-without-number",
            port(json!({"name": "http", "protocol": "TCP"})),
        ),
        (
            "port-zero",
            port(json!({"name": "http", "protocol": "TCP", "port": 0})),
        ),
        (
            "port-without-name",
            port(json!({"protocol": "TCP", "port": 1})),
        ),
        (
            "port-of-another-protocol",
            port(json!({"name": "http", "protocol": "SCTP", "port": 1})),
        ),
        (
            "names",
            json!({"addressType": "FQDN", "endpoints": [bare("example.org")]}),
        ),
        // Only the first counts (B5); conditions not given mean ready (B7).
        (
            "two-addresses",
            json!({"endpoints": [{"addresses": ["192.0.2.13", "192.0.2.14"]}]}),
        ),
        (
            "null-conditions",
            json!({"endpoints": [{
                "addresses": ["192.0.2.12"], "conditions": {"ready": null, "serving": null, "terminating": null},
            }]}),
        ),
        (
            "not-ready",
            json!({"endpoints": [{"addresses": ["192.0.2.14"], "conditions": {"ready": false}}]}),
        ),
        (
            "empty-hints",
            json!({"endpoints": [{"addresses": ["192.0.2.12"], "hints": {"forZones": []}}]}),
        ),
        ("no-endpoints", json!({"endpoints": []})),
        (
            "no-service",
            json!({"metadata": {
                "name": "no-service", "namespace": "default", "labels": {"kubernetes.io/service-name": ""},
            }}),
        ),
        (
            "no-time",
            json!({"metadata": {
                "name": "no-time", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "odd"},
                "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "not a time"},
            }}),
        ),
        (
            "far-future",
            json!({"metadata": {
                "name": "far-future", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "odd"},
                "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "9999-12-31T23:59:59.999999999Z"},
            }}),
        ),
    ]
}

/// A load balancer `name` with these ingress addresses and one endpoint, 192.0.2.12.
fn load_balancer(rig: &Rig<'_>, name: &str, addresses: &[&str]) -> Result<()> {
    let mut object = service(name);
    object["spec"]["type"] = json!("LoadBalancer");
    rig.admin.create(&object)?;
    rig.admin
        .create(&slice(&format!("{name}-1"), name, 8080, &["192.0.2.12"]))?;
    let ingress: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"ip": address}))
        .collect();
    let status = json!({"status": {"loadBalancer": {"ingress": ingress}}});
    rig.admin
        .patch(&format!("{}/status", service_path(name)), &status)?;
    Ok(())
}

/// A rig with servers on four addresses and Service `web` on the first.
fn with_web(sandbox: &sandbox::Sandbox) -> Result<Rig<'_>> {
    let rig = Rig::start(sandbox)?;
    for host in 11..=14 {
        sandbox.serve(&format!("192.0.2.{host}"), 8080)?;
        sandbox.serve(&format!("2001:db8::{host}"), 8080)?;
    }
    rig.admin.create(&service("web"))?;
    rig.admin
        .create(&slice("web-1", "web", 8080, &["192.0.2.11"]))?;
    rig.expect_answers(&rig.vips("web")?.v4, &[WEB])?;
    Ok(rig)
}

/// Service `web` is as it was, and a change of it still arrives.
fn still_works(rig: &mut Rig<'_>, web: &str) -> Result<()> {
    rig.agent.check_alive()?;
    let met = rig.connect(web)?;
    ensure!(met == Outcome::Answer(WEB.into()), "web met {met:?}");
    rig.admin.patch(
        &slice_path("web-1"),
        &json!({"endpoints": [endpoint("192.0.2.14")]}),
    )?;
    rig.expect_answers(web, &["192.0.2.14:8080"])
}
