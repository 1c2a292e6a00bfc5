//! The datapath's tables in the running kernel: they grow, fill up, and are read where they were written. Needs
//! root.

mod scratch;
#[path = "scratch/tables.rs"]
mod tables;

use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser as _;
use lb_agent::cleanup::cleanup;
use lb_agent::cli::{self, Cli};
use lb_agent::datapath::object::{self, Definitions};
use lb_agent::datapath::pins::Pins;
use lb_agent::datapath::tables::Tables;
use lb_agent::datapath::{Config, Datapath, Reader};
use lb_agent::model::{self, FrontendKind, ServicePort, ServicePortId};
use lb_agent::plan::{Ledger, Write};
use lb_agent::snapshot::{Family, ObjectName, Protocol};
use lb_agent::sys::bpf::{Map, MapSpec, NO_PREALLOC, Outer, Table, WriteMode, pin};
use lb_ebpf::abi::address::{Address4, CLUSTER_IP};
use lb_ebpf::abi::endpoint::{Endpoint, EndpointState};
use lb_ebpf::abi::family::V4;
use lb_ebpf::abi::frontend::{Frontend, FrontendKey};
use lb_ebpf::abi::{address_filter, counter, table};
use tables::{frontend4, open, rebuilt};

#[test]
fn frontends_grow_and_every_one_is_there_for_a_new_agent() {
    scratch::run("grow", |bpffs| {
        let mut datapath = open(bpffs, None);
        let start = datapath.tables().frontends4.table().max_entries();
        let writes: Vec<Write> = (0..20_000).map(|n| frontend4((n % 250) as u8, n)).collect();
        let plans: Vec<&[Write]> = writes.chunks(1).collect();
        let applied = datapath.apply(&plans);
        assert!(
            applied.failures.is_empty(),
            "{:?}",
            applied.failures.first()
        );
        assert_eq!(applied.entries, 20_000);
        let grown = datapath.tables().frontends4.table().max_entries();
        assert!(grown > start && grown >= 20_000, "{start} → {grown}");
        drop(datapath);
        let again = open(bpffs, None);
        assert!(again.adopted());
        assert_eq!(again.kernel_state().expect("read").frontends4.len(), 20_000);
        assert_eq!(
            Reader::open(bpffs)
                .expect("open")
                .frontends4()
                .expect("read")
                .len(),
            20_000
        );
        assert!(cleanup(bpffs).is_complete());
    });
}

/// 20,000 frontends written one after the other, and how many of them the programs find.
fn fill_and_count(bpffs: &Path, datapath: &mut Datapath) -> usize {
    for writes in (0..20_000)
        .map(|n| frontend4((n % 250) as u8, n))
        .collect::<Vec<_>>()
        .chunks(500)
    {
        let applied = datapath.apply(&[writes]);
        assert!(applied.failures.is_empty(), "{:?}", applied.failures);
    }
    let outer = outer(bpffs, table::FRONTENDS4);
    let map = outer.find_inner(0).expect("pinned").expect("set");
    let frontends = Table::<FrontendKey<V4>, Frontend>::new(map).expect("fits");
    frontends.count().expect("read")
}

fn outer(bpffs: &Path, name: &str) -> Outer {
    let pins = Pins::new(bpffs);
    let map = Map::open_read_only(&pins.map(name)).expect("open");
    Outer::new(map, &pins.inner()).expect("fits")
}

/// An empty table of the same layout.
fn like(map: &Map) -> Map {
    let info = map.info();
    Map::create(&MapSpec {
        name: "bl_test",
        kind: info.kind,
        key_size: info.key_size,
        value_size: info.value_size,
        max_entries: info.max_entries,
        flags: NO_PREALLOC,
        types: None,
        inner: None,
    })
    .expect("created")
}

