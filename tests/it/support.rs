//! What the tests are written with: a gateway, an upstream, a browser, each with ports and a folder of its own.

pub mod chromium;
pub mod gateway;
pub mod haproxy;
pub mod life;
pub mod log;
pub mod oidc;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod redis;
pub mod service;
pub mod upstream;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use streamgate::clock::Clock;

pub use gateway::Gateway;
pub use raw::{Answer, Client};
pub use service::Service;
pub use upstream::{Leg, Upstream};

/// The key that goes upstream. No log may ever have it.
pub const KEY: &str = "nvapi-canary-0123456789";

/// The function of most tests.
pub const FUNCTION: &str = "11111111-2222-3333-4444-555555555555";

/// A token that `bearer-auth` knows, in the tests that have it. No log may ever have it.
pub const TOKEN: &str = "canary-token-of-ada";

/// A test that waits this long for something waits for what will not come.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for something that must come.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come"),
    }
}

/// Lets time pass until something comes of it.
pub async fn advancing<T>(clock: &Clock, future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    loop {
        tokio::select! {
            output = &mut future => return output,
            () = tokio::time::sleep(Duration::from_millis(5)) => clock.advance(Duration::from_secs(1)),
        }
    }
}

/// The part `name=value` of a `Set-Cookie`.
pub fn cookie(set: &str) -> String {
    set.split(';').next().expect("a cookie").to_owned()
}

/// A folder of one test, gone with it.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("streamgate-it-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a folder can be made");
        Folder(path)
    }

    /// A file that stays until the process ends, for a configuration that reads it later.
    pub fn leaked(name: &str, text: &str) -> PathBuf {
        let folder = std::mem::ManuallyDrop::new(Folder::new());
        folder.write(name, text)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file, with the folders above it.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().expect("it lies in the folder")).expect("a folder can be made");
        std::fs::write(&path, text).expect("a file can be written");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}
