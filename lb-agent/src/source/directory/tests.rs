use std::fs;
use std::os::unix::fs::symlink;

use super::super::catalog::tests::{TestDirectory, service, short};
use super::*;

/// A source that runs, and what it reports.
struct Running {
    events: mpsc::Receiver<Event>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Running {
    fn start(directory: &Path) -> Self {
        let (sender, events) = mpsc::channel(64);
        let source = DirectorySource::new(
            directory.into(),
            "node-a".into(),
            Options::default(),
            Arc::default(),
        );
        Self {
            events,
            task: tokio::spawn(source.run(sender)),
        }
    }

    /// The next events, in short; the marks of lists left out.
    async fn expect(&mut self, want: &[&str]) {
        let mut got = Vec::new();
        while got.len() < want.len() {
            let event = timeout(Duration::from_secs(20), self.events.recv()).await;
            let event = event
                .unwrap_or_else(|_| panic!("waiting for {want:?}, got {got:?}"))
                .unwrap();
            if !matches!(event, Event::Begin(_) | Event::Complete(_)) {
                got.push(short(&event));
            }
        }
        assert_eq!(got, want);
    }

    /// Waits for the end of the first complete lists.
    async fn listed(&mut self) {
        while self.events.recv().await.unwrap() != Event::Complete(crate::snapshot::Kind::Services)
        {
        }
    }
}

#[tokio::test]
async fn edits_are_followed() {
    let directory = TestDirectory::new("edits");
    directory.write("a.yaml", &service("web", 80));
    let mut source = Running::start(&directory.0);
    source.expect(&["+web:80"]).await;

    directory.write("a.yaml", &service("web", 81));
    source.expect(&["+web:81"]).await;

    // An editor's atomic save, and a file that comes by its name.
    directory.write("a.yaml~", &service("web", 82));
    fs::rename(directory.0.join("a.yaml~"), directory.0.join("a.yaml")).unwrap();
    source.expect(&["+web:82"]).await;

    directory.write("b.yaml", &service("new", 1));
    source.expect(&["+new:1"]).await;
    fs::rename(directory.0.join("b.yaml"), directory.0.join("c.yaml")).unwrap();
    fs::remove_file(directory.0.join("a.yaml")).unwrap();
    source.expect(&["-web"]).await;
    fs::remove_file(directory.0.join("c.yaml")).unwrap();
    source.expect(&["-new"]).await;

    // Links hold all their content at once.
    directory.write("target", &service("linked", 1));
    symlink("target", directory.0.join("d.yaml")).unwrap();
    source.expect(&["+linked:1"]).await;
    fs::hard_link(directory.0.join("target"), directory.0.join("0.yaml")).unwrap();
    fs::remove_file(directory.0.join("d.yaml")).unwrap();
    directory.write("e.yaml", &service("last", 1));
    source.expect(&["+last:1"]).await;

    drop(source.events);
    source.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_config_map_volume_is_followed() {
    let directory = TestDirectory::new("volume");
    let version = |name: &str, port| {
        fs::create_dir(directory.0.join(name)).unwrap();
        directory.write(&format!("{name}/a.yaml"), &service("web", port));
        symlink(name, directory.0.join("..data_tmp")).unwrap();
        fs::rename(directory.0.join("..data_tmp"), directory.0.join("..data")).unwrap();
    };
    version("..1", 80);
    symlink("..data/a.yaml", directory.0.join("a.yaml")).unwrap();
    let mut source = Running::start(&directory.0);
    source.expect(&["+web:80"]).await;
    version("..2", 81);
    fs::remove_dir_all(directory.0.join("..1")).unwrap();
    source.expect(&["+web:81"]).await;
}

#[tokio::test]
async fn a_directory_that_goes_and_comes_again_is_found_again() {
    let outer = TestDirectory::new("outer");
    let inner = outer.0.join("deep/manifests");
    // It is not there at first, and neither is its parent.
    let mut source = Running::start(&inner);
    fs::create_dir_all(&inner).unwrap();
    source.listed().await;
    outer.write("deep/manifests/a.yaml", &service("web", 80));
    source.expect(&["+web:80"]).await;

    // Another directory takes its place at once, as with a rename.
    fs::create_dir(outer.0.join("next")).unwrap();
    outer.write("next/a.yaml", &service("web", 81));
    fs::rename(&inner, outer.0.join("before")).unwrap();
    fs::rename(outer.0.join("next"), &inner).unwrap();
    source.expect(&["+web:81"]).await;

    // It goes with all above it, and comes back with other content.
    fs::rename(outer.0.join("deep"), outer.0.join("gone")).unwrap();
    fs::create_dir_all(&inner).unwrap();
    outer.write("deep/manifests/b.yaml", &service("web", 82));
    source.expect(&["+web:82"]).await;

    // And is followed still.
    outer.write("deep/manifests/b.yaml", &service("web", 83));
    source.expect(&["+web:83"]).await;
}

#[tokio::test]
async fn a_link_to_the_directory_may_be_turned() {
    let outer = TestDirectory::new("link");
    for (name, port) in [("one", 1), ("two", 2)] {
        fs::create_dir(outer.0.join(name)).unwrap();
        outer.write(&format!("{name}/a.yaml"), &service("web", port));
    }
    symlink("one", outer.0.join("manifests")).unwrap();
    let mut source = Running::start(&outer.0.join("manifests"));
    source.expect(&["+web:1"]).await;
    symlink("two", outer.0.join("new")).unwrap();
    fs::rename(outer.0.join("new"), outer.0.join("manifests")).unwrap();
    source.expect(&["+web:2"]).await;
}
