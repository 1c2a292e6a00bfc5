//! Tells this host's sockets that are connected to a UDP endpoint which vanished. Pods' sockets learn it from the packet
//! path.
//!
//! Finding them means to read all UDP sockets of the host. A thread of its own does that, once for all endpoints that have
//! vanished meanwhile, so that no change waits for it (spec E13.8).

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{self, Sender};
use std::thread;

use tracing::debug;

use crate::plan::Write;
use crate::sys::sock_diag;

/// Leads to the thread, which ends with it.
#[derive(Debug)]
pub(super) struct Sockets(Sender<HashSet<SocketAddr>>);

impl Sockets {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let (vanished, inbox) = mpsc::channel::<HashSet<SocketAddr>>();
        let end = move || {
            while let Ok(mut endpoints) = inbox.recv() {
                endpoints.extend(inbox.try_iter().flatten());
                match sock_diag::end_udp_sockets(&endpoints) {
                    Ok(ended) => debug!(?endpoints, ?ended, "ended sockets"),
                    Err(error) => debug!(?endpoints, %error, "could not end sockets"),
                }
            }
        };
        thread::Builder::new().name("sockets".into()).spawn(end)?;
        Ok(Self(vanished))
    }

    /// Ends sockets that are connected to these endpoints, soon.
    pub(super) fn end(&self, endpoints: HashSet<SocketAddr>) {
        if !endpoints.is_empty() {
            // The thread ends after this sender.
            let _ = self.0.send(endpoints);
        }
    }
}

/// UDP endpoints that vanish with these writes.
pub(super) fn vanished(writes: &[Write]) -> impl Iterator<Item = SocketAddr> {
    writes.iter().filter_map(|write| match write {
        Write::Tombstone { key, present: true } => {
            Some(SocketAddr::new(key.address.into(), key.port))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::{Duration, Instant};

    use super::*;

    /// Spec E13.8: sockets by the thousand, and endpoints that vanish one after another. Needs root, as ending a socket
    /// does.
    #[test]
    fn a_change_does_not_wait_for_the_sockets() {
        let bind = || UdpSocket::bind("127.0.0.1:0").expect("bind");
        let servers: Vec<UdpSocket> = (0..400).map(|_| bind()).collect();
        let addresses = servers.iter().map(|server| server.local_addr());
        let addresses: Vec<SocketAddr> = addresses.collect::<Result<_, _>>().expect("bound");
        let clients: Vec<UdpSocket> = addresses
            .iter()
            .map(|address| {
                let client = bind();
                client.connect(address).expect("connect");
                client
            })
            .collect();
        let read = || sock_diag::end_udp_sockets(&["192.0.2.1:9".parse().unwrap()].into());
        let began = Instant::now();
        read().expect("this test needs root");
        let one = began.elapsed();
        let sockets = Sockets::start().expect("a thread");
        let began = Instant::now();
        addresses
            .iter()
            .for_each(|address| sockets.end([*address].into()));
        let told = began.elapsed();
        for client in &clients {
            client
                .set_read_timeout(Some(Duration::from_secs(20)))
                .expect("set");
            let error = client.recv(&mut [0]).expect_err("its endpoint vanished");
            assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED), "{error}");
        }
        assert!(told < one * 200, "{told:?} to tell of 400, {one:?} to read");
    }
}
