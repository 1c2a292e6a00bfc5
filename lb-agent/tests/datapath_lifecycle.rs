//! The datapath's life against the running kernel: created, adopted, replaced, cleaned up. Needs root.

#[path = "scratch/devices.rs"]
mod devices;
mod scratch;
#[path = "scratch/tables.rs"]
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use devices::{picture, pod};
use lb_agent::cleanup::{cleanup, remove_other_versions};
use lb_agent::datapath::attach::{PacketHook, SOCKET_HOOKS};
use lb_agent::datapath::pins::Pins;
use lb_agent::datapath::{Config, Datapath, Interfaces, Reader, Selection};
use lb_agent::plan::Write;
use lb_agent::sys::bpf::{Attach, Link, Map, MapKind, MapSpec, Program, attached_programs, pin};
use lb_ebpf::abi::settings::Settings;
use scratch::{Cgroup, ip};
use tables::{frontend4, open, rebuilt};

fn link_ids(bpffs: &Path) -> BTreeMap<&'static str, (u32, u32)> {
    let pins = Pins::new(bpffs);
    let read = |(name, _): (&'static str, Attach)| {
        let info = Link::open(&pins.link(name))
            .expect("pinned")
            .info()
            .expect("described");
        (name, (info.id, info.program_id))
    };
    SOCKET_HOOKS.into_iter().map(read).collect()
}

fn map_ids(bpffs: &Path) -> BTreeSet<u32> {
    let pins = Pins::new(bpffs);
    let paths = [pins.maps(), pins.inner()]
        .map(|d| lb_agent::datapath::pins::list(&d).expect("listed"))
        .concat();
    paths
        .iter()
        .map(|path| Map::open(path).expect("a map").info().id)
        .collect()
}

/// Spec J2.
#[test]
fn a_second_agent_adopts_everything_and_writes_nothing() {
    scratch::run("adopt", |bpffs| {
        let cgroup = Cgroup::new("adopt");
        let mut first = open(bpffs, None);
        assert!(!first.adopted());
        assert_eq!(
            first.attach_sockets(&cgroup.0).expect("attached"),
            SOCKET_HOOKS.len()
        );
        assert!(
            first
                .set_settings(&Settings {
                    host_netns: 7,
                    ..Settings::default()
                })
                .expect("written")
        );
        let (links, maps) = (link_ids(bpffs), map_ids(bpffs));
        drop(first);

        let mut second = open(bpffs, None);
        assert!(second.adopted());
        assert_eq!(second.attach_sockets(&cgroup.0).expect("attached"), 0);
        assert!(
            !second
                .set_settings(&Settings {
                    host_netns: 7,
                    ..Settings::default()
                })
                .expect("equal")
        );
        assert_eq!(link_ids(bpffs), links);
        assert_eq!(map_ids(bpffs), maps);
        assert!(cleanup(bpffs).is_complete());
    });
}

#[test]
fn another_object_takes_over_the_same_links_and_tables() {
    scratch::run("replace", |bpffs| {
        let cgroup = Cgroup::new("replace");
        let mut first = open(bpffs, None);
        first.attach_sockets(&cgroup.0).expect("attached");
        let applied = first.apply(&[&[frontend4(1, 1)]]);
        assert!(applied.failures.is_empty(), "{:?}", applied.failures);
        let (links, maps) = (link_ids(bpffs), map_ids(bpffs));
        drop(first);

        let config = Config {
            bpffs: bpffs.to_owned(),
            packet_hook: None,
        };
        let mut second = Datapath::open_object(&config, rebuilt()).expect("opened");
        assert!(!second.adopted());
        // Until its links are told, the old programs run on.
        assert_eq!(link_ids(bpffs), links);
        assert_eq!(
            second.attach_sockets(&cgroup.0).expect("replaced"),
            SOCKET_HOOKS.len()
        );
        let now = link_ids(bpffs);
        for (name, (link, program)) in &links {
            assert_eq!(now[name].0, *link, "{name} kept its link");
            assert_ne!(now[name].1, *program, "{name} got the new program");
        }
        assert_eq!(map_ids(bpffs), maps);
        assert_eq!(second.kernel_state().expect("read").frontends4.len(), 1);
        assert!(cleanup(bpffs).is_complete());
    });
}

