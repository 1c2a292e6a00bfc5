//! Where connected sockets remember their service: a slot of the socket's own as long as there are slots, storage of the
//! socket itself where another one has it.

use anyhow::Result;
use lb_agent::datapath::pins::Pins;
use lb_agent::sys::bpf::{Table, WriteMode};
use lb_ebpf::abi::socket::{SLOTS, SocketSlot};
use lb_ebpf::abi::table;
use lb_tests::address::FAMILIES;
use lb_tests::cluster::Cluster;
use lb_tests::scenario::{SOON, Web};
use lb_tests::wait::eventually;

fn slots(cluster: &Cluster) -> Result<Table<u32, SocketSlot>> {
    let pins = Pins::new(&cluster.node(1).bpffs());
    Ok(Table::open(&pins.map(table::SOCKET_SLOTS))?)
}

fn held(slots: &Table<u32, SocketSlot>) -> Result<usize> {
    let all = slots.entries()?;
    assert!(all.iter().all(|(_, slot)| slot.holders <= 1));
    Ok(all.iter().filter(|(_, slot)| slot.holders != 0).count())
}

#[test]
fn a_slot_is_given_back_when_its_socket_is_closed() -> Result<()> {
    let cluster = Cluster::builder().build()?;
    let pods = [cluster.pod(1, 2), cluster.pod(2, 1)];
    let web = Web::start(&cluster, &pods)?;
    let client = cluster.pod(1, 1).peer()?;
    web.wait_for(&client, &pods)?;
    let slots = slots(&cluster)?;
    eventually("the sockets that waited are gone", SOON, || {
        Ok((held(&slots)? == 0).then_some(()))
    })?;
    for family in FAMILIES {
        let vip = web.vip(family)?;
        let sockets = [client.connect(vip)?, client.udp_connect(vip)?];
        assert_eq!(held(&slots)?, 2);
        for socket in &sockets {
            assert_eq!(socket.names_now()?.peer, Some(vip));
        }
        drop(sockets);
        eventually("both slots are free", SOON, || {
            Ok((held(&slots)? == 0).then_some(()))
        })?;
    }
    Ok(())
}

#[test]
fn a_socket_shows_its_service_where_every_slot_is_taken() -> Result<()> {
    let cluster = Cluster::builder().build()?;
    let pods = [cluster.pod(1, 2), cluster.pod(2, 1)];
    let web = Web::start(&cluster, &pods)?;
    let client = cluster.pod(1, 1).peer()?;
    web.wait_for(&client, &pods)?;
    let slots = slots(&cluster)?;
    let taken = SocketSlot {
        cookie: u64::MAX,
        holders: 1,
        ..SocketSlot::default()
    };
    for at in 0..SLOTS {
        slots.put(&at, &taken, WriteMode::Any)?;
    }
    for family in FAMILIES {
        let vip = web.vip(family)?;
        for socket in [client.connect(vip)?, client.udp_connect(vip)?] {
            assert_eq!(
                (socket.ask("hello")?.from, socket.names_now()?.peer),
                (vip, Some(vip))
            );
        }
    }
    assert!(slots.entries()?.iter().all(|(_, slot)| *slot == taken));
    Ok(())
}
