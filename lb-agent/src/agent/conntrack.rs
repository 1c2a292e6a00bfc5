//! Brings netfilter's settings to what the configuration asks for, as kube-proxy does at its start.
//!
//! Unlike there nothing of it is fatal: Services work by our own flows, whatever netfilter is set to. In a container
//! without privileges the settings can be read but not written; then an init container writes them
//! (`beeline agent --init-only`), and the agent finds them as it wants them.

use std::fs;
use std::path::PathBuf;

use tracing::{info, warn};

use crate::config::Conntrack;

/// Where the kernel shows its settings.
struct Kernel {
    /// `nf_conntrack_*` below it.
    sysctls: PathBuf,
    hash_size: PathBuf,
    /// Cores of the machine. The threads we may use would be fewer, where a CPU manager confines us.
    cores: PathBuf,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            sysctls: "/proc/sys/net/netfilter".into(),
            hash_size: "/sys/module/nf_conntrack/parameters/hashsize".into(),
            cores: "/sys/devices/system/cpu/online".into(),
        }
    }
}

/// Sets what differs. What cannot be set is told, all at once.
pub(super) fn apply(wanted: &Conntrack) {
    let kernel = Kernel::default();
    if !kernel.sysctls.join("nf_conntrack_max").exists() {
        info!("netfilter tracks no connections here; its settings are left alone");
        return;
    }
    let refused = kernel.apply(wanted);
    if !refused.is_empty() {
        warn!(
            settings = refused.join(", "),
            hint = "run `beeline agent --init-only` in a privileged init container \
                    (manifests/components/conntrack-settings), set them on the host, or give the --conntrack flags 0",
            "could not change netfilter's settings; Services work all the same"
        );
    }
}

impl Kernel {
    /// Names, values and reasons of what could not be set.
    fn apply(&self, wanted: &Conntrack) -> Vec<String> {
        let mut refused = Vec::new();
        let mut set = |file: PathBuf, value: u32, enough: fn(u32, u32) -> bool| {
            if read(&file).is_some_and(|current| enough(current, value)) {
                return true;
            }
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            match fs::write(&file, value.to_string()) {
                Ok(()) => {
                    info!(setting = %name, value, "changed netfilter's settings");
                    true
                }
                Err(error) => {
                    refused.push(format!("{name} to {value} ({error})"));
                    false
                }
            }
        };
        // The table only ever grows: somebody who made it larger had a reason.
        let large_enough = |current, value| current >= value;
        let equal = |current, value| current == value;
        // The hash table is the whole machine's, also where the size may not be set from this network namespace.
        if let Some(max) = wanted.max(self.cores())
            && set(self.sysctl("max"), max, large_enough)
        {
            set(self.hash_size.clone(), max / 4, large_enough);
        }
        let timeouts = [
            ("tcp_timeout_established", wanted.tcp_established),
            ("tcp_timeout_close_wait", wanted.tcp_close_wait),
            ("udp_timeout", wanted.udp),
            ("udp_timeout_stream", wanted.udp_stream),
        ];
        for (name, timeout) in timeouts {
            if let Some(seconds) = timeout.0 {
                set(self.sysctl(name), seconds, equal);
            }
        }
        if wanted.tcp_be_liberal {
            set(self.sysctl("tcp_be_liberal"), 1, equal);
        }
        refused
    }

    fn sysctl(&self, name: &str) -> PathBuf {
        self.sysctls.join(format!("nf_conntrack_{name}"))
    }

    fn cores(&self) -> u32 {
        fs::read_to_string(&self.cores)
            .ok()
            .and_then(|list| count(list.trim()))
            .or_else(|| u32::try_from(std::thread::available_parallelism().ok()?.get()).ok())
            .unwrap_or(1)
    }
}

fn read(file: &PathBuf) -> Option<u32> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// How many numbers a list like `0-3,6` names.
fn count(list: &str) -> Option<u32> {
    list.split(',')
        .map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
            last.checked_sub(first)?.checked_add(1)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Timeout;

    /// A kernel of four cores with the kernel's own defaults.
    fn kernel(name: &str) -> Kernel {
        let directory =
            std::env::temp_dir().join(format!("beeline-conntrack-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let files = [
            ("nf_conntrack_max", "65536"),
            ("nf_conntrack_tcp_timeout_established", "432000"),
            ("nf_conntrack_tcp_timeout_close_wait", "60"),
            ("nf_conntrack_udp_timeout", "30"),
            ("nf_conntrack_udp_timeout_stream", "120"),
            ("nf_conntrack_tcp_be_liberal", "0"),
            ("hashsize", "65536"),
            ("online", "0-2,4"),
        ];
        for (file, value) in files {
            fs::write(directory.join(file), format!("{value}\n")).unwrap();
        }
        Kernel {
            hash_size: directory.join("hashsize"),
            cores: directory.join("online"),
            sysctls: directory,
        }
    }

    fn values(kernel: &Kernel) -> Vec<u32> {
        let names = [
            "max",
            "tcp_timeout_established",
            "tcp_timeout_close_wait",
            "udp_timeout",
            "udp_timeout_stream",
            "tcp_be_liberal",
        ];
        let mut values: Vec<u32> = names
            .iter()
            .map(|name| read(&kernel.sysctl(name)).unwrap())
            .collect();
        values.push(read(&kernel.hash_size).unwrap());
        values
    }

    #[test]
    fn kube_proxys_defaults() {
        let kernel = kernel("defaults");
        assert!(kernel.apply(&Conntrack::default()).is_empty());
        assert_eq!(
            values(&kernel),
            [131_072, 86_400, 3_600, 30, 120, 0, 65_536],
            "the hash table was large enough"
        );
        fs::remove_dir_all(&kernel.sysctls).unwrap();
    }

    #[test]
    fn what_is_larger_stays_and_zero_leaves_alone() {
        let kernel = kernel("larger");
        fs::write(kernel.sysctl("max"), "1000000").unwrap();
        fs::write(&kernel.hash_size, "1024").unwrap();
        let wanted = Conntrack {
            tcp_established: Timeout(None),
            tcp_be_liberal: true,
            udp: Timeout(Some(10)),
            udp_stream: Timeout(Some(20)),
            ..Conntrack::default()
        };
        assert!(kernel.apply(&wanted).is_empty());
        assert_eq!(
            values(&kernel),
            [1_000_000, 432_000, 3_600, 10, 20, 1, 32_768]
        );
        fs::remove_dir_all(&kernel.sysctls).unwrap();
    }

    #[test]
    fn what_cannot_be_set_is_named_and_the_rest_is_set() {
        let kernel = kernel("refused");
        // Root may write a read-only file; nobody may write a directory.
        fs::remove_file(kernel.sysctl("max")).unwrap();
        fs::create_dir(kernel.sysctl("max")).unwrap();
        fs::write(&kernel.hash_size, "1024").unwrap();
        let refused = kernel.apply(&Conntrack::default());
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert!(
            refused[0].starts_with("nf_conntrack_max to 131072 ("),
            "{refused:?}"
        );
        assert_eq!(read(&kernel.hash_size), Some(1024), "goes with the size");
        assert_eq!(read(&kernel.sysctl("tcp_timeout_close_wait")), Some(3_600));
        fs::remove_dir_all(&kernel.sysctls).unwrap();
    }

    #[test]
    fn cores_are_counted_from_ranges() {
        assert_eq!(count("0"), Some(1));
        assert_eq!(count("0-3,6,8-9"), Some(7));
        assert_eq!(count("3-1"), None);
        assert_eq!(count(""), None);
    }
}
