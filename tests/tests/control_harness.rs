//! The control plane the other `control_*` tests stand on: a real API server that stores, checks, forgets
//! and comes back.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use lb_tests::control_plane::ControlPlane;
use lb_tests::control_plane::client::Apply;
use lb_tests::control_plane::objects::{
    endpoint, node, node_path, service, service_path, slice, slice_path,
};
use lb_tests::control_plane::sandbox::{self, API_ADDRESS, Outcome, Sandbox};
use serde_json::json;

#[test]
fn objects_are_stored_changed_and_deleted() {
    sandbox::run(|sandbox| {
        let plane = ControlPlane::start(API_ADDRESS.into(), &sandbox.directory().join("plane"))?;
        let admin = plane.admin();
        assert_eq!(admin.get("/version")?["gitVersion"], "v1.37.2");

        let stored = admin.create(&service("web"))?;
        let addresses = &stored["spec"]["clusterIPs"];
        ensure!(
            addresses[0]
                .as_str()
                .is_some_and(|ip| ip.starts_with("10.96.")),
            "no IPv4: {addresses}"
        );
        ensure!(
            addresses[1]
                .as_str()
                .is_some_and(|ip| ip.starts_with("fd96::")),
            "no IPv6: {addresses}"
        );

        let stored = admin.create(&slice("web-1", "web", 8080, &["192.0.2.11"]))?;
        let mut changed = stored.clone();
        changed["endpoints"] = json!([endpoint("192.0.2.11"), endpoint("192.0.2.12")]);
        let updated = admin.update(&changed)?;
        assert_eq!(
            updated["endpoints"].as_array().context("endpoints")?.len(),
            2
        );
        ensure!(
            admin.update(&changed).is_err(),
            "an update of an old version must be refused"
        );

        admin.patch(&service_path("web"), &json!({"spec": {"type": "NodePort"}}))?;
        let port = &admin.get(&service_path("web"))?["spec"]["ports"][0]["nodePort"];
        ensure!(
            port.as_u64()
                .is_some_and(|port| (30000..=32767).contains(&port)),
            "no NodePort: {port}"
        );

        admin.create(&node(sandbox::NODE))?;
        let zone = json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "east"}}});
        admin.patch(&node_path(sandbox::NODE), &zone)?;

        let invalid = slice("bad", "web", 8080, &["127.0.0.1"]);
        let refused = admin
            .apply(&invalid, Apply::DryRun)
            .err()
            .context("a loopback endpoint was accepted")?;
        ensure!(refused.to_string().contains("loopback"), "{refused}");

        admin.delete(&slice_path("web-1"))?;
        admin.delete(&service_path("web"))?;
        ensure!(
            admin.get(&service_path("web")).is_err(),
            "a deleted Service is still there"
        );
        Ok(())
    });
}

#[test]
fn api_server_restarts_with_its_data_and_tokens() {
    sandbox::run(|sandbox| {
        let mut plane =
            ControlPlane::start(API_ADDRESS.into(), &sandbox.directory().join("plane"))?;
        let admin = plane.admin();
        admin.create(&service("web"))?;
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "viewer", "namespace": "default"},
        });
        admin.create(&account)?;
        let viewer = plane.client(&plane.service_account_token("default", "viewer")?);
        ensure!(viewer.get("/version").is_ok(), "the token is not accepted");
        ensure!(
            viewer.get(&service_path("web")).is_err(),
            "without a role nothing may be read"
        );

        plane.kill_api_server();
        ensure!(
            admin.get("/version").is_err(),
            "the API server answers after it was killed"
        );
        plane.start_api_server()?;
        admin.get(&service_path("web"))?;
        viewer.get("/version")?;
        Ok(())
    });
}

#[test]
fn nothing_is_left_after_a_panic() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let outcome = std::panic::catch_unwind(|| {
        sandbox::run(move |sandbox: &Sandbox| -> Result<()> {
            let _plane =
                ControlPlane::start(API_ADDRESS.into(), &sandbox.directory().join("plane"))?;
            sender.send(sandbox.directory().to_owned())?;
            panic!("expected by this test");
        });
    });
    assert!(outcome.is_err());
    let directory = receiver.recv().expect("the sandbox's directory");
    assert!(!directory.exists(), "{} is left", directory.display());
    let marker = directory.to_string_lossy().into_owned();
    for process in fs::read_dir("/proc").expect("/proc").flatten() {
        let arguments = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments);
        assert!(!arguments.contains(&marker), "still running: {arguments}");
    }
}

#[test]
fn clients_tell_an_answer_from_a_refusal() {
    sandbox::run(|sandbox| {
        sandbox.serve("192.0.2.11", 8080)?;
        sandbox.serve("2001:db8::11", 8080)?;
        assert_eq!(
            sandbox.connect("192.0.2.11", 8080)?,
            Outcome::Answer("192.0.2.11:8080".into())
        );
        assert_eq!(
            sandbox.connect("2001:db8::11", 8080)?,
            Outcome::Answer("[2001:db8::11]:8080".into())
        );
        assert_eq!(sandbox.connect("192.0.2.11", 81)?, Outcome::Refused);
        Ok(())
    });
}
