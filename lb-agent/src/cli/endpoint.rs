//! `beeline endpoint list`.

use std::net::SocketAddr;

use super::live::{LiveEndpoint, LiveTables, ServicePort};
use super::output::{self, Format, Palette};
use super::query::ServiceQuery;
use super::{CommandError, Exit, ListArgs, Printed, service};

/// Every endpoint, one a line.
pub(super) fn list(
    tables: &LiveTables,
    named: Option<&ServiceQuery>,
    args: &ListArgs,
) -> Result<Printed, CommandError> {
    let services = service::select(tables, &args.query(named), args)?;
    Ok(Printed {
        text: render(&services, args.show.output, args.show.palette()),
        exit: Exit::Fine,
    })
}

/// Endpoints of these service ports.
pub(super) fn render(services: &[ServicePort], format: Format, palette: Palette) -> String {
    let lines = services.iter().flat_map(|service| {
        service
            .endpoints
            .iter()
            .map(move |endpoint| (service, endpoint))
    });
    if format == Format::Json {
        let items: Vec<serde_json::Value> = lines
            .map(|(service, endpoint)| item(service, endpoint))
            .collect();
        return output::json_list("EndpointList", &items);
    }
    let mut header = vec![
        "SERVICE", "PROTOCOL", "ENDPOINT", "WHERE", "SETS", "SERVING",
    ];
    if format == Format::Wide {
        header.extend(["ID", "GENERATION"]);
    }
    output::columns(
        palette,
        &header,
        lines
            .map(|(service, endpoint)| row(service, endpoint, format))
            .collect(),
    )
}

fn row(service: &ServicePort, endpoint: &LiveEndpoint, format: Format) -> Vec<String> {
    let mut row = vec![
        service.full_name(),
        service.protocol.into(),
        SocketAddr::new(endpoint.address, endpoint.port).to_string(),
        place(endpoint).into(),
        sets(endpoint).into(),
        if endpoint.serving { "yes" } else { "no" }.into(),
    ];
    if format == Format::Wide {
        row.extend([endpoint.id, endpoint.generation].map(|number| number.to_string()));
    }
    row
}

fn item(service: &ServicePort, endpoint: &LiveEndpoint) -> serde_json::Value {
    serde_json::json!({
        "namespace": service.namespace,
        "name": service.name,
        "portName": service.port_name,
        "protocol": service.protocol,
        "family": service.family,
        "endpoint": endpoint,
    })
}

fn place(endpoint: &LiveEndpoint) -> &'static str {
    match (endpoint.local, endpoint.host) {
        (true, false) => "local",
        (_, true) => "this-host",
        (false, false) => "remote",
    }
}

fn sets(endpoint: &LiveEndpoint) -> &'static str {
    match (endpoint.in_local_set, endpoint.in_cluster_set) {
        (true, true) => "local,cluster",
        (true, false) => "local",
        (false, true) => "cluster",
        (false, false) => "-",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample;

    #[test]
    fn a_line_says_where_an_endpoint_is_and_who_may_use_it() {
        assert_eq!(
            render(&sample::tables().services(), Format::Table, Palette::Plain),
            "\
SERVICE                 PROTOCOL  ENDPOINT         WHERE      SETS           SERVING
kube-system/dns[2J:dns  UDP       [fd01::3]:5353   remote     cluster        yes
shop/web:http           TCP       10.244.0.1:8080  local      local          yes
shop/web:http           TCP       10.244.0.2:8080  this-host  local,cluster  no
shop/web:http           TCP       10.244.0.3:8080  remote     cluster        yes
"
        );
    }

    #[test]
    fn json_has_one_item_an_endpoint() {
        let text = render(&sample::tables().services(), Format::Json, Palette::Pipe);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["kind"], "EndpointList");
        assert_eq!(value["items"][1]["endpoint"]["inLocalSet"], true);
        assert_eq!(value["items"].as_array().map(Vec::len), Some(4));
    }
}
