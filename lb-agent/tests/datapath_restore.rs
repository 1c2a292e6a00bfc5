//! What somebody else takes away is put back. Needs root.

#[path = "scratch/devices.rs"]
mod devices;
mod scratch;
#[path = "scratch/tables.rs"]
mod tables;

use std::path::Path;

use devices::{picture, pod};
use lb_agent::cleanup::cleanup;
use lb_agent::datapath::attach::{PacketHook, SOCKET_HOOKS, detach_device};
use lb_agent::datapath::pins::{Pins, list};
use lb_agent::datapath::{Datapath, Restored, Selection};
use lb_agent::sys::bpf::{Link, Map};
use scratch::Cgroup;
use tables::{frontend4, open};

/// A datapath on one pod's device and a cgroup, that has looked around once.
fn settled(bpffs: &Path, hook: PacketHook, cgroup: &Cgroup) -> Datapath {
    let mut datapath = open(bpffs, Some(hook));
    pod("blpod1");
    let devices = picture().choose(&Selection::auto(), &[]).chosen;
    datapath.set_devices(&devices).expect("followed");
    datapath.attach_sockets(&cgroup.0).expect("attached");
    assert!(datapath.apply(&[&[frontend4(1, 1)]]).failures.is_empty());
    assert_eq!(restore(&mut datapath), Restored::default());
    datapath
}

fn restore(datapath: &mut Datapath) -> Restored {
    let (restored, outcome) = datapath.restore();
    outcome.expect("restored");
    restored
}

/// Ids of everything that has a name, but links.
fn named(bpffs: &Path) -> Vec<(String, u32)> {
    let pins = Pins::new(bpffs);
    let paths = [pins.maps(), pins.inner()].map(|directory| list(&directory).expect("listed"));
    let id = |path: &std::path::PathBuf| {
        let map = Map::open(path).expect("a map");
        (path.display().to_string(), map.info().id)
    };
    paths.concat().iter().map(id).collect()
}

fn names_come_back(bpffs: &Path, hook: PacketHook) {
    let cgroup = Cgroup::new(&format!("restore-{hook:?}"));
    let mut datapath = settled(bpffs, hook, &cgroup);
    let before = named(bpffs);
    std::fs::remove_dir_all(bpffs.join("beeline")).expect("removed");

    let restored = restore(&mut datapath);
    assert!(
        restored.names > before.len(),
        "{restored:?}: tables, inner tables, and programs"
    );
    assert_eq!(restored.socket_hooks, SOCKET_HOOKS.len());
    // Filters of clsact have no names to lose.
    let devices: &[&str] = if hook == PacketHook::Tcx {
        &["blpod1"]
    } else {
        &[]
    };
    assert_eq!(restored.devices, devices);
    assert_eq!(named(bpffs), before);
    assert_eq!(restore(&mut datapath), Restored::default());
    drop(datapath);

    let next = open(bpffs, Some(hook));
    assert!(next.adopted());
    assert_eq!(next.kernel_state().expect("read").frontends4.len(), 1);
    assert!(cleanup(bpffs).is_complete());
}

fn programs_come_back(bpffs: &Path, hook: PacketHook) {
    let cgroup = Cgroup::new(&format!("attach-{hook:?}"));
    let mut datapath = settled(bpffs, hook, &cgroup);
    let index = *datapath.devices().keys().next().expect("one");
    let pins = Pins::new(bpffs);
    detach_device(&pins, hook, (index, "blpod1")).expect("detached");
    // As `bpftool link detach` does: the name stays, and leads to a link that is nowhere.
    let link = Link::open(&pins.link("connect4")).expect("pinned");
    link.detach().expect("detached");

    let restored = restore(&mut datapath);
    let expected = Restored {
        names: 0,
        socket_hooks: 1,
        devices: vec!["blpod1".into()],
    };
    assert_eq!(restored, expected);
    assert_eq!(restore(&mut datapath), Restored::default());
    // One that is gone is no failure.
    scratch::ip("link del blpod1");
    assert_eq!(restore(&mut datapath), Restored::default());
    assert!(cleanup(bpffs).is_complete());
}

fn with_tcx(name: &str, test: fn(&Path, PacketHook)) {
    if PacketHook::probe() == PacketHook::Tcx {
        scratch::run(name, move |bpffs| test(bpffs, PacketHook::Tcx));
    }
}

#[test]
fn j5_names_come_back_with_tcx() {
    with_tcx("names-tcx", names_come_back);
}

#[test]
fn j5_names_come_back_with_clsact() {
    scratch::run("names-clsact", |bpffs| {
        names_come_back(bpffs, PacketHook::Clsact)
    });
}

#[test]
fn j5_programs_come_back_with_tcx() {
    with_tcx("programs-tcx", programs_come_back);
}

#[test]
fn j5_programs_come_back_with_clsact() {
    scratch::run("programs-clsact", |bpffs| {
        programs_come_back(bpffs, PacketHook::Clsact)
    });
}
