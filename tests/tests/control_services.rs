//! Services and slices written to a real API server reach the node's sockets: created, scaled, recreated.

use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use lb_tests::control_plane::objects::{endpoint, service, service_path, slice, slice_path};
use lb_tests::control_plane::rig::{Rig, create_node};
use lb_tests::control_plane::sandbox::{self, API_ADDRESS, Outcome, eventually};
use lb_tests::control_plane::{ControlPlane, manifests};
use serde_json::json;

/// Spec B12, D2. Upstream: "should serve a basic endpoint from pods".
#[test]
fn created_scaled_up_and_scaled_to_nothing() {
    sandbox::run(|sandbox| {
        let rig = Rig::start(sandbox)?;
        for host in [11, 12, 13] {
            sandbox.serve(&format!("192.0.2.{host}"), 8080)?;
            sandbox.serve(&format!("2001:db8::{host}"), 8080)?;
        }
        rig.admin.create(&service("web"))?;
        let vips = rig.vips("web")?;
        rig.expect_refused(&vips.v4)?;
        rig.expect_refused(&vips.v6)?;

        rig.admin
            .create(&slice("web-v4", "web", 8080, &["192.0.2.11"]))?;
        rig.expect_answers(&vips.v4, &["192.0.2.11:8080"])?;
        // Families are independent (A7).
        rig.expect_refused(&vips.v6)?;
        rig.admin
            .create(&slice("web-v6", "web", 8080, &["2001:db8::11"]))?;
        rig.expect_answers(&vips.v6, &["[2001:db8::11]:8080"])?;

        let three = json!([
            endpoint("192.0.2.11"),
            endpoint("192.0.2.12"),
            endpoint("192.0.2.13")
        ]);
        rig.admin
            .patch(&slice_path("web-v4"), &json!({"endpoints": three}))?;
        rig.expect_answers(
            &vips.v4,
            &["192.0.2.11:8080", "192.0.2.12:8080", "192.0.2.13:8080"],
        )?;
        // A second slice adds to the first (B3).
        rig.admin
            .create(&slice("web-v6-more", "web", 8080, &["2001:db8::12"]))?;
        rig.expect_answers(&vips.v6, &["[2001:db8::11]:8080", "[2001:db8::12]:8080"])?;

        rig.admin.patch(
            &slice_path("web-v4"),
            &json!({"endpoints": [endpoint("192.0.2.13")]}),
        )?;
        rig.expect_answers(&vips.v4, &["192.0.2.13:8080"])?;
        rig.admin
            .patch(&slice_path("web-v4"), &json!({"endpoints": []}))?;
        rig.expect_refused(&vips.v4)?;
        rig.admin.delete(&slice_path("web-v6"))?;
        rig.expect_answers(&vips.v6, &["[2001:db8::12]:8080"])
    });
}

/// Spec B19, B20.
#[test]
fn slices_may_come_before_their_service() {
    sandbox::run(|sandbox| {
        let rig = Rig::start(sandbox)?;
        sandbox.serve("192.0.2.11", 8080)?;
        rig.admin
            .create(&slice("early-1", "early", 8080, &["192.0.2.11"]))?;
        rig.admin.create(&service("early"))?;
        rig.expect_answers(&rig.vips("early")?.v4, &["192.0.2.11:8080"])
    });
}

/// Pods may start as soon as the node says it is ready: no grace.
/// Spec J1.
#[test]
fn ready_means_the_kernel_has_every_service() {
    sandbox::run(|sandbox| {
        let plane = ControlPlane::start(API_ADDRESS.into(), &sandbox.directory().join("plane"))?;
        let admin = plane.admin();
        create_node(&admin)?;
        sandbox.serve("192.0.2.11", 8080)?;
        let mut addresses = Vec::new();
        for index in 0..20 {
            let name = format!("web-{index}");
            let stored = admin.create(&service(&name))?;
            addresses.extend(stored["spec"]["clusterIP"].as_str().map(String::from));
            admin.create(&slice(&name, &name, 8080, &["192.0.2.11"]))?;
        }
        assert_eq!(addresses.len(), 20);
        let _agent = sandbox.start_agent_until("/readyz", &manifests::install(&plane)?)?;
        for address in addresses {
            let met = sandbox.connect(&address, 80)?;
            assert_eq!(met, Outcome::Answer("192.0.2.11:8080".into()), "{address}");
        }
        Ok(())
    });
}

/// Spec A27, J8. Upstream: "should work after the service has been recreated".
#[test]
fn recreated_under_another_address_or_another_name() {
    sandbox::run(|sandbox| {
        let rig = Rig::start(sandbox)?;
        sandbox.serve("192.0.2.11", 8080)?;
        sandbox.serve("192.0.2.12", 8080)?;
        rig.admin
            .create(&slice("web-1", "web", 8080, &["192.0.2.11"]))?;
        rig.admin.create(&service("web"))?;
        let old = rig.vips("web")?;
        rig.expect_answers(&old.v4, &["192.0.2.11:8080"])?;

        // Same name, other address.
        rig.admin.delete(&service_path("web"))?;
        let mut other_address = service("web");
        other_address["spec"]["clusterIP"] = json!("10.96.77.77");
        rig.admin.create(&other_address)?;
        rig.expect_answers("10.96.77.77", &["192.0.2.11:8080"])?;
        rig.expect_unserved(&old.v4)?;

        // Other name, same address.
        rig.admin
            .create(&slice("next-1", "next", 8080, &["192.0.2.12"]))?;
        rig.admin.delete(&service_path("web"))?;
        let mut other_name = service("next");
        other_name["spec"]["clusterIP"] = json!("10.96.77.77");
        rig.admin.create(&other_name)?;
        rig.expect_answers("10.96.77.77", &["192.0.2.12:8080"])
    });
}

/// The Service every cluster has: its slice comes from the API server itself, unnamed by us.
#[test]
fn the_api_server_is_reached_through_its_own_service() {
    sandbox::run(|sandbox| {
        let rig = Rig::start(sandbox)?;
        let kubernetes = rig.admin.get(&service_path("kubernetes"))?;
        let address = kubernetes["spec"]["clusterIP"].as_str().unwrap_or_default();
        let url = format!("https://{address}/version");
        eventually("the API server answers", Duration::from_secs(10), || {
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--insecure", "--max-time", "2", &url]);
            let answer = String::from_utf8(sandbox.in_cgroup(curl)?.stdout)?;
            ensure!(answer.contains("v1.37.2"), "answered: {answer:?}");
            Ok(true)
        })
    });
}
