//! The log of the whole test process, searched by request id, and searched for what must never be in it.

use std::io::Write;
use std::sync::{Mutex, Once, PoisonError};

use super::{KEY, TOKEN};

static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Writer;

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Collects the log from now on.
pub fn collect() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let filter = "debug,hyper=info,webrtc=warn,rtc=warn,mio=info";
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(|| Writer).init();
    });
}

/// All so far.
pub fn text() -> String {
    String::from_utf8_lossy(&LOG.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
}

/// The lines with a text in them.
pub fn lines_with(needle: &str) -> Vec<String> {
    text().lines().filter(|it| it.contains(needle)).map(str::to_owned).collect()
}

/// Fails when a secret is in the log.
pub fn assert_silent_about_secrets() {
    let text = text();
    for secret in [KEY, TOKEN] {
        if let Some(at) = text.find(secret) {
            let line = text[..at].rfind('\n').map_or(0, |it| it + 1);
            panic!("a secret is in the log: {}", text[line..].lines().next().unwrap_or_default());
        }
    }
}
