//! Pods come, go and fail; upstream's controller makes EndpointSlices of them, and nobody else does.

use std::time::Duration;

use anyhow::Result;
use lb_tests::control_plane::ControlPlane;
use lb_tests::control_plane::controllers::{
    Controllers, FOR_PODS, MIRROR, RANGES, RunningPod, SLICES,
};
use lb_tests::control_plane::objects::{node, node_path, service, service_path, slice};
use lb_tests::control_plane::rig::{Rig, create_node};
use lb_tests::control_plane::sandbox::{self, API_ADDRESS, NODE, Outcome, Sandbox, eventually};
use serde_json::{Value, json};

const ELSEWHERE: &str = "node-b";

/// A control plane with the controller, the agent, and a dual-stack Service `web` for pods of its label.
fn rig<'a>(sandbox: &'a Sandbox, more: &Value) -> Result<(Rig<'a>, Controllers, String)> {
    let directory = sandbox.directory().join("plane");
    let plane = ControlPlane::start_with(API_ADDRESS.into(), &directory, FOR_PODS)?;
    let admin = plane.admin();
    create_node(&admin)?;
    admin.create(&node(ELSEWHERE))?;
    for (name, zone) in [(NODE, "zone-a"), (ELSEWHERE, "zone-b")] {
        let labels = json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}});
        admin.patch(&node_path(name), &labels)?;
        let status = json!({"status": {
            "allocatable": {"cpu": "4"}, "capacity": {"cpu": "4"},
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        admin.patch(&format!("{}/status", node_path(name)), &status)?;
    }
    let controllers = Controllers::start(&plane, sandbox.directory(), &[SLICES])?;
    let rig = Rig::resume(sandbox, plane)?;
    rig.admin.create(&service("web"))?;
    rig.admin.patch(
        &service_path("web"),
        &json!({"spec": {
            "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"}],
        }}),
    )?;
    rig.admin.patch(&service_path("web"), more)?;
    let vip = rig.vips("web")?.v4;
    Ok((rig, controllers, vip))
}

fn pod<'a>(name: &'a str, node: &'a str, address: &'a [&'a str]) -> RunningPod<'a> {
    RunningPod {
        name,
        node,
        addresses: address,
        port: 8080,
    }
}

/// Serves in the pods' place, and creates them.
fn run(rig: &Rig<'_>, pods: &[RunningPod<'_>]) -> Result<()> {
    for pod in pods {
        for address in pod.addresses {
            rig.sandbox.serve(address, pod.port)?;
        }
        pod.create(&rig.admin, "web")?;
    }
    Ok(())
}

/// Spec B15, D2. Upstream: "should be rejected for evicted pods (no endpoints exist)".
#[test]
fn evicted_pods_answer_nobody() {
    sandbox::run(|sandbox| {
        let (rig, mut controllers, vip) = rig(sandbox, &json!({}))?;
        let pods = [
            pod("one", NODE, &["192.0.2.11"]),
            pod("two", ELSEWHERE, &["192.0.2.12"]),
        ];
        run(&rig, &pods)?;
        rig.expect_answers(&vip, &["192.0.2.11:8080", "192.0.2.12:8080"])?;
        pods[0].fail(&rig.admin)?;
        rig.expect_answers(&vip, &["192.0.2.12:8080"])?;
        pods[1].fail(&rig.admin)?;
        rig.expect_refused(&vip)?;
        controllers.check_alive()
    });
}

/// Spec B12: who is on its way out serves where nobody else does.
#[test]
fn terminating_pods_serve_until_others_are_ready() {
    sandbox::run(|sandbox| {
        let (rig, mut controllers, vip) = rig(sandbox, &json!({}))?;
        let (old, new) = (
            pod("old", NODE, &["192.0.2.11"]),
            pod("new", NODE, &["192.0.2.12"]),
        );
        run(&rig, &[old])?;
        rig.expect_answers(&vip, &["192.0.2.11:8080"])?;
        old.terminate(&rig.admin)?;
        rig.expect_answers(&vip, &["192.0.2.11:8080"])?;
        run(&rig, &[new])?;
        rig.expect_answers(&vip, &["192.0.2.12:8080"])?;
        new.fail(&rig.admin)?;
        rig.expect_answers(&vip, &["192.0.2.11:8080"])?;
        controllers.check_alive()
    });
}