/// Tells those who watch that it is over, also where it ends in a panic.
struct Watched<'a>(&'a AtomicBool);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_table_that_is_watched_while_it_grows_loses_nothing() {
    scratch::run("watched", |bpffs| {
        let mut datapath = open(bpffs, None);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let outer = outer(bpffs, table::FRONTENDS4);
                    while !over.load(Ordering::Relaxed) {
                        outer.find_inner(0).expect("pinned").expect("set");
                        // `beeline status` once finished the pins it met half-way: one of that version may still run.
                        let _ = outer.open_inner(0);
                    }
                });
            }
            let _watched = Watched(&over);
            assert_eq!(fill_and_count(bpffs, &mut datapath), 20_000);
        });
        let tables = datapath.kernel_state().expect("read");
        assert_eq!(tables.frontends4.len(), 20_000);
        assert!(cleanup(bpffs).is_complete());
    });
}

#[test]
fn a_table_whose_pin_fails_when_it_grows_is_written_where_the_programs_look() {
    scratch::run("unpinned", |bpffs| {
        let mut datapath = open(bpffs, None);
        let pin = datapath.tables().frontends4.outer().pin_path(0);
        std::fs::remove_file(&pin).expect("was pinned");
        std::fs::create_dir(&pin).expect("nothing can be renamed to this");
        assert_eq!(fill_and_count(bpffs, &mut datapath), 20_000);
        std::fs::remove_dir(&pin).expect("nothing is in it");
        assert!(cleanup(bpffs).is_complete());
    });
}

#[test]
fn a_command_that_looks_leaves_a_half_finished_pin_to_the_agent() {
    scratch::run("half", |bpffs| {
        let datapath = open(bpffs, None);
        let frontends = &datapath.tables().frontends4;
        let (current, former) = (frontends.table().map(), frontends.outer().pin_path(0));
        let next = former.with_file_name("frontends4-0-next");
        // What the agent has done before it waits for the programs that still use the former table.
        pin::pin(current.as_fd(), &next).expect("pinned");
        pin::pin_over(like(current).as_fd(), &former).expect("pinned");
        let former_id = || Map::open(&former).expect("pinned").info().id;
        let before = former_id();
        let words = [
            "beeline",
            "status",
            "--bpffs",
            bpffs.to_str().expect("text"),
        ];
        let cli = Cli::try_parse_from(words).expect("understood");
        cli::answer(&cli.command).unwrap_or_else(|error| panic!("{error}"));
        assert!(next.exists());
        assert_eq!(former_id(), before);
        assert!(cleanup(bpffs).is_complete());
    });
}

#[test]
fn flows_of_other_programs_keep_their_answers() {
    scratch::run("clients", |bpffs| {
        let known = || {
            let path = Pins::new(bpffs).map(table::CLIENTS);
            let clients = Table::<u32, u32>::open(&path).expect("open");
            let entries = clients.entries().expect("read");
            let marked = entries.iter().filter(|(_, seen)| *seen != 0).count();
            (marked, entries.len())
        };
        drop(open(bpffs, None));
        drop(open(bpffs, None));
        assert_eq!(known(), (0, 4096), "nobody has flows on a fresh node");
        let config = Config {
            bpffs: bpffs.to_owned(),
            packet_hook: None,
        };
        drop(Datapath::open_object(&config, rebuilt()).expect("opened"));
        assert_eq!(
            known(),
            (4096, 4096),
            "anybody may be in those that are there"
        );
        assert!(cleanup(bpffs).is_complete());
    });
}

#[test]
fn blocks_and_states_land_where_they_are_read() {
    scratch::run("blocks", |bpffs| {
        let mut datapath = open(bpffs, None);
        let endpoint = |id| Endpoint::<V4> {
            id,
            service: 3,
            port: 80,
            ..Endpoint::default()
        };
        let first = 5 * 4096 + 100;
        let records: Vec<_> = (0..50).map(endpoint).collect();
        let plan = [
            Write::EndpointState {
                id: 9,
                state: EndpointState {
                    generation: 4,
                    flags: 1,
                },
            },
            Write::EndpointState {
                id: 4096,
                state: EndpointState {
                    generation: 6,
                    flags: 2,
                },
            },
            Write::Endpoints4 {
                first,
                records: records.clone(),
            },
            frontend4(1, 3),
        ];
        let applied = datapath.apply(&[&plan]);
        assert!(applied.failures.is_empty(), "{:?}", applied.failures);
        let reader = Reader::open(bpffs).expect("open");
        assert_eq!(reader.block4(first, 50).expect("read"), records);
        let states = datapath.kernel_state().expect("read").states;
        let written: Vec<_> = states
            .into_iter()
            .filter(|(_, state)| state.generation > 0)
            .map(|(id, _)| id)
            .collect();
        assert_eq!(written, [9, 4096]);
        assert!(cleanup(bpffs).is_complete());
    });
}

