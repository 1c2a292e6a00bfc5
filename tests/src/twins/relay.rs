//! Lets the nodes of a namespace cluster reach an API server that is no machine of theirs.
//!
//! Each node gets a listener on its loopback, at the API server's own address and port, so that one kubeconfig
//! serves all. No device is added, as that is what service proxies look at.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context as _, Result};

use crate::netns::Namespace;

/// Passes connections to `address` inside of `namespace` on to `address` of the calling thread's namespace.
pub(crate) fn open(namespace: &Namespace, address: SocketAddr) -> Result<()> {
    let listener = namespace.run(|| {
        TcpListener::bind(address).with_context(|| format!("listening on {address} of a node"))
    })?;
    // A thread stays in the namespace of the one that started it. This one ends with the process.
    thread::spawn(move || {
        for client in listener.incoming().filter_map(Result::ok) {
            if let Ok(server) = TcpStream::connect(address) {
                // Connections end with either side; that is all there is to say about them.
                let _ = join(client, server);
            }
        }
    });
    Ok(())
}

fn join(client: TcpStream, server: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    for (mut from, mut to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
    Ok(())
}
