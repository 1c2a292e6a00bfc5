//! `manifests/base` as the API server sees it: accepted, and granting no more than the agent needs.

use anyhow::{Context as _, Result, ensure};
use lb_tests::control_plane::client::{Apply, Client};
use lb_tests::control_plane::objects::{service, slice};
use lb_tests::control_plane::rig::Rig;
use lb_tests::control_plane::sandbox::{self, API_ADDRESS};
use lb_tests::control_plane::{ControlPlane, manifests};
use serde_json::json;

#[test]
fn every_manifest_is_accepted() {
    sandbox::run(|sandbox| {
        let plane = ControlPlane::start(API_ADDRESS.into(), &sandbox.directory().join("plane"))?;
        let objects = manifests::base()?;
        let kinds: Vec<_> = objects
            .iter()
            .filter_map(|object| object["kind"].as_str())
            .collect();
        for kind in [
            "ServiceAccount",
            "ClusterRole",
            "ClusterRoleBinding",
            "DaemonSet",
        ] {
            ensure!(
                kinds.contains(&kind),
                "manifests/base has no {kind}, only {kinds:?}"
            );
        }
        // A namespace of our own would have to exist for the others' dry run.
        if let Some(namespace) = objects.iter().find(|object| object["kind"] == "Namespace") {
            plane.admin().apply(namespace, Apply::Store)?;
        }
        manifests::apply(&plane.admin(), &objects, Apply::DryRun)?;
        manifests::apply(&plane.admin(), &objects, Apply::Store)
    });
}

#[test]
fn the_role_allows_what_is_watched_and_nothing_else() {
    sandbox::run(|sandbox| {
        let rig = Rig::start(sandbox)?;
        let agent = rig.plane.client(&manifests::token(&rig.plane)?);

        for path in [
            "/api/v1/services",
            "/apis/discovery.k8s.io/v1/endpointslices",
        ] {
            agent.get(path)?;
        }
        let refused = agent
            .get("/api/v1/secrets")
            .err()
            .context("the agent can list secrets")?;
        ensure!(refused.to_string().contains("403"), "{refused}");

        for (group, resource) in [
            ("", "services"),
            ("discovery.k8s.io", "endpointslices"),
            ("", "nodes"),
        ] {
            for verb in ["list", "watch"] {
                ensure!(
                    may(&agent, verb, group, resource)?,
                    "the agent may not {verb} {resource}"
                );
            }
            for verb in ["create", "update", "patch", "delete", "deletecollection"] {
                ensure!(
                    !may(&agent, verb, group, resource)?,
                    "the agent may {verb} {resource}"
                );
            }
        }
        for resource in [
            "secrets",
            "configmaps",
            "pods",
            "serviceaccounts",
            "namespaces",
        ] {
            for verb in [
                "get", "list", "watch", "create", "update", "patch", "delete",
            ] {
                ensure!(
                    !may(&agent, verb, "", resource)?,
                    "the agent may {verb} {resource}"
                );
            }
        }
        for resource in [
            "clusterroles",
            "clusterrolebindings",
            "roles",
            "rolebindings",
        ] {
            for verb in ["list", "create", "bind", "escalate"] {
                let group = "rbac.authorization.k8s.io";
                ensure!(
                    !may(&agent, verb, group, resource)?,
                    "the agent may {verb} {resource}"
                );
            }
        }

        // And with that the agent works.
        sandbox.serve("192.0.2.11", 8080)?;
        rig.admin.create(&service("web"))?;
        rig.admin
            .create(&slice("web-1", "web", 8080, &["192.0.2.11"]))?;
        rig.expect_answers(&rig.vips("web")?.v4, &["192.0.2.11:8080"])
    });
}

/// Asks the API server whether the client may do it in any namespace.
fn may(client: &Client, verb: &str, group: &str, resource: &str) -> Result<bool> {
    let review = client.post(
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        &json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"verb": verb, "group": group, "resource": resource}},
        }),
    )?;
    review["status"]["allowed"]
        .as_bool()
        .context("the review has no answer")
}
