use std::fs;

use super::*;

/// A directory of its own for a test, removed at its end.
pub(in crate::source) struct TestDirectory(pub PathBuf);

impl TestDirectory {
    pub(in crate::source) fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("beeline-source-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(in crate::source) fn write(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).unwrap();
    }
}

impl Drop for TestDirectory {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

pub(in crate::source) fn service(name: &str, port: u16) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: {port}}}]}}\n"
    )
}

fn slice(name: &str, service: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nendpoints: [{{addresses: [10.0.0.1]}}]\n"
    )
}

fn catalog(directory: &TestDirectory) -> Catalog {
    Catalog::new(
        directory.0.clone(),
        "node-a".into(),
        Options::default(),
        Arc::default(),
    )
}

/// Events in short: `+web:80`, `-web`.
pub(in crate::source) fn short(event: &Event) -> String {
    match event {
        Event::Begin(kind) => format!("begin {kind:?}"),
        Event::Complete(kind) => format!("complete {kind:?}"),
        Event::Lost(kind) => format!("lost {kind:?}"),
        Event::Found(kind) => format!("found {kind:?}"),
        Event::Service(service) => {
            let ports: Vec<_> = service
                .ports
                .iter()
                .map(|port| port.port.to_string())
                .collect();
            format!("+{}:{}", service.name.name, ports.join(","))
        }
        Event::ServiceGone(name) => format!("-{}", name.name),
        Event::Slice(slice) => format!("+slice {}", slice.name.name),
        Event::SliceGone(name) => format!("-slice {}", name.name),
        Event::Node(node) => format!("+node {}", node.name),
        Event::NodeGone => "-node".into(),
        Event::ServiceCidr(name, _) => format!("+cidr {name}"),
        Event::ServiceCidrGone(name) => format!("-cidr {name}"),
    }
}

fn scan(catalog: &mut Catalog) -> Vec<String> {
    catalog
        .scan(&Dirty::All)
        .unwrap()
        .iter()
        .map(short)
        .collect()
}

/// An unmounted file system leaves the empty place where it was.
#[test]
fn an_empty_directory_of_another_file_system_is_no_answer() {
    let place = TestDirectory::new("mounted");
    let shared = PathBuf::from("/dev/shm").join(format!("beeline-source-{}", std::process::id()));
    fs::create_dir_all(&shared).unwrap();
    fs::write(shared.join("a.yaml"), service("web", 80)).unwrap();
    fs::create_dir(place.0.join("below")).unwrap();
    let link = |to: &Path| {
        let _none = fs::remove_file(place.0.join("now"));
        std::os::unix::fs::symlink(to, place.0.join("now")).unwrap();
    };
    let mut catalog = Catalog::new(
        place.0.join("now"),
        "node-a".into(),
        Options::default(),
        Arc::default(),
    );
    link(&shared);
    catalog.scan(&Dirty::All).unwrap();
    link(&place.0.join("below"));
    assert!(catalog.scan(&Dirty::All).is_err());
    link(&shared);
    assert!(catalog.scan(&Dirty::All).unwrap().is_empty());
    // Its own file system says that there is nothing any more.
    fs::remove_file(shared.join("a.yaml")).unwrap();
    let gone = catalog.scan(&Dirty::All).unwrap();
    assert_eq!(gone.iter().map(short).collect::<Vec<_>>(), ["-web"]);
    fs::remove_dir_all(shared).unwrap();
}

