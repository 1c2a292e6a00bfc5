//! Large transfers through a ClusterIP: jumbo frames, segmentation offload, and senders without any.

use lb_tests::address::FAMILIES;
use lb_tests::cluster::Builder;
use lb_tests::in_every_case;
use lb_tests::peer::protocol::Direction;
use lb_tests::scenario::{TARGET, Web};

/// A translated transfer may take this many times as long as a direct one. Generous: the machine is shared, and
/// wrong offload handling costs a factor of hundreds.
const SLOWER_AT_MOST: f64 = 4.0;

/// Pairs of transfers, of which one must be as fast as that: what else the machine does may fall on one of a tenth of a
/// second, wrong handling falls on all.
const PAIRS: usize = 4;

fn transfers_are_intact_and_fast(builder: Builder, mebibytes: u32) -> anyhow::Result<()> {
    let cluster = builder.build()?;
    for pod in [cluster.pod(1, 2), cluster.pod(2, 1)] {
        let web = Web::start(&cluster, &[pod])?;
        let client = cluster.pod(1, 1).peer()?;
        web.wait_for(&client, &[pod])?;
        for family in FAMILIES {
            for direction in [Direction::Push, Direction::Pull] {
                let mut met = Vec::new();
                let fast = (0..PAIRS).try_fold(false, |fast, _| {
                    if fast {
                        return anyhow::Ok(true);
                    }
                    let direct = client.bulk(pod.socket(family, TARGET), direction, mebibytes)?;
                    let through = client.bulk(web.vip(family)?, direction, mebibytes)?;
                    assert!(
                        through.intact && through.server == pod.name(),
                        "{through:?}"
                    );
                    let rates = (direct.mebibytes_per_second, through.mebibytes_per_second);
                    met.push(rates);
                    Ok(rates.1 * SLOWER_AT_MOST > rates.0)
                })?;
                assert!(
                    fast,
                    "{family:?} {direction:?} to {}: MiB/s directly and through the Service {met:?}",
                    pod.name()
                );
            }
        }
    }
    Ok(())
}

in_every_case! {
    fn offloaded_segments_arrive_intact(case: Case) {
        transfers_are_intact_and_fast(case.cluster(), 128)
    }

    fn jumbo_frames_arrive_intact(case: Case) {
        transfers_are_intact_and_fast(case.cluster().mtu(9000), 128)
    }

    fn frames_of_senders_without_offload_arrive_intact(case: Case) {
        transfers_are_intact_and_fast(case.cluster().tx_offload(false), 16)
    }

    /// With `tx off` a frame we made or changed with a wrong checksum is really dropped; veth hides it otherwise.
    fn small_requests_and_refusals_work_without_offload(case: Case) {
        use lb_tests::peer::protocol::FailureKind::Refused;

        let cluster = case.cluster().tx_offload(false).build()?;
        let pods = [cluster.pod(1, 1), cluster.pod(1, 2), cluster.pod(2, 1)];
        let web = Web::start(&cluster, &pods)?;
        let client = cluster.pod(1, 1).peer()?;
        web.wait_for(&client, &pods)?;
        for family in FAMILIES {
            let closed = web.vip_port(family, 81)?;
            for outcome in [client.ask_tcp(closed), client.udp_connect(closed).and_then(|socket| socket.ask("hello"))] {
                let error = outcome.expect_err("a refusal");
                assert_eq!(error.failure().map(|failure| failure.kind), Some(Refused), "{error}");
            }
        }
        Ok(())
    }
}
