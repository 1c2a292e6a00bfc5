//! Programs of others on the devices that ours sit on: who sees a packet before us, and who behind us.
//!
//! Only told, never touched. What cannot be read is left out: an older kernel has no tcx, and names of programs need
//! more rights than numbers.

use std::collections::HashSet;

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcOption};
use serde::Serialize;

use crate::datapath::attach::PACKET_PROGRAMS;
use crate::sys::bpf::{Attach, attached_programs, program_name};

/// Another's program on a device of ours.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Neighbour {
    #[serde(skip)]
    pub index: u32,
    pub hook: &'static str,
    /// Whether it sees packets before ours or behind it.
    pub order: &'static str,
    /// Its name, or its number where that is all one may know.
    pub program: String,
}

const BEFORE: &str = "before ours";
const BEHIND: &str = "behind ours";

/// The neighbours on these devices; `ours` are our programs' ids.
pub(super) fn on(devices: &[u32], ours: &HashSet<u32>) -> Vec<Neighbour> {
    let mut found = Vec::new();
    for &index in devices {
        for (attach, hook) in [
            (Attach::TcxIngress, "tcx ingress"),
            (Attach::TcxEgress, "tcx egress"),
        ] {
            let programs = attached_programs(index, attach).unwrap_or_default();
            found.extend(
                among(&programs, ours)
                    .into_iter()
                    .map(|(id, order)| Neighbour {
                        index,
                        hook,
                        order,
                        program: program_name(id).unwrap_or_else(|| format!("#{id}")),
                    }),
            );
        }
    }
    // Filters are no problem of anybody's who may not list them.
    found.extend(filters(devices, ours).unwrap_or_default());
    found
}

/// The others in a hook's list, and where they are. Where none is ours, ours are filters behind the list.
fn among(programs: &[u32], ours: &HashSet<u32>) -> Vec<(u32, &'static str)> {
    let place = programs.iter().position(|id| ours.contains(id));
    let others = programs.iter().enumerate();
    others
        .filter(|(_, id)| !ours.contains(id))
        .map(|(at, &id)| {
            let behind = place.is_some_and(|ours| at > ours);
            (id, if behind { BEHIND } else { BEFORE })
        })
        .collect()
}

/// Filters of the clsact qdisc, which run behind every tcx program.
fn filters(devices: &[u32], ours: &HashSet<u32>) -> std::io::Result<Vec<Neighbour>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let mut found = Vec::new();
        for &index in devices {
            let Ok(device) = i32::try_from(index) else {
                continue;
            };
            let on = |device| handle.traffic_filter(device).get();
            for (request, hook) in [
                (on(device).ingress(), "filter ingress"),
                (on(device).egress(), "filter egress"),
            ] {
                let answers = request.execute().try_collect::<Vec<_>>().await;
                for filter in answers.unwrap_or_default() {
                    found.extend(
                        program_of(&filter.attributes, ours).map(|program| Neighbour {
                            index,
                            hook,
                            order: BEHIND,
                            program,
                        }),
                    );
                }
            }
        }
        connection.abort();
        Ok(found)
    })
}

/// The program of a filter that is not ours.
fn program_of(attributes: &[TcAttribute], ours: &HashSet<u32>) -> Option<String> {
    let options = attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let mut shown = None;
    for option in options {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) if ours.contains(id) => return None,
            TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => {
                let own = PACKET_PROGRAMS
                    .iter()
                    .any(|program| program.name == name.as_str());
                if own {
                    return None;
                }
                shown = Some(name.clone());
            }
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => {
                shown = shown.or_else(|| Some(format!("#{id}")));
            }
            _ => {}
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_before_and_behind_ours() {
        let ours = HashSet::from([7]);
        assert_eq!(among(&[3, 7, 9], &ours), [(3, BEFORE), (9, BEHIND)]);
        assert!(among(&[7], &ours).is_empty());
        assert_eq!(among(&[3], &ours), [(3, BEFORE)]);
    }

    #[test]
    fn a_filter_is_named_unless_it_is_ours() {
        let filter = |id, name: &str| {
            [TcAttribute::Options(vec![
                TcOption::Bpf(TcFilterBpfOption::ProgName(name.into())),
                TcOption::Bpf(TcFilterBpfOption::ProgId(id)),
            ])]
        };
        let ours = HashSet::from([7]);
        assert_eq!(program_of(&filter(3, "cni"), &ours).as_deref(), Some("cni"));
        assert_eq!(program_of(&filter(7, "cni"), &ours), None);
        assert_eq!(program_of(&filter(3, "out_ingress"), &ours), None);
        assert_eq!(program_of(&[], &ours), None);
    }
}
