//! Devices of a pod's kind, and the picture the agent has of them.

use std::process::Command;

use lb_agent::datapath::{Interfaces, Picture};

use crate::scratch::ip;

pub(crate) fn picture() -> Picture {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        Interfaces::open()
            .expect("a socket")
            .read()
            .await
            .expect("a list")
    })
}

#[allow(dead_code, reason = "each test binary uses its part of this module")]
pub(crate) fn pod(name: &str) {
    ip(&format!(
        "link add {name} type veth peer name eth0 netns {}",
        peer_namespace()
    ));
    ip(&format!("link set {name} up"));
}

/// A process that keeps another network namespace while the test runs, on an emulated processor too.
#[allow(dead_code, reason = "each test binary uses its part of this module")]
fn peer_namespace() -> u32 {
    use std::cell::OnceCell;
    struct Peer(std::process::Child);
    impl Drop for Peer {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    thread_local!(static PEER: OnceCell<Peer> = const { OnceCell::new() });
    PEER.with(|peer| {
        peer.get_or_init(|| {
            let child = Command::new("unshare")
                .args(["--net", "sleep", "3600"])
                .spawn()
                .expect("unshare");
            std::thread::sleep(std::time::Duration::from_millis(200));
            Peer(child)
        })
        .0
        .id()
    })
}
