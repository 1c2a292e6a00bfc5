//! What the agent costs this node, read from `/proc` when somebody looks.

use std::fs;
use std::sync::atomic::Ordering;

use super::list::List;

/// Ticks of `/proc/self/stat` a second: `USER_HZ`, part of the kernel's ABI on all our architectures.
const TICKS: f64 = 100.0;

/// Sets the `process_*` metrics. What cannot be read keeps its last value.
pub(super) fn observe(list: &List) {
    if let Some(bytes) = read("status").as_deref().and_then(resident) {
        list.resident.set(bytes);
    }
    if let Some(seconds) = read("stat").as_deref().and_then(cpu_seconds) {
        list.cpu.inner().store(seconds.to_bits(), Ordering::Relaxed);
    }
    if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
        // The listing itself holds one.
        list.open_files
            .set(i64::try_from(descriptors.count().saturating_sub(1)).unwrap_or(i64::MAX));
    }
}

fn read(name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/self/{name}")).ok()
}

fn resident(status: &str) -> Option<i64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Fields 14 and 15 of proc_pid_stat(5); the second field may hold spaces and ends with the last parenthesis.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_understood() {
        assert_eq!(
            resident("VmPeak:\t 9 kB\nVmRSS:\t    1024 kB\n"),
            Some(1 << 20)
        );
        let stat = "42 (a b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0";
        assert_eq!(cpu_seconds(stat), Some(2.0));
        assert!(read("stat").as_deref().and_then(cpu_seconds).is_some());
    }
}
