//! The initramfs of a guest: a cpio archive of the kind "newc", as the kernel documents it in
//! Documentation/driver-api/early-userspace/buffer-format.rst.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::kernel::Kernel;
use super::programs::{self, Programs};

/// Directories that the first process mounts file systems on, and such as programs take for granted.
const DIRECTORIES: [&str; 7] = ["dev", "proc", "run", "sys", "tmp", "etc", "root"];
/// What the tests read below the workspace.
const DATA: [&str; 2] = [super::BUDGET, "tests/fixtures"];

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CONSOLE: u32 = 0o020_600;

/// What is in the archive, by path without the leading slash. A file's directories need no mention.
#[derive(Default)]
pub(super) struct Image {
    entries: BTreeMap<PathBuf, Entry>,
}

enum Entry {
    Directory,
    /// The device that the kernel opens for its first process.
    Console,
    /// A file of this machine.
    Copy(PathBuf),
    Bytes(Vec<u8>),
}

impl Image {
    /// The tests at the very paths they have here, as some look for files beside themselves.
    pub(super) fn add_programs(&mut self, programs: &Programs, filter: Option<&str>) -> Result<()> {
        for directory in DIRECTORIES {
            self.entries.insert(directory.into(), Entry::Directory);
        }
        self.insert("dev/console", Entry::Console);
        self.insert(
            "etc/hosts",
            Entry::text("127.0.0.1 localhost\n::1 localhost\n"),
        );
        self.insert("guest/programs", Entry::Bytes(programs.list().into_bytes()));
        self.insert("guest/filter", Entry::text(filter.unwrap_or_default()));
        let budget = crate::root().join(super::BUDGET);
        self.insert("guest/returned", Entry::text(&budget.display().to_string()));
        self.insert("init", Entry::Copy(stripped(&programs.guest)?));
        let mut files = programs.files()?;
        files.push(programs.guest.clone());
        for program in files {
            for library in programs::libraries(&program)? {
                self.copy(&library, library.clone());
            }
            let copy = stripped(&program)?;
            self.copy(&program, copy);
        }
        for path in DATA {
            self.copy_tree(&crate::root().join(path))?;
        }
        Ok(())
    }

    /// The modules, numbered in the order to load them.
    pub(super) fn add_modules(&mut self, kernel: &Kernel) -> Result<()> {
        for (number, (name, module)) in kernel.modules()?.into_iter().enumerate() {
            let path = format!("guest/modules/{number:03}-{name}.ko");
            self.insert(path, Entry::Bytes(module));
        }
        Ok(())
    }

    fn insert(&mut self, path: impl Into<PathBuf>, entry: Entry) {
        self.entries.insert(path.into(), entry);
    }

    /// A file of this machine under the path `at` of the guest.
    fn copy(&mut self, at: &Path, file: PathBuf) {
        self.insert(at.strip_prefix("/").unwrap_or(at), Entry::Copy(file));
    }

    fn copy_tree(&mut self, path: &Path) -> Result<()> {
        if !path.is_dir() {
            self.copy(path, path.to_owned());
            return Ok(());
        }
        for entry in fs::read_dir(path).with_context(|| format!("reading {}", path.display()))? {
            self.copy_tree(&entry?.path())?;
        }
        Ok(())
    }

    /// Writes the archive; its size.
    pub(super) fn write(mut self, path: &Path) -> Result<u64> {
        let parents: Vec<PathBuf> = self
            .entries
            .keys()
            .flat_map(|path| path.ancestors().skip(1))
            .filter(|parent| !parent.as_os_str().is_empty())
            .map(Path::to_owned)
            .collect();
        for parent in parents {
            self.entries.entry(parent).or_insert(Entry::Directory);
        }
        let writing = || format!("writing {}", path.display());
        fs::create_dir_all(path.parent().unwrap_or(path)).with_context(writing)?;
        let mut archive = BufWriter::new(File::create(path).with_context(writing)?);
        // A directory comes before what is in it: that is the order of paths.
        for (number, (name, entry)) in self.entries.iter().enumerate() {
            let name = name.to_string_lossy();
            let read;
            let (mode, bytes): (u32, &[u8]) = match entry {
                Entry::Directory => (DIRECTORY, &[]),
                Entry::Console => (CONSOLE, &[]),
                Entry::Bytes(bytes) => (PROGRAM, bytes),
                Entry::Copy(file) => {
                    read = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
                    (PROGRAM, &read)
                }
            };
            member(&mut archive, number as u32 + 1, mode, &name, bytes).with_context(writing)?;
        }
        member(&mut archive, 0, 0, "TRAILER!!!", &[]).with_context(writing)?;
        archive.flush().with_context(writing)?;
        Ok(fs::metadata(path)?.len())
    }
}