#[test]
fn a_block_that_lies_in_three_segments_is_read_as_it_was_written() {
    scratch::run("long", |bpffs| {
        let mut datapath = open(bpffs, None);
        let first = 2 * 4096 - 10;
        let records: Vec<_> = (0..4096 + 20)
            .map(|id| Endpoint::<V4> {
                id,
                service: 3,
                ..Endpoint::default()
            })
            .collect();
        let write = Write::Endpoints4 {
            first,
            records: records.clone(),
        };
        let applied = datapath.apply(&[&[write, frontend4(1, 3)]]);
        assert!(applied.failures.is_empty(), "{:?}", applied.failures);
        let read = Reader::open(bpffs).expect("open").block4(first, 4096 + 20);
        assert_eq!(read.expect("read"), records);
        assert!(cleanup(bpffs).is_complete());
    });
}

#[test]
fn a_full_table_fails_one_plan_by_name_and_spares_the_others() {
    scratch::run("full", |bpffs| {
        let mut datapath = open(bpffs, None);
        let bad = Write::Endpoints4 {
            first: u32::MAX - 10,
            records: vec![Endpoint::default()],
        };
        let failing = [bad, frontend4(1, 1)];
        let good = [frontend4(2, 2)];
        let applied = datapath.apply(&[&good, &failing, &good]);
        assert_eq!(applied.failures.len(), 1);
        let failure = &applied.failures[0];
        assert_eq!((failure.plan, failure.from), (1, 0));
        assert!(
            failure.to_string().contains("endpoints4 is full"),
            "{failure}"
        );
        // The failing plan's frontend would have led to a block that is not there.
        let services: Vec<u32> = datapath
            .kernel_state()
            .expect("read")
            .frontends4
            .iter()
            .map(|(_, frontend)| frontend.service)
            .collect();
        assert_eq!(services, [2]);
        assert!(cleanup(bpffs).is_complete());
    });
}

/// A service port with these frontends: addresses of 198.18.0.0/15.
fn service_port(name: &str, external: std::ops::Range<u32>) -> (ObjectName, Vec<ServicePort>) {
    let service = ObjectName {
        namespace: "shop".into(),
        name: name.into(),
    };
    let id = ServicePortId {
        service: service.clone(),
        port: "http".into(),
        protocol: Protocol::Tcp,
        family: Family::V4,
    };
    let frontends = external.map(|n| model::Frontend {
        address: Ipv4Addr::from(0xc612_0000 + n).into(),
        port: 80,
        kind: FrontendKind::ExternalIp,
        local_policy: false,
        source_ranges: false,
    });
    let port = ServicePort {
        id,
        frontends: frontends.collect(),
        endpoints: vec![],
        has_any: false,
        affinity_seconds: 0,
        source_ranges: vec![],
        ranges_admit_node: false,
    };
    (service, vec![port])
}

