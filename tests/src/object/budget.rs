//! What the programs cost to verify and to keep, held against a tracked file.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::{fs, io, thread};

use anyhow::{Context as _, Result, bail, ensure};
use lb_agent::datapath::Config;
use lb_agent::datapath::object::{Definitions, embedded};
use lb_agent::datapath::pins::Pins;
use lb_agent::sys::bpf::Program;

use super::space::{BPFFS, Space};

/// Of one program.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cost {
    /// Instructions the verifier looked at.
    pub verified: u32,
    /// Size of the verified program before the JIT.
    pub bytes: u32,
}

/// Costs by program.
pub type Costs = BTreeMap<String, Cost>;

/// The running kernel as `major.minor`: verifiers differ.
pub fn kernel() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let numbers: Vec<&str> = release.split(['.', '-']).take(2).collect();
    Ok(numbers.join("."))
}

/// What the agent's container may do (include/uapi/linux/capability.h).
pub const NET_ADMIN: u32 = 12;
pub const BPF: u32 = 39;
/// What the verifier asks for besides on older kernels.
pub const PERFMON: u32 = 38;

/// Loads every program with exactly these capabilities.
pub fn load_with(capabilities: &[u32]) -> Result<Costs> {
    crate::scope::require_root()?;
    let set = capabilities.iter().fold(0, |set, bit| set | 1 << bit);
    let inside = move || {
        Space::create().context("making namespaces")?;
        keep_only(set).context("giving up privileges")?;
        let config = Config {
            bpffs: BPFFS.into(),
            packet_hook: None,
        };
        let mut datapath = super::open(&config)?;
        let pins = Pins::new(Path::new(BPFFS));
        let mut costs = Costs::new();
        for name in Definitions::of(embedded()?)?.programs() {
            datapath.provide(name)?;
            // The agent goes on without a program that waits for its device; here it must load.
            if let Some(refusal) = datapath.refusal(name) {
                bail!("{refusal}");
            }
            let program = Program::open(&pins.program(name))?;
            let cost = Cost {
                verified: program.info()?.verified_instructions,
                bytes: translated_bytes(&program)?,
            };
            costs.insert(name.to_owned(), cost);
        }
        Ok(costs)
    };
    // Privileges and namespaces are the thread's.
    match thread::spawn(inside).join() {
        Ok(costs) => costs,
        Err(payload) => std::panic::resume_unwind(payload),
    }
}

/// Reads the costs that a file states for a kernel; `None` if it has no section for it.
pub fn read(text: &str, kernel: &str) -> Result<Option<Costs>> {
    let mut costs: Option<Costs> = None;
    let mut ours = false;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            ours = section.trim_end_matches(']').trim_matches('"') == kernel;
            if ours {
                costs = Some(Costs::new());
            }
        } else if let (true, Some(costs), Some((name, cost))) =
            (ours, &mut costs, line.split_once('='))
        {
            let cost = parse(cost).with_context(|| format!("reading {line:?}"))?;
            costs.insert(name.trim().to_owned(), cost);
        }
    }
    Ok(costs)
}

/// `text` with the section of a kernel replaced or added.
pub fn write(text: &str, kernel: &str, costs: &Costs) -> String {
    let lines = costs.iter().map(|(name, Cost { verified, bytes })| {
        format!("{name} = {{ verified = {verified}, bytes = {bytes} }}")
    });
    replace_section(text, kernel, lines)
}

/// The section of what programs cost in time, by the time of an empty one. For people: no test holds anybody to it, as
/// machines differ.
const FLOOR: &str = "times an empty program";

/// `text` with the section of times replaced or added.
pub fn write_times(text: &str, times: &[(String, f64)]) -> String {
    let lines = times
        .iter()
        .map(|(name, ratio)| format!("\"{name}\" = {ratio:.1}"));
    replace_section(text, FLOOR, lines)
}

fn replace_section(text: &str, name: &str, lines: impl Iterator<Item = String>) -> String {
    let mut kept = Vec::new();
    let mut ours = false;
    for line in text.lines() {
        if let Some(section) = line.trim().strip_prefix('[') {
            ours = section.trim_end_matches(']').trim_matches('"') == name;
        }
        if !ours {
            kept.push(line.to_owned());
        }
    }
    let mut text = kept.join("\n").trim_end().to_owned();
    text += &format!("\n\n[\"{name}\"]\n");
    for line in lines {
        text += &line;
        text.push('\n');
    }
    text
}

/// `{ verified = 1, bytes = 2 }`.
fn parse(text: &str) -> Result<Cost> {
    let mut cost = Cost::default();
    for part in text.trim_matches([' ', '{', '}']).split(',') {
        let (name, number) = part.split_once('=').context("no `=`")?;
        let number: u32 = number.trim().parse().context("no number")?;
        match name.trim() {
            "verified" => cost.verified = number,
            "bytes" => cost.bytes = number,
            other => anyhow::bail!("unknown field {other:?}"),
        }
    }
    Ok(cost)
}

/// Leaves the calling thread this set of capabilities.
fn keep_only(set: u64) -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3` of include/uapi/linux/capability.h.
    const VERSION: u32 = 0x2008_0522;
    let header = [VERSION, 0];
    // Effective, permitted and inheritable; the low 32 capabilities, then the high ones.
    let (low, high) = (set as u32, (set >> 32) as u32);
    let data: [u32; 6] = [low, low, 0, high, high, 0];
    // SAFETY: both are laid out as capset(2) says and outlive the call.
    match unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn translated_bytes(program: &Program) -> Result<u32> {
    /// `BPF_OBJ_GET_INFO_BY_FD` of `enum bpf_cmd`.
    const INFO: libc::c_long = 15;
    /// Where `xlated_prog_len` is in `struct bpf_prog_info`.
    const LENGTH: usize = 20;
    #[repr(C)]
    struct Attributes {
        program: u32,
        size: u32,
        info: u64,
    }
    let mut info = [0u8; 224];
    let mut attributes = Attributes {
        program: program.as_fd().as_raw_fd() as u32,
        size: info.len() as u32,
        info: info.as_mut_ptr() as u64,
    };
    // SAFETY: the attributes name a buffer of the given size; both outlive the call. What is zero in the buffer
    // asks for nothing that lies elsewhere.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            INFO,
            &raw mut attributes,
            size_of::<Attributes>(),
        )
    };
    ensure!(
        answer == 0,
        "describing a program: {}",
        io::Error::last_os_error()
    );
    let bytes = [0, 1, 2, 3].map(|i| info[LENGTH + i]);
    Ok(u32::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_other_kernels_stay() {
        let costs = |verified| {
            let cost = Cost { verified, bytes: 8 };
            Costs::from([("pod_ingress".to_owned(), cost)])
        };
        let text = write("# why\n", "6.1", &costs(1));
        let text = write(&text, "6.18", &costs(2));
        let text = write(&text, "6.1", &costs(3));
        assert!(text.starts_with("# why\n"), "{text}");
        assert_eq!(read(&text, "6.1").unwrap(), Some(costs(3)));
        assert_eq!(read(&text, "6.18").unwrap(), Some(costs(2)));
        assert_eq!(read(&text, "6").unwrap(), None);
        let text = write_times(&text, &[("IPv4 known flow, 64k".into(), 4.24)]);
        assert!(text.ends_with("\"IPv4 known flow, 64k\" = 4.2\n"), "{text}");
        assert_eq!(read(&text, "6.1").unwrap(), Some(costs(3)));
    }
}
