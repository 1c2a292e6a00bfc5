//! The real object, loaded by the agent's own code in namespaces of this test program, and fed with frames.
//!
//! A test says what the node serves, lets a frame pass one of the four packet programs and states what it must
//! become: `node.pod_sends(&request).becomes(&request.clone().to(endpoint))`. All tests of a test program share one
//! loaded object and take turns; each starts with empty tables. Each runs twice: with tc alone, and with what comes
//! in by the uplink meeting XDP first and tc only if XDP lets it go on. Both must come to the same.

pub mod budget;
mod bystander;
mod feeder;
mod flows;
mod instructions;
mod live;
mod net;
mod run;
mod service;
mod space;
mod tagger;
mod tick;
mod timing;
mod wires;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::panic;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::{env, fs};

use anyhow::{Context as _, Result};
use lb_agent::datapath::pins::Pins;
use lb_agent::datapath::{Config, Datapath};
use lb_agent::model::ServicePort;
use lb_agent::plan::{Ledger, NodeAddresses, Plan, Timing};
use lb_agent::snapshot::ObjectName;
use lb_agent::sys::bpf::{Link, Program, WriteMode, XdpMode};
use lb_agent::sys::clock;
use lb_ebpf::abi::address::{Address4, Address6};
use lb_ebpf::abi::device::{self, Device, Mac, SENDS_BACK, TRANSMITS};
use lb_ebpf::abi::settings::{Prefix4, Prefix6, Settings};

use crate::packet::Frame;

pub use bystander::Bystander;
pub use feeder::Ends;
pub use flows::SeenFlow;
pub use live::Live;
pub use net::Net;
pub use run::{Early, Entry, Outcome, Received};
pub use service::{Described, tcp_service, udp_service};
pub use tagger::Tagger;
pub use tick::{coarse_clock, let_a_tick_pass};
pub use timing::{Met, Stream, Timed, Times};

use flows::FlowTables;
use space::{BPFFS, Space};
use wires::{lay_wires, set_forwarding};

/// First and last source port that the programs may use in place of a client's own.
pub const POOL: (u16, u16) = (20_000, 20_999);

/// Index of the loopback device.
const LOOPBACK: u32 = 1;
/// Names the file of another object than the agent's: one may be tried without a build of the agent.
const OBJECT: &str = "BEELINE_OBJECT";
/// Names a directory of a BPF file system where test programs that run one after the other share the loaded object:
/// an emulated processor takes minutes to verify it.
pub const SHARED: &str = "BEELINE_SHARED_PINS";

/// One node: tables, programs, a pod-facing device and two uplinks.
#[derive(Debug)]
pub struct Node {
    space: Space,
    datapath: Datapath,
    programs: BTreeMap<&'static str, Program>,
    flows: FlowTables,
    ledger: Ledger,
    services: BTreeMap<ObjectName, Vec<ServicePort>>,
    pod: u32,
    uplink: u32,
    /// A way to another network.
    other_uplink: u32,
    /// Keeps XDP on the uplink: without it the kernel runs no XDP program as if on that device.
    _on_uplink: Link,
    entry: Entry,
    received: Received,
    /// The counters as they were when the test began.
    counted: Vec<u64>,
}

/// Runs a test on this test program's node, once for each [`Entry`]. Needs root and says so.
pub fn on_a_node(test: impl Fn(&mut Node) + Sync) {
    for entry in [Entry::Tc, Entry::XdpFirst] {
        on_a_node_by(entry, &test);
    }
}

/// Runs a test of what XDP itself does, in IPv4 and in IPv6.
pub fn with_xdp_in_both_families(test: impl Fn(&mut Node, &Net) + Sync) {
    for net in [Net::v4(), Net::v6()] {
        on_a_node_by(Entry::XdpFirst, |node| test(node, &net));
    }
}

