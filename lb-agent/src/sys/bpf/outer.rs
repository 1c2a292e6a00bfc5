//! Tables of tables: the inner ones are replaced or added while programs run.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use super::map::{Map, MapInfo, MapKind, WriteMode};
use super::table::bytes;
use super::{Error, Result, pin};

/// [`Outer::find_inner`] looks this often: the slot and its pins may change between two of its glances.
const LOOKS: u32 = 8;

/// An array of maps.
///
/// The kernel tells only the id of an inner map, and opening by id needs CAP_SYS_ADMIN. So whoever sets a slot
/// keeps the inner map itself, and pins it as `<directory>/<name>-<slot>` for the next agent and the CLI.
///
/// Setting a slot waits until no program can still be using the old inner map (`synchronize_rcu`, about 10 ms). So
/// others meet slots whose pins lag behind, and what they do about it must not trip the one who is waiting: the slot's
/// owner opens with [`Outer::open_inner`], everybody else with [`Outer::find_inner`].
#[derive(Debug)]
pub struct Outer {
    map: Map,
    inner: PathBuf,
}

impl Outer {
    /// Takes an array of maps whose inner maps are pinned below `inner`.
    pub fn new(map: Map, inner: &Path) -> Result<Self> {
        if map.info().kind != MapKind::ArrayOfMaps as u32 {
            return Err(Error::refused(
                format!("use map {}", map.name()),
                "it is no array of maps: it belongs to another version, run `beeline cleanup`",
            ));
        }
        Ok(Self {
            map,
            inner: inner.to_owned(),
        })
    }

    pub fn map(&self) -> &Map {
        &self.map
    }

    pub fn slots(&self) -> u32 {
        self.map.info().max_entries
    }

    /// Where the inner map of a slot is pinned.
    pub fn pin_path(&self, slot: u32) -> PathBuf {
        inner_path(&self.inner, self.map.name(), slot)
    }

    /// Id of the inner map in a slot, if there is one.
    pub fn inner_id(&self, slot: u32) -> Result<Option<u32>> {
        let mut id = [0; 4];
        Ok(self
            .map
            .lookup_into(bytes(&slot), &mut id)?
            .then(|| u32::from_ne_bytes(id)))
    }

    /// Puts an inner map into a slot. The programs use it from now on; its pin follows, so that a crash between
    /// the two leaves a pin that [`Outer::open_inner`] recognises as not the slot's.
    pub fn set(&self, slot: u32, inner: BorrowedFd<'_>) -> Result<()> {
        // The new map has a name before the slot has it: at no moment is the slot's map without one.
        let next = self.next_path(slot);
        pin::remove(&next)?;
        pin::pin(inner, &next)?;
        self.set_unpinned(slot, inner)?;
        self.finish_pin(slot, MapInfo::of(inner)?.id)
    }

    /// As [`Outer::set`] for many slots, with one wait for all.
    pub fn set_many(&self, maps: &[(u32, impl AsFd)]) -> Result<()> {
        for (slot, map) in maps {
            let next = self.next_path(*slot);
            pin::remove(&next)?;
            pin::pin(map.as_fd(), &next)?;
        }
        let slots: Vec<u8> = maps
            .iter()
            .flat_map(|(slot, _)| slot.to_ne_bytes())
            .collect();
        let fds: Vec<u8> = maps
            .iter()
            .flat_map(|(_, map)| map.as_fd().as_raw_fd().to_ne_bytes())
            .collect();
        self.map
            .update_many(&slots, &fds)
            .map_err(|stopped| stopped.error)?;
        maps.iter().try_for_each(|(slot, map)| {
            let id = MapInfo::of(map.as_fd())?.id;
            self.finish_pin(*slot, id)
        })
    }

    /// Puts an inner map into a slot that nobody will want to open again (a dummy, or one pinned elsewhere).
    pub fn set_unpinned(&self, slot: u32, inner: BorrowedFd<'_>) -> Result<()> {
        let fd = inner.as_raw_fd() as u32;
        self.map.update(bytes(&slot), bytes(&fd), WriteMode::Any)
    }

    /// Empties a slot and removes its pin; whether it held a map.
    pub fn clear(&self, slot: u32) -> Result<bool> {
        let held = self.map.delete(bytes(&slot))?;
        pin::remove(&self.pin_path(slot))?;
        Ok(held)
    }

    /// The inner map of a slot, by its pin, for the one who sets the slots. `None` for an empty slot.
    ///
    /// A pin that is not the slot's map is finished (its writer died between the two steps) where the right one
    /// lies beside it, else refused.
    pub fn open_inner(&self, slot: u32) -> Result<Option<Map>> {
        let Some(id) = self.inner_id(slot)? else {
            return Ok(None);
        };
        if let Some(map) = pinned(&self.pin_path(slot), id)? {
            return Ok(Some(map));
        }
        let Some(map) = pinned(&self.next_path(slot), id)? else {
            return Err(self.unpinned(slot, id));
        };
        self.finish_pin(slot, id)?;
        Ok(Some(map))
    }

    /// As [`Outer::open_inner`] for everybody else: whoever is setting the slot may be about to rename the pin, so it
    /// is left as it is.
    pub fn find_inner(&self, slot: u32) -> Result<Option<Map>> {
        let mut looks = 0;
        loop {
            let Some(id) = self.inner_id(slot)? else {
                return Ok(None);
            };
            for path in [self.next_path(slot), self.pin_path(slot)] {
                if let Some(map) = pinned(&path, id)? {
                    return Ok(Some(map));
                }
            }
            looks += 1;
            if looks == LOOKS {
                return Err(self.unpinned(slot, id));
            }
        }
    }

    fn unpinned(&self, slot: u32, id: u32) -> Error {
        Error::refused(
            format!("open slot {slot} of map {}", self.map.name()),
            format!(
                "its map (id {id}) is not pinned at {}: run `beeline cleanup`",
                self.pin_path(slot).display()
            ),
        )
    }

    fn next_path(&self, slot: u32) -> PathBuf {
        let mut path = self.pin_path(slot).into_os_string();
        path.push("-next");
        path.into()
    }

    /// Gives the pin of the slot's new map, the one with this id, its lasting name.
    fn finish_pin(&self, slot: u32, id: u32) -> Result<()> {
        let path = self.pin_path(slot);
        let Err(error) = std::fs::rename(self.next_path(slot), &path) else {
            return Ok(());
        };
        // Another agent or command, of whatever version, may have seen the slot change and done it.
        if error.kind() == io::ErrorKind::NotFound && pinned(&path, id)?.is_some() {
            return Ok(());
        }
        Err(Error::new(
            format!("rename pin to {}", path.display()),
            error,
        ))
    }
}

impl AsFd for Outer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

/// The map pinned at `path`, if it is the one with this id.
fn pinned(path: &Path, id: u32) -> Result<Option<Map>> {
    let map = pin::get_if_present(path)?.map(Map::from_fd).transpose()?;
    Ok(map.filter(|map| map.info().id == id))
}

/// Where the inner map of a slot of table `name` is pinned.
pub(crate) fn inner_path(directory: &Path, name: &str, slot: u32) -> PathBuf {
    directory.join(format!("{name}-{slot}"))
}
