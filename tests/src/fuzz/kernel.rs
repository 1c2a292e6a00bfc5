//! The programs in the kernel, with tables and devices of their own that no other process sees.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lb_agent::datapath::pins::Pins;
use lb_agent::datapath::{Config, Datapath};
use lb_agent::plan::Write;
use lb_agent::sys::bpf::{Link, Map, Outer, Program, Table, WriteMode, XdpMode};
use lb_ebpf::abi::device::{Device, Mac, POD, UPLINK};
use lb_ebpf::abi::socket::Tombstone;
use lb_ebpf::abi::{FLOW_SHARDS, Record, table};

use super::records;
use crate::oracle::packet::tables::Tables;
use crate::oracle::packet::{DROP, Hook, Seen, UPLINK_MAC};

/// Hardware addresses of the pod's and the uplink's device.
pub const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], UPLINK_MAC];

/// The loaded programs.
pub struct Kernel {
    datapath: Datapath,
    programs: BTreeMap<Hook, Program>,
    /// The XDP program. A test run wants one to sit on the device it says the frame comes from.
    early: Program,
    _on_uplink: Link,
    /// Index of the pod's and the uplink's device.
    devices: [u32; 2],
    written: Vec<Write>,
    shards: [Vec<Map>; 4],
    timed: [Map; 3],
    /// Flows opened last: whoever is still in one could take another's of the same second for itself.
    queues: Vec<Map>,
    output: Vec<u8>,
    generation: u32,
}

/// A frame out of a program, with its mark.
pub struct Ran {
    pub seen: Seen,
    pub mark: u32,
}

/// Runs `work` on a thread with namespaces of its own and an empty BPF file system, which go with it.
pub fn isolated<T: Send + 'static>(
    work: impl FnOnce(&Path) -> Result<T> + Send + 'static,
) -> Result<T> {
    let directory = std::env::temp_dir().join(format!(
        "bl-fuzz-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::create_dir_all(&directory)?;
    let place = directory.clone();
    let outcome = std::thread::spawn(move || {
        enter(&place)?;
        work(&place)
    })
    .join();
    std::fs::remove_dir(&directory).context("removing the mount point")?;
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn enter(bpffs: &Path) -> Result<()> {
    // SAFETY: takes no addresses; only this thread leaves its namespaces.
    let answer = unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWNET) };
    ensure!(
        answer == 0,
        "the fuzzer needs root: {}",
        std::io::Error::last_os_error()
    );
    mount(
        "none",
        Path::new("/"),
        "none",
        libc::MS_REC | libc::MS_PRIVATE,
    )?;
    mount("bpf", bpffs, "bpf", 0)
}

fn mount(source: &str, target: &Path, kind: &str, flags: libc::c_ulong) -> Result<()> {
    let (source, kind) = (CString::new(source)?, CString::new(kind)?);
    let target = CString::new(target.as_os_str().as_encoded_bytes())?;
    // SAFETY: all are C strings that outlive the call.
    let answer = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            std::ptr::null(),
        )
    };
    ensure!(answer == 0, "mount: {}", std::io::Error::last_os_error());
    Ok(())
}

fn ip(arguments: &str) -> Result<()> {
    let status = Command::new("ip").args(arguments.split(' ')).status()?;
    ensure!(status.success(), "ip {arguments} failed");
    Ok(())
}

fn device(name: &str, mac: [u8; 6], addresses: &[&str]) -> Result<u32> {
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    ip(&format!(
        "link add {name} address {mac} type veth peer name {name}-peer"
    ))?;
    ip(&format!("link set {name} up"))?;
    ip(&format!("link set {name}-peer up"))?;
    for address in addresses {
        ip(&format!("address add dev {name} {address}"))?;
    }
    crate::device::index(name)
}

