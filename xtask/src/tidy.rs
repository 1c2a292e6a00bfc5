//! The project's rules that no ordinary lint knows.
//!
//! Every rule is a function from one file to its faults, so that a new rule is one line in a list.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::object::NAME_LENGTH;

/// A file as the rules see it.
struct File {
    /// Path below the workspace.
    path: String,
    text: String,
}

type Rule = fn(&File) -> Vec<String>;

const RULES: &[Rule] = &[
    length,
    unsafe_places,
    module_borders,
    machine_paths,
    unfinished,
];

/// Longest Rust file.
const LINES: usize = 500;

/// Where `unsafe` may stand: system calls, the programs with what they share with the agent (reads in one
/// piece, the marker for table records), and the test harnesses, which make system calls of their own.
const UNSAFE: &[&str] = &[
    "lb-agent/src/sys/",
    "lb-agent/tests/scratch/",
    "lb-ebpf/src/",
    "tests/src/",
];

/// What a module must not know: it decides without doing, or does without deciding.
const BORDERS: &[(&str, &[&str])] = &[
    ("lb-agent/src/model/", PURE),
    ("lb-agent/src/plan/", PURE),
    ("lb-agent/src/snapshot.rs", PURE),
    (
        "lb-agent/src/source/",
        &["aya::", "crate::datapath", "crate::sys::bpf"],
    ),
    (
        "lb-agent/src/datapath/",
        &["k8s_openapi", "kube::", "crate::source"],
    ),
];

/// No I/O, no clock, no maps, no Kubernetes client.
const PURE: &[&str] = &[
    "aya::",
    "kube::",
    "k8s_openapi",
    "tokio::",
    "libc::",
    "std::fs",
    "std::process",
    "std::env",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "Instant::now",
    "SystemTime::now",
    "TcpStream",
    "UdpSocket",
    "crate::sys",
    "crate::datapath",
    "crate::source",
];

/// Checks every file of the project.
pub(crate) fn run() -> Result<()> {
    let mut files = Vec::new();
    collect(crate::root(), &mut files)?;
    let mut faults: Vec<String> = files
        .iter()
        .flat_map(|file| RULES.iter().flat_map(|rule| rule(file)))
        .collect();
    faults.extend(tables(&files)?);
    faults.extend(readme(&files));
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(())
}

fn length(file: &File) -> Vec<String> {
    let lines = file.text.lines().count();
    if !is_rust(file) || lines <= LINES {
        return Vec::new();
    }
    vec![format!(
        "{}: {lines} lines; split it, {LINES} is the limit",
        file.path
    )]
}

fn unsafe_places(file: &File) -> Vec<String> {
    if !is_rust(file) || UNSAFE.iter().any(|place| file.path.starts_with(place)) {
        return Vec::new();
    }
    let word = concat!("un", "safe");
    let used = |code: &str| {
        code.split(|c: char| !c.is_alphanumeric() && c != '_')
            .any(|found| found == word)
    };
    code_lines(file)
        .filter(|(_, code)| used(code))
        .map(|(line, _)| {
            format!(
                "{}:{line}: `{word}` belongs to {}",
                file.path,
                UNSAFE.join(", ")
            )
        })
        .collect()
}

fn module_borders(file: &File) -> Vec<String> {
    // A module's tests may read their cases from a file.
    let tests = file.path.contains("/tests/");
    let forbidden = BORDERS
        .iter()
        .filter(|(place, _)| file.path.starts_with(place) && !tests)
        .flat_map(|(_, words)| *words);
    forbidden
        .flat_map(|word| {
            let hits = code_lines(file).filter(move |(_, code)| code.contains(word));
            hits.map(move |(line, _)| {
                format!("{}:{line}: this module must not know `{word}`", file.path)
            })
        })
        .collect()
}

