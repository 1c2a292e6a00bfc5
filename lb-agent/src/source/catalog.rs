//! What the files of a directory say together, and what of it was reported already.
//!
//! The first file by name that holds an object wins. A file that cannot be read keeps its last good objects.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tracing::warn;

use super::convert::{Converter, Options};
use super::manifest::{self, Manifest};
use super::refused::{Refused, shown};
use crate::snapshot::{Event, Kind, ObjectName};

/// A file larger than this is a mistake.
const LARGEST_FILE: u64 = 256 << 20;

/// Files to look at again.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Dirty {
    All,
    Files(HashSet<OsString>),
}

/// The files of one directory.
pub(super) struct Catalog {
    directory: PathBuf,
    node_name: String,
    converter: Converter,
    /// The file system that the manifests were on.
    device: Option<u64>,
    files: BTreeMap<OsString, File>,
    /// Hash of each object as last reported; empty before the first complete list.
    reported: HashMap<Key, u64>,
    complete: bool,
    /// Objects that lost against an earlier file, so that each is told once.
    losers: HashSet<(OsString, Key)>,
    hasher: RandomState,
}

/// A file as it was last read.
#[derive(Default)]
struct File {
    /// Hash of its bytes.
    content: Option<u64>,
    /// Why it could not be opened, to tell it once.
    problem: Option<String>,
    objects: Vec<Object>,
}

struct Object {
    key: Key,
    hash: u64,
    event: Event,
}

/// Identity of an object.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Key {
    Service(ObjectName),
    Slice(ObjectName),
    Node,
    ServiceCidr(Arc<str>),
}

impl Key {
    /// The object an event puts in place.
    fn of(event: &Event) -> Option<Self> {
        match event {
            Event::Service(service) => Some(Key::Service(service.name.clone())),
            Event::Slice(slice) => Some(Key::Slice(slice.name.clone())),
            Event::Node(_) => Some(Key::Node),
            Event::ServiceCidr(name, _) => Some(Key::ServiceCidr(name.clone())),
            Event::Begin(_)
            | Event::Complete(_)
            | Event::Lost(_)
            | Event::Found(_)
            | Event::ServiceGone(_)
            | Event::SliceGone(_)
            | Event::NodeGone
            | Event::ServiceCidrGone(_) => None,
        }
    }

    fn gone(self) -> Event {
        match self {
            Key::Service(name) => Event::ServiceGone(name),
            Key::Slice(name) => Event::SliceGone(name),
            Key::Node => Event::NodeGone,
            Key::ServiceCidr(name) => Event::ServiceCidrGone(name),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Key::Service(_) => Kind::Services,
            Key::Slice(_) => Kind::Slices,
            Key::Node => Kind::Node,
            Key::ServiceCidr(_) => Kind::ServiceCidrs,
        }
    }

    fn label(&self) -> String {
        match self {
            Key::Service(name) => format!("Service {}/{}", name.namespace, name.name),
            Key::Slice(name) => format!("EndpointSlice {}/{}", name.namespace, name.name),
            Key::Node => "Node".into(),
            Key::ServiceCidr(name) => format!("ServiceCIDR {name}"),
        }
    }
}

impl Catalog {
    pub(super) fn new(
        directory: PathBuf,
        node_name: String,
        options: Options,
        refused: Arc<Refused>,
    ) -> Self {
        Self {
            directory,
            node_name,
            converter: Converter::new(options, refused),
            device: None,
            files: BTreeMap::new(),
            reported: HashMap::new(),
            complete: false,
            losers: HashSet::new(),
            hasher: RandomState::new(),
        }
    }

    /// Reads what changed and returns the events of it: complete lists the first time. On an error, which is
    /// that of the directory itself, nothing changed.
    pub(super) fn scan(&mut self, dirty: &Dirty) -> io::Result<Vec<Event>> {
        let present = manifests_in(&self.directory)?;
        let device = std::fs::metadata(&self.directory)?.dev();
        if !present.is_empty() {
            self.device = Some(device);
        } else if self.device.is_some_and(|known| known != device) {
            // What is left is the place where it was mounted.
            return Err(io::Error::other(
                "it is empty, and of another file system than its manifests were",
            ));
        }
        self.files.retain(|name, _| present.contains(name));
        for name in present {
            let is_dirty = match dirty {
                Dirty::All => true,
                Dirty::Files(names) => names.contains(&name) || !self.files.contains_key(&name),
            };
            if is_dirty {
                self.read(name);
            }
        }
        Ok(if self.complete {
            self.changes()
        } else {
            self.complete_lists()
        })
    }

    // ---- files ----------------------------------------------------------------------------------------------

    fn read(&mut self, name: OsString) {
        let path = self.directory.join(&name);
        let mut file = self.files.remove(&name).unwrap_or_default();
        match content(&path) {
            Ok(text) => {
                file.problem = None;
                let hash = self.hasher.hash_one(&text);
                if file.content.replace(hash) != Some(hash) {
                    match manifest::parse(&text) {
                        Ok(manifests) => file.objects = self.objects(manifests, &path),
                        Err(broken) => warn!(
                            file = shown_path(&path),
                            line = broken.line,
                            problem = shown(&broken.problem),
                            kept = file.objects.len(),
                            "ignored a broken manifest, its last good objects stay: correct it and save it",
                        ),
                    }
                }
            }
            Err(error) => {
                let problem = error.to_string();
                if file.problem.as_ref() != Some(&problem) {
                    warn!(
                        file = shown_path(&path),
                        problem = shown(&problem),
                        kept = file.objects.len(),
                        "could not read a manifest, its last good objects stay: make it a readable text file or remove it",
                    );
                }
                file.problem = Some(problem);
            }
        }
        self.files.insert(name, file);
    }