impl Kernel {
    /// Loads the object; the calling thread is one of [`isolated`].
    pub fn load(bpffs: &Path) -> Result<Self> {
        let mut datapath = Datapath::open(&Config {
            bpffs: bpffs.to_owned(),
            packet_hook: None,
        })?;
        let pins = Pins::new(bpffs);
        // Nothing may expire while nobody looks: without its pin the timer stops.
        std::fs::remove_file(pins.map(table::SWEEPER))?;
        let devices = [
            device("pod0", MACS[0], &[])?,
            device(
                "up0",
                MACS[1],
                &["192.0.2.10/24", "2001:db8:2::10/64 nodad"],
            )?,
        ];
        // The uplink forwards nothing, so its packets take the way through the stack, which is the one the oracle
        // knows. The fast way has fixtures of its own.
        for (device, forwarding) in [("all", "1"), ("up0", "0")] {
            for family in ["ipv4", "ipv6"] {
                let switch = format!("/proc/sys/net/{family}/conf/{device}/forwarding");
                std::fs::write(&switch, forwarding).with_context(|| switch.clone())?;
            }
        }
        for route in [
            "route add 10.244.1.0/24 dev pod0",
            "route add default via 192.0.2.1",
            "-6 route add fd00:a:f4:1::/64 dev pod0",
            "-6 route add default via 2001:db8:2::1",
        ] {
            ip(route)?;
        }
        let programs = Hook::ALL
            .into_iter()
            .map(|hook| Ok((hook, Program::open(&pins.program(hook.program()))?)))
            .collect::<Result<_>>()?;
        datapath.provide("out_xdp")?;
        let early = Program::open(&pins.program("out_xdp"))?;
        let on_uplink = early.attach_xdp(devices[1], XdpMode::Native)?;
        let shards = |name: &str| -> Result<Vec<Map>> {
            let outer = Outer::new(Map::open(&pins.map(name))?, &pins.inner())?;
            (0..FLOW_SHARDS)
                .map(|shard| outer.open_inner(2 * shard)?.context("a shard is missing"))
                .collect()
        };
        let queues = |name: &str| -> Result<Vec<Map>> {
            let outer = Outer::new(Map::open(&pins.map(name))?, &pins.inner())?;
            (0..FLOW_SHARDS)
                .map(|shard| outer.open_inner(shard)?.context("a queue is missing"))
                .collect()
        };
        let mut all_queues = queues(table::NEWCOMERS4)?;
        all_queues.extend(queues(table::NEWCOMERS6)?);
        Ok(Self {
            programs,
            early,
            _on_uplink: on_uplink,
            devices,
            queues: all_queues,
            written: Vec::new(),
            shards: [
                shards(table::FLOWS4)?,
                shards(table::FLOWS6)?,
                shards(table::REPLIES4)?,
                shards(table::REPLIES6)?,
            ],
            timed: [
                Map::open(&pins.map(table::AFFINITY))?,
                Map::open(&pins.map(table::FRAGMENTS))?,
                Map::open(&pins.map(table::OUTBOUND))?,
            ],
            output: vec![0; 70_000],
            generation: 0,
            datapath,
        })
    }

    /// Forgets flows, fragments and clients, and takes these tables.
    pub fn start(&mut self, tables: &Tables) -> Result<()> {
        for map in self.shards.iter().flatten().chain(&self.timed) {
            let mut keys = Vec::new();
            map.for_each(|key, _| keys.extend_from_slice(key))?;
            if !keys.is_empty() {
                map.delete_many(&keys).map_err(|e| e.error)?;
            }
        }
        self.queues.iter().try_for_each(drain)?;
        self.datapath
            .set_settings(&records::settings(&tables.settings))?;
        let [four, six] = tables.uplink;
        let uplink = Device {
            role: UPLINK,
            header_length: 14,
            mtu: 1500,
            address4: records::narrow(four),
            address6: six.map(Into::into).unwrap_or_default(),
            ..Device::default()
        };
        let pod = Device {
            role: POD,
            header_length: 14,
            mtu: 1500,
            ..Device::default()
        };
        for (index, device) in self.devices.iter().zip([pod, uplink]) {
            let devices = &self.datapath.tables().devices;
            devices.put(index, &device, WriteMode::Any)?;
        }
        let mac = Mac {
            octets: MACS[1],
            zero: [0; 2],
        };
        let macs = &self.datapath.tables().macs;
        macs.put(&self.devices[1], &mac, WriteMode::Any)?;
        self.change(tables)
    }

