//! The programs' object: the embedded bytes, and the tables they define.

use std::collections::BTreeMap;

use aya_obj::{EbpfSectionKind, Object};

use super::{Error, Result};
use crate::sys::bpf::{self, Btf, Map, MapInfo, MapKind, MapSpec, Types};
use crate::sys::memory;

/// aya parses the object in place, which needs the alignment of an ELF header.
#[repr(C, align(8))]
struct Aligned<B: ?Sized>(B);

static EMBEDDED: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/lb.o")));

/// The object that was built with this binary.
pub fn embedded() -> Result<&'static [u8]> {
    if EMBEDDED.0.is_empty() {
        return Err(Error::Object(
            "this binary was built without its eBPF object: run `cargo xtask build`".into(),
        ));
    }
    Ok(&EMBEDDED.0)
}

/// Lets go of the embedded object's memory until it is read again.
pub(super) fn forget() {
    memory::forget(&EMBEDDED.0);
}

/// A table as the object defines it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Definition {
    pub name: String,
    pub kind: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
    key_type: u32,
    value_type: u32,
    /// Of a table of tables: what an inner one looks like.
    pub inner: Option<Box<Definition>>,
}

/// All tables of an object, with their type information.
#[derive(Debug)]
pub struct Definitions {
    tables: BTreeMap<String, Definition>,
    programs: Vec<String>,
    types: Vec<u8>,
    /// Loaded when the first table is created: an agent that adopts everything creates none.
    btf: std::sync::OnceLock<Btf>,
}

impl Definitions {
    /// Reads them from an object.
    pub fn of(object: &[u8]) -> Result<Self> {
        let mut object = Object::parse(object)
            .map_err(|e| Error::Object(format!("parse the eBPF object: {e}")))?;
        let mut tables = BTreeMap::new();
        for (name, map) in &object.maps {
            // Constants and variables are no tables; aya makes maps of their sections by itself.
            if matches!(map.section_kind(), EbpfSectionKind::BtfMaps) {
                tables.insert(name.clone(), Definition::of(name, map)?);
            }
        }
        let mut programs: Vec<String> = object.programs.keys().cloned().collect();
        programs.sort();
        let types = match aya::features().btf() {
            Some(features) => object
                .fixup_and_sanitize_btf(features)
                .map_err(|e| {
                    Error::Object(format!("prepare the eBPF object's type information: {e}"))
                })?
                .map(aya_obj::btf::Btf::to_bytes)
                .unwrap_or_default(),
            None => Vec::new(),
        };
        Ok(Self {
            tables,
            programs,
            types,
            btf: std::sync::OnceLock::new(),
        })
    }

    /// Every table, by name.
    pub fn tables(&self) -> impl Iterator<Item = &Definition> {
        self.tables.values()
    }

    /// Names of all programs.
    pub fn programs(&self) -> impl Iterator<Item = &str> {
        self.programs.iter().map(String::as_str)
    }

    /// One table.
    pub fn table(&self, name: &str) -> Result<&Definition> {
        self.tables
            .get(name)
            .ok_or_else(|| Error::Object(format!("the eBPF object defines no table {name}")))
    }

    /// Creates a table as defined.
    pub fn create(&self, definition: &Definition) -> bpf::Result<Map> {
        self.create_sized(definition, definition.max_entries)
    }

    /// Creates a table as defined, with a number of entries of its own.
    pub fn create_sized(&self, definition: &Definition, max_entries: u32) -> bpf::Result<Map> {
        let template = definition
            .inner
            .as_deref()
            .map(|inner| self.create(inner))
            .transpose()?;
        let types = definition.has_types().then(|| self.btf()).transpose()?;
        let spec = MapSpec {
            name: &definition.name,
            kind: definition.kind,
            key_size: definition.key_size,
            value_size: definition.value_size,
            max_entries,
            flags: definition.flags,
            types: types.map(|btf| Types {
                btf,
                key: definition.key_type,
                value: definition.value_type,
            }),
            inner: template.as_ref().map(std::os::fd::AsFd::as_fd),
        };
        Map::create(&spec)
    }

    fn btf(&self) -> bpf::Result<&Btf> {
        if let Some(btf) = self.btf.get() {
            return Ok(btf);
        }
        let btf = Btf::load(&self.types)?;
        Ok(self.btf.get_or_init(|| btf))
    }
}

