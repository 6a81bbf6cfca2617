//! Browsers that are lost and come back, and messages that say which they are.

use super::raw::Frame;
use super::{Answer, Client, Gateway, Leg, Upstream, cookie};

/// The lines with which an upstream names a session.
pub const ID: &str = "nvcf-reqid: 5e2b1c7d-0000-0000-0000-000000000001\r\n";

/// A browser's connection to a session, and the cookie that brings it back.
pub struct Browser {
    pub client: Client,
    pub cookie: String,
}

/// Opens a session or comes back into one.
pub async fn ask(gateway: &Gateway, path: &str, headers: &[(&str, &str)]) -> (Client, Answer) {
    let mut client = gateway.connect().await;
    client.upgrade(path, headers).await;
    let answer = client.answer().await;
    (client, answer)
}

pub async fn open(gateway: &Gateway, cookie_before: &str) -> Browser {
    let (client, answer) = ask(gateway, "/sign_in?x=1", &[("Cookie", cookie_before)]).await;
    assert_eq!(answer.status, 101, "{}", answer.text());
    Browser { client, cookie: cookie(&answer.header("set-cookie").expect("a cookie")) }
}

pub async fn session(gateway: &Gateway, upstream: &mut Upstream) -> (Browser, Leg) {
    let browser = open(gateway, "").await;
    (browser, upstream.leg().await)
}

pub fn parked(gateway: &Gateway, n: f64) {
    gateway.until_metric("streamgate_sessions", &[("state", "parked")], n);
}

/// Messages that say which they are, of different lengths.
pub fn message(n: usize) -> Vec<u8> {
    format!("{n}:{}", "x".repeat(n * 37 % 300)).into_bytes()
}

pub fn payloads(frames: Vec<Frame>) -> Vec<Vec<u8>> {
    frames.into_iter().filter(|it| it.opcode < 8).map(|it| it.payload).collect()
}

pub async fn next(client: &mut Client, n: usize) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while all.len() < n {
        let frame = client.frame().await.expect("a message");
        all.extend(payloads(vec![frame]));
    }
    all
}
