//! Devices without a link-layer header as uplinks, and overlays between nodes: clients that come in by a tunnel,
//! endpoints that are reached through one, and its smaller packets.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_agent::snapshot::Family;
use lb_tests::address::{self, FAMILIES};
use lb_tests::agent::SocketLb;
use lb_tests::cluster::Cluster;
use lb_tests::guards::Guards;
use lb_tests::in_both_layouts;
use lb_tests::link::Layout;
use lb_tests::overlay::{Overlay, inside};
use lb_tests::scenario::{PORT, SOON, Web, balanced, check_transfers, vip};
use lb_tests::table::{Outcome, Table};
use lb_tests::traffic::Peer;
use lb_tests::tun::Tunnel;
use lb_tests::wait::eventually;

/// How long a datagram's answer may take.
const PATIENCE: Duration = Duration::from_millis(700);

/// MiB/s that any tunnel here carries many times over; a path whose packets are lost for their size carries none.
const SLOW: f64 = 2.0;

/// In IPv6 nobody on the way may cut a datagram: the first ones only teach their sender the size.
fn large_datagram(client: &Peer, dialled: SocketAddr) -> Result<()> {
    let text = "x".repeat(1_900);
    let answer = eventually("a large datagram is answered", SOON, || {
        let socket = client.udp(dialled)?;
        Ok(socket.ask_for(Some(dialled), &text, PATIENCE).ok())
    });
    let answer = answer.with_context(|| format!("from {dialled}"))?;
    ensure!(
        (answer.from, answer.text.len()) == (dialled, text.len()),
        "{answer:?}"
    );
    Ok(())
}

/// Outside client, pod and node reach an endpoint that lies behind a tunnel with smaller packets.
fn through(overlay: Overlay, layout: Layout) -> Result<()> {
    let mut builder = Cluster::builder().layout(layout);
    if overlay == Overlay::VxlanByRoute {
        // The other node gets packets from an address that the tunnel does not lead to, see docs/differences.md.
        builder = builder.guards(Guards::default());
    }
    let cluster = builder.build()?;
    cluster.route_services_to(1)?;
    let _laid = overlay.lay(&cluster)?;
    let far = cluster.pod(2, 1);
    let _web = Web::start_as(&cluster, balanced(1), &[far])?;
    let (client, pod, node) = (
        cluster.client()?,
        cluster.pod(1, 1).peer()?,
        cluster.node(1).peer()?,
    );
    let mut table = Table::new();
    for family in FAMILIES {
        let masked = inside(family, cluster.node(1));
        let seen = |address: IpAddr| Outcome::answered([(far.name(), address)]);
        // A route that steers the tunnel tells the programs no source address.
        let from = match overlay {
            Overlay::VxlanByRoute => cluster.node(1).address(family),
            Overlay::Vxlan | Overlay::Tun => masked,
        };
        table.soon("external → VIP", &client, vip(family, 1), &seen(from));
        let own = cluster.pod(1, 1).address(family);
        let service = SocketAddr::new(address::service(family, 1), PORT);
        table.soon("pod → ClusterIP", &pod, service, &seen(own));
        table.row("node → ClusterIP", &node, service, &seen(masked));
    }
    table.finish()?;
    for family in FAMILIES {
        check_transfers(&client, vip(family, 1), SLOW)?;
        large_datagram(&client, vip(family, 1))?;
    }
    Ok(())
}

in_both_layouts! {
    fn an_endpoint_behind_a_vxlan(layout: Layout) {
        through(Overlay::Vxlan, layout)
    }

    /// Routes tell the tunnel where to: only the host's stack can send there.
    fn an_endpoint_behind_a_vxlan_that_routes_steer(layout: Layout) {
        through(Overlay::VxlanByRoute, layout)
    }

    fn an_endpoint_behind_a_tun(layout: Layout) {
        through(Overlay::Tun, layout)
    }

    /// Answers come by the tunnel, which leads to endpoints alone: a host that checks sources would not take a service's
    /// address from it.
    fn the_nodes_own_packets_on_a_strict_host(layout: Layout) {
        let strict = Guards { strict: true, ..Guards::default() };
        let cluster = Cluster::builder().layout(layout).guards(strict).socket_lb(SocketLb::Off).build()?;
        let _laid = Overlay::Vxlan.lay(&cluster)?;
        let far = cluster.pod(2, 1);
        let _web = Web::start_as(&cluster, balanced(1), &[far])?;
        let node = cluster.node(1).peer()?;
        let mut table = Table::new();
        for family in FAMILIES {
            let masked = Outcome::answered([(far.name(), inside(family, cluster.node(1)))]);
            let service = SocketAddr::new(address::service(family, 1), PORT);
            table.soon("node → ClusterIP", &node, service, &masked);
        }
        table.finish()
    }

    /// Endpoints here and elsewhere, every verdict, and their answers back into the tunnel.
    fn a_client_behind_a_tun(layout: Layout) {
        let cluster = Cluster::builder().layout(layout).build()?;
        let _tunnel = Tunnel::between("tunnel", [cluster.node(1).namespace(), cluster.outside()])?;
        for (namespace, own, other) in [(cluster.node(1).namespace(), 1, 2), (cluster.outside(), 2, 1)] {
            let mut lines = vec!["link set tunnel up".to_owned()];
            for family in FAMILIES {
                let (length, nodad) = if family == Family::V4 { (24, "") } else { (64, " nodad") };
                lines.push(format!("address add {}/{length} dev tunnel{nodad}", vpn(family, own)));
                if own == 2 {
                    let range = if family == Family::V4 { "198.51.100.0/24" } else { "fd51::/64" };
                    lines.push(format!("route add {range} via {} dev tunnel", vpn(family, other)));
                }
            }
            namespace.ip(&lines)?;
        }
        cluster.node(1).wait_attached("tunnel")?;
        let pods = [cluster.pod(1, 2), cluster.pod(2, 1)];
        let _webs = (
            Web::start_as(&cluster, balanced(1), &pods)?,
            Web::beside(&cluster, balanced(2).external_local(), &pods)?,
            Web::beside(&cluster, balanced(3), &[])?,
            Web::beside(&cluster, balanced(4).external_local(), &[pods[1]])?,
            Web::beside(&cluster, balanced(5), &[pods[0]])?,
            Web::beside(&cluster, balanced(6), &[pods[1]])?,
        );
        let client = cluster.client()?;
        let mut table = Table::new();
        for family in FAMILIES {
            let (own, masked) = (vpn(family, 2), cluster.node(1).address(family));
            table.soon("VPN → VIP", &client, vip(family, 1),
                &Outcome::answered([(pods[0].name(), own), (pods[1].name(), masked)]));
            table.soon("VPN → VIP, policy Local", &client, vip(family, 2), &Outcome::answered([(pods[0].name(), own)]));
            table.soon("VPN → VIP without endpoints", &client, vip(family, 3), &Outcome::Refused);
            table.soon("VPN → VIP, nobody here", &client, vip(family, 4), &Outcome::Silent);
        }
        table.finish()?;
        for family in FAMILIES {
            for number in [5, 6] {
                check_transfers(&client, vip(family, number), SLOW)?;
                large_datagram(&client, vip(family, number))?;
            }
        }
        Ok(())
    }
}

/// The node's address in the client's tunnel, 1, and the client's, 2.
fn vpn(family: Family, host: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 9, 0, host]),
        Family::V6 => IpAddr::from([0xfd09, 0, 0, 0, 0, 0, 0, u16::from(host)]),
    }
}
