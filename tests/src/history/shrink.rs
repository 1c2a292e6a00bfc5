//! Makes a failing history short: steps go, then parts of objects, as long as it still fails.

use super::run::{Failure, run};
use super::script::{Object, Script, Step};

/// The shortest history found that fails, and how. `None` if it does not fail.
pub fn shrink(script: &Script) -> Option<(Script, Failure)> {
    let mut failure = run(script).err()?;
    let mut best = script.clone();
    best.steps.truncate(failure.step + 1);
    if let Err(again) = run(&best) {
        failure = again;
    } else {
        best = script.clone();
    }
    loop {
        let length = best.steps.len();
        let mut size = length.div_ceil(2);
        while size > 0 {
            let mut at = 0;
            while at < best.steps.len() {
                let mut shorter = best.clone();
                shorter
                    .steps
                    .drain(at..(at + size).min(shorter.steps.len()));
                match run(&shorter) {
                    Err(again) => (best, failure) = (shorter, again),
                    Ok(_) => at += size,
                }
            }
            size /= 2;
        }
        let mut simpler = false;
        for at in 0..best.steps.len() {
            while let Some((found, again)) = simplify(&best, at) {
                (best, failure) = (found, again);
                simpler = true;
            }
        }
        if !simpler && best.steps.len() == length {
            return Some((best, failure));
        }
    }
}

/// The same history with one thing less in one object.
fn simplify(script: &Script, at: usize) -> Option<(Script, Failure)> {
    let Step::Put(object) = &script.steps[at] else {
        return None;
    };
    smaller(object).into_iter().find_map(|object| {
        let mut simpler = script.clone();
        simpler.steps[at] = Step::Put(object);
        run(&simpler).err().map(|failure| (simpler, failure))
    })
}

fn smaller(object: &Object) -> Vec<Object> {
    let mut all = Vec::new();
    match object {
        Object::Service(service) => {
            let mut with = |change: &dyn Fn(&mut k8s_openapi::api::core::v1::ServiceSpec)| {
                let mut service = service.clone();
                service.spec.as_mut().map(change);
                all.push(Object::Service(service));
            };
            let spec = service.spec.clone().unwrap_or_default();
            for index in 0..spec.ports.as_ref().map_or(0, Vec::len) {
                with(&|spec| drop(spec.ports.as_mut().map(|ports| ports.remove(index))));
            }
            with(&|spec| spec.external_ips = None);
            with(&|spec| spec.load_balancer_source_ranges = None);
            with(&|spec| spec.session_affinity = None);
            with(&|spec| spec.session_affinity_config = None);
            with(&|spec| spec.external_traffic_policy = None);
            with(&|spec| spec.internal_traffic_policy = None);
            with(&|spec| spec.health_check_node_port = None);
            with(&|spec| spec.cluster_ips.iter_mut().for_each(|ips| ips.truncate(1)));
            with(&|spec| {
                spec.ports
                    .iter_mut()
                    .flatten()
                    .for_each(|port| port.node_port = None)
            });
            let mut bare = service.clone();
            bare.status = None;
            all.push(Object::Service(bare));
        }
        Object::Slice(slice) => {
            for index in 0..slice.endpoints.len() {
                let mut fewer = slice.clone();
                fewer.endpoints.remove(index);
                all.push(Object::Slice(fewer));
            }
            for index in 0..slice.ports.as_ref().map_or(0, Vec::len) {
                let mut fewer = slice.clone();
                fewer.ports.as_mut().map(|ports| ports.remove(index));
                all.push(Object::Slice(fewer));
            }
        }
        Object::Node(node) => {
            let listed = node
                .status
                .as_ref()
                .and_then(|status| status.addresses.as_ref());
            for index in 0..listed.map_or(0, Vec::len) {
                let mut fewer = node.clone();
                let addresses = fewer
                    .status
                    .as_mut()
                    .and_then(|status| status.addresses.as_mut());
                addresses.map(|addresses| addresses.remove(index));
                all.push(Object::Node(fewer));
            }
        }
    }
    all.retain(|smaller| smaller != object);
    all
}
