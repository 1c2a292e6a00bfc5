//! The agent may die, restart or be removed: traffic does not notice, and nothing is left that should not be.

use std::time::Duration;

use lb_tests::address::FAMILIES;
use lb_tests::agent::Agent;
use lb_tests::in_every_case;
use lb_tests::peer::protocol::{FailureKind, Pattern};
use lb_tests::scenario::{Web, outlive_agents};

/// Every record the agent writes into a table.
const WRITES: &str = "beeline_table_writes_total";

in_every_case! {
    /// Spec J2, J3.
    fn traffic_flows_on_while_the_agent_is_dead_and_comes_back(case: Case) {
        let cluster = case.cluster().build()?;
        let pods = [cluster.pod(1, 2), cluster.pod(2, 1), cluster.pod(2, 2)];
        let web = Web::start(&cluster, &pods)?;
        let client = cluster.pod(1, 1).peer()?;
        web.wait_for(&client, &pods)?;
        let mut floods = Vec::new();
        for family in FAMILIES {
            for pattern in [Pattern::TcpStream, Pattern::TcpConnections, Pattern::UdpStream, Pattern::UdpSockets] {
                floods.push(client.flood(pattern, web.vip(family)?, 2, Duration::from_millis(2))?);
            }
        }
        outlive_agents(&cluster, floods)
    }

    fn an_agent_that_comes_back_writes_nothing_when_nothing_changed(case: Case) {
        let cluster = case.cluster().build()?;
        let pods = [cluster.pod(1, 2), cluster.pod(2, 2)];
        let web = Web::start(&cluster, &pods)?;
        for node in cluster.nodes() {
            web.wait_for(&node.pods()[0].peer()?, &pods)?;
            assert!(node.agent()?.counter(WRITES)? > 0.0, "the first start wrote nothing");
        }
        cluster.each_agent(Agent::kill9)?;
        cluster.each_agent(Agent::restart)?;
        for node in cluster.nodes() {
            // Held once: a second hold within the assertion would wait for the first for ever.
            let agent = node.agent()?;
            assert_eq!(agent.counter(WRITES)?, 0.0, "{}", agent.log());
        }
        Ok(())
    }

    /// Spec J1, J7.
    fn what_changed_while_the_agent_was_dead_is_made_good(case: Case) {
        let cluster = case.cluster().build()?;
        let (old, new) = (cluster.pod(1, 2), cluster.pod(2, 2));
        let mut web = Web::start(&cluster, &[old])?;
        web.serve(new)?;
        let client = cluster.pod(1, 1).peer()?;
        web.wait_for(&client, &[old])?;
        cluster.each_agent(Agent::kill9)?;
        web.set_endpoints(&[new])?;
        assert_eq!(client.ask_tcp(web.vip(FAMILIES[0])?)?.server, old.name(), "nobody was there to see the change");
        cluster.each_agent(Agent::restart)?;
        for family in FAMILIES {
            // Ready means: all that the directory says is in the kernel.
            for _ in 0..20 {
                assert_eq!(client.ask_tcp(web.vip(family)?)?.server, new.name());
            }
        }
        Ok(())
    }

    fn cleanup_removes_every_trace(case: Case) {
        let cluster = case.cluster().build()?;
        let pods = [cluster.pod(1, 2), cluster.pod(2, 1)];
        let web = Web::start(&cluster, &pods)?;
        let client = cluster.pod(1, 1).peer()?;
        web.wait_for(&client, &pods)?;
        cluster.each_agent(Agent::stop)?;
        for node in cluster.nodes() {
            assert!(!node.pins()?.is_empty(), "the stopped agent left nothing to clean up");
            node.agent()?.command(&["cleanup"])?;
            assert_eq!(node.pins()?, Vec::<String>::new());
        }
        for family in FAMILIES {
            let failure = client.ask_tcp(web.vip(family)?).expect_err("nobody translates any more");
            assert_eq!(failure.failure().map(|failure| failure.kind), Some(FailureKind::Unreachable), "{failure}");
        }
        Ok(())
    }
}