    /// Takes other tables; flows stay.
    pub fn change(&mut self, tables: &Tables) -> Result<()> {
        self.generation += 1;
        let wanted = records::writes(tables, self.generation);
        let mut writes: Vec<Write> = self
            .written
            .iter()
            .filter(|old| !wanted.iter().any(|new| records::same_place(old, new)))
            .filter_map(records::undone)
            .collect();
        writes.extend(wanted.iter().cloned());
        let applied = self.datapath.apply(&[&writes]);
        ensure!(applied.failures.is_empty(), "{:?}", applied.failures);
        for write in &wanted {
            if let Write::Tombstone { key, .. } = write {
                // Old enough to answer: in their first second they do not.
                let tombstones = self.datapath.tables().tombstones.table();
                tombstones.put(key, &Tombstone::default(), WriteMode::Any)?;
            }
        }
        self.written = wanted;
        Ok(())
    }

    /// Makes everything that has a time older.
    pub fn wait(&mut self, seconds: u32) -> Result<()> {
        for map in self.shards[..2].iter().flatten() {
            // The last packet's time and the first one's.
            let at = map.value_bytes() - 12;
            older(map, at, seconds)?;
            older(map, at + 4, seconds)?;
        }
        for map in self.shards[2..].iter().flatten() {
            unmarked(map)?;
        }
        let [affinity, fragments, outbound] = &self.timed;
        older(affinity, 32, seconds)?;
        older(fragments, 4, seconds)?;
        older(outbound, 0, seconds)
    }

    /// Counters by number.
    pub fn counters(&self) -> Result<Vec<u64>> {
        Ok(self.datapath.tables().counters.read()?)
    }

    /// Entries of both tables of flows.
    pub fn entries<K: Record, V: Record>(&self, which: usize) -> Result<Vec<(K, V)>> {
        let mut all = Vec::new();
        for map in &self.shards[which] {
            let map = Map::from_fd(map.as_fd().try_clone_to_owned()?)?;
            all.extend(Table::new(map)?.entries()?);
        }
        Ok(all)
    }

    /// Runs a program on a frame.
    ///
    /// `None` if the kernel's test run takes no such frame: it wants a whole fixed IP header behind the type.
    pub fn run(&mut self, hook: Hook, mark: u32, frame: &[u8]) -> Result<Option<Ran>> {
        let device = self.devices[usize::from(hook.side() as u8)];
        // `struct __sk_buff` of include/uapi/linux/bpf.h as words.
        let mut context = [0u32; 48];
        context[2] = mark;
        // What leaves is forwarded, not the host's own.
        context[9] = if hook.is_ingress() {
            device
        } else {
            self.devices[1 - usize::from(hook.side() as u8)]
        };
        context[10] = device;
        let program = self.programs[&hook].as_fd().as_raw_fd();
        let Some(seen) = self.test(program, &mut context, frame)? else {
            return Ok(None);
        };
        Ok(Some(Ran {
            seen,
            mark: context[2],
        }))
    }

    /// Runs XDP on a frame from outside, and the program behind it on what XDP passes.
    pub fn run_early(&mut self, hook: Hook, mark: u32, frame: &[u8]) -> Result<Option<Ran>> {
        if hook == Hook::OutIngress && LENGTHS.contains(&frame.len()) {
            // `struct xdp_md` of the same file: where the frame ends, and the device.
            let mut context = [0, frame.len() as u32, 0, self.devices[1], 0, 0];
            let program = self.early.as_fd().as_raw_fd();
            let seen = self.test(program, &mut context, frame)?;
            let seen = seen.context("XDP takes every frame of such a length")?;
            match seen.action {
                XDP_PASS if seen.frame == frame => {}
                XDP_DROP => {
                    let seen = Seen {
                        action: DROP,
                        frame: frame.to_vec(),
                    };
                    return Ok(Some(Ran { seen, mark }));
                }
                // No route here is one for it to send by, and what it passes it has to leave alone. Told by a number
                // that is no action of tc: XDP's "pass" is its "drop".
                action => {
                    let action = WRONG + action;
                    let seen = Seen { action, ..seen };
                    return Ok(Some(Ran { seen, mark }));
                }
            }
        }
        self.run(hook, mark, frame)
    }

