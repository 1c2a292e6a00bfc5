//! A node's control groups: one in every hierarchy of the machine, which becomes the root that the node sees.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// A mounted hierarchy of the machine.
pub(super) struct Hierarchy {
    pub(super) place: PathBuf,
    pub(super) options: String,
    pub(super) second_version: bool,
}

/// All that are mounted.
pub(super) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading the mounts")?;
    let all: Vec<Hierarchy> = mounts.lines().filter_map(hierarchy).collect();
    ensure!(
        all.iter().any(|one| !one.second_version),
        "the nodes' kubelets share controllers of the machine, which needs cgroup v1 controllers (a hybrid or v1 \
         machine): boot with systemd.unified_cgroup_hierarchy=0"
    );
    Ok(all)
}

/// A line of proc_mounts(5): `source place type options …`.
fn hierarchy(line: &str) -> Option<Hierarchy> {
    let mut words = line.split(' ').skip(1);
    let (place, kind, options) = (words.next()?, words.next()?, words.next()?);
    let second_version = match kind {
        "cgroup" => false,
        "cgroup2" => true,
        _ => return None,
    };
    Some(Hierarchy {
        place: place.into(),
        options: options.to_owned(),
        second_version,
    })
}

/// Makes a node's groups.
pub(super) fn create(name: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.place.join(name);
        fs::create_dir_all(&group).with_context(|| format!("making {}", group.display()))?;
        // A group without processors and memory takes no process.
        let processors = group.join("cpuset.cpus");
        if processors.exists() && fs::read_to_string(&processors)?.trim().is_empty() {
            fs::write(group.join("cgroup.clone_children"), "1")?;
            for file in ["cpuset.cpus", "cpuset.mems"] {
                fs::write(group.join(file), fs::read(hierarchy.place.join(file))?)?;
            }
        }
    }
    Ok(())
}

/// Shell words that put the shell into a node's groups.
pub(super) fn join(name: &str) -> Result<String> {
    let enter = |hierarchy: Hierarchy| {
        format!(
            "echo $$ >'{}/cgroup.procs'; ",
            hierarchy.place.join(name).display()
        )
    };
    Ok(hierarchies()?.into_iter().map(enter).collect())
}

/// Removes a node's groups, once their processes are gone.
pub(super) fn remove(name: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.place.join(name);
        // The last processes may still be on their way out.
        for _ in 0..50 {
            remove_tree(&group);
            if !group.exists() {
                break;
            }
            sleep(Duration::from_millis(100));
        }
        ensure!(
            !group.exists(),
            "{} is still in use: see its cgroup.procs",
            group.display()
        );
    }
    Ok(())
}

/// The files of a group go with its directory, so only directories are removed, the innermost first.
fn remove_tree(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    // Whoever calls looks whether it worked.
    let _ = fs::remove_dir(group);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_told_from_other_mounts() {
        let one = hierarchy("cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0").unwrap();
        assert_eq!(one.place, Path::new("/sys/fs/cgroup/cpu"));
        assert!(!one.second_version && one.options == "rw,relatime,cpu");
        assert!(
            hierarchy("cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0")
                .unwrap()
                .second_version
        );
        assert!(hierarchy("tmpfs /sys/fs/cgroup tmpfs rw 0 0").is_none());
    }
}
