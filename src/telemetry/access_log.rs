//! A line for each request and each session.

use std::fmt::Write as _;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::telemetry::Metrics;

/// Where the lines go. Writing never holds up a request: a reader that is too slow, or gone, loses lines, which are counted.
#[derive(Clone)]
pub(crate) struct AccessLog {
    sender: Option<SyncSender<Item>>,
    json: bool,
    metrics: Metrics,
}

/// What the writer gets.
enum Item {
    Line(String),
    /// Answered once all lines before it are written.
    Flush(SyncSender<()>),
}

/// One line: what is known about a request or a session that is over.
pub(crate) struct Line<'a> {
    /// `request` or `session`.
    pub(crate) kind: &'static str,
    pub(crate) at: SystemTime,
    pub(crate) id: &'a str,
    pub(crate) client: SocketAddr,
    pub(crate) method: &'a str,
    /// The path, without the query: queries carry tokens.
    pub(crate) path: &'a str,
    pub(crate) route: &'a str,
    pub(crate) principal: &'a str,
    pub(crate) function: &'a str,
    /// The public name of the session that it belongs to; empty when there is none.
    pub(crate) session: &'a str,
    pub(crate) status: u16,
    /// The error code, or why the session ended.
    pub(crate) reason: &'a str,
    /// The code of the Close frame that ended the session; 0: none.
    pub(crate) close: u16,
    /// Bytes from the browser.
    pub(crate) received: u64,
    /// Bytes to the browser.
    pub(crate) sent: u64,
    pub(crate) took: Duration,
}

/// Lines that may wait for a slow reader.
const WAITING: usize = 8192;

/// How long the end of the process waits for a slow reader.
const FLUSH: Duration = Duration::from_secs(1);

/// Longest text of one field; the rest is cut.
const LONGEST: usize = 256;

impl AccessLog {
    /// Lines on standard output; none when the log is off.
    pub(crate) fn new(on: bool, json: bool, metrics: &Metrics) -> Self {
        let sender = on.then(|| {
            let (sender, receiver) = sync_channel::<Item>(WAITING);
            let metrics = metrics.clone();
            let write = move || {
                let stdout = std::io::stdout();
                while let Ok(first) = receiver.recv() {
                    let mut out = stdout.lock();
                    let mut flushed = Vec::new();
                    for item in std::iter::once(first).chain(receiver.try_iter()) {
                        match item {
                            // A closed pipe is the reader's decision; requests go on.
                            Item::Line(line) => {
                                if out.write_all(line.as_bytes()).is_err() {
                                    metrics.access_line_dropped();
                                }
                            }
                            Item::Flush(done) => flushed.push(done),
                        }
                    }
                    drop(out.flush());
                    flushed.into_iter().for_each(|it| it.send(()).unwrap_or_default()); // nobody waits any more
                }
            };
            std::thread::Builder::new()
                .name("access-log".into())
                .spawn(write)
                .expect("a thread can be started");
            sender
        });
        AccessLog { sender, json, metrics: metrics.clone() }
    }

    /// Writes one line.
    pub(crate) fn write(&self, line: &Line<'_>) {
        let Some(sender) = &self.sender else { return };
        let text = if self.json { line.json() } else { line.text() };
        if let Err(TrySendError::Full(_)) = sender.try_send(Item::Line(text)) {
            self.metrics.access_line_dropped();
        }
    }

    /// Waits until all lines so far are written, or their reader is too slow for that.
    pub(crate) fn flush(&self) {
        let Some(sender) = &self.sender else { return };
        let (done, is_done) = sync_channel(1);
        if sender.try_send(Item::Flush(done)).is_ok() {
            is_done.recv_timeout(FLUSH).unwrap_or_default();
        }
    }
}

impl Line<'_> {
    fn time(&self) -> String {
        OffsetDateTime::from(self.at).format(&Rfc3339).unwrap_or_default()
    }

    fn json(&self) -> String {
        let mut it = Map::new();
        let mut put = |key: &str, value: Value| {
            it.insert(key.to_owned(), value);
        };
        put("time", self.time().into());
        put("kind", self.kind.into());
        put("request", self.id.into());
        put("client", self.client().into());
        put("method", cut(self.method).into());
        put("path", cut(self.path).into());
        put("route", self.route.into());
        put("principal", cut(self.principal).into());
        put("function", cut(self.function).into());
        if !self.session.is_empty() {
            put("session", self.session.into());
        }
        put("status", self.status.into());
        put("reason", self.reason.into());
        if self.kind == "session" {
            put("close", self.close.into());
        }
        put("received", self.received.into());
        put("sent", self.sent.into());
        put("seconds", self.took.as_secs_f64().into());
        format!("{}\n", Value::Object(it))
    }

    /// Without a port where a proxy has not told it.
    fn client(&self) -> String {
        match self.client.port() {
            0 => self.client.ip().to_string(),
            _ => self.client.to_string(),
        }
    }

    fn text(&self) -> String {
        let mut it = String::with_capacity(320);
        let write = "a string takes every write";
        write!(it, "{} {} {} {}", self.time(), self.kind, self.id, self.client()).expect(write);
        write!(it, " {} {}", quoted(self.method), quoted(self.path)).expect(write);
        write!(it, " route={} principal={}", quoted(self.route), quoted(self.principal)).expect(write);
        write!(it, " function={}", quoted(self.function)).expect(write);
        if !self.session.is_empty() {
            write!(it, " session={}", self.session).expect(write);
        }
        write!(it, " status={} reason={}", self.status, self.reason).expect(write);
        if self.kind == "session" {
            write!(it, " close={}", self.close).expect(write);
        }
        write!(it, " received={} sent={} seconds={:.6}", self.received, self.sent, self.took.as_secs_f64())
            .expect(write);
        it.push('\n');
        it
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A field as it is when it is plain, quoted and escaped when it is not: a line stays a line.
fn quoted(text: &str) -> std::borrow::Cow<'_, str> {
    let text = cut(text);
    let plain = |it: char| it.is_ascii_graphic() && !matches!(it, '"' | '\\' | '=');
    if !text.is_empty() && text.chars().all(plain) { text.into() } else { format!("{text:?}").into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &str) -> Line<'_> {
        Line {
            kind: "session",
            at: SystemTime::UNIX_EPOCH,
            id: "r1",
            client: ([192, 0, 2, 7], 5000).into(),
            method: "GET",
            path,
            route: "/**",
            principal: "ada",
            function: "f00d",
            session: "",
            status: 101,
            reason: "closed_by_browser",
            close: 1000,
            received: 7,
            sent: 9,
            took: Duration::from_millis(1500),
        }
    }

    #[test]
    fn a_line_has_what_an_operator_asks_for() {
        assert_eq!(
            line("/sign_in").text(),
            "1970-01-01T00:00:00Z session r1 192.0.2.7:5000 GET /sign_in route=/** principal=ada function=f00d \
             status=101 reason=closed_by_browser close=1000 received=7 sent=9 seconds=1.500000\n"
        );
        let json: Value = serde_json::from_str(&line("/sign_in").json()).expect("JSON");
        assert_eq!(json["principal"], "ada");
        assert_eq!(json["close"], 1000);
    }

    #[test]
    fn a_hostile_path_stays_on_its_line() {
        let text = line("/a b\n\u{1b}[31m status=200").text();
        assert_eq!(text.matches('\n').count(), 1, "{text:?}");
        assert!(!text.contains('\u{1b}'), "{text:?}");
        assert!(line(&"x".repeat(10_000)).text().len() < 600);
    }
}
