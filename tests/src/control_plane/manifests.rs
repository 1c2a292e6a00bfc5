//! The project's own manifests, as the API server gets them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::ControlPlane;
use super::client::{Apply, Client};

/// Every object of `manifests/base`, those that others need first.
pub fn base() -> Result<Vec<Value>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/base");
    let mut objects = Vec::new();
    for path in yaml_files(&directory)? {
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text)
            .with_context(|| format!("parse {}", path.display()))?;
        // kustomize's own file is no object of the API server's.
        objects.extend(
            documents
                .into_iter()
                .filter(|object| object["kind"] != "Kustomization" && !object.is_null()),
        );
    }
    ensure!(
        !objects.is_empty(),
        "{} holds no objects",
        directory.display()
    );
    objects.sort_by_key(|object| object["kind"] != "Namespace");
    Ok(objects)
}

/// Stores `manifests/base` and returns a kubeconfig of its ServiceAccount: what the agent may do in a cluster.
pub fn install(plane: &ControlPlane) -> Result<PathBuf> {
    apply(&plane.admin(), &base()?, Apply::Store)?;
    plane.kubeconfig("beeline.kubeconfig", &token(plane)?)
}

/// A token of the ServiceAccount in `manifests/base`, once it is stored.
pub fn token(plane: &ControlPlane) -> Result<String> {
    let objects = base()?;
    let account = objects
        .iter()
        .find(|object| object["kind"] == "ServiceAccount");
    let account = &account.context("manifests/base holds no ServiceAccount")?["metadata"];
    let namespace = account["namespace"]
        .as_str()
        .context("the ServiceAccount has no namespace")?;
    let name = account["name"]
        .as_str()
        .context("the ServiceAccount has no name")?;
    plane.service_account_token(namespace, name)
}

/// Applies every object; the error names the one that was refused.
pub fn apply(client: &Client, objects: &[Value], mode: Apply) -> Result<()> {
    for object in objects {
        client
            .apply(object, mode)
            .with_context(|| format!("apply {} {}", object["kind"], object["metadata"]["name"]))?;
    }
    Ok(())
}

fn yaml_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
