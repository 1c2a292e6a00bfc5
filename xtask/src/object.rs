//! Inspects the built object for what the kernel would refuse without a useful message.
//!
//! A reachable panic ends in an endless loop, to which the verifier answers "last insn is not an exit or
//! jmp" without a line number; a name beyond 15 characters is cut, so that two may become one.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use crate::progress::say;

/// Characters the kernel keeps of a name.
pub(crate) const NAME_LENGTH: usize = 15;

/// Checks the object; every fault is named.
pub(crate) fn inspect(path: &Path) -> Result<()> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let object =
        Object::parse(&bytes).with_context(|| format!("{} is no eBPF object", path.display()))?;
    let faults = object.faults();
    if !faults.is_empty() {
        bail!("{}:\n- {}", path.display(), faults.join("\n- "));
    }
    let (programs, maps) = (object.programs().len(), object.maps().len());
    say(format_args!(
        "eBPF object: {programs} programs, {maps} maps, {} KiB",
        bytes.len() / 1024
    ));
    Ok(())
}

/// What we read of a 64-bit little-endian ELF file.
struct Object<'a> {
    sections: Vec<Section<'a>>,
    symbols: Vec<Symbol<'a>>,
}

struct Section<'a> {
    name: &'a str,
    executable: bool,
    bytes: &'a [u8],
}

struct Symbol<'a> {
    name: &'a str,
    function: bool,
    section: usize,
    offset: usize,
}

impl<'a> Object<'a> {
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for symbol in &self.symbols {
            if symbol.name.contains("panic") || symbol.name.contains("begin_unwind") {
                faults.push(format!(
                    "a panic is reachable: symbol {}; use get(), checked_ or wrapping_ operations",
                    symbol.name
                ));
            }
        }
        for (index, section) in self
            .sections
            .iter()
            .enumerate()
            .filter(|(_, section)| section.executable)
        {
            for offset in endless_loops(section.bytes) {
                let place = self.function_at(index, offset);
                faults.push(format!(
                    "a panic is reachable in {place}: endless loop at {}+{offset:#x}",
                    section.name
                ));
            }
        }
        let names: Vec<&str> = self.programs().into_iter().chain(self.maps()).collect();
        let mut seen = BTreeSet::new();
        for name in names {
            if name.len() > NAME_LENGTH {
                faults.push(format!(
                    "the name {name} has more than {NAME_LENGTH} characters"
                ));
            }
            if !seen.insert(name) {
                faults.push(format!("the name {name} is used twice"));
            }
        }
        if !self
            .sections
            .iter()
            .any(|section| section.name == "license" && section.bytes.starts_with(b"GPL\0"))
        {
            faults.push("section `license` does not say GPL".to_owned());
        }
        faults
    }

    /// Entry points: functions outside `.text`, which holds what they call.
    fn programs(&self) -> Vec<&'a str> {
        let entry = |symbol: &&Symbol| {
            symbol.function
                && self
                    .sections
                    .get(symbol.section)
                    .is_some_and(|section| section.executable && !section.name.starts_with(".text"))
        };
        self.symbols
            .iter()
            .filter(entry)
            .map(|symbol| symbol.name)
            .collect()
    }

    fn maps(&self) -> Vec<&'a str> {
        let map = |symbol: &&Symbol| {
            self.sections
                .get(symbol.section)
                .is_some_and(|section| section.name == ".maps")
        };
        self.symbols
            .iter()
            .filter(map)
            .map(|symbol| symbol.name)
            .filter(|name| !name.is_empty())
            .collect()
    }

    fn function_at(&self, section: usize, offset: usize) -> &'a str {
        let before = self.symbols.iter().filter(|symbol| {
            symbol.function && symbol.section == section && symbol.offset <= offset
        });
        before
            .max_by_key(|symbol| symbol.offset)
            .map_or("?", |symbol| symbol.name)
    }

    fn parse(file: &'a [u8]) -> Result<Self> {
        ensure!(
            file.get(..6) == Some(b"\x7fELF\x02\x01"),
            "not a 64-bit little-endian ELF file"
        );
        let (table, count, names) = (long(file, 40)?, short(file, 60)?, short(file, 62)?);
        let header = |index: usize| slice(file, table + index * 64, 64);
        let contents = |header: &[u8]| match word(header, 4)? {
            // A section without bytes in the file (NOBITS).
            8 => Ok(&file[..0]),
            _ => slice(file, long(header, 24)?, long(header, 32)?),
        };
        let section_names = contents(header(names)?)?;
        let mut object = Object {
            sections: Vec::new(),
            symbols: Vec::new(),
        };
        for index in 0..count {
            let header = header(index)?;
            let name = text(section_names, word(header, 0)?)?;
            object.sections.push(Section {
                name,
                executable: long(header, 8)? & 4 != 0,
                bytes: contents(header)?,
            });
        }
        let symbols = (0..count)
            .map(header)
            .find(|header| matches!(header, Ok(header) if word(header, 4).ok() == Some(2)));
        let symbols = symbols.context("no symbol table")??;
        let symbol_names = contents(header(word(symbols, 40)?)?)?;
        for symbol in contents(symbols)?.chunks_exact(24) {
            object.symbols.push(Symbol {
                name: text(symbol_names, word(symbol, 0)?)?,
                function: symbol[4] & 15 == 2,
                section: short(symbol, 6)?,
                offset: long(symbol, 8)?,
            });
        }
        Ok(object)
    }
}

