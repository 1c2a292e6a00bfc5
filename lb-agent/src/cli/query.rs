//! Which services a command is about: `NAME`, `NAMESPACE/NAME` or either with `:PORT`.

use std::fmt;
use std::str::FromStr;

use super::live::ServicePort;

/// Conditions on a service port; absent ones hold for all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServiceQuery {
    pub namespace: Option<String>,
    pub name: Option<String>,
    /// Name of the service port, or a number that one of its frontends has.
    pub port: Option<String>,
}

impl ServiceQuery {
    pub(super) fn matches(&self, service: &ServicePort) -> bool {
        let equal =
            |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
        let port = |wanted: &str| {
            wanted == service.port_name
                || service
                    .frontends
                    .iter()
                    .any(|frontend| wanted == frontend.port.to_string())
        };
        equal(&self.namespace, &service.namespace)
            && equal(&self.name, &service.name)
            && self.port.as_deref().is_none_or(port)
    }
}

impl FromStr for ServiceQuery {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (service, port) = match text.split_once(':') {
            Some((service, port)) => (service, Some(port)),
            None => (text, None),
        };
        let (namespace, name) = match service.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, service),
        };
        let parts = [namespace, Some(name), port];
        if parts
            .iter()
            .flatten()
            .any(|part| part.is_empty() || part.contains(['/', ':']))
        {
            return Err("expected NAME, NAMESPACE/NAME or NAMESPACE/NAME:PORT".into());
        }
        let [namespace, name, port] = parts.map(|part| part.map(str::to_owned));
        Ok(ServiceQuery {
            namespace,
            name,
            port,
        })
    }
}

impl fmt::Display for ServiceQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(self.name.as_deref().unwrap_or("*"))?;
        self.port
            .as_ref()
            .map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_and_written_back() {
        for text in ["web", "shop/web", "shop/web:http", "web:80"] {
            assert_eq!(text.parse::<ServiceQuery>().unwrap().to_string(), text);
        }
        for wrong in ["", "/web", "shop/", "a/b/c", "web:", "web:a:b"] {
            assert!(wrong.parse::<ServiceQuery>().is_err(), "{wrong}");
        }
    }
}
