//! `beeline status`: one screen, problems first.
//!
//! The kernel's tables are the witness; the agent is asked, too, and its silence is a finding and no
//! failure, as traffic goes on without it.

mod node;
mod text;

use std::collections::BTreeMap;

use lb_ebpf::abi::settings;
use serde::Serialize;

use self::node::{device_line, interface_names, kernel};
use super::live::{LiveTables, ServicePort, Verdict};
use super::neighbours::Neighbour;
use super::output::{self, Format};
use super::read::{self, Hook, Inventory, Usage};
use super::{CommandError, Exit, Printed, StatusArgs, ask};
use crate::health::status::AgentStatus;

/// A table of fixed size is a problem from here on, in percent.
const FULL_PERCENT: usize = 90;

/// Counters that tell of lost traffic. They count from when the tables were made, so they are worth a note for ever
/// but no problem of this moment.
const BAD_COUNTERS: [(&str, &str); 4] = [
    (
        "flow_table_full",
        "new flows were dropped for want of room in the flow table",
    ),
    (
        "no_endpoint",
        "packets were dropped as a frontend led to a missing record; please report it",
    ),
    (
        "reply_untranslated",
        "replies were dropped as they could not be translated back",
    ),
    (
        "affinity_full",
        "clients were not remembered: the affinity table is full",
    ),
];

/// All that is shown; what `-o json` prints.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// What needs attention now.
    problems: Vec<String>,
    /// What was wrong at some time.
    notes: Vec<String>,
    version: &'static str,
    abi: u32,
    kernel: String,
    pins: String,
    agent: Agent,
    /// The tables could be read; what follows is empty otherwise.
    tables_read: bool,
    hooks: Vec<HookLine>,
    /// Whose sockets are translated when they connect.
    sockets: &'static str,
    devices: Vec<DeviceLine>,
    /// Others' programs on the same devices.
    neighbours: Vec<NeighbourLine>,
    services: usize,
    frontends: usize,
    rejecting: usize,
    dropping: usize,
    endpoints: usize,
    tables: Vec<Usage>,
    counters: BTreeMap<&'static str, u64>,
}

/// What the agent says of itself; `None` where it does not answer.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Agent {
    alive: bool,
    healthy: bool,
    status: Option<AgentStatus>,
}

/// A hook, its device named.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct HookLine {
    #[serde(flatten)]
    hook: Hook,
    device: Option<String>,
}

/// A device of the packet path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DeviceLine {
    name: String,
    role: &'static str,
    mtu: u32,
    /// How XDP sits on it: native or generic.
    xdp: Option<String>,
    /// Why it does not, as the agent says.
    without_xdp: Option<String>,
}

/// Another's program, its device named.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NeighbourLine {
    device: String,
    #[serde(flatten)]
    neighbour: Neighbour,
}

/// Never fails: what cannot be found out is a problem shown.
pub(super) fn status(args: &StatusArgs) -> Printed {
    let bpffs = &args.place.bpffs;
    let found = read::tables(bpffs).and_then(|tables| {
        let inventory = read::inventory(bpffs, &tables)?;
        Ok((tables, inventory))
    });
    let names = match &found {
        Ok((_, inventory)) => interface_names(inventory),
        Err(_) => BTreeMap::new(),
    };
    let mut report = report(found, agent(args), &names);
    report.kernel = kernel();
    report.pins = crate::datapath::pins::Pins::new(bpffs)
        .root()
        .display()
        .to_string();
    let exit = if report.problems.is_empty() {
        Exit::Fine
    } else {
        Exit::Problems
    };
    let text = match args.show.output {
        Format::Json => output::json_object("Status", &report),
        Format::Table | Format::Wide => {
            text::render(&report, args.show.output, args.show.palette())
        }
    };
    Printed { text, exit }
}

fn agent(args: &StatusArgs) -> Agent {
    // kube-proxy may have these ports. It has no such page.
    let is_ours = ask::get(args.healthz, "/readyz").is_ok_and(|answer| answer.code != 404);
    let live = ask::get(args.healthz, "/livez").ok().filter(|_| is_ours);
    let status = ask::get(args.metrics, "/status").ok().and_then(|answer| {
        let body: serde_json::Value = serde_json::from_str(&answer.body).ok()?;
        serde_json::from_value(body.get("status")?.clone()).ok()
    });
    Agent {
        alive: live.is_some() || status.is_some(),
        healthy: live.is_some_and(|answer| answer.code == 200),
        status,
    }
}

fn report(
    found: Result<(LiveTables, Inventory), CommandError>,
    agent: Agent,
    interfaces: &BTreeMap<u32, String>,
) -> Report {
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        abi: lb_ebpf::abi::ABI_VERSION,
        agent,
        ..Report::default()
    };
    match found {
        Err(error) => report.problems.push(format!(
            "{}: {}; try: {}",
            error.what, error.cause, error.next
        )),
        Ok((tables, inventory)) => report.fill(&tables.services(), inventory, interfaces),
    }
    report.agent_problems();
    report
}

