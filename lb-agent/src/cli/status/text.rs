//! The status for people: problems first, then one line a subject, then what is worth columns.

use super::{Agent, NeighbourLine, Report};
use crate::cli::neighbours::Neighbour;
use crate::cli::output::{self, Format, Palette};

pub(super) fn render(report: &Report, format: Format, palette: Palette) -> String {
    let kernel = format!(
        "{} (table layout {}), kernel {}",
        report.version, report.abi, report.kernel
    );
    let mut text = field("Beeline", &kernel);
    for problem in &report.problems {
        let problem = palette.alarm(&output::clean(problem));
        text.push_str(&format!("PROBLEM   {problem}\n"));
    }
    for note in &report.notes {
        text.push_str(&field("Note", note));
    }
    if report.problems.is_empty() {
        text.push_str(&field("Problems", "none"));
    }
    text.push_str(&field("Agent", &agent_line(&report.agent)));
    text.push_str(&field("Pins", &report.pins));
    if report.tables_read {
        text.push_str(&kernel_part(report, format, palette));
    }
    text
}

/// What the kernel's tables tell.
fn kernel_part(report: &Report, format: Format, palette: Palette) -> String {
    let mut text = field("Sockets", &sockets_line(report));
    text.push_str(&field("Devices", &devices_line(report)));
    text.push_str(&field("XDP", &xdp_line(report)));
    for NeighbourLine { device, neighbour } in &report.neighbours {
        let Neighbour {
            hook,
            order,
            program,
            ..
        } = neighbour;
        let line = format!("{program} on {hook} of {device}, {order}");
        text.push_str(&field("Neighbour", &line));
    }
    let services = format!(
        "{} service ports, {} frontends ({} reject, {} drop), {} endpoints",
        report.services, report.frontends, report.rejecting, report.dropping, report.endpoints
    );
    text.push_str(&field("Services", &services));
    if !report.tables.is_empty() {
        let rows = report.tables.iter().map(|usage| {
            let numbers =
                [usage.used, usage.capacity, usage.limit].map(|number| number.to_string());
            std::iter::once(usage.table.to_owned())
                .chain(numbers)
                .collect()
        });
        text.push_str(&format!("\n{}", palette.heading("Tables\n")));
        text.push_str(&output::columns(
            palette,
            &["TABLE", "USED", "CAPACITY", "LIMIT"],
            rows.collect(),
        ));
    }
    let counters: Vec<Vec<String>> = lb_ebpf::abi::counter::ALL
        .iter()
        .filter_map(|(_, label, meaning)| Some((*label, *meaning, *report.counters.get(label)?)))
        .filter(|(_, _, count)| *count > 0 || format == Format::Wide)
        .map(|(label, meaning, count)| {
            vec![label.to_owned(), count.to_string(), meaning.to_owned()]
        })
        .collect();
    if !counters.is_empty() {
        text.push_str(&format!(
            "\n{}",
            palette.heading("Counters since the tables were made\n")
        ));
        text.push_str(&output::columns(
            palette,
            &["COUNTER", "COUNT", "MEANING"],
            counters,
        ));
    }
    text
}

fn agent_line(agent: &Agent) -> String {
    match (agent.alive, &agent.status) {
        (false, _) => "does not answer".into(),
        (true, None) => "alive; its metrics address does not answer (--metrics)".into(),
        (true, Some(status)) => {
            let health = if agent.healthy {
                "healthy"
            } else {
                "NOT HEALTHY"
            };
            let source = if status.source_connected {
                "connected"
            } else {
                "NOT CONNECTED"
            };
            let sync = status.last_sync.as_deref().unwrap_or("never");
            format!(
                "{health}, version {}, node {}, source {} ({source}), last sync {sync}",
                status.version, status.node_name, status.source
            )
        }
    }
}

fn sockets_line(report: &Report) -> String {
    let hooks: Vec<&str> = report
        .hooks
        .iter()
        .filter(|h| h.hook.interface.is_none())
        .map(|h| h.hook.name.as_str())
        .collect();
    let whose = match report.sockets {
        "all" => "of every network namespace",
        "host" => "of the host's network namespace",
        _ => "of nobody",
    };
    format!("{whose}; attached: {}", listed(&hooks))
}

fn devices_line(report: &Report) -> String {
    let named = |role| -> Vec<&str> {
        report
            .devices
            .iter()
            .filter(|device| device.role == role)
            .map(|device| device.name.as_str())
            .collect()
    };
    let attached = report
        .hooks
        .iter()
        .filter(|hook| hook.hook.interface.is_some_and(|index| index != 0))
        .count();
    let loopback = match named("loopback").as_slice() {
        [] => String::new(),
        names => format!("; own: {}", names.join(" ")),
    };
    format!(
        "uplinks: {}; pods: {}{loopback}; {attached} programs attached",
        listed(&named("uplink")),
        listed(&named("pod"))
    )
}

/// Of each uplink how XDP sits on it, or why it does not.
fn xdp_line(report: &Report) -> String {
    let uplinks = report
        .devices
        .iter()
        .filter(|device| device.role == "uplink");
    let each: Vec<String> = uplinks
        .map(|device| match (&device.xdp, &device.without_xdp) {
            (Some(mode), _) => format!("{}: {mode}", device.name),
            (None, Some(reason)) => format!("{}: no, {reason}", device.name),
            (None, None) => format!("{}: no", device.name),
        })
        .collect();
    if each.is_empty() {
        "no uplinks".to_owned()
    } else {
        each.join("; ")
    }
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(" ")
    }
}

fn field(label: &str, value: &str) -> String {
    format!("{label:<10}{}\n", output::clean(value))
}