/// Spec A18. Upstream: "should create endpoints for unready pods", "should be able to connect to terminating and unready
/// endpoints if PublishNotReadyAddresses is true".
#[test]
fn unready_and_terminating_pods_serve_where_the_service_says_so() {
    sandbox::run(|sandbox| {
        let publish = |on: bool| json!({"spec": {"publishNotReadyAddresses": on}});
        let (rig, mut controllers, vip) = rig(sandbox, &publish(true))?;
        let pods = [
            pod("one", NODE, &["192.0.2.11"]),
            pod("two", ELSEWHERE, &["192.0.2.12"]),
        ];
        run(&rig, &pods)?;
        let both = ["192.0.2.11:8080", "192.0.2.12:8080"];
        rig.expect_answers(&vip, &both)?;
        pods.iter()
            .try_for_each(|pod| pod.become_unready(&rig.admin))?;
        rig.expect_answers(&vip, &both)?;
        rig.admin.patch(&service_path("web"), &publish(false))?;
        rig.expect_refused(&vip)?;
        pods[0].terminate(&rig.admin)?;
        rig.expect_refused(&vip)?;
        rig.admin.patch(&service_path("web"), &publish(true))?;
        rig.expect_answers(&vip, &both)?;
        controllers.check_alive()
    });
}

/// Spec A9, B3, B6: one name, two numbers, two slices.
#[test]
fn a_named_port_is_each_pods_own() {
    sandbox::run(|sandbox| {
        let (rig, mut controllers, vip) = rig(sandbox, &json!({}))?;
        let pods = [
            pod("one", NODE, &["192.0.2.11"]),
            RunningPod {
                port: 9090,
                ..pod("two", NODE, &["192.0.2.12"])
            },
        ];
        run(&rig, &pods)?;
        rig.expect_answers(&vip, &["192.0.2.11:8080", "192.0.2.12:9090"])?;
        controllers.check_alive()
    });
}

/// Spec C2.
#[test]
fn clients_stay_in_their_zone() {
    sandbox::run(|sandbox| {
        let distribution = json!({"spec": {"trafficDistribution": "PreferSameZone"}});
        let (rig, mut controllers, vip) = rig(sandbox, &distribution)?;
        let pods = [
            pod("near", NODE, &["192.0.2.11"]),
            pod("far", ELSEWHERE, &["192.0.2.12"]),
        ];
        run(&rig, &pods)?;
        rig.expect_answers(&vip, &["192.0.2.11:8080"])?;
        pods[0].fail(&rig.admin)?;
        rig.expect_answers(&vip, &["192.0.2.12:8080"])?;
        controllers.check_alive()
    });
}

/// Spec C3.
#[test]
fn clients_stay_on_their_node_then_in_their_zone() {
    sandbox::run(|sandbox| {
        let distribution = json!({"spec": {"trafficDistribution": "PreferSameNode"}});
        let (rig, mut controllers, vip) = rig(sandbox, &distribution)?;
        rig.admin.create(&node("node-a2"))?;
        rig.admin.patch(
            &node_path("node-a2"),
            &json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "zone-a"}}}),
        )?;
        let pods = [
            pod("here", NODE, &["192.0.2.11"]),
            pod("near", "node-a2", &["192.0.2.12"]),
            pod("far", ELSEWHERE, &["192.0.2.13"]),
        ];
        run(&rig, &pods)?;
        rig.expect_answers(&vip, &["192.0.2.11:8080"])?;
        pods[0].fail(&rig.admin)?;
        rig.expect_answers(&vip, &["192.0.2.12:8080"])?;
        controllers.check_alive()
    });
}

/// Spec C4: with the annotation the controller shares endpoints out by the zones' processors, as long as it can.
#[test]
fn endpoints_are_shared_out_by_capacity() {
    sandbox::run(|sandbox| {
        let annotation =
            json!({"metadata": {"annotations": {"service.kubernetes.io/topology-mode": "Auto"}}});
        let (rig, mut controllers, vip) = rig(sandbox, &annotation)?;
        let pods = [
            pod("near-1", NODE, &["192.0.2.11"]),
            pod("near-2", NODE, &["192.0.2.12"]),
            pod("near-3", NODE, &["192.0.2.13"]),
            pod("far-1", ELSEWHERE, &["192.0.2.21"]),
            pod("far-2", ELSEWHERE, &["192.0.2.22"]),
            pod("far-3", ELSEWHERE, &["192.0.2.23"]),
        ];
        run(&rig, &pods)?;
        rig.expect_answers(
            &vip,
            &["192.0.2.11:8080", "192.0.2.12:8080", "192.0.2.13:8080"],
        )?;
        // One endpoint for two zones cannot be shared out: the hints go.
        for pod in &pods[..5] {
            pod.fail(&rig.admin)?;
        }
        rig.expect_answers(&vip, &["192.0.2.23:8080"])?;
        controllers.check_alive()
    });
}

