//! API objects become records of [`crate::snapshot`], as kube-proxy reads them (spec §1.A, §1.B, §3.4, §8).
//!
//! Objects come from the API server or from a file, so nothing here trusts them: what cannot be used is left out,
//! counted and told once ([`super::refused`]), and names that are none refuse the whole object. An object that
//! is not (or no longer) ours becomes a `…Gone`.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::address::{Unusable, parse_cidr, parse_usable};
use super::intern::Interner;
use super::refused::{Complaints, Fault, Finding, ObjectKind, Refused, shown};
use crate::snapshot::{Cidr, Event, Family, ObjectName, Protocol};

mod node;
mod service;
mod slice;

/// Longest DNS label, port name and label value.
const LABEL: usize = 63;
/// Longest DNS subdomain: names of nodes, slices and ServiceCIDRs.
const SUBDOMAIN: usize = 253;

/// Choices about how objects are read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Take `spec.externalIPs` for empty (A13, CVE-2020-8554).
    pub ignore_external_ips: bool,
}

/// Turns API objects into events. `None` where an object does not even have a usable name.
pub struct Converter {
    options: Options,
    names: Interner,
    complaints: Complaints,
}

impl Converter {
    /// A converter that counts what it refuses in `refused`.
    pub fn new(options: Options, refused: Arc<Refused>) -> Self {
        Self {
            options,
            names: Interner::default(),
            complaints: Complaints::new(refused),
        }
    }

    /// Reads a Service; one that is headless, without an address or of type ExternalName is gone (A2, A4).
    pub fn service(&mut self, object: &core::Service) -> Option<Event> {
        let read = |reader: &mut Reader<'_>, name| reader.service(name, object);
        self.convert(
            ObjectKind::Service,
            &object.metadata,
            read,
            Event::ServiceGone,
        )
    }

    /// Reads an EndpointSlice; one without a service (B2) or of another address type (B4) is gone.
    pub fn slice(&mut self, object: &discovery::EndpointSlice) -> Option<Event> {
        let read = |reader: &mut Reader<'_>, name| reader.slice(name, object);
        self.convert(
            ObjectKind::EndpointSlice,
            &object.metadata,
            read,
            Event::SliceGone,
        )
    }

    /// Reads our Node.
    pub fn node(&mut self, object: &core::Node) -> Option<Event> {
        let read = |reader: &mut Reader<'_>, name: ObjectName| reader.node(name.name, object);
        self.convert(ObjectKind::Node, &object.metadata, read, |_| {
            Event::NodeGone
        })
    }

    /// Reads a ServiceCIDR.
    pub fn service_cidr(&mut self, object: &networking::ServiceCIDR) -> Option<Event> {
        let read = |reader: &mut Reader<'_>, name: ObjectName| {
            let prefixes = object
                .spec
                .as_ref()
                .and_then(|spec| spec.cidrs.as_deref())
                .unwrap_or_default();
            Ok(Some(Event::ServiceCidr(
                name.name,
                reader.prefixes("spec.cidrs", prefixes),
            )))
        };
        self.convert(ObjectKind::ServiceCidr, &object.metadata, read, |name| {
            Event::ServiceCidrGone(name.name)
        })
    }

    /// A Service was deleted.
    pub fn service_gone(&mut self, metadata: &ObjectMeta) -> Option<Event> {
        self.gone(ObjectKind::Service, metadata)
            .map(Event::ServiceGone)
    }

    /// An EndpointSlice was deleted.
    pub fn slice_gone(&mut self, metadata: &ObjectMeta) -> Option<Event> {
        self.gone(ObjectKind::EndpointSlice, metadata)
            .map(Event::SliceGone)
    }

    /// Our Node was deleted.
    pub fn node_gone(&mut self, metadata: &ObjectMeta) -> Option<Event> {
        self.gone(ObjectKind::Node, metadata)
            .map(|_| Event::NodeGone)
    }

    /// A ServiceCIDR was deleted.
    pub fn service_cidr_gone(&mut self, metadata: &ObjectMeta) -> Option<Event> {
        self.gone(ObjectKind::ServiceCidr, metadata)
            .map(|name| Event::ServiceCidrGone(name.name))
    }

    /// Forgets what was told about an object that a source found gone.
    pub(super) fn forget(&mut self, gone: &Event) {
        match gone {
            Event::ServiceGone(name) => self.complaints.forget(ObjectKind::Service, name),
            Event::SliceGone(name) => self.complaints.forget(ObjectKind::EndpointSlice, name),
            _ => {}
        }
    }

    fn convert(
        &mut self,
        kind: ObjectKind,
        metadata: &ObjectMeta,
        read: impl FnOnce(&mut Reader<'_>, ObjectName) -> Result<Option<Event>, Finding>,
        gone: fn(ObjectName) -> Event,
    ) -> Option<Event> {
        let name = match self.name(kind, metadata) {
            Ok(name) => name,
            Err((stand_in, finding)) => {
                self.complaints.settle(kind, &stand_in, vec![finding]);
                return None;
            }
        };
        let mut reader = Reader {
            options: self.options,
            names: &mut self.names,
            findings: Vec::new(),
        };
        let read = read(&mut reader, name.clone());
        let mut findings = reader.findings;
        let event = read.unwrap_or_else(|finding| {
            findings.push(finding);
            None
        });
        self.complaints.settle(kind, &name, findings);
        event.or_else(|| Some(gone(name)))
    }

    fn gone(&mut self, kind: ObjectKind, metadata: &ObjectMeta) -> Option<ObjectName> {
        match self.name(kind, metadata) {
            Ok(name) => {
                self.complaints.forget(kind, &name);
                Some(name)
            }
            Err((stand_in, _)) => {
                self.complaints.forget(kind, &stand_in);
                None
            }
        }
    }

    /// The object's name. If it is none: a printable stand-in, and what is wrong.
    fn name(
        &mut self,
        kind: ObjectKind,
        metadata: &ObjectMeta,
    ) -> Result<ObjectName, (ObjectName, Finding)> {
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let name = metadata.name.as_deref().unwrap_or_default();
        let (namespaced, limit) = match kind {
            ObjectKind::Service => (true, LABEL),
            ObjectKind::EndpointSlice => (true, SUBDOMAIN),
            ObjectKind::Node | ObjectKind::ServiceCidr => (false, SUBDOMAIN),
        };
        let namespace_fits = if namespaced {
            is_name(namespace, LABEL)
        } else {
            namespace.is_empty()
        };
        if !namespace_fits || !is_name(name, limit) {
            let stand_in = ObjectName {
                namespace: shown(namespace).into(),
                name: shown(name).into(),
            };
            let (field, value) = if namespace_fits {
                ("metadata.name", name)
            } else {
                ("metadata.namespace", namespace)
            };
            return Err((
                stand_in,
                Finding {
                    field,
                    value: shown(value),
                    fault: Fault::Name,
                },
            ));
        }
        let namespace = self.names.intern(namespace);
        // A slice's name is used once; a Service's is used again by its slices.
        let name = if kind == ObjectKind::EndpointSlice {
            name.into()
        } else {
            self.names.intern(name)
        };
        Ok(ObjectName { namespace, name })
    }
}