    fn objects(&mut self, manifests: Vec<Manifest>, path: &Path) -> Vec<Object> {
        let mut objects = Vec::with_capacity(manifests.len());
        for manifest in manifests {
            let event = match &manifest {
                Manifest::Service(service) if is_hidden_service(service) => None,
                Manifest::Service(service) => {
                    tell_missing_address(service, path);
                    self.converter.service(service)
                }
                Manifest::Slice(slice) if is_hidden_slice(slice) => None,
                Manifest::Slice(slice) => self.converter.slice(slice),
                Manifest::Node(node) if !self.is_own(node) => None,
                Manifest::Node(node) => self.converter.node(node),
                Manifest::ServiceCidr(service_cidr) => self.converter.service_cidr(service_cidr),
            };
            if let Some(event) = event
                && let Some(key) = Key::of(&event)
            {
                objects.push(Object {
                    key,
                    hash: self.hasher.hash_one(&event),
                    event,
                });
            }
        }
        objects.shrink_to_fit();
        objects
    }

    /// The field selector of §3.4: our own Node, no other.
    fn is_own(&self, node: &Node) -> bool {
        node.metadata.name.as_deref() == Some(self.node_name.as_str())
    }

    // ---- reports --------------------------------------------------------------------------------------------

    fn complete_lists(&mut self) -> Vec<Event> {
        let changes = self.changes();
        self.complete = true;
        let mut events = Vec::with_capacity(changes.len() + 8);
        let (mut by_kind, kinds) = (
            HashMap::<_, Vec<_>>::new(),
            [Kind::Node, Kind::ServiceCidrs, Kind::Slices, Kind::Services],
        );
        for event in changes {
            if let Some(key) = Key::of(&event) {
                by_kind.entry(key.kind()).or_default().push(event);
            }
        }
        for kind in kinds {
            events.push(Event::Begin(kind));
            events.extend(by_kind.remove(&kind).unwrap_or_default());
            events.push(Event::Complete(kind));
        }
        events
    }

    /// What differs from the last report. Endpoints come before the frontends that lead to them, and go after
    /// them (J9).
    fn changes(&mut self) -> Vec<Event> {
        let mut current = HashMap::with_capacity(self.reported.len());
        let mut losers = HashSet::new();
        let (mut first, mut services) = (Vec::new(), Vec::new());
        for (name, file) in &self.files {
            for object in &file.objects {
                if current.contains_key(&object.key) {
                    losers.insert((name.clone(), object.key.clone()));
                    continue;
                }
                current.insert(object.key.clone(), object.hash);
                if self.reported.get(&object.key) != Some(&object.hash) {
                    let into = if object.key.kind() == Kind::Services {
                        &mut services
                    } else {
                        &mut first
                    };
                    into.push(object.event.clone());
                }
            }
        }
        for (file, key) in losers.difference(&self.losers) {
            let file = shown_path(&self.directory.join(file));
            warn!(
                object = key.label(),
                file,
                "ignored an object that is there twice, the first by file name counts: remove one"
            );
        }
        self.losers = losers;

        let gone = self
            .reported
            .keys()
            .filter(|key| !current.contains_key(*key))
            .cloned();
        let (services_gone, others_gone): (Vec<_>, Vec<_>) = gone
            .map(Key::gone)
            .partition(|event| matches!(event, Event::ServiceGone(_)));
        self.reported = current;

        let mut events = first;
        events.append(&mut services);
        for event in services_gone.into_iter().chain(others_gone) {
            self.converter.forget(&event);
            events.push(event);
        }
        events
    }
}

/// May this be a file of ours? Editors' and kubelet's own files begin with a dot.
pub(super) fn is_manifest_name(name: &OsStr) -> bool {
    let is_hidden = name.as_encoded_bytes().starts_with(b".");
    let extension = Path::new(name).extension().and_then(OsStr::to_str);
    !is_hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

fn manifests_in(directory: &Path) -> io::Result<HashSet<OsString>> {
    let names = std::fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.file_name()));
    names
        .filter(|name| name.as_ref().map_or(true, |name| is_manifest_name(name)))
        .collect()
}

fn content(path: &Path) -> io::Result<String> {
    // Opening a FIFO would wait for a writer.
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if metadata.len() > LARGEST_FILE {
        return Err(io::Error::other("it is larger than 256 MiB"));
    }
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(LARGEST_FILE)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// A1 as §8 corrects it.
fn is_hidden_service(service: &Service) -> bool {
    let labels = service.metadata.labels.as_ref();
    labels.is_some_and(|labels| labels.contains_key("service.kubernetes.io/service-proxy-name"))
}

/// §8: for slices, the other label.
fn is_hidden_slice(slice: &EndpointSlice) -> bool {
    let labels = slice.metadata.labels.as_ref();
    labels.is_some_and(|labels| labels.contains_key("service.kubernetes.io/headless"))
}

/// A cluster would give it an address; here nobody does.
fn tell_missing_address(service: &Service, path: &Path) {
    let Some(spec) = &service.spec else {
        return;
    };
    if spec.cluster_ip.as_deref().is_none_or(str::is_empty)
        && spec.type_.as_deref() != Some("ExternalName")
    {
        let metadata = &service.metadata;
        warn!(
            file = shown_path(path),
            namespace = shown(metadata.namespace.as_deref().unwrap_or_default()),
            service = shown(metadata.name.as_deref().unwrap_or_default()),
            "ignored a Service without an address: set spec.clusterIP, or None for a headless one",
        );
    }
}

fn shown_path(path: &Path) -> String {
    path.display().to_string().escape_debug().to_string()
}

#[cfg(test)]
pub(super) mod tests;