/// Spec B1.
#[test]
fn endpoints_objects_mean_nothing() {
    sandbox::run(|sandbox| {
        // No controller copies them into slices here.
        let rig = Rig::start(sandbox)?;
        sandbox.serve("192.0.2.11", 8080)?;
        rig.admin.create(&service("web"))?;
        rig.admin.create(&json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"name": "web", "namespace": "default"},
            "subsets": [{"addresses": [{"ip": "192.0.2.11"}], "ports": [{"name": "http", "port": 8080}]}],
        }))?;
        // Later, and seen: what came before would be, too.
        rig.admin.create(&service("later"))?;
        rig.expect_refused(&rig.vips("later")?.v4)?;
        rig.expect_refused(&rig.vips("web")?.v4)
    });
}

/// Spec B1, B3. Upstream: "should mirror a custom Endpoints resource through create update and delete", "should mirror a
/// custom Endpoint with multiple subsets and same IP address".
#[test]
fn endpoints_objects_count_once_they_are_mirrored() {
    sandbox::run(|sandbox| {
        let rig = Rig::start(sandbox)?;
        let mut controllers = Controllers::start(&rig.plane, sandbox.directory(), &[MIRROR])?;
        for (address, port) in [
            ("192.0.2.11", 8080),
            ("192.0.2.11", 9090),
            ("192.0.2.12", 8080),
        ] {
            sandbox.serve(address, port)?;
        }
        let mut web = service("web");
        web["spec"]["ports"] = json!([{"name": "http", "port": 80}, {"name": "other", "port": 81}]);
        rig.admin.create(&web)?;
        let vip = rig.vips("web")?.v4;
        let subset = |address: &str, name: &str, port: u16| json!({"addresses": [{"ip": address}], "ports": [{"name": name, "port": port}]});
        rig.admin.create(&json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"name": "web", "namespace": "default"},
            "subsets": [subset("192.0.2.11", "http", 8080), subset("192.0.2.11", "other", 9090)],
        }))?;
        rig.expect_answers(&vip, &["192.0.2.11:8080"])?;
        eventually("the other port is served", Duration::from_secs(20), || {
            Ok(sandbox.connect(&vip, 81)? == Outcome::Answer("192.0.2.11:9090".into()))
        })?;
        let path = "/api/v1/namespaces/default/endpoints/web";
        let moved = json!({"subsets": [subset("192.0.2.12", "http", 8080)]});
        rig.admin.patch(path, &moved)?;
        rig.expect_answers(&vip, &["192.0.2.12:8080"])?;
        rig.admin.delete(path)?;
        rig.expect_refused(&vip)?;
        controllers.check_alive()
    });
}

/// Spec D5. Upstream: "should create Services and serve on different Service CIDRs".
#[test]
fn services_of_a_further_range_are_served() {
    sandbox::run(|sandbox| {
        let rig = Rig::start(sandbox)?;
        let mut controllers = Controllers::start(&rig.plane, sandbox.directory(), &[RANGES])?;
        sandbox.serve("192.0.2.11", 8080)?;
        rig.admin.create(&json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": "further"},
            "spec": {"cidrs": ["10.196.196.0/24"]},
        }))?;
        let mut web = service("web");
        web["spec"]["ipFamilyPolicy"] = json!("SingleStack");
        web["spec"]["clusterIP"] = json!("10.196.196.77");
        eventually("the range is in use", Duration::from_secs(20), || {
            Ok(rig.admin.create(&web).is_ok())
        })?;
        rig.admin
            .create(&slice("web-1", "web", 8080, &["192.0.2.11"]))?;
        rig.expect_answers("10.196.196.77", &["192.0.2.11:8080"])?;
        controllers.check_alive()
    });
}
