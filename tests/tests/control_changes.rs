//! A Service that stays but means something else: its type, its labels, its slices' labels.

use lb_tests::control_plane::objects::{service, service_path, slice, slice_path};
use lb_tests::control_plane::rig::Rig;
use lb_tests::control_plane::sandbox;
use serde_json::{Value, json};

const ENDPOINT: &[&str] = &["192.0.2.11:8080"];

/// Spec A26, A4. Upstream: "should be able to change the type from ClusterIP to ExternalName", "should be able to change
/// the type from NodePort to ExternalName", "should be able to change the type from ExternalName to ClusterIP", "should be
/// able to change the type from ExternalName to NodePort".
#[test]
fn type_changes_there_and_back() {
    sandbox::run(|sandbox| {
        let rig = with_web(sandbox)?;
        let old = rig.vips("web")?.v4;

        rig.admin
            .patch(&service_path("web"), &json!({"spec": {"type": "NodePort"}}))?;
        rig.expect_answers(&old, ENDPOINT)?;

        // The API server takes the ClusterIP back (A4).
        let external = json!({"spec": {"type": "ExternalName", "externalName": "shop.example"}});
        let stored = rig.admin.patch(&service_path("web"), &external)?;
        assert_eq!(stored["spec"]["clusterIP"], Value::Null);
        rig.expect_unserved(&old)?;

        let cluster_ip = json!({"spec": {
            "type": "ClusterIP", "externalName": null, "ipFamilyPolicy": "RequireDualStack",
        }});
        rig.admin.patch(&service_path("web"), &cluster_ip)?;
        let second = rig.vips("web")?.v4;
        rig.expect_answers(&second, ENDPOINT)?;

        rig.admin.patch(&service_path("web"), &external)?;
        rig.expect_unserved(&second)?;
        let node_port = json!({"spec": {
            "type": "NodePort", "externalName": null, "ipFamilyPolicy": "RequireDualStack",
        }});
        rig.admin.patch(&service_path("web"), &node_port)?;
        rig.expect_answers(&rig.vips("web")?.v4, ENDPOINT)
    });
}

/// Spec A1. Upstream: "should implement service.kubernetes.io/service-proxy-name".
#[test]
fn service_proxy_name_hides_a_service() {
    sandbox::run(|sandbox| {
        let rig = with_web(sandbox)?;
        let vip = rig.vips("web")?.v4;
        // Its mere presence counts (A1).
        rig.admin.patch(
            &service_path("web"),
            &label("service-proxy-name", json!("")),
        )?;
        rig.expect_unserved(&vip)?;
        rig.admin.patch(
            &service_path("web"),
            &label("service-proxy-name", Value::Null),
        )?;
        rig.expect_answers(&vip, ENDPOINT)?;

        // On slices alone it means nothing (A3 as corrected). The marker tells that the change was seen.
        rig.admin.patch(
            &slice_path("web-1"),
            &label("service-proxy-name", json!("other")),
        )?;
        rig.admin
            .create(&slice("web-2", "web", 8080, &["192.0.2.12"]))?;
        rig.expect_answers(&vip, &["192.0.2.11:8080", "192.0.2.12:8080"])
    });
}

/// Spec A3, A1. Upstream: "should implement service.kubernetes.io/headless".
#[test]
fn headless_label_hides_slices_but_not_services() {
    sandbox::run(|sandbox| {
        let rig = with_web(sandbox)?;
        let vip = rig.vips("web")?.v4;
        rig.admin
            .patch(&slice_path("web-1"), &label("headless", json!("")))?;
        rig.expect_refused(&vip)?;
        rig.admin
            .patch(&slice_path("web-1"), &label("headless", Value::Null))?;
        rig.expect_answers(&vip, ENDPOINT)?;

        rig.admin
            .patch(&service_path("web"), &label("headless", json!("")))?;
        rig.admin
            .create(&slice("web-2", "web", 8080, &["192.0.2.12"]))?;
        rig.expect_answers(&vip, &["192.0.2.11:8080", "192.0.2.12:8080"])
    });
}

/// kube-proxy goes on using such a slice for the old Service, too.
/// Spec B2.
#[test]
fn the_service_name_label_moves_a_slice() {
    sandbox::run(|sandbox| {
        let rig = with_web(sandbox)?;
        rig.admin.create(&service("other"))?;
        let (web, other) = (rig.vips("web")?.v4, rig.vips("other")?.v4);
        rig.expect_refused(&other)?;
        let moved = json!({"metadata": {"labels": {"kubernetes.io/service-name": "other"}}});
        rig.admin.patch(&slice_path("web-1"), &moved)?;
        rig.expect_answers(&other, ENDPOINT)?;
        rig.expect_refused(&web)
    });
}

/// Spec A8, B6. Upstream: "should be updated after adding or deleting ports".
#[test]
fn ports_are_renumbered_and_renamed() {
    sandbox::run(|sandbox| {
        let rig = with_web(sandbox)?;
        sandbox.serve("192.0.2.11", 9090)?;
        let vip = rig.vips("web")?.v4;
        let number = json!({"ports": [{"name": "http", "port": 9090, "protocol": "TCP"}]});
        rig.admin.patch(&slice_path("web-1"), &number)?;
        rig.expect_answers(&vip, &["192.0.2.11:9090"])?;
        // Ports are joined by name (B6).
        let name = json!({"spec": {"ports": [{"name": "renamed", "port": 80, "protocol": "TCP"}]}});
        rig.admin.patch(&service_path("web"), &name)?;
        rig.expect_refused(&vip)
    });
}

/// A Service with one endpoint that answers, and servers for a second.
fn with_web(sandbox: &sandbox::Sandbox) -> anyhow::Result<Rig<'_>> {
    let rig = Rig::start(sandbox)?;
    sandbox.serve("192.0.2.11", 8080)?;
    sandbox.serve("192.0.2.12", 8080)?;
    rig.admin.create(&service("web"))?;
    rig.admin
        .create(&slice("web-1", "web", 8080, &["192.0.2.11"]))?;
    rig.expect_answers(&rig.vips("web")?.v4, ENDPOINT)?;
    Ok(rig)
}

fn label(name: &str, value: Value) -> Value {
    let mut labels = serde_json::Map::new();
    labels.insert(format!("service.kubernetes.io/{name}"), value);
    json!({"metadata": {"labels": labels}})
}