/// Runs something once on this test program's node.
pub fn on_a_node_by(entry: Entry, test: impl FnOnce(&mut Node) + Send) {
    static NODE: Mutex<Option<Node>> = Mutex::new(None);
    let inside = || {
        // A test that failed while it had the node left nothing that the next one does not clear away.
        let mut held = NODE.lock().unwrap_or_else(PoisonError::into_inner);
        let node = match &mut *held {
            Some(node) => {
                node.space.enter().expect("the node's namespaces");
                node
            }
            none => none.insert(Node::create().unwrap_or_else(|error| panic!("{error:#}"))),
        };
        node.reset().unwrap_or_else(|error| panic!("{error:#}"));
        node.entry = entry;
        if entry == Entry::XdpFirst {
            // Shown only where the test fails.
            println!("XDP first:");
        }
        test(node);
    };
    // A thread of the test's own, as it does not come back from the namespaces.
    let name = thread::current().name().unwrap_or("test").to_owned();
    let outcome = thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name(name)
            .spawn_scoped(scope, inside);
        thread.expect("a thread").join()
    });
    if let Err(payload) = outcome {
        panic::resume_unwind(payload);
    }
}

/// Runs a test in IPv4 and in IPv6, each on an empty node.
pub fn in_both_families(test: impl Fn(&mut Node, &Net) + Sync) {
    for net in [Net::v4(), Net::v6()] {
        on_a_node(|node| test(node, &net));
    }
}

impl Node {
    fn create() -> Result<Self> {
        crate::scope::require_root()?;
        let space = match env::var_os(SHARED) {
            Some(directory) => Space::over(directory.as_ref()),
            None => Space::create(),
        };
        let space = space.context("making namespaces")?;
        lay_wires()?;
        let (pod, uplink, other_uplink) = (
            crate::device::index("pod0")?,
            crate::device::index("out0")?,
            crate::device::index("out1")?,
        );
        let config = Config {
            bpffs: Path::new(BPFFS).to_owned(),
            packet_hook: None,
        };
        let mut datapath = open(&config)?;
        datapath.provide("out_xdp")?;
        let pins = Pins::new(Path::new(BPFFS));
        let mut programs = BTreeMap::new();
        for name in [
            "pod_ingress",
            "pod_egress",
            "out_ingress",
            "out_egress",
            "out_xdp",
            "lo_egress",
        ] {
            programs.insert(name, Program::open(&pins.program(name))?);
        }
        let on_uplink = programs["out_xdp"].attach_xdp(uplink, XdpMode::Native)?;
        Ok(Self {
            space,
            flows: FlowTables::open(&pins)?,
            datapath,
            programs,
            ledger: Ledger::default(),
            services: BTreeMap::new(),
            pod,
            uplink,
            other_uplink,
            _on_uplink: on_uplink,
            entry: Entry::Tc,
            received: Received::Unchecked,
            counted: Vec::new(),
        })
    }

