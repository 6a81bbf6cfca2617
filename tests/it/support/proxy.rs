//! A network on the way that can be cut: it carries TCP connections, breaks them all, and comes back.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A network between a browser and a server.
pub struct Network {
    pub address: SocketAddr,
    is_up: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Network {
    pub async fn to(server: SocketAddr) -> Network {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let is_up = watch::Sender::new(true);
        let state = is_up.subscribe();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, server, state.clone()));
            }
        });
        Network { address, is_up, task }
    }

    /// Breaks every connection, with RST, and takes no other until it is restored.
    pub fn cut(&self) {
        self.is_up.send_replace(false);
    }

    pub fn restore(&self) {
        self.is_up.send_replace(true);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut client: TcpStream, server: SocketAddr, mut is_up: watch::Receiver<bool>) {
    let reset = |it: &TcpStream| SockRef::from(it).set_linger(Some(Duration::ZERO)).expect("a socket option");
    if !*is_up.borrow() {
        return reset(&client);
    }
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
        _ = is_up.wait_for(|it| !*it) => {
            reset(&client);
            reset(&server);
        }
    }
}