/// Spec J7.
#[test]
fn a_service_that_does_not_fit_leaves_the_room_to_others() {
    scratch::run("room", |bpffs| {
        let pins = Pins::new(bpffs);
        pins.create_directories().expect("made");
        let object = object::embedded().expect("built");
        let definitions = Arc::new(Definitions::of(object).expect("sound"));
        let mut tables = Tables::open(&pins, &definitions).expect("opened");
        tables.frontends4 = tables.frontends4.with_limit(1);
        let room = tables.frontends4.table().max_entries();
        let mut ledger = Ledger::default();
        let (large, small) = (
            service_port("large", 0..room + 5_000),
            service_port("small", 100_000..100_100),
        );
        for _ in 0..3 {
            // They are planned together, the small one first, as there is no other room than the large one leaves.
            let plans = [&small, &large].map(|(name, ports)| ledger.apply(name, ports.clone()));
            let writes = plans.each_ref().map(|plan| &plan.writes[..]);
            let failures = tables.apply(&writes).failures;
            let [failure] = &failures[..] else {
                panic!("{failures:?}");
            };
            assert!(failure.plan == 1 && failure.lacked_room() && failure.is_its_own());
            let [_, plan] = plans;
            let back = ledger.no_room(&large.0, plan, failure.from);
            assert!(tables.apply(&[&back.writes]).failures.is_empty());
            let frontends = tables.frontends4.table().count().expect("read");
            assert_eq!(frontends, 100);
        }
        let late = service_port("late", 200_000..200_000 + room - 100);
        let plan = ledger.apply(&late.0, late.1);
        assert!(tables.apply(&[&plan.writes]).failures.is_empty());
        drop(tables);
        assert!(cleanup(bpffs).is_complete());
    });
}

/// The devices of the calling thread's namespace.
#[test]
fn counters_start_at_zero_and_have_room_for_all() {
    scratch::run("counters", |bpffs| {
        drop(open(bpffs, None));
        let counters = Reader::open(bpffs).expect("open").counters().expect("read");
        assert_eq!(counters, vec![0; counter::COUNTERS as usize]);
        assert!(counter::ALL.len() <= counters.len());
        assert!(cleanup(bpffs).is_complete());
    });
}

/// Bits set in the filter of IPv4 addresses.
fn filter_bits(bpffs: &Path) -> usize {
    let words = filter(bpffs).entries().expect("read");
    let bits: u32 = words.iter().map(|(_, word)| word.count_ones()).sum();
    bits as usize
}

fn filter(bpffs: &Path) -> Table<u32, u64> {
    Table::open(&Pins::new(bpffs).map(table::ADDRESS_FILTER4)).expect("open")
}

fn uses(range: std::ops::Range<u32>, flags: u32) -> Vec<Write> {
    range
        .map(|n| Write::Address {
            address: Ipv4Addr::from(0x0a60_0000 + n).into(),
            flags,
        })
        .collect()
}

#[test]
fn every_address_has_its_bit_and_few_others_have() {
    scratch::run("filter", |bpffs| {
        let mut datapath = open(bpffs, None);
        let applied = datapath.apply(&[&uses(0..2_000, CLUSTER_IP)]);
        assert!(applied.failures.is_empty(), "{:?}", applied.failures);
        let words = filter(bpffs).entries().expect("read");
        for n in 0..2_000u32 {
            let address = Address4::from(Ipv4Addr::from(0x0a60_0000 + n));
            let (at, bit) = address_filter::place::<V4>(address);
            assert!(
                words
                    .iter()
                    .any(|(word, bits)| *word == at && bits & bit != 0)
            );
        }
        let all = filter_bits(bpffs);
        assert!((1_900..=2_000).contains(&all), "{all}");
        // Most of them go. Bits go after them, not one by one.
        datapath.apply(&[&uses(10..2_000, 0)]);
        let left = filter_bits(bpffs);
        assert!((10..=1_000).contains(&left), "{left}");
        assert!(cleanup(bpffs).is_complete());
    });
}

#[test]
fn a_filter_that_an_older_agent_left_behind_is_put_right() {
    scratch::run("old-filter", |bpffs| {
        let mut datapath = open(bpffs, None);
        datapath.apply(&[&uses(0..100, CLUSTER_IP)]);
        let right = filter(bpffs).entries().expect("read");
        drop(datapath);
        for (word, bits) in &right {
            filter(bpffs)
                .put(word, &!bits, WriteMode::Any)
                .expect("write");
        }
        drop(open(bpffs, None));
        assert_eq!(filter(bpffs).entries().expect("read"), right);
        assert!(cleanup(bpffs).is_complete());
    });
}
