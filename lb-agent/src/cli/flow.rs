//! `beeline flow list` and `beeline flow flush`.

use std::collections::HashMap;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::net::{IpAddr, SocketAddr};

use lb_ebpf::abi::Record;
use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::flow::{
    ANSWERED, CLIENT_CLOSED, CLOSED, DIRECT, ENDPOINT_CLOSED, ESTABLISHED, Flow, FlowKey, HAIRPIN,
    LOCAL_ENDPOINT, MASQUERADE, NEW, POD, RESET, RESET_DENIED,
};
use lb_ebpf::abi::table;
use serde::Serialize;

use super::live::{LiveTables, ServicePort, address, protocol_name};
use super::output::{self, Format, Palette};
use super::{CommandError, Exit, FlowFilter, FlushArgs, Printed, Show, read};
use crate::datapath;
use crate::datapath::flows::Flows;
use crate::datapath::pins::Pins;
use crate::sys::clock;

/// Rounds in which flows are ended. A shard that changes its map meanwhile hides flows from one round.
const ROUNDS: usize = 3;

/// A flow as people see it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LiveFlow {
    /// `namespace/name:port`; `-` for a client that speaks to an endpoint directly, on a port of its own as a flow through
    /// a service has the client's there.
    service: String,
    protocol: &'static str,
    state: &'static str,
    client: SocketAddr,
    /// What the client dialled.
    destination: SocketAddr,
    endpoint: SocketAddr,
    /// Source the endpoint sees, where it is not the client.
    source: Option<SocketAddr>,
    /// The source is an address of this node.
    masqueraded: bool,
    /// The client is the endpoint.
    hairpin: bool,
    /// The endpoint is on this node.
    local: bool,
    /// Where the client's packets come in: `pod` or `outside`.
    side: &'static str,
    age_seconds: u32,
    idle_seconds: u32,
    service_id: u32,
    endpoint_id: u32,
    endpoint_generation: u32,
}

/// How full a flow table is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Room {
    table: &'static str,
    used: usize,
    capacity: usize,
    limit: usize,
}

/// Which flows a command is about, worked out for the tables at hand.
struct Chosen<'a> {
    tables: &'a LiveTables,
    filter: &'a FlowFilter,
    services: HashMap<u32, ServicePort>,
    now: u32,
}

/// Every flow, one a line.
pub(super) fn list(
    tables: &LiveTables,
    filter: &FlowFilter,
    show: Show,
) -> Result<Printed, CommandError> {
    let chosen = Chosen::new(tables, filter)?;
    let pins = Pins::new(&filter.place.bpffs);
    let (mut flows, mut rooms) = (Vec::new(), Vec::new());
    read_family::<V4>(&pins, &chosen, &mut flows, &mut rooms)
        .and_then(|()| read_family::<V6>(&pins, &chosen, &mut flows, &mut rooms))
        .map_err(|error| read::unreadable(&pins, &error))?;
    flows.sort_by(|a, b| {
        let key = |f: &LiveFlow| (f.client, f.destination, f.protocol, f.side);
        a.service.cmp(&b.service).then_with(|| key(a).cmp(&key(b)))
    });
    Ok(Printed {
        text: render(&flows, &rooms, show.output, show.palette()),
        exit: Exit::Fine,
    })
}

/// Ends flows.
pub(super) fn flush(tables: &LiveTables, args: &FlushArgs) -> Result<Printed, CommandError> {
    let chosen = Chosen::new(tables, &args.filter)?;
    let pins = Pins::new(&args.filter.place.bpffs);
    let unreadable = |error: datapath::Error| read::unreadable(&pins, &error);
    let count = count::<V4>(&pins, &chosen).map_err(unreadable)?
        + count::<V6>(&pins, &chosen).map_err(unreadable)?;
    if count > 0 && !args.yes && !agreed(count)? {
        return Ok(Printed {
            text: "nothing was ended\n".into(),
            exit: Exit::Fine,
        });
    }
    let mut ended = 0;
    for _ in 0..ROUNDS {
        let more = end_family::<V4>(&pins, &chosen).map_err(unreadable)?
            + end_family::<V6>(&pins, &chosen).map_err(unreadable)?;
        if more == 0 {
            break;
        }
        ended += more;
    }
    Ok(Printed {
        text: format!("{ended} flows ended\n"),
        exit: Exit::Fine,
    })
}