/// Offsets of jumps to themselves.
fn endless_loops(code: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    let mut offset = 0;
    while let Some(&[operation, _, jump_low, jump_high, a, b, c, d]) = code.get(offset..offset + 8)
    {
        let jump = i16::from_le_bytes([jump_low, jump_high]);
        let long_jump = i32::from_le_bytes([a, b, c, d]);
        // `goto` keeps its distance in the offset field, `gotol` in the immediate.
        if (operation == 0x05 && jump == -1) || (operation == 0x06 && long_jump == -1) {
            found.push(offset);
        }
        // A 64-bit constant takes two slots.
        offset += if operation == 0x18 { 16 } else { 8 };
    }
    found
}

fn slice(bytes: &[u8], start: usize, length: usize) -> Result<&[u8]> {
    start
        .checked_add(length)
        .and_then(|end| bytes.get(start..end))
        .context("truncated")
}

fn long(bytes: &[u8], at: usize) -> Result<usize> {
    Ok(u64::from_le_bytes(slice(bytes, at, 8)?.try_into()?) as usize)
}

fn word(bytes: &[u8], at: usize) -> Result<usize> {
    Ok(u32::from_le_bytes(slice(bytes, at, 4)?.try_into()?) as usize)
}

fn short(bytes: &[u8], at: usize) -> Result<usize> {
    Ok(u16::from_le_bytes(slice(bytes, at, 2)?.try_into()?) as usize)
}

fn text(bytes: &[u8], at: usize) -> Result<&str> {
    let rest = bytes.get(at..).context("name out of range")?;
    let length = rest
        .iter()
        .position(|&byte| byte == 0)
        .context("name without end")?;
    Ok(std::str::from_utf8(&rest[..length])?)
}

#[cfg(test)]
mod tests {
    use super::endless_loops;

    #[test]
    fn a_jump_to_itself_is_an_endless_loop() {
        let exit = [0x95, 0, 0, 0, 0, 0, 0, 0];
        let onwards = [0x05, 0, 1, 0, 0, 0, 0, 0];
        let itself = [0x05, 0, 0xff, 0xff, 0, 0, 0, 0];
        assert_eq!(endless_loops(&[onwards, itself, exit].concat()), [8]);
    }

    #[test]
    fn the_second_half_of_a_constant_is_no_instruction() {
        let constant = [0x18, 0, 0, 0, 0, 0, 0, 0];
        let looks_like_a_loop = [0x05, 0, 0xff, 0xff, 0, 0, 0, 0];
        let exit = [0x95, 0, 0, 0, 0, 0, 0, 0];
        assert!(endless_loops(&[constant, looks_like_a_loop, exit].concat()).is_empty());
    }
}
