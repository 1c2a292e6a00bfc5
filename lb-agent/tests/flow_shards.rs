//! Flow shards that grow under traffic, through the real programs. Needs root.

mod scratch;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use clap::Parser as _;
use lb_agent::cli::{self, Cli};
use lb_agent::datapath::entries::Meter;
use lb_agent::datapath::flows::Flows;
use lb_agent::datapath::object::{self, Definitions};
use lb_agent::datapath::pins::Pins;
use lb_agent::datapath::{Config, Datapath, Reader};
use lb_agent::plan::Write;
use lb_agent::sys::bpf::{Map, Outer, Program, Table, WriteMode};
use lb_ebpf::abi::address::CLUSTER_IP;
use lb_ebpf::abi::device::{Device, POD};
use lb_ebpf::abi::endpoint::{Endpoint, EndpointState, SERVING};
use lb_ebpf::abi::family::V4;
use lb_ebpf::abi::flow::{Flow, FlowKey};
use lb_ebpf::abi::frontend::{self, Frontend, FrontendKey, HAS_ENDPOINTS};
use lb_ebpf::abi::name::ServiceName;
use lb_ebpf::abi::settings::Settings;
use lb_ebpf::abi::{FLOW_SHARDS, UDP, counter, table};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const SERVICE: u32 = 7;
/// First of two endpoints: a flow that were lost would often get the other one.
const ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
/// The loopback device of the test's network namespace, on which a test run's packets are met.
const LOOPBACK: u32 = 1;
/// Flows a shard has room for at first.
const FIRST_SIZE: usize = 1024;

/// Tables with one UDP service, and the program that clients' packets meet.
struct Node {
    datapath: Datapath,
    pins: Pins,
    reader: Reader,
}

impl Node {
    fn new(bpffs: &Path) -> Self {
        scratch::ip("link set lo up");
        let mut datapath = open(bpffs);
        publish(&mut datapath);
        let pins = Pins::new(bpffs);
        let devices: Table<u32, Device> = Table::open(&pins.map(table::DEVICES)).expect("devices");
        let device = Device {
            role: POD,
            header_length: 14,
            mtu: 1500,
            ..Device::default()
        };
        devices
            .put(&LOOPBACK, &device, WriteMode::Any)
            .expect("written");
        // Nobody answers here, and so many unproven flows want long queues.
        for _ in 0..2 {
            datapath.tables().flows.admit_more().expect("lengthened");
        }
        Self {
            datapath,
            pins,
            reader: Reader::open(bpffs).expect("tables"),
        }
    }

    fn program(&self) -> Program {
        Program::open(&self.pins.program("pod_ingress")).expect("pinned")
    }

    fn counter(&self, number: u32) -> u64 {
        self.reader.counters().expect("counters")[number as usize]
    }

    /// Endpoints of all flows, by client.
    fn flows(&self) -> BTreeMap<(Vec<u8>, u16), Vec<u8>> {
        let (_, entries) = Flows::<V4>::read(&self.pins).expect("flows");
        entries
            .iter()
            .map(|(key, flow)| {
                (
                    (key.source.octets.to_vec(), key.source_port),
                    flow.new_destination.octets.to_vec(),
                )
            })
            .collect()
    }

    fn outer(&self, name: &str) -> Outer {
        let map = Map::open(&self.pins.map(name)).expect("pinned");
        Outer::new(map, &self.pins.inner()).expect("a table of tables")
    }

    fn used(&self, name: &str) -> (usize, usize) {
        let usage = self.datapath.tables().flows.usage();
        let found = usage.iter().find(|usage| usage.table == name);
        found
            .map(|usage| (usage.entries, usage.capacity))
            .expect("a flow table")
    }
}

fn open(bpffs: &Path) -> Datapath {
    Datapath::open(&Config {
        bpffs: bpffs.to_owned(),
        packet_hook: None,
    })
    .unwrap_or_else(|error| panic!("{error}"))
}

/// Tends the shards until nothing is left to move or clear.
fn settle(datapath: &Datapath) {
    while datapath.tables().flows.tend().expect("tended") {}
}