impl<'a> Chosen<'a> {
    fn new(tables: &'a LiveTables, filter: &'a FlowFilter) -> Result<Self, CommandError> {
        let chosen = Self {
            tables,
            filter,
            services: tables
                .services()
                .into_iter()
                .map(|service| (service.id, service))
                .collect(),
            now: clock::seconds(),
        };
        let Some(query) = &filter.service else {
            return Ok(chosen);
        };
        let known = chosen.services.values().any(|s| query.matches(s))
            || tables
                .names
                .keys()
                .any(|id| query.matches(&tables.service::<V4>(*id, 0)));
        if known {
            return Ok(chosen);
        }
        Err(CommandError {
            what: format!("no service {query} in the kernel's tables"),
            cause: "it does not exist, or has not arrived on this node".into(),
            next: format!("beeline flow list --bpffs {}", filter.place.bpffs.display()),
        })
    }

    /// The flow, if the command is about it.
    fn take<F: Family>(&self, key: &FlowKey<F>, flow: &Flow<F>) -> Option<LiveFlow> {
        let client: IpAddr = address::<F>(key.source);
        if self.filter.client.is_some_and(|wanted| wanted != client) {
            return None;
        }
        // A service that is gone may still have connections, and its name, until another one gets its id: that one has other
        // endpoints, and was not dialled.
        let gone;
        let dialled = (address::<F>(key.destination), key.destination_port);
        let to = (flow.endpoint, flow.endpoint_generation);
        let is_direct = flow.flags & DIRECT != 0;
        let now = self.services.get(&flow.service);
        let service = match now {
            Some(service) if is_direct || service.has_led(dialled, to) => service,
            _ => {
                gone = match now {
                    Some(_) => ServicePort::unknown::<F>(flow.service, key.protocol),
                    None => self.tables.service::<F>(flow.service, key.protocol),
                };
                &gone
            }
        };
        let wanted = self.filter.service.as_ref();
        let is_wanted = wanted.is_none_or(|query| query.matches(service));
        is_wanted.then(|| live_flow(key, flow, service, self.now))
    }
}

fn live_flow<F: Family>(
    key: &FlowKey<F>,
    flow: &Flow<F>,
    service: &ServicePort,
    now: u32,
) -> LiveFlow {
    let client = SocketAddr::new(address::<F>(key.source), key.source_port);
    let source = SocketAddr::new(address::<F>(flow.new_source), flow.new_source_port);
    LiveFlow {
        service: if flow.flags & DIRECT == 0 {
            service.full_name()
        } else {
            "-".into()
        },
        protocol: protocol_name(key.protocol),
        state: state_name(flow.state),
        client,
        destination: SocketAddr::new(address::<F>(key.destination), key.destination_port),
        endpoint: SocketAddr::new(
            address::<F>(flow.new_destination),
            flow.new_destination_port,
        ),
        source: (source != client).then_some(source),
        masqueraded: flow.flags & MASQUERADE != 0,
        hairpin: flow.flags & HAIRPIN != 0,
        local: flow.flags & LOCAL_ENDPOINT != 0,
        side: if key.scope == POD { "pod" } else { "outside" },
        age_seconds: now.saturating_sub(flow.created),
        idle_seconds: now.saturating_sub(flow.last_seen),
        service_id: flow.service,
        endpoint_id: flow.endpoint,
        endpoint_generation: flow.endpoint_generation,
    }
}

fn state_name(state: u8) -> &'static str {
    match state {
        NEW => "new",
        ANSWERED => "answered",
        ESTABLISHED => "established",
        CLIENT_CLOSED => "client-closed",
        ENDPOINT_CLOSED => "endpoint-closed",
        CLOSED => "closed",
        RESET | RESET_DENIED => "reset",
        _ => "?",
    }
}

