//! What turns one state of a Service into another, for the API server.

use serde_json::{Value, json};

use super::state::{Case, NAMESPACE};
use crate::control_plane::batch::Request;

/// What makes one case of another.
pub(super) fn changes(old: &Case, new: &Case) -> Vec<Request> {
    let mut requests = Vec::new();
    let path = format!("/api/v1/namespaces/{NAMESPACE}/services/{}", old.name());
    if without_status(&old.service) != without_status(&new.service) {
        requests.push(Request::put(&path, without_status(&new.service)));
    }
    let status = |case: &Case| case.service.get("status").cloned().unwrap_or_default();
    // A change of type may have emptied it.
    if status(old) != status(new) || old.service["spec"]["type"] != new.service["spec"]["type"] {
        let ingress = &status(new)["loadBalancer"]["ingress"];
        requests.push(Request::merge(
            format!("{path}/status"),
            json!({"status": {"loadBalancer": {"ingress": ingress}}}),
        ));
    }
    let name = |slice: &Value| slice["metadata"]["name"].as_str().unwrap_or("?").to_owned();
    let path = |slice: &Value| format!("{}/{}", slices_path(NAMESPACE), name(slice));
    for slice in &old.slices {
        match new.slices.iter().find(|other| name(other) == name(slice)) {
            None => requests.push(Request::delete(path(slice))),
            Some(other) if other != slice => {
                requests.push(Request::put(path(slice), other.clone()))
            }
            Some(_) => {}
        }
    }
    for slice in &new.slices {
        if old.slices.iter().all(|other| name(other) != name(slice)) {
            requests.push(Request::post(slices_path(NAMESPACE), slice.clone()));
        }
    }
    requests
}

/// The Service as it is created and changed; its status goes separately.
pub(super) fn without_status(service: &Value) -> Value {
    let mut service = service.clone();
    if let Some(fields) = service.as_object_mut() {
        fields.remove("status");
    }
    service
}

pub(super) fn slices_path(namespace: &str) -> String {
    format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices")
}
