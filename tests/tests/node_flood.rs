//! R9: a SYN flood with made-up sources takes nothing from those who talk.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_agent::snapshot::Family;
use lb_tests::address::FAMILIES;
use lb_tests::cluster::Cluster;
use lb_tests::in_both_layouts;
use lb_tests::manifests::Service;
use lb_tests::packet::tcp;
use lb_tests::peer::protocol::Pattern;
use lb_tests::raw_socket::RawSocket;
use lb_tests::scenario::{SOON, Web};
use lb_tests::wait::eventually;

const NODE_PORT: u16 = 30_001;
/// Made-up connections: three times what the flow tables have room for at first. The half that is masqueraded is more than
/// there are source ports towards one endpoint.
const SYNS: u32 = 90_000;
/// Sent at once; a pause follows, so that the machine's own queues hold.
const BURST: u32 = 32;
const PAUSE: Duration = Duration::from_micros(500);

in_both_layouts! {
    /// Connections that are open go on, and everybody who connects meanwhile is served. The flood displaces itself:
    /// its remains are far fewer than what was sent, and nobody was refused for want of room.
    fn clients_do_not_notice_a_flood(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).build()?;
        // A server at the client's node port, and one elsewhere, which is reached masqueraded.
        let (near, far) = (cluster.pod(1, 1), cluster.pod(2, 1));
        let service = Service::cluster_ip("web", 10).node_port(NODE_PORT);
        let _web = Web::start_as(&cluster, service, &[near, far])?;
        let client = cluster.client()?;
        for family in FAMILIES {
            let to = SocketAddr::new(cluster.node(1).address(family), NODE_PORT);
            eventually("the NodePort is served", SOON, || Ok(client.ask_tcp(to).ok()))?;
            let pause = Duration::from_millis(2);
            let lasting = client.flood(Pattern::TcpStream, to, 8, pause)?;
            let coming = client.flood(Pattern::TcpConnections, to, 4, pause)?;
            eventually("the clients talk", SOON, || {
                let busy = lasting.report()?.answered() > 50 && coming.report()?.answered() > 50;
                Ok(busy.then_some(()))
            })?;
            let before = coming.report()?.answered();
            cluster.outside().run(|| flood(family, to))?;
            let (lasting, coming) = (lasting.finish()?, coming.finish()?);
            assert_eq!(lasting.failed(), 0, "{lasting:?}");
            assert_eq!(coming.failed(), 0, "{coming:?}");
            ensure!(coming.answered() > before, "nobody connected during the flood");
            let metrics = cluster.node(1).agent()?.get(10249, "/metrics")?;
            ensure!(metrics.contains("event=\"flow_table_full\"} 0"), "a flow was refused");
            let displaced: u64 = metrics
                .lines()
                .find_map(|line| line.split_once("event=\"flow_displaced\"} "))
                .context("the metric of displaced flows")?
                .1
                .parse()?;
            ensure!(displaced > 5_000, "of {SYNS} SYNs {displaced} made room");
        }
        Ok(())
    }
}

/// Sends SYNs, each from a client of its own that nobody will find.
fn flood(family: Family, to: SocketAddr) -> Result<()> {
    let socket = RawSocket::open(family).context("a socket for packets with headers of our own")?;
    for first in (0..SYNS).step_by(BURST as usize) {
        for number in first..first + BURST {
            let syn = tcp(stranger(family, number), to).syn();
            // A queue that is full drops it, which is what floods meet.
            let _ = socket.send(&syn.quoted(), to);
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// A client that does not exist; each number is another one. Nobody leads back to it.
fn stranger(family: Family, number: u32) -> SocketAddr {
    let port = 1024 + (number % 60_000) as u16;
    match family {
        Family::V4 => SocketAddr::new(Ipv4Addr::from(0x0b00_0000 + number).into(), port),
        Family::V6 => {
            let ip = Ipv6Addr::from(0x2001_0db8_00aa_u128 << 80 | u128::from(number));
            SocketAddr::new(ip.into(), port)
        }
    }
}
