//! What must stay true of the Kubernetes manifests: complete, least privilege, of this version.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::setup::find_program;

/// What the agent may do with what it watches.
const VERBS: &[&str] = &["get", "list", "watch"];

/// Capabilities with a reason in the DaemonSet. Anything else needs a decision, not an edit.
const CAPABILITIES: &[&str] = &["BPF", "NET_ADMIN"];

/// Checks the base and, where kubectl is at hand, renders every overlay.
pub(crate) fn run() -> Result<()> {
    let directory = crate::root().join("manifests");
    let base = directory.join("base");
    let mut faults = unlisted(&base)?;
    let rbac = read(&base.join("rbac.yaml"))?;
    faults.extend(excess(
        &rbac,
        "verbs:",
        VERBS,
        "rbac.yaml: a verb that only watching does not need",
    ));
    let daemon_set = read(&base.join("daemonset.yaml"))?;
    faults.extend(excess(
        &daemon_set,
        "add:",
        CAPABILITIES,
        "daemonset.yaml: a capability without a reason",
    ));
    let image = format!("beeline:v{}", env!("CARGO_PKG_VERSION"));
    if !daemon_set.contains(&image) {
        faults.push(format!("daemonset.yaml: the image is not {image}"));
    }
    if let Some(kubectl) = find_program("kubectl") {
        faults.extend(unrenderable(&kubectl, &directory)?);
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(())
}

/// Files of the base that its kustomization forgets.
fn unlisted(base: &Path) -> Result<Vec<String>> {
    let list = read(&base.join("kustomization.yaml"))?;
    let mut faults = Vec::new();
    for entry in base.read_dir()? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "kustomization.yaml" && !list.contains(&format!("- {name}\n")) {
            faults.push(format!("kustomization.yaml does not list {name}"));
        }
    }
    Ok(faults)
}

/// Members of `key [a, b]` lists that are not allowed.
fn excess(text: &str, key: &str, allowed: &[&str], fault: &str) -> Vec<String> {
    let lists = text
        .lines()
        .filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix(key));
    let members = lists
        .flat_map(|list| list.split(['[', ']', ',', '"', ' ']))
        .filter(|member| !member.is_empty());
    members
        .filter(|member| !allowed.contains(member))
        .map(|member| format!("{fault}: {member}"))
        .collect()
}

fn unrenderable(kubectl: &Path, directory: &Path) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let overlays = directory
        .join("overlays")
        .read_dir()?
        .flatten()
        .map(|entry| entry.path());
    for place in overlays.chain([directory.join("base")]) {
        let output = Command::new(kubectl)
            .arg("kustomize")
            .arg(&place)
            .output()
            .context("starting kubectl")?;
        if !output.status.success() {
            faults.push(format!(
                "{}: {}",
                place.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            ));
        }
    }
    Ok(faults)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::excess;

    #[test]
    fn a_verb_too_many_is_named() {
        let text = "rules:\n  - verbs: [\"get\", \"list\", \"delete\"]\n";
        assert_eq!(
            excess(text, "verbs:", super::VERBS, "rbac"),
            ["rbac: delete"]
        );
    }
}
