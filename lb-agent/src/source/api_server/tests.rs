//! Order, memory and distrust. That a found server is followed is tested on a cluster (`cargo xtask cluster`).

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::snapshot::{Family, ObjectName, SliceEndpoint, SlicePort};

struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let directory =
            std::env::temp_dir().join(format!("beeline-finder-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    fn kubeconfig(&self, name: &str, server: &str) -> PathBuf {
        let file = self.0.join(name);
        // As kubeadm writes kube-proxy's.
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- cluster:\n    certificate-authority: /ca.crt\n    \
             server: {server}\n  name: default\ncontexts:\n- context:\n    cluster: default\n    \
             namespace: default\n    user: default\n  name: default\ncurrent-context: default\nusers:\n- name: \
             default\n  user:\n    tokenFile: /token\n"
        );
        fs::write(&file, text).unwrap();
        file
    }

    fn finder(&self, given: Option<&str>, kubeconfigs: Vec<PathBuf>) -> Finder {
        Finder {
            settings: ApiServer {
                given: given.map(|text| text.parse().unwrap()),
                kubeconfigs,
                state: self.0.join("state"),
            },
            kept: Mutex::new(None),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn slice(namespace: &str, addresses: &[&str]) -> Slice {
    let endpoint = |address: &&str| SliceEndpoint {
        address: address.parse().unwrap(),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        hints: None,
    };
    Slice {
        name: ObjectName {
            namespace: namespace.into(),
            name: "kubernetes".into(),
        },
        service: Arc::from("kubernetes"),
        family: Family::V4,
        ports: vec![SlicePort {
            name: "https".into(),
            protocol: Protocol::Tcp,
            port: 6443,
        }],
        endpoints: addresses.iter().map(endpoint).collect(),
        trigger_time: None,
    }
}

fn shown(finder: &Finder) -> Vec<String> {
    finder
        .candidates()
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn the_operators_word_stands_alone() {
    let place = Place::new("given");
    let file = place.kubeconfig("a", "https://192.0.2.1:6443");
    let finder = place.finder(Some("api:6443"), vec![file]);
    assert_eq!(shown(&finder), ["https://api:6443 (given)"]);
}

#[test]
fn kubeconfigs_come_before_what_is_remembered() {
    let place = Place::new("order");
    let proxy = place.kubeconfig("proxy", "https://192.0.2.1:6443");
    let kubelet = place.kubeconfig("kubelet", "https://192.0.2.2:6443");
    let absent = place.0.join("absent");
    let broken = place.0.join("broken");
    fs::write(&broken, "server: [").unwrap();
    let insecure = place.kubeconfig("insecure", "http://192.0.2.9");
    let finder = place.finder(
        None,
        vec![absent, broken, insecure, proxy.clone(), kubelet.clone()],
    );
    finder.note(&slice("default", &["192.0.2.2", "192.0.2.3"]));
    assert_eq!(
        shown(&finder),
        [
            format!("https://192.0.2.1:6443 ({})", proxy.display()),
            format!("https://192.0.2.2:6443 ({})", kubelet.display()),
            "https://192.0.2.3:6443 (remembered)".to_owned(),
        ],
        "each once"
    );
}

#[test]
fn memory_outlives_the_agent_and_an_empty_list() {
    let place = Place::new("memory");
    let finder = place.finder(None, Vec::new());
    finder.note(&slice("default", &["192.0.2.3", "2001:db8::3"]));
    finder.note(&slice("default", &[]));
    finder.note(&slice("other", &["192.0.2.66"]));
    let file = finder.settings.state.join(FILE);
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        "https://192.0.2.3:6443\nhttps://[2001:db8::3]:6443\n"
    );
    let mut found = shown(&place.finder(None, Vec::new()));
    found.sort();
    assert_eq!(
        found,
        [
            "https://192.0.2.3:6443 (remembered)",
            "https://[2001:db8::3]:6443 (remembered)"
        ]
    );
    fs::write(&file, "http://192.0.2.66\n\u{0}\nhttps://192.0.2.4\n").unwrap();
    assert_eq!(
        shown(&place.finder(None, Vec::new())),
        ["https://192.0.2.4 (remembered)"],
        "what is no address is passed over"
    );
}

#[test]
fn a_state_directory_that_cannot_be_made_is_no_failure() {
    let place = Place::new("state");
    fs::write(place.0.join("state"), "a file").unwrap();
    let finder = place.finder(None, Vec::new());
    finder.note(&slice("default", &["192.0.2.3"]));
    assert!(shown(&finder).is_empty());
    assert!(Path::new(&finder.settings.state).is_file());
}