#[test]
fn cleanup_leaves_no_trace_and_works_twice() {
    scratch::run("cleanup", |bpffs| {
        let cgroup = Cgroup::new("cleanup");
        let mut datapath = open(bpffs, None);
        datapath.attach_sockets(&cgroup.0).expect("attached");
        drop(datapath);
        // What an older version may have left.
        let old = Pins::in_directory(&bpffs.join("beeline/v0"));
        old.create_directories().expect("made");
        let report = cleanup(bpffs);
        assert!(report.is_complete(), "{report}");
        assert_eq!(report.links, SOCKET_HOOKS.len());
        assert!(!bpffs.join("beeline").exists());
        let file = std::fs::File::open(&cgroup.0).expect("open");
        let target = std::os::fd::AsRawFd::as_raw_fd(&file) as u32;
        for (name, attach) in SOCKET_HOOKS {
            assert_eq!(
                attached_programs(target, attach).expect("asked"),
                Vec::<u32>::new(),
                "{name}"
            );
        }
        assert!(cleanup(bpffs).is_complete());
    });
}

#[test]
fn cleanup_names_what_it_could_not_remove() {
    scratch::run("stuck", |bpffs| {
        drop(open(bpffs, None));
        let stranger = bpffs.join("beeline/v3/stranger");
        std::fs::create_dir(&stranger).expect("made");
        let report = cleanup(bpffs);
        assert!(!report.is_complete());
        assert!(
            report
                .failures
                .iter()
                .any(|failure| failure.contains("beeline/v3")),
            "{report}"
        );
        std::fs::remove_dir(&stranger).expect("removed");
        assert!(cleanup(bpffs).is_complete());
    });
}

#[test]
fn a_table_of_another_layout_is_refused_and_not_touched() {
    scratch::run("layout", |bpffs| {
        let pins = Pins::new(bpffs);
        pins.create_directories().expect("made");
        let spec = MapSpec {
            name: "settings",
            kind: MapKind::Array as u32,
            key_size: 4,
            value_size: 16,
            max_entries: 1,
            flags: 0,
            types: None,
            inner: None,
        };
        let wrong = Map::create(&spec).expect("created");
        pin::pin(std::os::fd::AsFd::as_fd(&wrong), &pins.map("settings")).expect("pinned");
        let config = Config {
            bpffs: bpffs.to_owned(),
            packet_hook: None,
        };
        let text = Datapath::open(&config).expect_err("refused").to_string();
        assert!(
            text.contains("settings") && text.contains("value size 16") && text.contains("cleanup"),
            "{text}"
        );
        assert_eq!(
            Map::open(&pins.map("settings"))
                .expect("still there")
                .info()
                .id,
            wrong.info().id
        );
    });
}

fn follow_devices(bpffs: &Path, hook: PacketHook) {
    let mut datapath = open(bpffs, Some(hook));
    pod("blpod1");
    let first = picture().choose(&Selection::auto(), &[]).chosen;
    assert_eq!(
        first
            .values()
            .map(|chosen| chosen.name.as_str())
            .collect::<Vec<_>>(),
        ["blpod1"]
    );
    let changes = datapath.set_devices(&first).expect("followed");
    assert_eq!(
        (changes.attached.as_slice(), changes.failed.as_slice()),
        (&["blpod1".to_owned()][..], &[][..])
    );
    assert_eq!(
        datapath.set_devices(&first).expect("followed"),
        Default::default()
    );
    let devices = Reader::open(bpffs).expect("open").devices().expect("read");
    assert_eq!(
        devices,
        first
            .iter()
            .map(|(index, chosen)| (*index, chosen.device))
            .collect::<Vec<_>>()
    );
    drop(datapath);

    // Another agent with another object: replaced in place, then one that finds everything.
    let config = Config {
        bpffs: bpffs.to_owned(),
        packet_hook: Some(hook),
    };
    let mut second = Datapath::open_object(&config, rebuilt()).expect("opened");
    assert_eq!(
        second.set_devices(&first).expect("followed").attached,
        ["blpod1"]
    );
    if hook == PacketHook::Tcx {
        let index = *first.keys().next().expect("one");
        let program = Program::open(&Pins::new(bpffs).program("pod_ingress"))
            .expect("pinned")
            .info()
            .expect("info");
        assert_eq!(
            attached_programs(index, Attach::TcxIngress).expect("asked"),
            [program.id]
        );
        drop(second);
        second = Datapath::open_object(&config, rebuilt()).expect("opened");
        assert_eq!(
            second.set_devices(&first).expect("followed"),
            Default::default()
        );
    }

    ip("link del blpod1");
    let gone = second
        .set_devices(&picture().choose(&Selection::auto(), &[]).chosen)
        .expect("followed");
    assert_eq!(gone.forgotten, first.keys().copied().collect::<Vec<_>>());
    assert!(
        Reader::open(bpffs)
            .expect("open")
            .devices()
            .expect("read")
            .is_empty()
    );

    pod("blpod2");
    second
        .set_devices(&picture().choose(&Selection::auto(), &[]).chosen)
        .expect("followed");
    drop(second);
    let report = cleanup(bpffs);
    assert!(report.is_complete(), "{report}");
    let (links, filters) = if hook == PacketHook::Tcx {
        (2, 0)
    } else {
        (0, 2)
    };
    assert_eq!((report.links, report.filters), (links, filters));
}

