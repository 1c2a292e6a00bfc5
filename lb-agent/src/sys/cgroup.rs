//! Where cgroup v2 is mounted, on unified and on hybrid hosts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The mount point of cgroup v2 in our mount namespace.
pub fn root() -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    find(&mounts).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "no cgroup v2 is mounted: mount one (`mount -t cgroup2 none /sys/fs/cgroup/unified`) or give --cgroup DIR",
        )
    })
}

/// The cgroup v2 directory that is meant by the place where a host mounts its cgroups: on hybrid hosts that is a
/// plain directory with one hierarchy beside the other, the second version's by systemd's name for it.
pub fn hierarchy(given: &Path) -> PathBuf {
    let is_v2 = |directory: &Path| directory.join("cgroup.controllers").exists();
    let unified = given.join("unified");
    if !is_v2(given) && is_v2(&unified) {
        unified
    } else {
        given.to_owned()
    }
}

/// The kernel's number for a cgroup, as links tell it (its inode number).
pub fn id(directory: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(fs::metadata(directory)?.ino())
}

/// The first cgroup v2 mount that shows the hierarchy's root, else the first one at all.
fn find(mountinfo: &str) -> Option<PathBuf> {
    let mounts = mountinfo
        .lines()
        .filter_map(parse)
        .filter(|mount| mount.kind == "cgroup2");
    // A mount made inside a container may show only its own subtree. Where that is the root of its cgroup namespace, the
    // host's mount lies above it (cgroup_namespaces(7)).
    let rank = |mount: &Mount<'_>| {
        let place = match mount.root {
            root if root.starts_with("/..") => 0,
            "/" => 1,
            _ => 2,
        };
        (place, mount.path.len())
    };
    mounts
        .min_by_key(rank)
        .map(|mount| PathBuf::from(unescape(mount.path)))
}

struct Mount<'a> {
    root: &'a str,
    path: &'a str,
    kind: &'a str,
}

/// A line of proc_pid_mountinfo(5): `36 35 98:0 /root /path options tags… - type source options`.
fn parse(line: &str) -> Option<Mount<'_>> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(3);
    Some(Mount {
        root: front.next()?,
        path: front.next()?,
        kind: back.split(' ').next()?,
    })
}

/// Spaces, tabs, newlines and backslashes are written as `\` and three octal digits.
fn unescape(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest
            .get(at + 1..at + 4)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => out.push(char::from(code)),
            None => return path.to_owned(),
        }
        rest = &rest[at + 4..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 30 0:23 / /sys rw - sysfs sysfs rw
30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro
31 30 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu";

    #[test]
    fn a_hybrid_host_has_cgroup2_below_unified() {
        assert_eq!(find(HYBRID), Some(PathBuf::from("/sys/fs/cgroup/unified")));
    }

    #[test]
    fn in_a_cgroup_namespace_the_hosts_mount_counts() {
        let container = "\
31 30 0:27 / /sys/fs/cgroup ro - cgroup2 cgroup rw
32 30 0:27 /../../.. /host/cgroup rw - cgroup2 cgroup2 rw";
        assert_eq!(find(container), Some(PathBuf::from("/host/cgroup")));
    }

    #[test]
    fn a_hybrid_hosts_directory_means_the_second_version_below_it() {
        let host = std::env::temp_dir().join(format!("beeline-cgroup-{}", std::process::id()));
        let unified = host.join("unified");
        fs::create_dir_all(&unified).unwrap();
        assert_eq!(hierarchy(&host), host, "no cgroups at all");
        fs::write(unified.join("cgroup.controllers"), "").unwrap();
        assert_eq!(hierarchy(&host), unified);
        assert_eq!(hierarchy(&unified), unified);
        fs::write(host.join("cgroup.controllers"), "").unwrap();
        assert_eq!(
            hierarchy(&host),
            host,
            "a group of that name in the one hierarchy"
        );
        fs::remove_dir_all(&host).unwrap();
    }

    #[test]
    fn the_mount_of_the_whole_hierarchy_is_preferred() {
        let text =
            "1 2 0:1 /pod /a rw - cgroup2 cgroup rw\n3 2 0:1 / /host/cgroup rw - cgroup2 cgroup rw";
        assert_eq!(find(text), Some(PathBuf::from("/host/cgroup")));
    }

    #[test]
    fn a_host_without_cgroup2_has_none() {
        assert_eq!(
            find("25 30 0:23 / /sys rw - sysfs sysfs rw\nnonsense"),
            None
        );
    }

    #[test]
    fn escaped_paths_are_read() {
        let text = "1 2 0:1 / /my\\040cgroup rw - cgroup2 cgroup rw";
        assert_eq!(find(text), Some(PathBuf::from("/my cgroup")));
    }
}
