//! `beeline service list` and `beeline service get`.

use super::live::{LiveFrontend, LiveTables, ServicePort};
use super::output::{self, Format, Palette};
use super::query::ServiceQuery;
use super::{CommandError, Exit, ListArgs, Printed, endpoint};

/// Every frontend, one a line.
pub(super) fn list(tables: &LiveTables, args: &ListArgs) -> Result<Printed, CommandError> {
    let mut services = select(tables, &args.query(None), args)?;
    // `endpoint list` has them; here they would be most of the text.
    services
        .iter_mut()
        .for_each(|service| service.endpoints.clear());
    Ok(Printed {
        text: render(&services, args.show.output, args.show.palette()),
        exit: Exit::Fine,
    })
}

/// Frontends and endpoints of one service.
pub(super) fn get(
    tables: &LiveTables,
    service: &ServiceQuery,
    args: &ListArgs,
) -> Result<Printed, CommandError> {
    let query = args.query(Some(service));
    let services = select(tables, &query, args)?;
    let (format, palette) = (args.show.output, args.show.palette());
    let mut text = render(&services, format, palette);
    if format != Format::Json {
        text.push('\n');
        text.push_str(&endpoint::render(&services, format, palette));
    }
    Ok(Printed {
        text,
        exit: Exit::Fine,
    })
}

/// The service ports a query names; naming none that exists is an error with advice.
pub(super) fn select(
    tables: &LiveTables,
    query: &ServiceQuery,
    args: &ListArgs,
) -> Result<Vec<ServicePort>, CommandError> {
    let all = tables.services();
    let found: Vec<ServicePort> = all
        .iter()
        .filter(|service| query.matches(service))
        .cloned()
        .collect();
    if !found.is_empty() || query.name.is_none() {
        return Ok(found);
    }
    let elsewhere = all
        .iter()
        .find(|service| Some(&service.name) == query.name.as_ref());
    Err(CommandError {
        what: format!("no service {query} in the kernel's tables"),
        cause: match elsewhere {
            Some(service) => format!("there is {}", service.full_name()),
            None => "it does not exist, is headless or of type ExternalName, or has not arrived on this node".into(),
        },
        next: format!("beeline service list -A --bpffs {}", args.bpffs().display()),
    })
}

fn render(services: &[ServicePort], format: Format, palette: Palette) -> String {
    let mut header = vec![
        "SERVICE", "PROTOCOL", "TYPE", "FRONTEND", "POLICY", "AFFINITY", "LOCAL", "CLUSTER",
    ];
    match format {
        Format::Json => return output::json_list("ServiceList", services),
        Format::Table => {}
        Format::Wide => header.extend(["SOURCE-RANGES", "ID", "GENERATION", "BLOCK"]),
    }
    header.push("VERDICT");
    let lines = services.iter().flat_map(|service| {
        service
            .frontends
            .iter()
            .map(move |frontend| (service, frontend))
    });
    let rows = lines
        .map(|(service, frontend)| row(service, frontend, format))
        .collect();
    output::columns(palette, &header, rows)
}

fn row(service: &ServicePort, frontend: &LiveFrontend, format: Format) -> Vec<String> {
    let address = std::net::SocketAddr::new(frontend.address, frontend.port);
    let mut row = vec![
        service.full_name(),
        service.protocol.into(),
        frontend.kind.into(),
        address.to_string(),
        frontend.policy.into(),
        match frontend.affinity_seconds {
            0 => "-".into(),
            seconds => format!("{seconds}s"),
        },
        frontend.local_endpoints.to_string(),
        frontend.cluster_endpoints.to_string(),
    ];
    if format == Format::Wide {
        row.push(if frontend.source_ranges { "yes" } else { "-" }.into());
        row.extend(
            [service.id, frontend.generation, frontend.block].map(|number| number.to_string()),
        );
    }
    row.push(frontend.verdict.as_str().into());
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample;

    #[test]
    fn a_line_says_where_a_frontend_leads() {
        let text = render(&sample::tables().services(), Format::Table, Palette::Plain);
        assert_eq!(
            text,
            "\
SERVICE                 PROTOCOL  TYPE       FRONTEND        POLICY   AFFINITY  LOCAL  CLUSTER  VERDICT
kube-system/dns[2J:dns  UDP       ClusterIP  [fd00::a]:53    Cluster  -         0      1        translate
shop/empty              TCP       ClusterIP  10.96.0.11:443  Cluster  -         0      0        REJECT
shop/web:http           TCP       ClusterIP  10.96.0.10:80   Cluster  10800s    2      2        translate
shop/web:http           TCP       NodePort   0.0.0.0:30080   Local    -         0      1        DROP
"
        );
    }

    #[test]
    fn json_names_everything_the_table_shows() {
        let text = render(
            &sample::tables().services()[2..],
            Format::Json,
            Palette::Pipe,
        );
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["kind"], "ServiceList");
        let item = &value["items"][0];
        assert_eq!(
            (&item["namespace"], &item["name"], &item["portName"]),
            (&"shop".into(), &"web".into(), &"http".into())
        );
        let node_port = &item["frontends"][1];
        assert_eq!(node_port["type"], "NodePort");
        assert_eq!(
            (&node_port["port"], &node_port["verdict"]),
            (&30_080.into(), &"DROP".into())
        );
        assert_eq!(item["frontends"][0]["affinitySeconds"], 10_800);
        assert_eq!(item["endpoints"][0]["address"], "10.244.0.1");
    }
}
