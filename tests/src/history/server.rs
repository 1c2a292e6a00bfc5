//! What an API server does with objects and watches: it stores, selects, and tells.

use std::collections::BTreeMap;

use lb_agent::source::kubernetes::{SERVICE_FIELDS, SERVICE_LABELS, SLICE_LABELS};

use super::script::{Key, OWN_NODE, Object, Watch};
use crate::fuzz::random::Random;

/// What a watch tells.
#[derive(Clone, PartialEq, Debug)]
pub enum Told {
    Begin(Watch),
    Apply(Object),
    Delete(Object),
    Complete(Watch),
}

/// The objects, and which watches are connected.
#[derive(Default)]
pub struct Server {
    objects: BTreeMap<Key, Object>,
    /// What a connected watch told since its list; no entry for one that is not connected.
    told: BTreeMap<Watch, Vec<Told>>,
}

impl Server {
    pub fn put(&mut self, object: &Object) -> Vec<Told> {
        let before = self.objects.insert(object.key(), object.clone());
        let was_selected = before.as_ref().is_some_and(is_selected);
        match (was_selected, is_selected(object)) {
            (_, true) => self.tell(Told::Apply(object.clone())),
            // A selector's watch takes what no longer fits for deleted.
            (true, false) => self.tell(Told::Delete(object.clone())),
            (false, false) => Vec::new(),
        }
    }

    pub fn remove(&mut self, key: &Key) -> Vec<Told> {
        match self.objects.remove(key) {
            Some(object) if is_selected(&object) => self.tell(Told::Delete(object)),
            _ => Vec::new(),
        }
    }

    pub fn disconnect(&mut self, watch: Watch) {
        self.told.remove(&watch);
    }

    pub fn is_connected(&self, watch: Watch) -> bool {
        self.told.contains_key(&watch)
    }

    /// A complete list of one kind, in an order of the seed.
    pub fn list(&mut self, watch: Watch, seed: u64, breaks: bool) -> Vec<Told> {
        let mut random = Random::new(seed);
        let of_kind = self.objects.values().filter(|o| o.watch() == watch);
        let mut objects: Vec<_> = of_kind.filter(|o| is_selected(o)).cloned().collect();
        for last in (1..objects.len()).rev() {
            objects.swap(last, random.below(last + 1));
        }
        let mut told = Vec::new();
        if breaks {
            let half = objects.len() / 2;
            told.push(Told::Begin(watch));
            told.extend(objects[..half].iter().cloned().map(Told::Apply));
        }
        told.push(Told::Begin(watch));
        told.extend(objects.into_iter().map(Told::Apply));
        told.push(Told::Complete(watch));
        self.told.insert(watch, Vec::new());
        told
    }

    /// The last events of a watch once more. Each object ends as it was.
    pub fn replay(&self, watch: Watch, events: usize) -> Vec<Told> {
        let told = self.told.get(&watch).map_or(&[][..], Vec::as_slice);
        told[told.len().saturating_sub(events)..].to_vec()
    }

    /// Everything of one kind that there is.
    pub fn all(&self, watch: Watch) -> impl Iterator<Item = (&Key, &Object)> {
        self.objects
            .iter()
            .filter(move |(key, _)| key.watch == watch)
    }

    fn tell(&mut self, told: Told) -> Vec<Told> {
        let (Told::Apply(object) | Told::Delete(object)) = &told else {
            return Vec::new();
        };
        match self.told.get_mut(&object.watch()) {
            Some(log) => {
                log.push(told.clone());
                vec![told]
            }
            None => Vec::new(),
        }
    }
}

/// Whether the agent's own selectors take the object.
fn is_selected(object: &Object) -> bool {
    let labels = |selector: &str| {
        selector.split(',').all(|part| {
            let absent = part.strip_prefix('!').expect("a selector of absent labels");
            let labels = object.metadata().labels.as_ref();
            labels.is_none_or(|labels| !labels.contains_key(absent))
        })
    };
    match object {
        Object::Service(service) => {
            let unwanted = SERVICE_FIELDS
                .strip_prefix("spec.clusterIP!=")
                .expect("a selector of the address");
            let address = service
                .spec
                .as_ref()
                .and_then(|spec| spec.cluster_ip.as_deref());
            labels(SERVICE_LABELS) && address != Some(unwanted)
        }
        Object::Slice(_) => labels(SLICE_LABELS),
        Object::Node(node) => node.metadata.name.as_deref() == Some(OWN_NODE),
    }
}
