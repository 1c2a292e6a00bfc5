//! The table of addresses, and its filter: a bit for each hash that an address of the table has. Programs look there
//! first, and let go what has no bit. So a bit is set before its address is entered, and cleared when it has been gone for
//! a while; a bit too many only costs a look.

use lb_ebpf::abi::Record;
use lb_ebpf::abi::address::AddressUse;
use lb_ebpf::abi::address_filter::{WORDS, place};
use lb_ebpf::abi::family::Family;

use super::Result;
use super::growing::Growing;
use crate::sys::bpf::{Map, Outer, Table, WriteError, WriteMode};

/// Addresses that may go before the filter is made anew, beside a quarter of its bits.
const STALE: usize = 256;

/// The addresses of a family.
#[derive(Debug)]
pub struct Addresses<F: Family>
where
    F::Addr: Record,
{
    table: Growing<F::Addr, AddressUse>,
    filter: Table<u32, u64>,
    /// What the filter holds.
    words: Vec<u64>,
    /// Addresses that went since the filter was made.
    gone: usize,
}

impl<F: Family> Addresses<F>
where
    F::Addr: Record,
{
    /// Takes the table over and makes the filter fit: it may be new, or from a time when an agent ran that does not know
    /// of it.
    pub fn open(table: Growing<F::Addr, AddressUse>, filter: Map) -> Result<Self> {
        let filter = Table::new(filter)?;
        let mut words = vec![0; WORDS as usize];
        for (at, word) in filter.entries()? {
            if let Some(known) = words.get_mut(at as usize) {
                *known = word;
            }
        }
        let mut this = Self {
            table,
            filter,
            words,
            gone: 0,
        };
        this.renew()?;
        Ok(this)
    }

    /// The table of this moment.
    pub fn table(&self) -> &Table<F::Addr, AddressUse> {
        self.table.table()
    }

    /// The table of tables it is in.
    pub fn outer(&self) -> &Outer {
        self.table.outer()
    }

    /// Entries used, and how many there may ever be.
    pub fn usage(&self) -> Result<(usize, u32)> {
        self.table.usage()
    }

    /// Enters an address.
    pub fn put(&mut self, address: &F::Addr, uses: &AddressUse) -> crate::sys::bpf::Result<()> {
        self.announce(address)?;
        self.table.put(address, uses)
    }

    /// Enters addresses, overwriting.
    pub fn put_many(
        &mut self,
        addresses: &[F::Addr],
        uses: &[AddressUse],
    ) -> std::result::Result<(), WriteError> {
        for address in addresses {
            self.announce(address)
                .map_err(|error| WriteError { done: 0, error })?;
        }
        self.table.put_many(addresses, uses)
    }

    /// Removes addresses; absent ones are fine.
    pub fn delete_many(&mut self, addresses: &[F::Addr]) -> std::result::Result<(), WriteError> {
        self.table.delete_many(addresses)?;
        self.gone += addresses.len();
        let bits: u32 = self.words.iter().map(|word| word.count_ones()).sum();
        if self.gone > STALE + bits as usize / 4
            && let Err(error) = self.renew()
        {
            tracing::debug!(%error, "could not make the filter of addresses anew");
        }
        Ok(())
    }

    /// Sets an address's bit.
    fn announce(&mut self, address: &F::Addr) -> crate::sys::bpf::Result<()> {
        let (at, bit) = place::<F>(*address);
        let word = self.words[at as usize];
        if word & bit == 0 {
            self.write(at, word | bit)?;
        }
        Ok(())
    }

    fn write(&mut self, at: u32, word: u64) -> crate::sys::bpf::Result<()> {
        self.filter.put(&at, &word, WriteMode::Any)?;
        self.words[at as usize] = word;
        Ok(())
    }

    /// Makes the filter from the table.
    fn renew(&mut self) -> crate::sys::bpf::Result<()> {
        let mut wanted = vec![0; WORDS as usize];
        for (address, _) in self.table.table().entries()? {
            let (at, bit) = place::<F>(address);
            wanted[at as usize] |= bit;
        }
        for (at, word) in wanted.into_iter().enumerate() {
            if self.words[at] != word {
                self.write(at as u32, word)?;
            }
        }
        self.gone = 0;
        Ok(())
    }
}
