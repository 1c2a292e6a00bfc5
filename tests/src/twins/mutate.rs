//! The next state of the same Services: types and policies change, labels come and go, endpoints are replaced.

use std::collections::BTreeMap;

use lb_agent::snapshot::Family;
use serde_json::{Map, Value, json};

use super::generate::{
    Leaning, PortPlan, external_ips, family_name, ingress, port_list, slice, source_ranges,
};
use super::state::{Case, State, list};
use crate::address::FAMILIES;
use crate::fuzz::random::Random;

/// A changed version of `state`; most cases change in one to three ways.
pub fn mutated(state: &State, random: &mut Random) -> State {
    let mut next = state.clone();
    next.note.push_str(", changed");
    for case in &mut next.cases {
        if case.service["spec"]["type"] == "ExternalName" || random.once_in(4) {
            continue;
        }
        for _ in 0..=random.below(3) {
            change(case, random);
        }
        settle(case);
    }
    next
}

fn change(case: &mut Case, random: &mut Random) {
    let number = number(case);
    let headless = case.service["spec"]["clusterIP"] == "None";
    let spec = &mut case.service["spec"];
    match random.below(12) {
        0 => flip(spec, "internalTrafficPolicy"),
        1 => flip(spec, "externalTrafficPolicy"),
        2 | 3 if !headless => {
            spec["type"] = json!(random.pick(&["ClusterIP", "NodePort", "LoadBalancer"]));
        }
        4 => {
            let labels = &mut case.service["metadata"]["labels"];
            toggle(
                labels,
                "service.kubernetes.io/service-proxy-name",
                json!("x"),
            );
        }
        5 => {
            if spec["sessionAffinity"] == "ClientIP" {
                spec["sessionAffinity"] = json!("None");
                remove(spec, "sessionAffinityConfig");
            } else {
                spec["sessionAffinity"] = json!("ClientIP");
                spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 900}});
            }
        }
        6 => toggle(
            spec,
            "loadBalancerSourceRanges",
            json!(source_ranges(random)),
        ),
        7 => {
            let found = external_ips(random, number);
            remove(spec, "externalIPs");
            if !found.is_empty() {
                spec["externalIPs"] = json!(found);
            }
        }
        8 => case.service["status"] = json!({"loadBalancer": {"ingress": ingress(random, number)}}),
        _ => endpoints(case, random),
    }
}

/// New endpoints in one family; there may be a slice more or less than before.
fn endpoints(case: &mut Case, random: &mut Random) {
    let family = random.pick(&FAMILIES);
    let kind = family_name(family);
    let name = case.name().to_owned();
    let ports = plan(case);
    let (mut of_family, others): (Vec<Value>, Vec<Value>) = case
        .slices
        .drain(..)
        .partition(|slice| slice["addressType"] == kind);
    if random.once_in(4) {
        of_family.pop();
    }
    let mut names: Vec<String> = of_family
        .iter()
        .filter_map(|slice| Some(slice["metadata"]["name"].as_str()?.to_owned()))
        .collect();
    if random.once_in(3) {
        names.push(format!(
            "{name}-new{}",
            if family == Family::V4 { 4 } else { 6 }
        ));
        names.dedup();
    }
    let leaning = Leaning::some(random);
    let mut known = BTreeMap::new();
    case.slices = others;
    for own in names {
        let mut fresh = slice(random, &name, 0, family, &ports, leaning, &mut known);
        fresh["metadata"]["name"] = json!(own);
        case.slices.push(fresh);
    }
}

/// Makes the fields fit the type again, as the API server demands.
fn settle(case: &mut Case) {
    let number = number(case);
    let ports = plan(case);
    let kind = case.service["spec"]["type"]
        .as_str()
        .unwrap_or("")
        .to_owned();
    let spec = &mut case.service["spec"];
    let had_node_ports = list(&spec["ports"]).any(|port| port["nodePort"].is_number());
    match kind.as_str() {
        "ClusterIP" if had_node_ports => spec["ports"] = port_list(&ports, None),
        "NodePort" if !had_node_ports => {
            spec["ports"] = port_list(&ports, Some(first_node_port(number)));
        }
        "LoadBalancer" if !had_node_ports => {
            spec["allocateLoadBalancerNodePorts"] = json!(false);
        }
        _ => {}
    }
    if kind != "LoadBalancer" {
        remove(spec, "allocateLoadBalancerNodePorts");
        remove(spec, "loadBalancerSourceRanges");
    }
    let externals = list(&spec["externalIPs"]).next().is_some();
    if kind == "ClusterIP" && !externals {
        remove(spec, "externalTrafficPolicy");
    }
    if kind != "LoadBalancer" {
        remove(&mut case.service, "status");
    }
}

/// As `generate` counts them.
pub(super) fn first_node_port(number: u64) -> u16 {
    30_000 + (number * 4 % 2_700) as u16
}

/// The number that the Service's name ends with.
fn number(case: &Case) -> u64 {
    case.name()
        .rsplit('-')
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(0)
}

fn plan(case: &Case) -> Vec<PortPlan> {
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    list(&case.service["spec"]["ports"])
        .map(|port| {
            let number = port["port"].as_u64().unwrap_or(0) as u16;
            (text(&port["name"]), text(&port["protocol"]), number)
        })
        .collect()
}

fn flip(spec: &mut Value, policy: &str) {
    spec[policy] = if spec[policy] == "Local" {
        json!("Cluster")
    } else {
        json!("Local")
    };
}

fn toggle(object: &mut Value, field: &str, value: Value) {
    if object.is_null() {
        *object = Value::Object(Map::new());
    }
    if object.get(field).is_some() {
        remove(object, field);
    } else {
        object[field] = value;
    }
}

fn remove(object: &mut Value, field: &str) {
    if let Some(fields) = object.as_object_mut() {
        fields.remove(field);
    }
}
