//! Programs for devices that few nodes have: they come with the first such device or are loaded aside, and another
//! object's never stand in for them. Needs root.

#[path = "scratch/devices.rs"]
mod devices;
mod scratch;
#[path = "scratch/tables.rs"]
mod tables;

use std::path::Path;

use devices::picture;
use lb_agent::cleanup::cleanup;
use lb_agent::config::Xdp;
use lb_agent::datapath::attach::PacketHook;
use lb_agent::datapath::pins::Pins;
use lb_agent::datapath::{Config, Datapath, Seat, Selection};
use lb_agent::sys::bpf::{Attach, Program, XdpMode, attached_programs};
use scratch::ip;
use tables::{open, rebuilt};

/// The id of a pinned program.
fn pinned(bpffs: &Path, name: &str) -> Option<u32> {
    let path = Pins::new(bpffs).program(name);
    path.exists()
        .then(|| Program::open(&path).expect("pinned"))
        .map(|program| program.info().expect("described").id)
}

fn without_a_mac(bpffs: &Path, hook: PacketHook) {
    ip("tuntap add bltun mode tun");
    ip("link set bltun up");
    let wanted = picture().choose(&Selection::list(&["bltun"]), &[]).chosen;
    let index = *wanted.keys().next().expect("the device");
    let runs = |program: u32| {
        // Of a filter the kernel tells no more than that it is there.
        if hook == PacketHook::Tcx {
            let attached = attached_programs(index, Attach::TcxIngress).expect("asked");
            assert_eq!(attached, [program]);
        }
    };

    let mut first = open(bpffs, Some(hook));
    assert_eq!(pinned(bpffs, "l3_ingress"), None, "nothing needs it");
    assert!(pinned(bpffs, "out_ingress").is_some());
    let changes = first.set_devices(&wanted).expect("followed");
    assert_eq!(changes.attached, ["bltun"], "{changes:?}");
    let program = pinned(bpffs, "l3_ingress").expect("loaded");
    assert!(pinned(bpffs, "l3_egress").is_some());
    runs(program);
    drop(first);

    let mut second = open(bpffs, Some(hook));
    assert!(second.adopted());
    second.set_devices(&wanted).expect("followed");
    assert_eq!(pinned(bpffs, "l3_ingress"), Some(program), "not once more");
    runs(program);
    drop(second);

    let config = Config {
        bpffs: bpffs.to_owned(),
        packet_hook: Some(hook),
    };
    let mut third = Datapath::open_object(&config, rebuilt()).expect("opened");
    assert_eq!(pinned(bpffs, "l3_ingress"), None, "that was another's");
    runs(program);
    let changes = third.set_devices(&wanted).expect("followed");
    assert_eq!(changes.attached, ["bltun"], "{changes:?}");
    let other = pinned(bpffs, "l3_ingress").expect("loaded");
    assert_ne!(other, program);
    runs(other);
    drop(third);
    assert!(cleanup(bpffs).is_complete());
}

/// The device's arrival and a thread that loads beforehand: whoever comes second finds what the first one loaded.
#[test]
fn programs_are_loaded_once_whoever_asks() {
    scratch::run("late-aside", |bpffs| {
        let mut datapath = open(bpffs, None);
        let late = datapath.late().clone();
        let aside = std::thread::spawn(move || late.prepare());
        datapath.provide("l3_egress").expect("loaded");
        let program = pinned(bpffs, "l3_egress").expect("pinned");
        aside.join().expect("no panic");
        assert_eq!(pinned(bpffs, "l3_egress"), Some(program));
        assert!(pinned(bpffs, "l3_ingress").is_some());
        assert_eq!(pinned(bpffs, "out_xdp"), None, "tc does its work");
        drop(datapath);
        assert!(cleanup(bpffs).is_complete());
    });
}

#[test]
fn programs_without_a_mac_wait_for_their_device_with_tcx() {
    if PacketHook::probe() == PacketHook::Tcx {
        scratch::run("late-tcx", |bpffs| without_a_mac(bpffs, PacketHook::Tcx));
    }
}

#[test]
fn programs_without_a_mac_wait_for_their_device_with_clsact() {
    scratch::run("late-clsact", |bpffs| {
        without_a_mac(bpffs, PacketHook::Clsact)
    });
}

#[test]
fn xdp_programs_wait_for_a_device_that_is_to_have_them() {
    scratch::run("late-xdp", |bpffs| {
        ip("link add blup type veth peer name blup-peer");
        ip("link set blup up");
        ip("link set blup-peer up");
        let with = |xdp| {
            let selection = Selection {
                xdp,
                ..Selection::list(&["blup"])
            };
            picture().choose(&selection, &[]).chosen
        };
        let mut datapath = open(bpffs, None);
        datapath.set_devices(&with(Xdp::Auto)).expect("followed");
        assert_eq!(pinned(bpffs, "out_xdp"), None);
        assert_eq!(pinned(bpffs, "out_xdp_generic"), None);

        datapath.set_devices(&with(Xdp::Generic)).expect("followed");
        assert_eq!(datapath.seats()["blup"], &Seat::On(XdpMode::Generic));
        assert_eq!(pinned(bpffs, "out_xdp"), None);
        datapath.set_devices(&with(Xdp::Native)).expect("followed");
        assert_eq!(datapath.seats()["blup"], &Seat::On(XdpMode::Native));
        assert!(pinned(bpffs, "out_xdp").is_some());
        drop(datapath);
        assert!(cleanup(bpffs).is_complete());
    });
}

/// On a node without programs of ours sockets need not wait for those that see packets.
#[test]
fn sockets_can_be_served_while_packet_programs_are_loaded() {
    scratch::run("late-packets", |bpffs| {
        let config = Config {
            bpffs: bpffs.to_owned(),
            packet_hook: None,
        };
        let first = Datapath::begin(&config).expect("begun");
        assert!(first.programs_are_coming());
        for hook in ["connect4", "sendmsg6", "released"] {
            assert!(pinned(bpffs, hook).is_some(), "{hook}");
        }
        while first.programs_are_coming() {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        // As a crash before it is noted that they are there.
        drop(first);

        let mut second = Datapath::begin(&config).expect("begun");
        assert!(!second.adopted() && !second.programs_are_coming());
        second.finish().expect("nothing is left to wait for");
        let program = pinned(bpffs, "out_ingress").expect("loaded");
        drop(second);

        let third = Datapath::begin(&config).expect("begun");
        assert!(third.adopted() && !third.programs_are_coming());
        assert_eq!(pinned(bpffs, "out_ingress"), Some(program));
        drop(third);
        assert!(cleanup(bpffs).is_complete());

        let mut fourth = Datapath::begin(&config).expect("begun");
        fourth.finish().expect("loaded");
        assert!(!fourth.programs_are_coming());
        assert!(pinned(bpffs, "pod_egress").is_some());
        drop(fourth);
        let fifth = Datapath::begin(&config).expect("begun");
        assert!(fifth.adopted(), "what was waited for is noted as complete");
        drop(fifth);
        assert!(cleanup(bpffs).is_complete());
    });
}