fn publish(datapath: &mut Datapath) {
    let hour = 3600;
    let settings = Settings {
        host_netns: 1,
        timeout_new: hour,
        timeout_udp: hour,
        timeout_tcp: hour,
        timeout_closing: hour,
        timeout_closed: hour,
        nat_port_first: 60_000,
        nat_port_last: 61_000,
        ..Settings::default()
    };
    datapath.set_settings(&settings).expect("settings");
    let field = |text: &str| {
        let mut field = [0; 64];
        field[..text.len()].copy_from_slice(text.as_bytes());
        field
    };
    let name = ServiceName {
        namespace: field("shop"),
        name: field("web"),
        port: field("dns"),
        family: 4,
        protocol: UDP,
        zero: [0; 2],
    };
    let records = [0, 1].map(|index| Endpoint::<V4> {
        address: Ipv4Addr::from(u32::from(ENDPOINT) + index).into(),
        port: 5353,
        flags: 0,
        id: index + 1,
        service: SERVICE,
    });
    let state = EndpointState {
        generation: 1,
        flags: SERVING,
    };
    let key = FrontendKey::<V4> {
        address: VIP.into(),
        port: 53,
        protocol: UDP,
        zero: 0,
    };
    let frontend = Frontend {
        generation: 1,
        generation_end: 1,
        check: frontend::key_check(&key),
        service: SERVICE,
        block: 4096,
        cluster_count: 2,
        flags: frontend::CLUSTER_IP | HAS_ENDPOINTS,
        ..Frontend::default()
    };
    let plan = [
        Write::Name {
            id: SERVICE,
            name: Box::new(name),
        },
        Write::EndpointState { id: 1, state },
        Write::EndpointState { id: 2, state },
        Write::Endpoints4 {
            first: 4096,
            records: records.to_vec(),
        },
        Write::Frontend4 { key, frontend },
        Write::Address {
            address: IpAddr::V4(VIP),
            flags: CLUSTER_IP,
        },
    ];
    let applied = datapath.apply(&[&plan]);
    assert!(applied.failures.is_empty(), "{:?}", applied.failures);
}

/// A datagram of client `number` to the service.
fn datagram(number: u32) -> Vec<u8> {
    let (source, port) = client(number);
    let mut frame = vec![0u8; 14 + 20 + 8 + 18];
    frame[12..14].copy_from_slice(&[8, 0]);
    let packet = &mut frame[14..];
    let length = packet.len() as u16;
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[8] = 64;
    packet[9] = UDP;
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&VIP.octets());
    let sum: u32 = packet[..20]
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    packet[22..24].copy_from_slice(&53u16.to_be_bytes());
    packet[24..26].copy_from_slice(&(length - 20).to_be_bytes());
    frame
}

fn client(number: u32) -> (Ipv4Addr, u16) {
    let address = u32::from(Ipv4Addr::new(10, 244, 0, 2)) + number / 10_000;
    (Ipv4Addr::from(address), 10_000 + (number % 10_000) as u16)
}

fn open_flows(node: &Node, numbers: std::ops::Range<u32>) {
    let program = node.program();
    for number in numbers {
        program.run_once(&datagram(number)).expect("run");
    }
}

fn say(line: &str, bpffs: &Path) -> String {
    let words = format!("beeline {line} --bpffs {}", bpffs.display());
    let cli = Cli::try_parse_from(words.split(' ')).expect(line);
    cli::answer(&cli.command)
        .unwrap_or_else(|error| panic!("{line}: {error}"))
        .text
}