#[test]
fn the_first_report_is_complete_lists_and_later_ones_are_changes() {
    let directory = TestDirectory::new("complete");
    directory.write("a.yaml", &(service("web", 80) + &slice("web-1", "web")));
    directory.write(
        "b.yml",
        "apiVersion: v1\nkind: Node\nmetadata: {name: node-a}",
    );
    directory.write("c.json", r#"{"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "k"}}"#);
    directory.write(".hidden.yaml", &service("hidden", 80));
    directory.write("notes.txt", "not ours");
    let mut catalog = catalog(&directory);
    let want = [
        "begin Node",
        "+node node-a",
        "complete Node",
        "begin ServiceCidrs",
        "+cidr k",
        "complete ServiceCidrs",
        "begin Slices",
        "+slice web-1",
        "complete Slices",
        "begin Services",
        "+web:80",
        "complete Services",
    ];
    assert_eq!(scan(&mut catalog), want);
    assert_eq!(scan(&mut catalog), [""; 0]);

    directory.write(
        "a.yaml",
        &(service("web", 81) + &slice("web-1", "web") + &service("new", 1)),
    );
    let mut changes = scan(&mut catalog);
    changes.sort();
    assert_eq!(changes, ["+new:1", "+web:81"]);

    // J9: endpoints come first and go last.
    directory.write("a.yaml", &(service("late", 1) + &slice("late-1", "late")));
    let changes = scan(&mut catalog);
    assert_eq!(changes[..2], ["+slice late-1", "+late:1"]);
    assert_eq!(changes[4], "-slice web-1");

    fs::remove_file(directory.0.join("b.yml")).unwrap();
    assert_eq!(scan(&mut catalog), ["-node"]);
}

#[test]
fn a1_a3_what_a_label_hides_comes_and_goes() {
    let directory = TestDirectory::new("labels");
    let labelled = |label: &str| {
        service("web", 80).replace(
            "{name: web}",
            &format!("{{name: web, labels: {{{label}: ''}}}}"),
        ) + &slice("web-1", "web").replace("labels: {", &format!("labels: {{{label}: '', "))
    };
    directory.write("a.yaml", &labelled("other"));
    let mut catalog = catalog(&directory);
    scan(&mut catalog);
    for (label, want) in [
        ("service.kubernetes.io/service-proxy-name", vec!["-web"]),
        (
            "service.kubernetes.io/headless",
            vec!["+web:80", "-slice web-1"],
        ),
        ("other", vec!["+slice web-1"]),
    ] {
        directory.write("a.yaml", &labelled(label));
        assert_eq!(scan(&mut catalog), want, "{label}");
    }
}

#[test]
fn a2_a4_services_without_an_address_go() {
    let directory = TestDirectory::new("headless");
    directory.write("a.yaml", &service("web", 80));
    let mut catalog = catalog(&directory);
    scan(&mut catalog);
    directory.write("a.yaml", &service("web", 80).replace("10.96.0.1", "None"));
    assert_eq!(scan(&mut catalog), ["-web"]);
}

#[test]
fn a_broken_file_keeps_its_last_good_objects_and_stops_no_other() {
    let directory = TestDirectory::new("broken");
    directory.write("a.yaml", &service("a", 80));
    directory.write("b.yaml", &service("b", 80));
    let mut catalog = catalog(&directory);
    scan(&mut catalog);
    directory.write("a.yaml", &(service("a", 81) + "---\n  broken: [\n"));
    directory.write("b.yaml", &service("b", 81));
    assert_eq!(scan(&mut catalog), ["+b:81"]);
    fs::write(directory.0.join("a.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    assert_eq!(scan(&mut catalog), [""; 0]);
    directory.write("a.yaml", &service("a", 82));
    assert_eq!(scan(&mut catalog), ["+a:82"]);
}

#[test]
fn the_first_file_by_name_wins_and_the_next_takes_over() {
    let directory = TestDirectory::new("twice");
    directory.write("b.yaml", &service("web", 2));
    let mut catalog = catalog(&directory);
    scan(&mut catalog);
    directory.write("c.yaml", &service("web", 3));
    assert_eq!(scan(&mut catalog), [""; 0]);
    directory.write("a.yaml", &service("web", 1));
    assert_eq!(scan(&mut catalog), ["+web:1"]);
    assert_eq!(catalog.losers.len(), 2);
    fs::remove_file(directory.0.join("a.yaml")).unwrap();
    assert_eq!(scan(&mut catalog), ["+web:2"]);
}

#[test]
fn only_our_own_node_counts() {
    let directory = TestDirectory::new("node");
    directory.write(
        "a.yaml",
        "apiVersion: v1\nkind: Node\nmetadata: {name: node-b}",
    );
    assert!(
        !scan(&mut catalog(&directory))
            .iter()
            .any(|event| event.starts_with("+node"))
    );
}

#[test]
fn an_unreadable_directory_changes_nothing() {
    let directory = TestDirectory::new("away");
    directory.write("a.yaml", &service("web", 80));
    let mut catalog = catalog(&directory);
    scan(&mut catalog);
    fs::remove_dir_all(&directory.0).unwrap();
    assert!(catalog.scan(&Dirty::All).is_err());
    fs::create_dir(&directory.0).unwrap();
    directory.write("a.yaml", &service("web", 80));
    assert_eq!(scan(&mut catalog), [""; 0]);
}

#[test]
fn what_is_no_regular_file_is_not_opened() {
    let directory = TestDirectory::new("odd");
    fs::create_dir(directory.0.join("a.yaml")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", directory.0.join("b.yaml")).unwrap();
    std::os::unix::fs::symlink("nowhere", directory.0.join("c.yaml")).unwrap();
    directory.write("d.yaml", &service("web", 80));
    assert!(scan(&mut catalog(&directory)).contains(&"+web:80".into()));
}
