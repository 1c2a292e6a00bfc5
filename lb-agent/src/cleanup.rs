//! `beeline cleanup`: takes every trace of us off this node. Needs no API server and no running agent:
//! one that runs would put everything back.
//!
//! Packet filters go first, then links, programs and tables: from the hooks inwards, so that no packet meets
//! programs whose tables have gone. Every version's directory is cleaned, and a failure does not stop the rest.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::datapath::attach::{self, PACKET_PROGRAMS, PacketProgram};
use crate::datapath::pins::{DIRECTORY, Pins, list};
use crate::sys::bpf::pin;

/// What was removed and what could not be.
#[derive(Debug, Default)]
pub struct Report {
    pub links: usize,
    pub filters: usize,
    pub programs: usize,
    pub tables: usize,
    /// What is left, and why.
    pub failures: Vec<String>,
}

impl Report {
    /// Whether nothing is left.
    pub fn is_complete(&self) -> bool {
        self.failures.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            links,
            filters,
            programs,
            tables,
            failures,
        } = self;
        write!(
            f,
            "removed {links} links, {filters} filters, {programs} programs, {tables} tables"
        )?;
        failures
            .iter()
            .try_for_each(|failure| write!(f, "\nnot removed: {failure}"))
    }
}

/// Removes everything below `bpffs`, and our filters on the devices of this network namespace.
pub fn cleanup(bpffs: &Path) -> Report {
    let mut report = Report::default();
    let root = bpffs.join(DIRECTORY);
    let versions = report.list(&root);
    if !versions.is_empty() {
        report.remove_filters(&HashSet::new());
    }
    for version in versions {
        let pins = Pins::in_directory(&version);
        report.remove_version(&pins);
    }
    report.remove_directory(&root);
    report
}

/// Removes what agents of other versions left below `bpffs`, whose programs go by tables that nobody updates any more;
/// `None` if there is nothing. Only when this version serves. `own` are devices whose filters are this version's.
pub fn remove_other_versions(bpffs: &Path, own: &HashSet<String>) -> Option<Report> {
    let mut report = Report::default();
    let current = Pins::new(bpffs);
    let mut versions = report.list(&bpffs.join(DIRECTORY));
    versions.retain(|version| version != current.root());
    if versions.is_empty() && report.is_complete() {
        return None;
    }
    if !versions.is_empty() {
        report.remove_filters(own);
    }
    for version in versions {
        report.remove_version(&Pins::in_directory(&version));
    }
    Some(report)
}

impl Report {
    fn remove_version(&mut self, pins: &Pins) {
        for path in self.list(&pins.links()) {
            match attach::drop_link(&path) {
                Ok(_) => self.links += 1,
                Err(error) => self
                    .failures
                    .push(format!("link {}: {error}", path.display())),
            }
        }
        self.programs += self.remove_pins(&pins.programs());
        self.tables += self.remove_pins(&pins.maps());
        // Inner tables belong to tables already counted.
        self.remove_pins(&pins.inner());
        for directory in [
            pins.links(),
            pins.programs(),
            pins.maps(),
            pins.inner(),
            pins.root().to_owned(),
        ] {
            self.remove_directory(&directory);
        }
    }

    fn remove_pins(&mut self, directory: &Path) -> usize {
        let mut removed = 0;
        for path in self.list(directory) {
            match pin::remove(&path) {
                Ok(()) => removed += 1,
                Err(error) => self.failures.push(error.to_string()),
            }
        }
        removed
    }

    /// On kernels without tcx our programs are filters, which no pin holds: look at every device but those to `spare`.
    fn remove_filters(&mut self, spare: &HashSet<String>) {
        let devices = match fs::read_to_string("/proc/thread-self/net/dev") {
            Ok(text) => text,
            Err(error) => {
                return self
                    .failures
                    .push(format!("filters: list devices: {error}"));
            }
        };
        let names = devices
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, _)| name.trim())
            .filter(|name| !spare.contains(*name));
        for name in names {
            for PacketProgram {
                direction,
                name: program,
                ..
            } in PACKET_PROGRAMS
            {
                match attach::detach_filter(name, direction, program) {
                    Ok(removed) => self.filters += usize::from(removed),
                    Err(error) => self
                        .failures
                        .push(format!("filter {program} of device {name}: {error}")),
                }
            }
        }
    }

    fn list(&mut self, directory: &Path) -> Vec<PathBuf> {
        list(directory).unwrap_or_else(|error| {
            self.failures
                .push(format!("list {}: {error}", directory.display()));
            Vec::new()
        })
    }

    fn remove_directory(&mut self, directory: &Path) {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                self.failures
                    .push(format!("directory {}: {error}", directory.display()));
            }
            _ => {}
        }
    }
}
