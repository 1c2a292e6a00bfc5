//! Publishing is one write: no connection ever meets a half-changed service.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lb_tests::address::FAMILIES;
use lb_tests::backlog;
use lb_tests::in_every_case;
use lb_tests::manifests::Condition;
use lb_tests::peer::protocol::Pattern;
use lb_tests::scenario::Web;

/// How often the service is rewritten.
const PERIOD: Duration = Duration::from_millis(1);
const REWRITES: u32 = 3_000;
/// Connecting clients, and the rest each takes: what leaves the writer its share of two cores.
const CLIENTS: u32 = 16;
const PAUSE: Duration = Duration::from_millis(2);

/// Half of a test's worth is the pace of the writer, so two of them do not run at the same time.
static ALONE: Mutex<()> = Mutex::new(());

in_every_case! {
    fn clients_connect_without_error_while_the_service_is_rewritten_a_thousand_times_a_second(case: Case) {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster = case.cluster().pods_per_node(3).build()?;
        let (even, odd) = ([cluster.pod(1, 2), cluster.pod(2, 1)], [cluster.pod(1, 3), cluster.pod(2, 2)]);
        let mut web = Web::start(&cluster, &even)?;
        odd.iter().try_for_each(|pod| web.serve(pod))?;
        let client = cluster.pod(1, 1).peer()?;
        web.wait_for(&client, &even)?;

        let sets = [even, odd].map(|set| set.map(|pod| (pod, Condition::Ready)));
        for family in FAMILIES {
            let slices = [web.slice(family, &sets[0]), web.slice(family, &sets[1])];
            let vip = web.vip(family)?;
            let floods = [
                client.flood(Pattern::TcpConnections, vip, CLIENTS, PAUSE)?,
                client.flood(Pattern::UdpSockets, vip, CLIENTS / 4, PAUSE)?,
            ];
            let (start, dropped) = (Instant::now(), backlog::dropped());
            for number in 0..REWRITES {
                cluster.node(1).manifests().publish(&slices[number as usize % 2])?;
                thread::sleep((start + PERIOD * (number + 1)).saturating_duration_since(Instant::now()));
            }
            let took = start.elapsed();
            let known: BTreeSet<_> = even.iter().chain(&odd).map(|pod| pod.name()).collect();
            for flood in floods {
                let tally = flood.finish()?;
                assert_eq!(tally.failed(), 0, "{tally:#?}, {} packets dropped by the machine, {}", backlog::dropped() - dropped, cluster.node(1).agent()?.command(&["status"])?);
                assert_eq!(tally.answers.keys().cloned().collect::<BTreeSet<_>>(), known, "{tally:?}");
            }
            assert!(took < PERIOD * REWRITES * 3, "{REWRITES} rewrites took {took:?}: this machine is too busy to tell");
            web.set_endpoints(&even)?;
            web.wait_for(&client, &even)?;
        }
        Ok(())
    }
}