    /// Empties every table and restores the settings.
    fn reset(&mut self) -> Result<()> {
        self.received = Received::Unchecked;
        self.services.clear();
        self.flows.clear()?;
        set_forwarding(true)?;
        let tables = self.datapath.tables();
        macro_rules! empty {
            ($($table:expr),+) => {$(
                for (key, _) in $table.entries()? {
                    $table.delete(&key)?;
                }
            )+};
        }
        empty!(
            tables.frontends4.table(),
            tables.frontends6.table(),
            tables.addresses4.table(),
            tables.addresses6.table(),
            tables.names.table(),
            tables.tombstones.table(),
            tables.source_ranges
        );
        self.ledger = Ledger::new(Timing::default(), clock::seconds());
        let [four, six] = [Net::v4(), Net::v6()];
        for (index, role) in [
            (self.pod, device::POD),
            (self.uplink, device::UPLINK),
            (self.other_uplink, device::UPLINK),
        ] {
            let record = Device {
                role,
                bridge: 0,
                header_length: 14,
                mtu: 1500,
                flags: SENDS_BACK | TRANSMITS,
                address4: address4(four.node),
                address6: address6(six.node),
            };
            tables.devices.put(&index, &record, WriteMode::Any)?;
            let mac = Mac {
                octets: crate::packet::THERE,
                zero: [0; 2],
            };
            tables.macs.put(&index, &mac, WriteMode::Any)?;
        }
        tables.set_settings(&settings())?;
        self.counted = tables.counters.read()?;
        let own = [four.node, six.node];
        let plan = self.ledger.set_node_addresses(&NodeAddresses {
            nodeport: &own,
            loopback: &[Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            all: &own,
        });
        self.carry_out(plan);
        Ok(())
    }

    /// Serves a service port from now on; one of the same name, protocol and family is replaced.
    pub fn serve(&mut self, service: Described) {
        let (name, port) = service.into_parts();
        let ports = self.services.entry(name.clone()).or_default();
        ports.retain(|known| known.id != port.id);
        ports.push(port);
        let desired = ports.clone();
        let plan = self.ledger.apply(&name, desired);
        self.carry_out(plan);
    }

    /// Stops serving every service port of a name.
    pub fn remove(&mut self, service: Described) {
        let (name, _) = service.into_parts();
        self.services.remove(&name);
        let plan = self.ledger.remove_service(&name);
        self.carry_out(plan);
    }

    fn carry_out(&mut self, plan: Plan) {
        assert!(plan.problems.is_empty(), "{:?}", plan.problems);
        let applied = self.datapath.apply(&[&plan.writes]);
        assert!(applied.failures.is_empty(), "{:?}", applied.failures);
        // No program runs now, so no grace period is needed.
        self.ledger.release(plan.retire);
    }

    /// Changes what the programs are told.
    pub fn set(&mut self, change: impl FnOnce(&mut Settings)) {
        let settings = self.datapath.settings().expect("the settings");
        let mut settings = settings.expect("some settings");
        change(&mut settings);
        self.datapath.set_settings(&settings).expect("written");
    }

    /// How frames are received from now on.
    pub fn receives_frames(&mut self, received: Received) {
        self.received = received;
    }

    /// A pod's frame on its way to the host.
    pub fn pod_sends(&self, frame: &impl Frame) -> Outcome {
        self.run("pod_ingress", (self.pod, self.pod), frame)
    }

    /// A frame on its way to a pod.
    pub fn pod_gets(&self, frame: &impl Frame) -> Outcome {
        self.run("pod_egress", (self.uplink, self.pod), frame)
    }

    /// A frame that comes in by the uplink.
    pub fn comes_in(&self, frame: &impl Frame) -> Outcome {
        if self.entry == Entry::XdpFirst
            && let Some(outcome) = self.meets_xdp(frame).outcome(&frame.frame())
        {
            return outcome;
        }
        self.run("out_ingress", (self.uplink, self.uplink), frame)
    }

    /// A frame that comes in by the uplink, and XDP alone.
    pub fn meets_xdp(&self, frame: &impl Frame) -> Early {
        let frame = frame.frame();
        let program = self.programs["out_xdp"].as_fd();
        run::run_early(program, self.uplink, &frame).unwrap_or_else(|error| {
            let words = crate::packet::text::describe(&frame).join("\n    ");
            panic!("running out_xdp on\n    {words}\nfailed: {error}")
        })
    }

    /// A frame that was forwarded and leaves by the uplink.
    pub fn goes_out(&self, frame: &impl Frame) -> Outcome {
        self.run("out_egress", (self.pod, self.uplink), frame)
    }

    /// A frame of this node's own that leaves by the uplink.
    pub fn sends(&self, frame: &impl Frame) -> Outcome {
        self.run("out_egress", (0, self.uplink), frame)
    }

    /// A frame of this node's own that passes the loopback device.
    pub fn sends_itself(&self, frame: &impl Frame) -> Outcome {
        self.run("lo_egress", (0, LOOPBACK), frame)
    }

    /// The frame by each of the four packet programs.
    pub fn everywhere(&self, frame: &impl Frame) -> [Outcome; 4] {
        [
            self.pod_sends(frame),
            self.pod_gets(frame),
            self.comes_in(frame),
            self.goes_out(frame),
        ]
    }

    fn run(&self, name: &'static str, devices: (u32, u32), frame: &impl Frame) -> Outcome {
        let frame = frame.frame();
        let program = self.programs[name].as_fd();
        run::run(name, program, devices, self.received, &frame).unwrap_or_else(|error| {
            let words = crate::packet::text::describe(&frame).join("\n    ");
            panic!("running {name} on\n    {words}\nfailed: {error}")
        })
    }

    /// Whether the host routes packets. Where it does not, route lookups fail and every packet is the stack's, but for ways
    /// that are known since before: see [`let_a_tick_pass`].
    pub fn route_packets(&self, routed: bool) {
        set_forwarding(routed).expect("written");
    }

    /// Changes what the programs are told of the uplinks.
    pub fn set_uplinks(&self, change: impl Fn(&mut Device)) {
        let devices = &self.datapath.tables().devices;
        for index in [self.uplink, self.other_uplink] {
            let record = devices.get(&index).expect("readable");
            let mut record = record.expect("an uplink's record");
            change(&mut record);
            devices
                .put(&index, &record, WriteMode::Any)
                .expect("written");
        }
        let_a_tick_pass();
    }

    /// Leaves the programs no address to masquerade with.
    pub fn forget_device_addresses(&self) {
        let devices = &self.datapath.tables().devices;
        for (index, record) in devices.entries().expect("the devices") {
            let record = Device {
                address4: Address4::default(),
                address6: Address6::default(),
                ..record
            };
            devices
                .put(&index, &record, WriteMode::Any)
                .expect("written");
        }
    }

    /// How often something was counted since the test began.
    pub fn count_of(&self, counter: u32) -> u64 {
        let now = self.datapath.tables().counters.read().expect("counters");
        now[counter as usize] - self.counted[counter as usize]
    }

    /// Every flow, both families.
    pub fn flows(&self) -> Vec<SeenFlow> {
        self.flows.seen().expect("the flow tables")
    }

    /// Entries of the flow tables and of the reply tables, both families.
    pub fn halves(&self) -> (usize, usize) {
        self.flows.halves().expect("the flow tables")
    }

    /// Reply entries that say that an answer was noted in their flow's record a moment ago.
    pub fn marked(&self) -> usize {
        self.flows.marked().expect("the flow tables")
    }

    /// Makes the marks in reply entries those of eight seconds ago.
    pub fn let_marks_lapse(&self) {
        self.flows.let_marks_lapse().expect("written");
    }

    /// Takes the records of all flows away, and leaves the entries that lead to them.
    pub fn lose_records(&self) {
        self.flows.lose_records().expect("written");
    }

    /// Datagrams whose fragments are remembered.
    pub fn fragmented(&self) -> usize {
        self.flows.fragmented().expect("the table of fragments")
    }

    /// Makes every flow look as if its last packet had passed `seconds` ago.
    pub fn let_flows_rest(&self, seconds: u32) {
        self.flows.rest(seconds).expect("written");
        self.flows.rest_outbound(seconds).expect("written");
    }

    /// Remembers as many other clients as the affinity table has room for.
    pub fn fill_affinity(&self) {
        self.flows.fill_affinity().expect("written");
    }

    /// Makes every affinity record look as if it had been used `seconds` ago.
    pub fn let_affinity_rest(&self, seconds: u32) {
        self.flows.rest_affinity(seconds).expect("written");
    }
}

/// Loads the agent's object, or the one that is to be tried.
fn open(config: &Config) -> Result<Datapath> {
    let datapath = match env::var_os(OBJECT) {
        Some(file) => {
            let object = fs::read(&file).with_context(|| format!("reading {file:?}"))?;
            Datapath::open_object(config, object.leak())
        }
        None => Datapath::open(config),
    };
    datapath.context("loading the object")
}

/// kube-proxy's timeouts, and the service CIDRs of [`Net`].
fn settings() -> Settings {
    let mut settings = Settings {
        host_netns: 1,
        timeout_new: 30,
        timeout_udp: 120,
        timeout_tcp: 86_400,
        timeout_closing: 3_600,
        timeout_closed: 30,
        nat_port_first: POOL.0,
        nat_port_last: POOL.1,
        ..Settings::default()
    };
    settings.service_cidrs4[0] = Prefix4 {
        address: Ipv4Addr::new(10, 96, 0, 0).into(),
        mask: Ipv4Addr::new(255, 255, 0, 0).into(),
    };
    settings.service_cidrs6[0] = Prefix6 {
        address: Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0).into(),
        mask: Ipv6Addr::from(u128::MAX << 16).into(),
    };
    settings
}

fn address4(address: IpAddr) -> Address4 {
    match address {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(_) => Address4::default(),
    }
}

fn address6(address: IpAddr) -> Address6 {
    address.into()
}
