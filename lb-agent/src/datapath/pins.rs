//! Where our maps, programs and links have names, and what we accept under them.
//!
//! ```text
//! <bpffs>/beeline/v<ABI>/maps/<table>          every table
//!                       /inner/<table>-<slot>  inner maps of tables of tables
//!                       /programs/<program>
//!                       /links/<hook>          cgroup hooks; tc-<interface index>-<direction>;
//!                                              xdp-<interface index>-<mode>
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lb_ebpf::abi::ABI_VERSION;

use super::object::Definition;
use super::{Error, Result};
use crate::sys::bpf::{Map, pin};

/// Directory of ours in a BPF file system.
pub const DIRECTORY: &str = "beeline";

/// The pins of this version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Pins below a BPF file system; touches nothing.
    pub fn new(bpffs: &Path) -> Self {
        Self {
            root: bpffs.join(DIRECTORY).join(format!("v{ABI_VERSION}")),
        }
    }

    /// Pins in a version's directory, whichever version.
    pub fn in_directory(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    pub fn inner(&self) -> PathBuf {
        self.root.join("inner")
    }

    pub fn programs(&self) -> PathBuf {
        self.root.join("programs")
    }

    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    pub fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    /// Makes the directories, for root alone.
    pub fn create_directories(&self) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt as _;
        for directory in [self.maps(), self.inner(), self.programs(), self.links()] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .map_err(|source| {
                    Error::io(format!("create directory {}", directory.display()), source)
                })?;
        }
        Ok(())
    }

    /// Opens the pinned table of a definition, `None` where there is none. One of another layout is refused: the
    /// programs would read the wrong bytes and the agent's buffers would be too short.
    pub fn open(&self, definition: &Definition) -> Result<Option<Map>> {
        let path = self.map(&definition.name);
        let Some(fd) = pin::get_if_present(&path)? else {
            return Ok(None);
        };
        let map = Map::from_fd(fd)?;
        check(&map, definition, &path, false)?;
        Ok(Some(map))
    }
}

/// Refuses a table at `path` that is not laid out as `definition` says.
pub fn check(map: &Map, definition: &Definition, path: &Path, may_have_grown: bool) -> Result<()> {
    match definition.mismatch(map.info(), may_have_grown) {
        None => Ok(()),
        Some(mismatch) => Err(Error::Layout {
            path: path.to_owned(),
            mismatch,
        }),
    }
}

/// Names in a directory, sorted; none if the directory is absent.
pub fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut paths = entries
        .map(|entry| entry.map(|e| e.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}