#[test]
fn no_flow_is_lost_while_shards_grow() {
    scratch::run("growth", |bpffs| {
        const FLOWS: u32 = 60_000;
        let node = Node::new(bpffs);
        let opened = AtomicU32::new(0);
        let tended = AtomicU32::new(0);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    node.datapath.tables().flows.tend().expect("tended");
                    tended.fetch_add(1, Ordering::Release);
                }
            });
            // Old flows meet packets all the time, in an order that visits every shard.
            scope.spawn(|| {
                let program = node.program();
                let mut step = 0u32;
                while !done.load(Ordering::Relaxed) {
                    step = step.wrapping_add(7919);
                    let known = opened.load(Ordering::Acquire).max(1);
                    if known > 1 {
                        program.run_once(&datagram(step % known)).expect("run");
                    }
                }
            });
            let program = node.program();
            for number in 0..FLOWS {
                program.run_once(&datagram(number)).expect("run");
                opened.store(number + 1, Ordering::Release);
                // At most so many at a time that no shard can fill up while it is being grown.
                if number % 1000 == 0 {
                    let before = tended.load(Ordering::Acquire);
                    while tended.load(Ordering::Acquire) < before + 2 {
                        thread::yield_now();
                    }
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        settle(&node.datapath);
        assert_eq!(node.counter(counter::FLOW_TABLE_FULL), 0);
        // One that were lost would have been opened again.
        assert_eq!(node.counter(counter::FLOW_CREATED), u64::from(FLOWS));
        assert_eq!(node.flows().len(), FLOWS as usize);
        for name in [table::FLOWS4, table::REPLIES4] {
            let (entries, capacity) = node.used(name);
            assert_eq!(entries, FLOWS as usize, "{name}");
            assert!(capacity > FLOWS as usize, "{name}: {capacity}");
            for shard in 0..FLOW_SHARDS {
                let former = node.outer(name).inner_id(2 * shard + 1).expect("asked");
                assert_eq!(former, None, "{name} {shard}");
            }
        }
        assert_eq!(node.used(table::FLOWS6), (0, 32 * FIRST_SIZE));
    });
}

#[test]
fn an_agent_goes_on_where_another_ended() {
    scratch::run("crash", |bpffs| {
        const FLOWS: u32 = 8000;
        let node = Node::new(bpffs);
        open_flows(&node, 0..FLOWS);
        let before = node.flows();
        assert_eq!(before.len(), FLOWS as usize);
        let object = object::embedded().expect("built");
        let definitions = Definitions::of(object).expect("definitions");
        for name in [table::FLOWS4, table::REPLIES4] {
            let outer = node.outer(name);
            let inner = definitions
                .table(name)
                .expect("defined")
                .inner_definition()
                .expect("inner");
            // The first shard is published by half; the second wholly, with nothing moved; the second with some moved.
            for slot in [0, 2, 4] {
                let current = outer.open_inner(slot).expect("opened").expect("there");
                outer.set_many(&[(slot + 1, &current)]).expect("set");
                if slot == 0 {
                    continue;
                }
                let bigger = definitions.create_sized(inner, 8192).expect("created");
                outer.set_many(&[(slot, &bigger)]).expect("set");
                let mut pairs = Vec::new();
                current
                    .for_each(|key, value| pairs.push((key.to_vec(), value.to_vec())))
                    .expect("read");
                let moved = if slot == 4 { pairs.len() / 2 } else { 0 };
                for (key, value) in &pairs[..moved] {
                    bigger
                        .update(key, value, WriteMode::Create)
                        .expect("entered");
                    current.delete(key).expect("deleted");
                }
            }
        }
        assert_eq!(node.flows(), before, "seen in the middle of it");
        let next = open(bpffs);
        settle(&next);
        assert_eq!(node.flows(), before);
        for name in [table::FLOWS4, table::REPLIES4] {
            for slot in [1, 3, 5] {
                assert_eq!(node.outer(name).inner_id(slot).expect("asked"), None);
                assert!(!node.pins.inner().join(format!("{name}-{slot}")).exists());
            }
        }
        open_flows(&node, 0..FLOWS);
        assert_eq!(node.counter(counter::FLOW_CREATED), u64::from(FLOWS));
    });
}

