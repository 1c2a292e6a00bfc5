//! Services that want one address: the agent's status names who loses, for as long as that is so (spec D22).

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use anyhow::Result;
use lb_tests::control_plane::sandbox::{self, Agent, Sandbox, eventually};
use lb_tests::manifests::Manifests;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
/// As often as that a burst is planned in the order that matters, in all but one of a thousand runs.
const BURSTS: usize = 10;

/// An agent that follows a directory, and the directory.
fn start(sandbox: &Sandbox) -> Result<(Agent, Manifests)> {
    let directory = sandbox.directory().join("manifests");
    fs::create_dir_all(&directory)?;
    let arguments: [&OsStr; 2] = ["--manifests".as_ref(), directory.as_ref()];
    let agent = sandbox.start_agent_with(&arguments)?;
    Ok((agent, Manifests::new(directory)))
}

/// One file, and so one burst: Services of one ClusterIP, each with one endpoint.
fn publish(manifests: &Manifests, services: &[(&str, &str)]) -> Result<()> {
    let mut text = String::new();
    for (name, endpoint) in services {
        write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
             spec: {{clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ports: [{{port: 80}}]}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}-1, namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             addressType: IPv4\nports: [{{name: '', port: 8080}}]\nendpoints: [{{addresses: [{endpoint}]}}]\n"
        )?;
    }
    manifests.write("services", &text)
}

/// Waits until the address is served so and the status names these refusals alone.
fn expect(sandbox: &Sandbox, endpoint: &str, refused: &[&str]) -> Result<()> {
    let what = format!("{endpoint} answers, {refused:?} are refused");
    eventually(&what, SOON, || {
        let met = sandbox.connect("10.96.0.10", 80)?;
        let status = sandbox.status()?;
        let told = status["refused"].as_object().into_iter().flatten();
        let told: Vec<&str> = told.map(|(name, _)| name.as_str()).collect();
        let answered = met == sandbox::Outcome::Answer(format!("{endpoint}:8080"));
        anyhow::ensure!(answered && told == refused, "met {met:?}, told {status}");
        Ok(true)
    })
}

#[test]
fn an_address_that_changes_hands_in_one_burst_is_no_conflict() {
    sandbox::run(|sandbox| {
        let endpoints = [("a", "192.0.2.11"), ("b", "192.0.2.12")];
        for (_, endpoint) in endpoints {
            sandbox.serve(endpoint, 8080)?;
        }
        let (_agent, manifests) = start(sandbox)?;
        for burst in 0..BURSTS {
            let (name, endpoint) = endpoints[burst % 2];
            publish(&manifests, &[(name, endpoint)])?;
            expect(sandbox, endpoint, &[])?;
        }
        Ok(())
    });
}

/// Spec D22.
#[test]
fn who_loses_an_address_is_refused_for_as_long_as_another_service_has_it() {
    sandbox::run(|sandbox| {
        for host in 11..=13 {
            sandbox.serve(&format!("192.0.2.{host}"), 8080)?;
        }
        let (_agent, manifests) = start(sandbox)?;
        let loser = ["Service default/b"];
        publish(&manifests, &[("a", "192.0.2.11"), ("b", "192.0.2.12")])?;
        expect(sandbox, "192.0.2.11", &loser)?;
        // Both change, so that the loser's change is known to be written.
        publish(&manifests, &[("a", "192.0.2.12"), ("b", "192.0.2.13")])?;
        expect(sandbox, "192.0.2.12", &loser)?;
        let reason: Value = sandbox.status()?["refused"]["Service default/b"].take();
        assert!(
            reason
                .as_str()
                .is_some_and(|reason| reason.contains("default/a")),
            "{reason}"
        );
        publish(&manifests, &[("b", "192.0.2.13")])?;
        expect(sandbox, "192.0.2.13", &[])?;
        assert_eq!(sandbox.status()?["refused"], json!({}));
        Ok(())
    });
}