/// Paths that exist on one machine only.
fn machine_paths(file: &File) -> Vec<String> {
    let paths = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("/fa", "rm/"),
    ];
    numbered(file)
        .flat_map(|(line, text)| {
            let hits = paths.iter().filter(move |path| text.contains(**path));
            hits.map(move |path| format!("{}:{line}: a path of one machine ({path})", file.path))
        })
        .collect()
}

/// Work left for later belongs into an issue.
fn unfinished(file: &File) -> Vec<String> {
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("To be ", "written"),
    ];
    numbered(file)
        .filter(|(_, text)| marks.iter().any(|mark| text.contains(mark)))
        .map(|(line, text)| format!("{}:{line}: unfinished: {}", file.path, text.trim()))
        .collect()
}

/// Table names fit the kernel, are distinct, and stand in `docs/maps.md`.
fn tables(files: &[File]) -> Result<Vec<String>> {
    let layouts =
        find(files, "lb-ebpf/src/abi/mod.rs").context("lb-ebpf/src/abi/mod.rs is missing")?;
    let page = find(files, "docs/maps.md").context("docs/maps.md is missing")?;
    let names: Vec<&str> = layouts
        .lines()
        .filter_map(|line| line.split_once(": &str = \"")?.1.split('"').next())
        .collect();
    let mut faults = Vec::new();
    for (index, name) in names.iter().enumerate() {
        if name.len() > NAME_LENGTH || names[..index].contains(name) {
            faults.push(format!(
                "table name {name}: at most {NAME_LENGTH} characters, and distinct"
            ));
        }
        if !page.contains(&format!("| `{name}` |")) {
            faults.push(format!("docs/maps.md: no row for the table {name}"));
        }
    }
    Ok(faults)
}

/// The two commands a newcomer needs.
fn readme(files: &[File]) -> Vec<String> {
    let text = find(files, "README.md").unwrap_or_default();
    let wanted = ["cargo xtask demo", "cargo xtask test"];
    wanted
        .iter()
        .filter(|words| !text.contains(**words))
        .map(|words| format!("README.md does not show `{words}`"))
        .collect()
}

fn find<'a>(files: &'a [File], path: &str) -> Option<&'a str> {
    files
        .iter()
        .find(|file| file.path == path)
        .map(|file| file.text.as_str())
}

fn is_rust(file: &File) -> bool {
    file.path.ends_with(".rs")
}

fn numbered(file: &File) -> impl Iterator<Item = (usize, &str)> {
    file.text
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
}

/// Lines without comments. Text in quotes counts as code: rare, and easily worded differently.
fn code_lines(file: &File) -> impl Iterator<Item = (usize, &str)> {
    numbered(file).map(|(line, text)| (line, text.split("//").next().unwrap_or_default()))
}

fn collect(directory: &Path, files: &mut Vec<File>) -> Result<()> {
    let entries = directory
        .read_dir()
        .with_context(|| format!("reading {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        // In a linked worktree `.git` is a file.
        if name == ".git" || name == "target" {
            continue;
        }
        if path.is_dir() {
            collect(&path, files)?;
        } else if let Ok(text) = std::fs::read_to_string(&path) {
            let path = path
                .strip_prefix(crate::root())?
                .to_string_lossy()
                .into_owned();
            files.push(File { path, text });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn a_comment_may_speak_of_anything() {
        assert!(
            module_borders(&file("lb-agent/src/model/mod.rs", "// unlike std::fs\n")).is_empty()
        );
        assert_eq!(
            module_borders(&file("lb-agent/src/model/mod.rs", "use std::fs;\n")).len(),
            1
        );
    }

    #[test]
    fn lint_names_are_not_the_keyword() {
        let text = concat!("un", "safe_op_in_", "un", "safe_fn\n");
        assert!(unsafe_places(&file("lb-agent/src/agent.rs", text)).is_empty());
        let text = concat!("un", "safe { x() }\n");
        assert_eq!(unsafe_places(&file("lb-agent/src/agent.rs", text)).len(), 1);
        assert!(unsafe_places(&file("lb-agent/src/sys/bpf.rs", text)).is_empty());
    }
}