impl Definition {
    fn of(name: &str, map: &aya_obj::Map) -> Result<Self> {
        let aya_obj::Map::Btf(btf_map) = map else {
            return Err(Error::Object(format!(
                "table {name} of the eBPF object has no type information"
            )));
        };
        // Inner maps carry their table's name, so that `bpftool map show` tells whose they are.
        let inner = map
            .inner()
            .map(|inner| Self::of(name, &inner).map(Box::new))
            .transpose()?;
        let outer_value = if inner.is_some() { 4 } else { map.value_size() };
        Ok(Self {
            name: name.to_owned(),
            kind: map.map_type(),
            key_size: map.key_size(),
            value_size: outer_value,
            max_entries: map.max_entries(),
            flags: map.map_flags(),
            key_type: btf_map.def.btf_key_type_id,
            value_type: btf_map.def.btf_value_type_id,
            inner,
        })
    }

    /// A table of our own that is not the object's.
    pub(super) fn plain(name: &str, kind: MapKind, sizes: (u32, u32), max_entries: u32) -> Self {
        Self {
            name: name.to_owned(),
            kind: kind as u32,
            key_size: sizes.0,
            value_size: sizes.1,
            max_entries,
            flags: 0,
            key_type: 0,
            value_type: 0,
            inner: None,
        }
    }

    /// What to create, without type information.
    pub(super) fn spec(&self) -> MapSpec<'_> {
        MapSpec {
            name: &self.name,
            kind: self.kind,
            key_size: self.key_size,
            value_size: self.value_size,
            max_entries: self.max_entries,
            flags: self.flags,
            types: None,
            inner: None,
        }
    }

    /// The kernel takes no type information for tables of tables, nor for queues, which have no keys.
    fn has_types(&self) -> bool {
        self.kind != MapKind::ArrayOfMaps as u32 && self.kind != MapKind::Queue as u32
    }

    /// What makes an existing table unfit to be used as this one, `None` if nothing does.
    ///
    /// A hash may have grown: the kernel, too, allows other sizes for inner hashes.
    pub fn mismatch(&self, info: &MapInfo, may_have_grown: bool) -> Option<String> {
        // The kernel adds flags of its own to some kinds (BPF_F_RDONLY_PROG on read-only ones).
        let properties = [
            ("kind", self.kind, info.kind),
            ("key size", self.key_size, info.key_size),
            ("value size", self.value_size, info.value_size),
            ("flags", self.flags, info.flags),
            (
                "entries",
                self.max_entries,
                if may_have_grown {
                    self.max_entries
                } else {
                    info.max_entries
                },
            ),
        ];
        let wrong = properties.iter().filter(|(_, ours, theirs)| ours != theirs);
        let text: Vec<String> = wrong
            .map(|(what, ours, theirs)| format!("{what} {theirs} instead of {ours}"))
            .collect();
        (!text.is_empty()).then(|| text.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Definition {
        Definition {
            name: "t".into(),
            kind: MapKind::Hash as u32,
            key_size: 8,
            value_size: 40,
            max_entries: 1024,
            flags: 1,
            key_type: 3,
            value_type: 4,
            inner: None,
        }
    }

    fn info() -> MapInfo {
        MapInfo {
            kind: MapKind::Hash as u32,
            id: 7,
            key_size: 8,
            value_size: 40,
            max_entries: 1024,
            flags: 1,
            name: "t".into(),
            btf_id: 0,
        }
    }

    #[test]
    fn an_equal_layout_has_no_mismatch() {
        assert_eq!(definition().mismatch(&info(), false), None);
    }

    #[test]
    fn a_grown_hash_is_a_mismatch_only_where_growth_is_not_expected() {
        let grown = MapInfo {
            max_entries: 4096,
            ..info()
        };
        assert_eq!(definition().mismatch(&grown, true), None);
        assert_eq!(
            definition().mismatch(&grown, false).as_deref(),
            Some("entries 4096 instead of 1024")
        );
    }

    #[test]
    fn every_wrong_property_is_named() {
        let other = MapInfo {
            kind: 2,
            key_size: 4,
            value_size: 44,
            flags: 0,
            ..info()
        };
        let text = definition().mismatch(&other, true).expect("differs");
        assert_eq!(
            text,
            "kind 2 instead of 1, key size 4 instead of 8, value size 44 instead of 40, flags 0 instead of 1"
        );
    }
}