/// Reads the fields of one object and collects what it could not use.
struct Reader<'a> {
    options: Options,
    names: &'a mut Interner,
    findings: Vec<Finding>,
}

impl Reader<'_> {
    fn find(&mut self, field: &'static str, value: &str, fault: Fault) {
        self.findings.push(Finding {
            field,
            value: shown(value),
            fault,
        });
    }

    /// A name that is kept; `Err` refuses the object.
    fn name(&mut self, field: &'static str, text: &str, limit: usize) -> Result<Arc<str>, Finding> {
        if is_name(text, limit) {
            Ok(self.names.intern(text))
        } else {
            Err(Finding {
                field,
                value: shown(text),
                fault: Fault::Name,
            })
        }
    }

    /// A port name; it may be empty.
    fn port_name(&mut self, field: &'static str, text: &str) -> Result<Arc<str>, Finding> {
        if text.is_empty() {
            Ok(self.names.intern(text))
        } else {
            self.name(field, text, LABEL)
        }
    }

    fn address(
        &mut self,
        field: &'static str,
        text: &str,
        family: Option<Family>,
    ) -> Option<IpAddr> {
        let address = parse_usable(text).and_then(|address| match family {
            Some(family) if family != Family::of(address) => Err(Unusable::OtherFamily),
            _ => Ok(address),
        });
        address
            .map_err(|why| self.find(field, text, Fault::Address(why)))
            .ok()
    }

    /// Addresses of both families, each once.
    fn addresses<'t>(
        &mut self,
        field: &'static str,
        texts: impl Iterator<Item = &'t str>,
    ) -> Vec<IpAddr> {
        let (mut addresses, mut seen) = (Vec::new(), HashSet::new());
        for text in texts {
            if let Some(address) = self.address(field, text, None)
                && seen.insert(address)
            {
                addresses.push(address);
            }
        }
        addresses.shrink_to_fit();
        addresses
    }

    /// Prefixes of both families, each once. Blanks around them are allowed (A19).
    fn prefixes(&mut self, field: &'static str, texts: &[String]) -> Vec<Cidr> {
        let (mut prefixes, mut seen) = (Vec::new(), HashSet::new());
        for text in texts {
            match parse_cidr(text.trim()) {
                Some(prefix) if seen.insert(prefix) => prefixes.push(prefix),
                Some(_) => {}
                None => self.find(field, text, Fault::Prefix),
            }
        }
        prefixes.shrink_to_fit();
        prefixes
    }

    fn port(&mut self, field: &'static str, number: i32) -> Option<u16> {
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        if port.is_none() {
            self.find(field, &number.to_string(), Fault::Port);
        }
        port
    }

    fn protocol(&mut self, field: &'static str, text: Option<&str>) -> Option<Protocol> {
        match text {
            None | Some("TCP") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some("SCTP") => Some(Protocol::Sctp),
            Some(other) => {
                self.find(field, other, Fault::Protocol);
                None
            }
        }
    }
}

/// A name as Kubernetes allows them, give or take where the dots and dashes may be.
fn is_name(text: &str, limit: usize) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    !text.is_empty() && text.len() <= limit && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests;
