//! What netfilter's connection tracking is set to, with kube-proxy's flags and defaults (spec §3.1).
//!
//! Beeline's own flows do not need it. But a cluster that ran kube-proxy has these values, and whatever netfilter
//! still sees (NetworkPolicy, masquerading to the world, traffic that is no Service's) was tuned under them.

use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use super::Refused;

/// kube-proxy sizes the table no further by cores than this, to spare the memory of large machines.
const LARGEST_BY_CORES: u32 = 1 << 20;

/// Values for `/proc/sys/net/netfilter/nf_conntrack_*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Conntrack {
    /// Connections per core; 0 leaves the table's size alone, whatever `min` says.
    pub max_per_core: u32,
    /// Connections at least.
    pub min: u32,
    pub tcp_established: Timeout,
    pub tcp_close_wait: Timeout,
    /// Take TCP segments outside the window for valid.
    pub tcp_be_liberal: bool,
    pub udp: Timeout,
    pub udp_stream: Timeout,
}

/// Whole seconds; none leaves the kernel's value alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(transparent)]
pub struct Timeout(pub Option<u32>);

impl Default for Conntrack {
    fn default() -> Self {
        Self {
            max_per_core: 32_768,
            min: 131_072,
            tcp_established: Timeout(Some(24 * 3600)),
            tcp_close_wait: Timeout(Some(3600)),
            tcp_be_liberal: false,
            udp: Timeout(None),
            udp_stream: Timeout(None),
        }
    }
}

impl Conntrack {
    /// How many connections there should be room for on a machine of so many cores.
    pub fn max(&self, cores: u32) -> Option<u32> {
        let by_cores = self.max_per_core.saturating_mul(cores);
        match by_cores {
            0 => None,
            _ if by_cores > LARGEST_BY_CORES => Some(LARGEST_BY_CORES),
            _ => Some(by_cores.max(self.min)),
        }
    }
}

impl FromStr for Timeout {
    type Err = Refused;

    /// Durations as Go writes them: `24h0m0s`, `90s`, `1.5h`, `0`.
    fn from_str(text: &str) -> Result<Self, Refused> {
        let duration = duration(text).ok_or_else(|| {
            Refused(format!(
                "{text:?} is no duration; expected one like 1h30m or 90s, or 0 to leave the kernel's value alone"
            ))
        })?;
        let seconds = i32::try_from(duration.as_secs())
            .ok()
            .and_then(|seconds| u32::try_from(seconds).ok());
        match seconds {
            Some(0) if duration.is_zero() => Ok(Self(None)),
            Some(seconds @ 1..) => Ok(Self(Some(seconds))),
            _ => Err(Refused(format!(
                "{text:?}: the kernel counts whole seconds, 1 to {}",
                i32::MAX
            ))),
        }
    }
}

fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut sum = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (value, after) = rest.split_at(number);
        let unit = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let value: f64 = value.parse().ok()?;
        sum = sum.checked_add(Duration::try_from_secs_f64(value * seconds).ok()?)?;
        rest = after;
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sized_as_kube_proxy_sizes_it() {
        let max = |max_per_core, min, cores| {
            Conntrack {
                max_per_core,
                min,
                ..Conntrack::default()
            }
            .max(cores)
        };
        assert_eq!(max(32_768, 131_072, 2), Some(131_072), "the floor");
        assert_eq!(max(32_768, 131_072, 8), Some(262_144), "by cores");
        assert_eq!(max(32_768, 131_072, 192), Some(1 << 20), "capped");
        assert_eq!(max(0, 131_072, 8), None, "0 ignores the floor too");
        assert_eq!(max(32_768, 0, 1), Some(32_768));
    }

    #[test]
    fn durations_are_gos() {
        let seconds = |text: &str| text.parse::<Timeout>().map(|timeout| timeout.0);
        assert_eq!(seconds("24h0m0s"), Ok(Some(86_400)));
        assert_eq!(seconds("1.5h"), Ok(Some(5_400)));
        assert_eq!(seconds("90s"), Ok(Some(90)));
        assert_eq!(seconds("1500ms"), Ok(Some(1)));
        assert_eq!(seconds("0"), Ok(None));
        assert_eq!(seconds("0s"), Ok(None));
        for wrong in [
            "", "5", "-1s", "1d", "h", "1.2.3s", "500ms", "999999h", "1s ", "1h30",
        ] {
            assert!(seconds(wrong).is_err(), "{wrong:?}");
        }
    }
}