impl Entry {
    fn text(text: &str) -> Self {
        Self::Bytes(text.as_bytes().to_vec())
    }
}

/// One member: a header of hexadecimal numbers, its name, its bytes, each filled up to a multiple of four.
fn member(
    archive: &mut impl Write,
    inode: u32,
    mode: u32,
    name: &str,
    bytes: &[u8],
) -> std::io::Result<()> {
    // Character device 5:1 is the console.
    let device = if mode == CONSOLE { [5, 1] } else { [0, 0] };
    let size = u32::try_from(bytes.len()).map_err(std::io::Error::other)?;
    let fields = [
        inode,
        mode,
        0, // owner
        0, // group
        1, // names
        0, // time
        size,
        0, // device it lies on
        0,
        device[0],
        device[1],
        name.len() as u32 + 1,
        0, // checksum, of another kind of archive
    ];
    write!(archive, "070701")?;
    for field in fields {
        write!(archive, "{field:08x}")?;
    }
    let header = 6 + 8 * fields.len();
    archive.write_all(name.as_bytes())?;
    // The name's end is a zero of its own.
    let end = header + name.len() + 1;
    archive.write_all(&[0; 4][..1 + end.next_multiple_of(4) - end])?;
    archive.write_all(bytes)?;
    archive.write_all(&[0; 3][..bytes.len().next_multiple_of(4) - bytes.len()])
}

/// A copy without debug information, which is most of a test program; made anew when the program was.
fn stripped(program: &Path) -> Result<PathBuf> {
    let directory = super::directory()?.join("stripped");
    fs::create_dir_all(&directory)?;
    let name = program.file_name().context("a program has a name")?;
    // Test programs have their hash in the name; of the others each name is there once.
    let copy = directory.join(name);
    let made = |path: &Path| fs::metadata(path).and_then(|file| file.modified());
    if matches!((made(program), made(&copy)), (Ok(program), Ok(copy)) if copy > program) {
        return Ok(copy);
    }
    crate::execute(Command::new("strip").arg("-o").arg(&copy).arg(program))?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_filled_up_to_multiples_of_four() {
        for name in ["a", "ab", "abc", "abcd"] {
            for bytes in [&b""[..], b"1", b"12", b"123", b"1234"] {
                let mut archive = Vec::new();
                member(&mut archive, 1, PROGRAM, name, bytes).unwrap();
                assert_eq!(archive.len() % 4, 0, "{name} {bytes:?}");
                let body = (110 + name.len() + 1).next_multiple_of(4);
                assert_eq!(&archive[body..body + bytes.len()], bytes);
                assert_eq!(archive.len(), body + bytes.len().next_multiple_of(4));
            }
        }
    }

    #[test]
    fn a_directory_precedes_what_is_in_it() {
        let directory = std::env::temp_dir().join(format!("bl-image-{}", std::process::id()));
        let mut image = Image::default();
        image.insert("a/b/c", Entry::text("x"));
        image.insert("a.b", Entry::text("y"));
        image.write(&directory.join("image")).unwrap();
        let bytes = fs::read(directory.join("image")).unwrap();
        fs::remove_dir_all(&directory).unwrap();
        let at = |name: &[u8]| bytes.windows(name.len()).position(|part| part == name);
        assert!(at(b"a\0") < at(b"a/b\0") && at(b"a/b\0") < at(b"a/b/c\0"));
    }
}
