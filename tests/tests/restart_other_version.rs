//! An agent whose tables are laid out otherwise than the former one's: that one's programs go when it serves.

use std::fs;

use anyhow::Context as _;
use lb_tests::address::FAMILIES;
use lb_tests::agent::Agent;
use lb_tests::in_every_case;
use lb_tests::manifests::Service;
use lb_tests::scenario::{SOON, Web};
use lb_tests::wait::eventually;

in_every_case! {
    fn programs_of_another_version_go_when_this_one_serves(case: Case) {
        let cluster = case.cluster().build()?;
        let (old, new) = (cluster.pod(1, 2), cluster.pod(2, 2));
        let mut web = Web::start_as(&cluster, Service::cluster_ip("web", 10), &[old])?;
        web.serve(new)?;
        let client = cluster.pod(1, 1).peer()?;
        web.wait_for(&client, &[old])?;
        cluster.each_agent(Agent::stop)?;
        for node in cluster.nodes() {
            let ours = node.bpffs().join("beeline");
            let current = fs::read_dir(&ours)?.next().context("no pins")??.path();
            fs::rename(current, ours.join("v0")).context("renaming the version's directory")?;
        }
        web.set_endpoints(&[new])?;
        assert_eq!(client.ask_tcp(web.vip(FAMILIES[0])?)?.server, old.name(), "what the other version left serves");
        cluster.each_agent(Agent::restart)?;
        for node in cluster.nodes() {
            eventually("the other version is gone", SOON, || {
                Ok((!node.bpffs().join("beeline/v0").exists()).then_some(()))
            })?;
        }
        for family in FAMILIES {
            for _ in 0..20 {
                assert_eq!(client.ask_tcp(web.vip(family)?)?.server, new.name());
                assert_eq!(client.ask_udp(web.vip(family)?)?.server, new.name());
            }
        }
        cluster.each_agent(|agent| {
            anyhow::ensure!(agent.log_contains("took off what an agent of another version left"), "{}", agent.log());
            Ok(())
        })
    }
}
