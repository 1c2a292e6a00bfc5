//! Which ports are UDP NodePorts: a bit for each. Programs look there at what leaves from such a port without being an
//! answer. A bit is set before its NodePort is entered; one too many, until the next start, only costs a look.

use lb_ebpf::abi::UDP;
use lb_ebpf::abi::family::Family;
use lb_ebpf::abi::frontend::FrontendKey;
use lb_ebpf::abi::outbound::{PORT_WORDS, port_place};

use super::Result;
use crate::sys::bpf::{Map, Table, WriteMode};

/// The bits of both families.
#[derive(Debug)]
pub(super) struct NodePorts {
    table: Table<u32, u64>,
    /// What it holds.
    words: Vec<u64>,
}

impl NodePorts {
    /// Takes the table over and makes it fit these frontends: it may be new, or of more NodePorts.
    pub(super) fn open(table: Map, ports: impl Iterator<Item = u16>) -> Result<Self> {
        let mut words = vec![0; PORT_WORDS as usize];
        for port in ports {
            let (word, bit) = port_place(port);
            words[word as usize] |= bit;
        }
        let table = Table::new(table)?;
        for (at, known) in table.entries()? {
            let wanted = words.get(at as usize).copied().unwrap_or_default();
            if known != wanted {
                table.put(&at, &wanted, WriteMode::Any)?;
            }
        }
        Ok(Self { table, words })
    }

    /// Sets the bits of frontends that are about to be entered.
    pub(super) fn announce(
        &mut self,
        ports: impl Iterator<Item = u16>,
    ) -> crate::sys::bpf::Result<()> {
        for port in ports {
            let (at, bit) = port_place(port);
            let word = self.words[at as usize];
            if word & bit == 0 {
                self.table.put(&at, &(word | bit), WriteMode::Any)?;
                self.words[at as usize] = word | bit;
            }
        }
        Ok(())
    }
}

/// The port of a frontend that is a UDP NodePort.
pub(super) fn udp_node_port<F: Family>(key: &FrontendKey<F>) -> Option<u16> {
    (key.protocol == UDP && key.address == F::UNSPECIFIED).then_some(key.port)
}