#[test]
fn entries_are_counted_without_walking_them() {
    scratch::run("meter", |_| {
        let definitions =
            Arc::new(Definitions::of(object::embedded().expect("built")).expect("definitions"));
        let definition = definitions
            .table(table::FLOWS4)
            .and_then(|table| table.inner_definition())
            .expect("defined")
            .clone();
        let mut meter = Meter::new(Arc::clone(&definitions), definition.clone());
        for size in [512, 2048, 32_768] {
            let map = definitions
                .create_sized(&definition, size)
                .expect("created");
            let shard: Table<FlowKey<V4>, Flow<V4>> = Table::new(map).expect("flows");
            assert_eq!(meter.count(shard.map()).expect("counted"), 0);
            for number in 0..size {
                let key = FlowKey {
                    source: Ipv4Addr::from(number).into(),
                    ..FlowKey::default()
                };
                shard
                    .put(&key, &Flow::default(), WriteMode::Create)
                    .expect("room");
                if number % 3 == 0 {
                    shard.delete(&key).expect("deleted");
                }
            }
            let real = shard.count().expect("walked");
            assert_eq!(meter.count(shard.map()).expect("counted"), real);
            assert_eq!(real, (size - size.div_ceil(3)) as usize);
        }
    });
}

#[test]
fn at_its_limit_a_table_tells_so_and_serves_what_it_has() {
    scratch::run("limit", |bpffs| {
        const FLOWS: u32 = 40_000;
        let node = Node::new(bpffs);
        node.datapath.tables().flows.set_limit(FIRST_SIZE as u32);
        open_flows(&node, 0..FLOWS);
        settle(&node.datapath);
        let full = FLOW_SHARDS as usize * FIRST_SIZE;
        let (entries, capacity) = node.used(table::FLOWS4);
        assert_eq!(capacity, full);
        assert!(entries * 10 >= full * 9 && entries <= full, "{entries}");
        // The oldest that nobody has answered made room, and no packet was refused.
        let displaced = node.counter(counter::FLOW_DISPLACED);
        assert_eq!(node.counter(counter::FLOW_TABLE_FULL), 0);
        assert_eq!(node.counter(counter::FLOW_CREATED), u64::from(FLOWS));
        assert_eq!(entries as u64 + displaced, u64::from(FLOWS));
        assert_eq!(node.flows().len(), entries);
        let usage = node.datapath.tables().usage().expect("usage");
        assert!(usage.contains(&(table::FLOWS4, entries, full)), "{usage:?}");
    });
}

#[test]
fn flows_are_listed_and_ended_without_an_agent() {
    scratch::run("list", |bpffs| {
        let node = Node::new(bpffs);
        let there = 12_100_usize;
        open_flows(&node, 0..there as u32);
        let list = |filter: &str| -> serde_json::Value {
            let text = say(&format!("flow list -o json{filter}"), bpffs);
            serde_json::from_str(&text).expect("JSON")
        };
        let count = |value: &serde_json::Value| value["items"].as_array().map_or(0, Vec::len);
        let all = list(" --service shop/web:dns");
        assert_eq!(count(&all), there);
        assert_eq!(all["tables"][0]["used"], there);
        assert_eq!(all["tables"][0]["capacity"], 32 * FIRST_SIZE);
        let item = &all["items"][0];
        assert_eq!(item["service"], "shop/web:dns");
        assert_eq!(
            (&item["state"], &item["protocol"]),
            (&"new".into(), &"UDP".into())
        );
        assert_eq!(item["destination"], "10.96.0.10:53");

        let second = client(10_000).0;
        let of_second = count(&list(&format!(" --client {second}")));
        assert_eq!(of_second, 2100);
        let text = say(&format!("flow flush --yes --client {second}"), bpffs);
        assert_eq!(text, format!("{of_second} flows ended\n"));
        assert_eq!(count(&list("")), there - of_second);
        assert_eq!(
            say("flow flush --yes", bpffs),
            format!("{} flows ended\n", there - of_second)
        );
        settle(&node.datapath);
        assert_eq!(node.used(table::FLOWS4).0, 0);
        assert_eq!(node.used(table::REPLIES4).0, 0, "with their reply entries");
    });
}

#[test]
fn the_thread_grows_a_table_by_itself() {
    scratch::run("thread", |bpffs| {
        let node = Node::new(bpffs);
        let _follower = Arc::clone(&node.datapath.tables().flows)
            .follow()
            .expect("a thread");
        open_flows(&node, 0..26_000);
        for _ in 0..100 {
            if node.used(table::FLOWS4).1 > 32 * FIRST_SIZE {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        assert!(node.used(table::FLOWS4).1 > 32 * FIRST_SIZE);
        assert_eq!(node.flows().len(), 26_000);
    });
}