    /// One test run; `None` where the kernel takes no such frame.
    fn test(&mut self, program: RawFd, context: &mut [u32], frame: &[u8]) -> Result<Option<Seen>> {
        let context_length = size_of_val(context) as u32;
        let mut block = TestRun {
            program: program as u32,
            length_in: frame.len() as u32,
            length_out: self.output.len() as u32,
            data_in: frame.as_ptr() as u64,
            data_out: self.output.as_mut_ptr() as u64,
            repeat: 1,
            context_length_in: context_length,
            context_length_out: context_length,
            context_in: context.as_ptr() as u64,
            context_out: context.as_mut_ptr() as u64,
            ..TestRun::default()
        };
        // SAFETY: all buffers outlive the call and have the lengths given.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                10,
                &raw mut block,
                size_of::<TestRun>() as u32,
            )
        };
        let error = std::io::Error::last_os_error();
        if answer != 0 && error.raw_os_error() == Some(libc::EINVAL) && frame.len() < 54 {
            return Ok(None);
        }
        ensure!(
            answer == 0,
            "running a program on {}: {error}",
            crate::oracle::packet::hex(frame)
        );
        let frame = self.output[..block.length_out as usize].to_vec();
        let action = block.verdict as i32;
        Ok(Some(Seen { action, frame }))
    }
}

/// Lengths of frames that the kernel runs XDP on in one piece.
const LENGTHS: std::ops::RangeInclusive<usize> = 14..=3000;

/// `enum xdp_action`.
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;

/// What XDP must not end with counts from here.
const WRONG: i32 = 1000;

/// The test-run block of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    verdict: u32,
    length_in: u32,
    length_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_length_in: u32,
    context_length_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    zero: u32,
}

/// Takes everything out of a queue.
fn drain(queue: &Map) -> Result<()> {
    /// `BPF_MAP_LOOKUP_AND_DELETE_ELEM` of `enum bpf_cmd`.
    const POP: libc::c_long = 21;
    let mut value = vec![0u8; queue.value_bytes()];
    // Descriptor, padding, no key, the value's address, flags.
    let block = [
        queue.as_fd().as_raw_fd() as u64,
        0,
        value.as_mut_ptr() as u64,
        0,
    ];
    loop {
        // SAFETY: the block names a buffer of a value's size, which outlives the call.
        let answer =
            unsafe { libc::syscall(libc::SYS_bpf, POP, block.as_ptr(), size_of_val(&block)) };
        if answer != 0 {
            let error = std::io::Error::last_os_error();
            ensure!(
                error.raw_os_error() == Some(libc::ENOENT),
                "emptying a queue: {error}"
            );
            return Ok(());
        }
    }
}

/// Subtracts from the seconds at `at` of every value.
fn older(map: &Map, at: usize, seconds: u32) -> Result<()> {
    let mut entries = Vec::new();
    map.for_each(|key, value| entries.push((key.to_vec(), value.to_vec())))?;
    for (key, mut value) in entries {
        let field: [u8; 4] = value[at..at + 4].try_into()?;
        let then = u32::from_ne_bytes(field).saturating_sub(seconds);
        value[at..at + 4].copy_from_slice(&then.to_ne_bytes());
        map.update(&key, &value, WriteMode::Any)?;
    }
    Ok(())
}

/// Takes the marks of answers, which are of this moment, from reply entries.
fn unmarked(map: &Map) -> Result<()> {
    let mut entries = Vec::new();
    map.for_each(|key, value| entries.push((key.to_vec(), value.to_vec())))?;
    for (key, mut value) in entries {
        let at = value.len() - 2;
        value[at..].fill(0);
        map.update(&key, &value, WriteMode::Any)?;
    }
    Ok(())
}

/// Where this process keeps what failed.
pub fn failures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fuzz")
}