#[test]
fn devices_are_followed_with_tcx() {
    if PacketHook::probe() == PacketHook::Tcx {
        scratch::run("tcx", |bpffs| follow_devices(bpffs, PacketHook::Tcx));
        return;
    }
    // The agent takes clsact then, which the next test follows.
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let mut numbers = kernel.split('.').map(|number| number.parse::<u32>());
    let mut next = || numbers.next().expect("major.minor").expect("a number");
    assert!((next(), next()) < (6, 6), "Linux {kernel} has tcx");
}

#[test]
fn devices_are_followed_with_clsact() {
    scratch::run("clsact", |bpffs| follow_devices(bpffs, PacketHook::Clsact));
}

#[test]
fn filters_of_another_version_go_where_this_one_has_none() {
    scratch::run("versions", |bpffs| {
        pod("blpod5");
        let pods = picture().choose(&Selection::auto(), &[]).chosen;
        let other = bpffs.join("beeline/v0");
        let serve = |chosen: &BTreeMap<_, _>| {
            let mut datapath = open(bpffs, Some(PacketHook::Clsact));
            datapath.set_devices(chosen).expect("followed");
        };
        let removed = |own: &[&str]| {
            let own = own.iter().map(|name| (*name).to_owned()).collect();
            let report = remove_other_versions(bpffs, &own).expect("there was one");
            assert!(report.is_complete(), "{report}");
            assert!(!other.exists());
            assert!(remove_other_versions(bpffs, &own).is_none());
            report.filters
        };
        serve(&pods);
        std::fs::rename(Pins::new(bpffs).root(), &other).expect("renamed");
        // Its own filters have taken the place of the former ones.
        serve(&pods);
        assert_eq!(removed(&["blpod5"]), 0);
        std::fs::rename(Pins::new(bpffs).root(), &other).expect("renamed");
        serve(&BTreeMap::new());
        assert_eq!(removed(&[]), 2);
        assert_eq!(cleanup(bpffs).filters, 0);
    });
}

/// All but loading programs, which is theirs to make possible.
#[test]
fn two_capabilities_are_enough() {
    scratch::run("caps", |bpffs| {
        let cgroup = Cgroup::new("caps");
        drop(open(bpffs, None));
        pod("blpod4");
        scratch::drop_privileges();
        let mut datapath = open(bpffs, None);
        assert!(datapath.adopted());
        assert_eq!(
            datapath.attach_sockets(&cgroup.0).expect("attached"),
            SOCKET_HOOKS.len()
        );
        let changes = datapath
            .set_devices(&picture().choose(&Selection::auto(), &[]).chosen)
            .expect("followed");
        assert_eq!(changes.attached, ["blpod4"]);
        let writes: Vec<Write> = (0..5_000).map(|n| frontend4((n % 250) as u8, n)).collect();
        let applied = datapath.apply(&[&writes]);
        assert!(applied.failures.is_empty(), "{:?}", applied.failures);
        let (grace, mut reusable) = lb_agent::datapath::Grace::<()>::start().expect("started");
        grace.retire(());
        assert_eq!(reusable.blocking_recv(), Some(()));
        let report = cleanup(bpffs);
        assert!(report.is_complete(), "{report}");
    });
}

#[test]
fn a_new_device_is_heard_of() {
    scratch::run("hear", |_| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let interfaces = Interfaces::open().expect("a socket");
            pod("blpod3");
            let patience = std::time::Duration::from_secs(5);
            tokio::time::timeout(patience, interfaces.changed())
                .await
                .expect("in time")
                .expect("heard");
            let picture = interfaces.read().await.expect("a list");
            assert!(
                picture
                    .interfaces
                    .iter()
                    .any(|interface| interface.name == "blpod3")
            );
        });
    });
}

#[test]
fn retired_things_come_back_after_a_grace_period() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let (grace, mut reusable) =
        lb_agent::datapath::Grace::<u32>::start().expect("this test needs root");
    grace.retire(1);
    grace.retire(2);
    runtime.block_on(async {
        assert_eq!(reusable.recv().await, Some(1));
        assert_eq!(reusable.recv().await, Some(2));
    });
    drop(grace);
    assert_eq!(runtime.block_on(reusable.recv()), None);
}
