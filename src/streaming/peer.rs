//! One browser's media path, and the engine that makes it. The rest of the streaming server knows only the traits.

mod webrtc;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::streaming::mux::Mux;
use crate::streaming::source::Frame;

/// Makes media paths.
#[async_trait]
pub(crate) trait Engine: Send + Sync {
    /// A path with a video track and an input channel, about to be offered. What happens to it comes out of `events`.
    async fn open(&self, events: mpsc::Sender<PeerEvent>) -> Result<Arc<dyn Peer>, PeerError>;
}

/// One browser's media path.
#[async_trait]
pub(crate) trait Peer: Send + Sync {
    /// The offer, with the candidates known so far. `restart` asks for new ICE credentials.
    async fn offer(&self, restart: bool) -> Result<String, PeerError>;

    /// Takes the browser's answer.
    async fn answer(&self, sdp: &str) -> Result<(), PeerError>;

    /// Takes a candidate of the browser.
    async fn add_candidate(&self, candidate: &Candidate) -> Result<(), PeerError>;

    /// Sends a picture; `timestamp` is of the 90 kHz RTP clock.
    async fn send_frame(&self, frame: &Frame, timestamp: u32) -> Result<(), PeerError>;

    /// Sends a message over the input channel, in turn. One that has no room any more behind others, which a browser does
    /// not take, is lost.
    fn send_input(&self, message: Message) -> Result<(), PeerError>;

    /// Ends the path and frees what it holds.
    async fn close(&self);
}

/// What happens to a path.
#[derive(Debug)]
pub(crate) enum PeerEvent {
    /// Media can flow.
    Connected,
    /// Nothing has been heard for a while; it may come back.
    Disconnected,
    /// It will not come back by itself.
    Failed,
    /// A message came over the input channel.
    Input(Message),
    /// The browser needs a picture that stands for itself.
    KeyframeWanted,
}

/// A message of the input channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) is_text: bool,
    pub(crate) bytes: Bytes,
}

/// An ICE candidate as browsers write it.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Candidate {
    pub(crate) candidate: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sdp_mid: Option<String>,
    #[serde(default, rename = "sdpMLineIndex", skip_serializing_if = "Option::is_none")]
    pub(crate) sdp_m_line_index: Option<u16>,
}

/// What went wrong on a path, for the log.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct PeerError(pub(crate) String);

/// The engine on the shared port.
pub(crate) fn engine(mux: &Arc<Mux>, mime: &'static str) -> Result<Arc<dyn Engine>, PeerError> {
    Ok(Arc::new(webrtc::WebRtc::new(mux, mime)?))
}
