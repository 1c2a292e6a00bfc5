//! The API server goes away and comes back; the node's services do not notice.

use std::time::Duration;

use lb_agent::datapath::Reader;
use lb_ebpf::abi::settings::Prefix4;
use lb_tests::control_plane::manifests;
use lb_tests::control_plane::objects::{endpoint, service, service_path, slice, slice_path};
use lb_tests::control_plane::rig::Rig;
use lb_tests::control_plane::sandbox::{self, Outcome, eventually};
use serde_json::json;

const CONNECTIONS: usize = 100;
const SERVICE_CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";

/// Spec J3, J4.
#[test]
fn traffic_works_through_an_outage_and_changes_arrive_after_it() {
    sandbox::run(|sandbox| {
        let mut rig = Rig::start(sandbox)?;
        sandbox.serve("192.0.2.11", 8080)?;
        sandbox.serve("192.0.2.12", 8080)?;
        for name in ["web", "doomed"] {
            rig.admin.create(&service(name))?;
            rig.admin
                .create(&slice(&format!("{name}-1"), name, 8080, &["192.0.2.11"]))?;
        }
        let web = rig.vips("web")?.v4;
        let doomed = rig.vips("doomed")?.v4;
        rig.expect_answers(&web, &["192.0.2.11:8080"])?;
        rig.expect_answers(&doomed, &["192.0.2.11:8080"])?;

        rig.plane.kill_api_server();
        for _ in 0..CONNECTIONS {
            assert_eq!(
                rig.connect(&web)?,
                Outcome::Answer("192.0.2.11:8080".into()),
                "during the outage"
            );
        }
        rig.agent.check_alive()?;
        rig.plane.start_api_server()?;
        for _ in 0..CONNECTIONS {
            assert_eq!(
                rig.connect(&web)?,
                Outcome::Answer("192.0.2.11:8080".into()),
                "after the outage"
            );
        }

        rig.admin.patch(
            &slice_path("web-1"),
            &json!({"endpoints": [endpoint("192.0.2.12")]}),
        )?;
        rig.admin.delete(&service_path("doomed"))?;
        rig.admin.create(&service("late"))?;
        rig.admin
            .create(&slice("late-1", "late", 8080, &["192.0.2.11"]))?;
        rig.expect_answers(&web, &["192.0.2.12:8080"])?;
        rig.expect_unserved(&doomed)?;
        rig.expect_answers(&rig.vips("late")?.v4, &["192.0.2.11:8080"])?;
        rig.agent.check_alive()
    });
}

/// What changed while nobody could tell the agent: it learns of deletions from the new list.
/// Spec J1, J2.
#[test]
fn objects_deleted_while_the_agent_was_gone_are_removed() {
    sandbox::run(|sandbox| {
        let rig = Rig::start(sandbox)?;
        sandbox.serve("192.0.2.11", 8080)?;
        for name in ["web", "doomed"] {
            rig.admin.create(&service(name))?;
            rig.admin
                .create(&slice(&format!("{name}-1"), name, 8080, &["192.0.2.11"]))?;
        }
        let web = rig.vips("web")?.v4;
        let doomed = rig.vips("doomed")?.v4;
        rig.expect_answers(&web, &["192.0.2.11:8080"])?;
        rig.expect_answers(&doomed, &["192.0.2.11:8080"])?;

        let Rig {
            plane,
            admin,
            agent,
            ..
        } = rig;
        drop(agent);
        assert_eq!(
            sandbox.connect(&web, 80)?,
            Outcome::Answer("192.0.2.11:8080".into()),
            "without an agent"
        );
        admin.delete(&service_path("doomed"))?;
        let rig = Rig::resume(sandbox, plane)?;
        rig.expect_unserved(&doomed)?;
        rig.expect_answers(&web, &["192.0.2.11:8080"])
    });
}

/// An update of the agent beside a role that does not let it read them: what the former agent knew is true still.
/// Spec D5, J2.
#[test]
fn service_cidrs_outlive_an_agent_until_the_next_one_can_read_them() {
    sandbox::run(|sandbox| {
        let rig = Rig::start(sandbox)?;
        let known = || anyhow::Ok(Reader::open(&sandbox.bpffs())?.settings()?.service_cidrs4);
        let soon = Duration::from_secs(20);
        eventually("the service CIDRs are in the tables", soon, || {
            Ok(known()?[0] != Prefix4::default())
        })?;
        let before = known()?;
        let Rig {
            plane,
            admin,
            agent,
            ..
        } = rig;
        agent.terminate()?;

        let role = "/apis/rbac.authorization.k8s.io/v1/clusterroles/beeline";
        let mut less = admin.get(role)?;
        let rules = less["rules"].as_array_mut().expect("the role has rules");
        rules.retain(|rule| rule["resources"] != json!(["servicecidrs"]));
        admin.update(&less)?;
        let token = manifests::token(&plane)?;
        eventually("they cannot be read", soon, || {
            let refused = plane.client(&token).get(SERVICE_CIDRS).err();
            Ok(refused.is_some_and(|error| error.to_string().contains("403")))
        })?;
        let kubeconfig = plane.kubeconfig("less.kubeconfig", &token)?;
        let agent = sandbox.start_agent_until("/healthz", &kubeconfig)?;
        assert_eq!(known()?, before);
        agent.terminate()?;
        Ok(())
    });
}