impl Report {
    fn fill(
        &mut self,
        services: &[ServicePort],
        inventory: Inventory,
        interfaces: &BTreeMap<u32, String>,
    ) {
        self.tables_read = true;
        let frontends = || services.iter().flat_map(|service| &service.frontends);
        self.services = services.len();
        self.frontends = frontends().count();
        self.rejecting = frontends().filter(|f| f.verdict == Verdict::Reject).count();
        self.dropping = frontends().filter(|f| f.verdict == Verdict::Drop).count();
        self.endpoints = services.iter().map(|service| service.endpoints.len()).sum();
        self.counters = lb_ebpf::abi::counter::ALL
            .iter()
            .map(|(number, label, _)| {
                (
                    *label,
                    inventory
                        .counters
                        .get(*number as usize)
                        .copied()
                        .unwrap_or(0),
                )
            })
            .collect();
        for hook in inventory.hooks {
            let device = hook.interface.map(|index| {
                interfaces
                    .get(&index)
                    .cloned()
                    .unwrap_or_else(|| "gone".into())
            });
            self.hooks.push(HookLine { hook, device });
        }
        self.sockets = match inventory.settings.flags {
            flags if flags & settings::SOCKETS_ALL != 0 => "all",
            flags if flags & settings::SOCKETS_HOST != 0 => "host",
            _ => "off",
        };
        if self.sockets != "off" && self.hooks.iter().all(|hook| hook.hook.interface.is_some()) {
            self.problems.push(
                "no socket hook is attached, though the settings want them; restart the agent"
                    .into(),
            );
        }
        self.devices = inventory
            .devices
            .iter()
            .map(|(index, device)| {
                let mut line = device_line(*index, device, interfaces);
                line.xdp = self.xdp_mode(*index);
                line
            })
            .collect();
        self.devices
            .sort_by(|a, b| (a.role, &a.name).cmp(&(b.role, &b.name)));
        let neighbours = inventory.neighbours.into_iter();
        self.neighbours = neighbours
            .map(|neighbour| NeighbourLine {
                device: named(neighbour.index, interfaces),
                neighbour,
            })
            .collect();
        if self.sockets == "off" && self.devices.iter().all(|device| device.role != "loopback") {
            self.notes.push(
                "the loopback device has no program: this node's own processes do not reach its NodePorts".into(),
            );
        }
        for usage in &inventory.usage {
            if usage.limit > 0 && usage.used * 100 >= usage.limit * FULL_PERCENT {
                self.problems.push(format!(
                    "table {} is full: {} of {} entries",
                    usage.table, usage.used, usage.limit
                ));
            }
        }
        self.tables = inventory.usage;
        for (label, meaning) in BAD_COUNTERS {
            if let Some(count @ 1..) = self.counters.get(label) {
                self.notes.push(format!(
                    "{label} = {count} since the tables were made: {meaning}"
                ));
            }
        }
    }

    /// How XDP sits on a device: the pins of links tell.
    fn xdp_mode(&self, index: u32) -> Option<String> {
        let prefix = format!("xdp-{index}-");
        let hooks = self.hooks.iter().map(|line| &line.hook);
        let mut here = hooks.filter(|hook| hook.interface == Some(index));
        here.find_map(|hook| hook.name.strip_prefix(&prefix).map(str::to_owned))
    }

    fn agent_problems(&mut self) {
        let agent = &self.agent;
        if !agent.alive {
            let meaning = if self.tables_read {
                "the kernel goes on with its last state, changes are not followed"
            } else {
                "is it running?"
            };
            self.problems
                .insert(0, format!("the agent does not answer: {meaning}"));
            return;
        }
        if !agent.healthy {
            self.problems.push(
                "the agent has an update that it could not write for a minute; see its log".into(),
            );
        }
        let Some(status) = &agent.status else { return };
        if !status.ready {
            self.problems.push(
                "the agent has not written its first complete picture of the cluster yet".into(),
            );
        }
        if !status.source_connected {
            self.problems.push(format!(
                "the agent cannot read its source ({}) at present",
                status.source
            ));
        }
        for device in &mut self.devices {
            device.without_xdp = status.without_xdp.get(&device.name).cloned();
        }
        for (device, reason) in &status.devices_left_out {
            self.notes
                .push(format!("device {device} has no packet programs: {reason}"));
        }
        for (object, reason) in &status.refused {
            self.problems.push(format!("{object}: {reason}"));
        }
    }
}

fn named(index: u32, interfaces: &BTreeMap<u32, String>) -> String {
    let known = interfaces.get(&index).cloned();
    known.unwrap_or_else(|| format!("#{index}"))
}