fn read_family<F: Family>(
    pins: &Pins,
    chosen: &Chosen<'_>,
    flows: &mut Vec<LiveFlow>,
    rooms: &mut Vec<Room>,
) -> datapath::Result<()>
where
    FlowKey<F>: Record,
    Flow<F>: Record,
{
    let (shards, entries) = Flows::<F>::read(pins)?;
    let (capacity, limit) = shards.room();
    rooms.push(Room {
        table: if F::VERSION == 4 {
            table::FLOWS4
        } else {
            table::FLOWS6
        },
        used: entries.len(),
        capacity,
        limit,
    });
    flows.extend(
        entries
            .iter()
            .filter_map(|(key, flow)| chosen.take(key, flow)),
    );
    Ok(())
}

fn count<F: Family>(pins: &Pins, chosen: &Chosen<'_>) -> datapath::Result<usize>
where
    FlowKey<F>: Record,
    Flow<F>: Record,
{
    let (_, entries) = Flows::<F>::read(pins)?;
    Ok(entries
        .iter()
        .filter(|(key, flow)| chosen.take(key, flow).is_some())
        .count())
}

/// Ends the chosen flows of a family that were there when the command began; how many.
fn end_family<F: Family>(pins: &Pins, chosen: &Chosen<'_>) -> datapath::Result<usize>
where
    FlowKey<F>: Record,
    Flow<F>: Record,
{
    let (shards, entries) = Flows::<F>::read(pins)?;
    let mut ended = 0;
    for (key, flow) in entries {
        if flow.created <= chosen.now
            && chosen.take(&key, &flow).is_some()
            && shards.end(&key, &flow)?
        {
            ended += 1;
        }
    }
    Ok(ended)
}

/// Asks whoever is at the terminal.
fn agreed(count: usize) -> Result<bool, CommandError> {
    if !std::io::stdin().is_terminal() {
        return Err(CommandError {
            what: format!("{count} flows were not ended"),
            cause: "there is no terminal to ask for confirmation".into(),
            next: "beeline flow flush --yes".into(),
        });
    }
    eprint!("End {count} flows? Connections that use them may break. [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    // Whoever closes the input has not agreed.
    let _ = std::io::stdin().lock().read_line(&mut answer);
    Ok(matches!(
        answer.trim().to_ascii_lowercase().as_str(),
        "y" | "yes"
    ))
}

fn render(flows: &[LiveFlow], rooms: &[Room], format: Format, palette: Palette) -> String {
    let mut header = vec![
        "SERVICE",
        "PROTOCOL",
        "STATE",
        "CLIENT",
        "DESTINATION",
        "ENDPOINT",
        "SOURCE",
        "AGE",
        "IDLE",
    ];
    match format {
        Format::Json => {
            return output::json_object(
                "FlowList",
                &serde_json::json!({ "items": flows, "tables": rooms }),
            );
        }
        Format::Table => {}
        Format::Wide => header.extend(["SIDE", "WHERE", "SERVICE-ID", "ENDPOINT-ID", "GENERATION"]),
    }
    let rows = flows.iter().map(|flow| row(flow, format)).collect();
    let mut text = output::columns(palette, &header, rows);
    // A program that reads lines wants flows alone.
    if palette != Palette::Pipe {
        text.push('\n');
        for room in rooms {
            text.push_str(&format!(
                "{}: {} of {} entries in use, may grow to {}\n",
                room.table, room.used, room.capacity, room.limit
            ));
        }
    }
    text
}

fn row(flow: &LiveFlow, format: Format) -> Vec<String> {
    let mut row = vec![
        flow.service.clone(),
        flow.protocol.into(),
        flow.state.into(),
        flow.client.to_string(),
        flow.destination.to_string(),
        flow.endpoint.to_string(),
        flow.source.map_or("-".into(), |source| source.to_string()),
        format!("{}s", flow.age_seconds),
        format!("{}s", flow.idle_seconds),
    ];
    if format == Format::Wide {
        row.push(flow.side.into());
        row.push(if flow.local { "local" } else { "remote" }.into());
        row.extend(
            [flow.service_id, flow.endpoint_id, flow.endpoint_generation]
                .map(|number| number.to_string()),
        );
    }
    row
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::path::PathBuf;

    use super::super::Place;
    use super::*;
    use crate::cli::sample;

    fn filter(service: Option<&str>, client: Option<&str>) -> FlowFilter {
        FlowFilter {
            place: Place {
                bpffs: PathBuf::from("/b"),
            },
            service: service.map(|text| text.parse().expect("a query")),
            client: client.map(|text| text.parse().expect("an address")),
        }
    }

    fn masqueraded() -> (FlowKey<V4>, Flow<V4>) {
        let key = FlowKey {
            source: Ipv4Addr::new(10, 244, 0, 9).into(),
            destination: Ipv4Addr::new(10, 96, 0, 10).into(),
            source_port: 4000,
            destination_port: 80,
            protocol: lb_ebpf::abi::TCP,
            scope: POD,
            noted: 0,
        };
        let flow = Flow {
            new_source: Ipv4Addr::new(192, 168, 0, 1).into(),
            new_destination: Ipv4Addr::new(10, 244, 1, 3).into(),
            new_source_port: 61_000,
            new_destination_port: 8080,
            state: ESTABLISHED,
            flags: MASQUERADE,
            service: 1,
            created: 90,
            last_seen: 97,
            ..Flow::default()
        };
        (key, flow)
    }

    fn taken(filter: &FlowFilter) -> Option<LiveFlow> {
        let tables = sample::tables();
        let mut chosen = Chosen::new(&tables, filter).expect("known");
        chosen.now = 100;
        let (key, flow) = masqueraded();
        chosen.take(&key, &flow)
    }

    #[test]
    fn a_connection_to_what_its_service_has_not_is_nobodys() {
        let tables = sample::tables();
        let any = filter(None, None);
        let chosen = Chosen::new(&tables, &any).expect("known");
        let (mut key, flow) = masqueraded();
        let named = chosen.take(&key, &flow).expect("any flow").service;
        key.destination_port = 4433;
        let moved = chosen.take(&key, &flow).expect("any flow").service;
        assert_eq!(moved, "?/#1", "not {named}, which got the id later");
        let of_it = filter(Some("shop/web"), None);
        let chosen = Chosen::new(&tables, &of_it).expect("known");
        assert!(chosen.take(&key, &flow).is_none());
    }

    #[test]
    fn a_line_tells_who_talks_to_whom() {
        let flow = taken(&filter(None, None)).expect("any flow");
        let rooms = [Room {
            table: "flows4",
            used: 1,
            capacity: 32_768,
            limit: 1 << 20,
        }];
        assert_eq!(
            render(&[flow], &rooms, Format::Table, Palette::Plain),
            "\
SERVICE        PROTOCOL  STATE        CLIENT           DESTINATION    ENDPOINT         SOURCE             AGE  IDLE
shop/web:http  TCP       established  10.244.0.9:4000  10.96.0.10:80  10.244.1.3:8080  192.168.0.1:61000  10s  3s

flows4: 1 of 32768 entries in use, may grow to 1048576
"
        );
    }

    #[test]
    fn filters_are_by_service_and_client() {
        for (service, client, expected) in [
            (Some("web"), None, true),
            (Some("shop/web:80"), Some("10.244.0.9"), true),
            (Some("shop/web:30080"), None, true),
            (Some("empty"), None, false),
            (None, Some("10.244.0.8"), false),
        ] {
            let found = taken(&filter(service, client)).is_some();
            assert_eq!(found, expected, "{service:?} {client:?}");
        }
        let tables = sample::tables();
        assert!(Chosen::new(&tables, &filter(Some("nobody"), None)).is_err());
    }

    #[test]
    fn a_flow_of_a_forgotten_service_has_its_id() {
        let tables = sample::tables();
        let any = filter(None, None);
        let chosen = Chosen::new(&tables, &any).expect("no condition");
        let (key, flow) = masqueraded();
        let orphan = Flow {
            service: 77,
            ..flow
        };
        let shown = chosen.take(&key, &orphan).expect("any flow");
        assert_eq!(shown.service, "?/#77");
    }

    #[test]
    fn json_has_flows_and_tables() {
        let flow = taken(&filter(None, None)).expect("any flow");
        let text = render(&[flow], &[], Format::Json, Palette::Pipe);
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["kind"], "FlowList");
        assert_eq!(value["items"][0]["source"], "192.168.0.1:61000");
        assert_eq!(value["items"][0]["idleSeconds"], 3);
        assert!(value["tables"].is_array());
    }
}
