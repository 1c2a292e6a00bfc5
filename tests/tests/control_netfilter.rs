//! netfilter's settings as kube-proxy makes them (spec §3.1), in the kernel.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use lb_tests::control_plane::rig::Rig;
use lb_tests::control_plane::sandbox;

/// In the calling thread's network namespace.
fn setting(name: &str) -> Result<u32> {
    let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    text.trim()
        .parse()
        .with_context(|| format!("{path}: {text:?}"))
}

/// Upstream: "should set TCP CLOSE_WAIT timeout".
#[test]
fn an_agent_sets_kube_proxys_timeouts_and_leaves_the_others_alone() {
    sandbox::run(|sandbox| {
        let others = ["udp_timeout", "udp_timeout_stream", "tcp_be_liberal"];
        let before = others.map(setting);
        ensure!(
            setting("tcp_timeout_close_wait")? != 3600,
            "a new namespace has kube-proxy's value already"
        );
        let mut rig = Rig::start(sandbox)?;
        // No packet for 127.0.0.0/8 may come from elsewhere (spec E21, E22).
        ensure!(fs::read_to_string("/proc/sys/net/ipv4/conf/all/route_localnet")?.trim() == "0");
        ensure!(setting("tcp_timeout_established")? == 86_400);
        ensure!(setting("tcp_timeout_close_wait")? == 3_600);
        for (name, before) in others.into_iter().zip(before) {
            ensure!(setting(name)? == before?, "{name} changed");
        }
        // Only the first network namespace may change the table's size: that is told, once, and no reason to end.
        let log = rig.agent.log();
        ensure!(
            log.matches("could not change netfilter's settings").count() <= 1,
            "{log}"
        );
        rig.agent.check_alive()
    });
}