#[cfg(test)]
mod tests {
    use lb_ebpf::abi::device;

    use super::*;
    use crate::cli::output::Palette;
    use crate::cli::sample;

    fn inventory() -> Inventory {
        let hook = |name: &str, interface| Hook {
            name: name.into(),
            program_id: 9,
            interface,
        };
        Inventory {
            usage: vec![Usage {
                table: "frontends4",
                used: 3,
                capacity: 1024,
                limit: 1 << 20,
            }],
            counters: vec![17],
            hooks: vec![
                hook("connect4", None),
                hook("tc-2-ingress", Some(2)),
                hook("tc-7-egress", Some(0)),
            ],
            devices: vec![
                (
                    7,
                    device::Device {
                        role: device::POD,
                        ..device::Device::default()
                    },
                ),
                (
                    2,
                    device::Device {
                        role: device::UPLINK,
                        ..device::Device::default()
                    },
                ),
            ],
            settings: settings::Settings {
                flags: settings::SOCKETS_ALL,
                ..settings::Settings::default()
            },
            neighbours: vec![Neighbour {
                index: 2,
                hook: "tcx ingress",
                order: "behind ours",
                program: "cni_in".into(),
            }],
        }
    }

    fn healthy() -> Agent {
        let status = AgentStatus {
            version: "1.2.3".into(),
            node_name: "node-1".into(),
            source: "manifests in /m".into(),
            source_connected: true,
            ready: true,
            last_sync: Some("2026-01-01T00:00:00Z".into()),
            ..AgentStatus::default()
        };
        Agent {
            alive: true,
            healthy: true,
            status: Some(status),
        }
    }

    fn made(inventory: Inventory, agent: Agent) -> Report {
        report(
            Ok((sample::tables(), inventory)),
            agent,
            &BTreeMap::from([(2, "eth0".to_owned())]),
        )
    }

    #[test]
    fn a_healthy_node_has_no_problems() {
        let text = text::render(&made(inventory(), healthy()), Format::Table, Palette::Plain);
        for line in [
            "Problems  none",
            "Agent     healthy, version 1.2.3, node node-1, source manifests in /m (connected), last sync 2026-01-01T00:00:00Z",
            "Sockets   of every network namespace; attached: connect4",
            "Devices   uplinks: eth0; pods: #7; 1 programs attached",
            "Neighbour cni_in on tcx ingress of eth0, behind ours",
            "Services  3 service ports, 4 frontends (1 reject, 1 drop), 4 endpoints",
            "frontends4  3     1024      1048576",
            "connect_translated  17     connect() to a service sent to an endpoint",
        ] {
            assert!(
                text.lines().any(|l| l == line),
                "no line {line:?} in\n{text}"
            );
        }
    }

    #[test]
    fn a_dead_agent_is_a_problem_but_the_tables_are_shown() {
        let report = made(inventory(), Agent::default());
        assert!(
            report.problems[0].starts_with("the agent does not answer"),
            "{:?}",
            report.problems
        );
        assert_eq!((report.problems.len(), report.services), (1, 3));
    }

    #[test]
    fn full_tables_bad_counters_and_refused_objects_are_problems() {
        let mut inventory = inventory();
        inventory.usage.push(Usage {
            table: "affinity",
            used: 60_000,
            capacity: 65_536,
            limit: 65_536,
        });
        inventory.counters = vec![0; 64];
        inventory.counters[lb_ebpf::abi::counter::FLOW_TABLE_FULL as usize] = 2;
        inventory.hooks.clear();
        let mut agent = healthy();
        if let Some(status) = &mut agent.status {
            status
                .refused
                .insert("Service a/b".into(), "loopback\u{1b}[2J address".into());
            status
                .devices_left_out
                .insert("tun0".into(), "no Ethernet header".into());
        }
        let report = made(inventory, agent);
        assert_eq!(
            (report.problems.len(), report.notes.len()),
            (3, 2),
            "{report:?}"
        );
        assert!(!text::render(&report, Format::Table, Palette::Plain).contains('\u{1b}'));
    }

    #[test]
    fn unreadable_tables_are_a_problem_with_advice() {
        let error = CommandError {
            what: "no tables".into(),
            cause: "none".into(),
            next: "start one".into(),
        };
        let report = report(Err(error), Agent::default(), &BTreeMap::new());
        assert_eq!(report.problems.len(), 2);
        assert!(report.problems[1].contains("try: start one"));
    }

    #[test]
    fn every_alarming_counter_exists() {
        for (label, _) in BAD_COUNTERS {
            assert!(
                lb_ebpf::abi::counter::ALL
                    .iter()
                    .any(|(_, known, _)| *known == label),
                "{label}"
            );
        }
    }
}
