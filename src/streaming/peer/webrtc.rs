//! The engine on the `webrtc` crate, one virtual socket of the shared port for each connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::BytesMut;
use rtc::crypto::{SignatureScheme, default_provider};
use rtc::ice::mdns::MulticastDnsMode;
use rtc::interceptor::{
    Attribute, Interceptor, NackResponderBuilder, Packet, SenderReportBuilder, Slot, StreamInfo, TaggedPacket,
};
use rtc::peer_connection::certificate::CertificateParams;
use rtc::rtcp::payload_feedbacks::full_intra_request::FullIntraRequest;
use rtc::rtcp::payload_feedbacks::picture_loss_indication::PictureLossIndication;
use rtc::rtp;
use rtc::rtp_transceiver::rtp_sender::{
    RTCPFeedback, RTCRtpCodec, RTCRtpCodecParameters, RTCRtpCodingParameters, RTCRtpEncodingParameters,
    RtpCodecKind,
};
use rtc::sansio::Protocol;
use rtc::shared::error::Error;
use tokio::sync::{Mutex, OnceCell, mpsc};
use webrtc::data_channel::{DataChannel, DataChannelEvent, RTCDataChannelInit};
use webrtc::media_stream::MediaStreamTrack;
use webrtc::media_stream::track_local::static_rtp::TrackLocalStaticRTP;
use webrtc::media_stream::track_local::{TrackLocal, TrackLocalEvent};
use webrtc::peer_connection::{
    MediaEngine, PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler, RTCCertificate,
    RTCConfigurationBuilder, RTCIceCandidateInit, RTCPeerConnectionState, RTCSessionDescription, Registry,
    SettingEngineBuilder,
};
use webrtc::rtp_transceiver::RtpSender;

use crate::streaming::mux::{Mux, MuxRuntime};
use crate::streaming::peer::{Candidate, Engine, Message, Peer, PeerError, PeerEvent};
use crate::streaming::source::Frame;

/// The engine.
pub(crate) struct WebRtc {
    mux: Arc<Mux>,
    mime: &'static str,
    /// One for all connections: making a key for each costs more than the rest of a connection.
    certificate: RTCCertificate,
}

struct Connection {
    mux: Arc<Mux>,
    runtime: Arc<MuxRuntime>,
    pc: Arc<dyn PeerConnection>,
    sender: Arc<dyn RtpSender>,
    track: Arc<TrackLocalStaticRTP>,
    /// What is still to be sent over the input channel, and what sends it.
    input: mpsc::Sender<Message>,
    writer: tokio::task::JoinHandle<()>,
    ssrc: u32,
    payload_type: OnceCell<u8>,
    sequence: AtomicU16,
    /// Candidates that are tried since the last offer.
    n_candidates: AtomicUsize,
    /// Candidates that came before the answer.
    early: Mutex<Option<Vec<Candidate>>>,
    events: mpsc::Sender<PeerEvent>,
}

/// Name of the data channel.
const INPUT: &str = "input";

/// Largest message of the input channel.
const LARGEST_INPUT: usize = 16 << 10;

/// Bytes that may wait for a slow browser on the input channel.
const INPUT_BUFFER: usize = 1 << 20;

/// Messages that may wait for room there.
const WAITING_INPUT: usize = 64;

/// Candidates of one browser that are tried. The rest are passed over: it may name any addresses, and all are sent checks.
const MOST_CANDIDATES: usize = 32;

/// Packets kept for retransmission: about a second at 2 Mbit/s.
const RETRANSMIT: u16 = 256;

impl WebRtc {
    pub(crate) fn new(mux: &Arc<Mux>, mime: &'static str) -> Result<WebRtc, PeerError> {
        let provider = default_provider().map_err(failed)?;
        let params = CertificateParams::new(vec!["streamgate".to_owned()]).map_err(failed)?;
        let certificate =
            RTCCertificate::generate(provider.crypto(), SignatureScheme::EcdsaP256Sha256, params)
                .map_err(failed)?;
        Ok(WebRtc { mux: Arc::clone(mux), mime, certificate })
    }

    fn codec(&self) -> RTCRtpCodec {
        let feedback =
            |typ: &str, parameter: &str| RTCPFeedback { typ: typ.into(), parameter: parameter.into() };
        RTCRtpCodec {
            mime_type: self.mime.to_owned(),
            clock_rate: 90_000,
            channels: 0,
            sdp_fmtp_line: String::new(),
            rtcp_feedback: vec![feedback("nack", ""), feedback("nack", "pli"), feedback("ccm", "fir")],
        }
    }
}

#[async_trait]
impl Engine for WebRtc {
    async fn open(&self, events: mpsc::Sender<PeerEvent>) -> Result<Arc<dyn Peer>, PeerError> {
        let mut media = MediaEngine::default();
        let parameters = RTCRtpCodecParameters { rtp_codec: self.codec(), payload_type: 96 };
        media.register_codec(parameters, RtpCodecKind::Video).map_err(failed)?;
        // What a sender needs: lost packets again, reports for the receiver's clock, and requests for keyframes.
        let interceptors = Registry::new()
            .with(Slot::NackResponder, NackResponderBuilder::new().with_size(RETRANSMIT).build())
            .with(Slot::SenderReport, SenderReportBuilder::new().build())
            .with(Slot::from(14_000), KeyframeRequests::default());
        // Browsers hide their addresses behind mDNS names and are found by their own checks, so checks come fast and a
        // found address is taken at once. The number of checks grows as their interval shrinks, or a pair would be
        // given up after 140 ms.
        let settings = SettingEngineBuilder::new()
            .with_multicast_dns_mode(MulticastDnsMode::Disabled)
            .with_prflx_acceptance_min_wait(Some(Duration::ZERO))
            .with_ice_connection_attempts(Some(Duration::from_millis(20)), Some(500))
            .with_ice_timeouts(
                Some(Duration::from_secs(5)),
                Some(Duration::from_secs(25)),
                Some(Duration::from_secs(2)),
            )
            .build();
        let configuration =
            RTCConfigurationBuilder::new().with_certificates(vec![self.certificate.clone()]).build();
        let runtime = MuxRuntime::new(&self.mux);
        let pc: Arc<dyn PeerConnection> = Arc::new(
            PeerConnectionBuilder::new()
                .with_configuration(configuration)
                .with_setting_engine(settings)
                .with_media_engine(media)
                .with_interceptor_registry(interceptors)
                .with_handler(Arc::new(Handler { events: events.clone() }))
                .with_runtime(Arc::clone(&runtime) as _)
                .with_udp_addrs(vec!["127.0.0.1:0".to_owned()])
                .with_data_channel_send_buffer_limit(INPUT_BUFFER)
                .build()
                .await
                .map_err(failed)?,
        );
        let ssrc = uuid::Uuid::new_v4().as_fields().0;
        let encoding = RTCRtpEncodingParameters {
            rtp_coding_parameters: RTCRtpCodingParameters { ssrc: Some(ssrc), ..Default::default() },
            codec: self.codec(),
            ..Default::default()
        };
        let track = MediaStreamTrack::new(
            "stream".into(),
            "video".into(),
            "video".into(),
            RtpCodecKind::Video,
            vec![encoding],
        );
        let track = Arc::new(TrackLocalStaticRTP::new(track));
        let sender = pc.add_track(Arc::clone(&track) as Arc<dyn TrackLocal>).await.map_err(failed)?;
        // Reliable and in order: a key that is let go of must not stay down.
        let input =
            pc.create_data_channel(INPUT, Some(RTCDataChannelInit::default())).await.map_err(failed)?;
        tokio::spawn(read_input(Arc::clone(&input), events.clone()));
        let (sender_of_input, waiting) = mpsc::channel(WAITING_INPUT);
        let writer = tokio::spawn(write_input(input, waiting));
        Ok(Arc::new(Connection {
            mux: Arc::clone(&self.mux),
            runtime,
            pc,
            sender,
            track,
            input: sender_of_input,
            writer,
            ssrc,
            payload_type: OnceCell::new(),
            sequence: AtomicU16::new(uuid::Uuid::new_v4().as_fields().1),
            n_candidates: AtomicUsize::new(0),
            early: Mutex::new(Some(Vec::new())),
            events,
        }))
    }
}

#[async_trait]
impl Peer for Connection {
    async fn offer(&self, restart: bool) -> Result<String, PeerError> {
        if restart {
            self.pc.restart_ice().await.map_err(failed)?;
        }
        self.n_candidates.store(0, Ordering::Relaxed);
        let offer = self.pc.create_offer(None).await.map_err(failed)?;
        let sdp = offer.sdp.clone();
        self.pc.set_local_description(offer).await.map_err(failed)?;
        // Registered before anybody can read the offer, so the first check finds its session.
        let socket = self.runtime.socket().ok_or_else(|| PeerError("the connection has no socket".into()))?;
        for ufrag in attribute(&sdp, "ice-ufrag") {
            self.mux.register(ufrag, &socket);
        }
        Ok(with_candidates(&sdp, &self.mux.candidates()))
    }

    async fn answer(&self, sdp: &str) -> Result<(), PeerError> {
        let (sdp, n_candidates) = without_useless_candidates(sdp);
        self.n_candidates.fetch_add(n_candidates, Ordering::Relaxed);
        let description = RTCSessionDescription::answer(sdp).map_err(failed)?;
        self.pc.set_remote_description(description).await.map_err(failed)?;
        let early = self.early.lock().await.take();
        for candidate in early.into_iter().flatten() {
            self.add_now(&candidate).await?;
        }
        // The track gives feedback once it is bound, which the answer does.
        let (track, events) = (Arc::clone(&self.track), self.events.clone());
        if self.payload_type.get().is_none() {
            tokio::spawn(read_feedback(track, events));
        }
        let parameters = self.sender.get_parameters().await.map_err(failed)?;
        let codec = parameters.rtp_parameters.codecs.first();
        let payload_type =
            codec.ok_or_else(|| PeerError("the browser does not play this codec".into()))?.payload_type;
        drop(self.payload_type.set(payload_type)); // a restart negotiates the same
        Ok(())
    }

    async fn add_candidate(&self, candidate: &Candidate) -> Result<(), PeerError> {
        if let Some(early) = &mut *self.early.lock().await {
            if early.len() < MOST_CANDIDATES {
                early.push(candidate.clone());
            }
            return Ok(());
        }
        self.add_now(candidate).await
    }

    async fn send_frame(&self, frame: &Frame, timestamp: u32) -> Result<(), PeerError> {
        let Some(payload_type) = self.payload_type.get() else { return Ok(()) };
        let last = frame.payloads.len().saturating_sub(1);
        for (idx, payload) in frame.payloads.iter().enumerate() {
            let header = rtp::header::Header {
                version: 2,
                marker: idx == last,
                payload_type: *payload_type,
                sequence_number: self.sequence.fetch_add(1, Ordering::Relaxed),
                timestamp,
                ssrc: self.ssrc,
                ..Default::default()
            };
            let packet = rtp::Packet { header, payload: payload.clone() };
            self.track.write_rtp(packet).await.map_err(failed)?;
        }
        Ok(())
    }

    fn send_input(&self, message: Message) -> Result<(), PeerError> {
        self.input
            .try_send(message)
            .map_err(|_| PeerError("the browser does not take what was sent before".into()))
    }

    async fn close(&self) {
        self.writer.abort();
        if let Err(error) = self.pc.close().await {
            tracing::debug!(%error, "A media path did not close.");
        }
        if let Some(socket) = self.runtime.socket() {
            self.mux.forget(&socket);
        }
    }
}

impl Connection {
    async fn add_now(&self, candidate: &Candidate) -> Result<(), PeerError> {
        if is_hidden(&candidate.candidate)
            || self.n_candidates.fetch_add(1, Ordering::Relaxed) >= MOST_CANDIDATES
        {
            return Ok(());
        }
        let init = RTCIceCandidateInit {
            candidate: candidate.candidate.clone(),
            sdp_mid: candidate.sdp_mid.clone(),
            sdp_mline_index: candidate.sdp_m_line_index,
            ..Default::default()
        };
        self.pc.add_ice_candidate(init).await.map_err(failed)
    }
}

/// Callbacks run on the connection's driver, so they only pass on what happened.
struct Handler {
    events: mpsc::Sender<PeerEvent>,
}

#[async_trait]
impl PeerConnectionEventHandler for Handler {
    async fn on_connection_state_change(&self, state: RTCPeerConnectionState) {
        let event = match state {
            RTCPeerConnectionState::Connected => PeerEvent::Connected,
            RTCPeerConnectionState::Disconnected => PeerEvent::Disconnected,
            RTCPeerConnectionState::Failed => PeerEvent::Failed,
            _ => return,
        };
        drop(self.events.try_send(event)); // a viewer that does not listen any more is about to close
    }
}

async fn read_input(channel: Arc<dyn DataChannel>, events: mpsc::Sender<PeerEvent>) {
    while let Some(event) = channel.poll().await {
        match event {
            DataChannelEvent::OnMessage(message) if message.data.len() <= LARGEST_INPUT => {
                let message = Message { is_text: message.is_string, bytes: message.data.freeze() };
                // A browser that sends faster than it is served loses its own messages.
                drop(events.try_send(PeerEvent::Input(message)));
            }
            DataChannelEvent::OnClose => return,
            _ => {}
        }
    }
}

/// Waits for a browser that is slow, which nobody else must do for it.
async fn write_input(channel: Arc<dyn DataChannel>, mut waiting: mpsc::Receiver<Message>) {
    while let Some(message) = waiting.recv().await {
        let sent = match std::str::from_utf8(&message.bytes) {
            Ok(text) if message.is_text => channel.send_text(text).await,
            _ => channel.send(BytesMut::from(&message.bytes[..])).await,
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "A message could not be sent over the input channel.");
        }
    }
}

async fn read_feedback(track: Arc<TrackLocalStaticRTP>, events: mpsc::Sender<PeerEvent>) {
    while let Some(TrackLocalEvent::OnRtcpPacket(_)) = track.poll().await {
        drop(events.try_send(PeerEvent::KeyframeWanted)); // nothing else is delivered; one of several will do
    }
}

/// Lets requests for a keyframe through to the application; all other RTCP is for the interceptors.
#[derive(Default)]
struct KeyframeRequests {
    inbound: VecDeque<TaggedPacket>,
    outbound: VecDeque<TaggedPacket>,
}

impl Protocol<TaggedPacket, TaggedPacket, ()> for KeyframeRequests {
    type Rout = TaggedPacket;
    type Wout = TaggedPacket;
    type Eout = ();
    type Error = Error;
    type Time = Instant;

    fn handle_read(&mut self, mut packet: TaggedPacket) -> Result<(), Error> {
        if let Packet::Rtcp(packets) = &packet.message.packet {
            let wants =
                |it: &dyn std::any::Any| it.is::<PictureLossIndication>() || it.is::<FullIntraRequest>();
            if packets.iter().any(|it| wants(it.as_any())) {
                packet.message.add(Attribute::DeliverToApplication);
            }
        }
        self.inbound.push_back(packet);
        Ok(())
    }

    fn poll_read(&mut self) -> Option<TaggedPacket> {
        self.inbound.pop_front()
    }

    fn handle_write(&mut self, packet: TaggedPacket) -> Result<(), Error> {
        self.outbound.push_back(packet);
        Ok(())
    }

    fn poll_write(&mut self) -> Option<TaggedPacket> {
        self.outbound.pop_front()
    }
}

impl Interceptor for KeyframeRequests {
    fn bind_local_stream(&mut self, _: &StreamInfo) {}
    fn unbind_local_stream(&mut self, _: &StreamInfo) {}
    fn bind_remote_stream(&mut self, _: &StreamInfo) {}
    fn unbind_remote_stream(&mut self, _: &StreamInfo) {}
}

fn failed(error: impl std::fmt::Display) -> PeerError {
    PeerError(error.to_string())
}

/// The values of `a=name:value` lines.
fn attribute<'a>(sdp: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    sdp.lines()
        .filter_map(move |it| it.strip_prefix("a=")?.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

/// An offer in which the candidates of the shared port stand in place of the virtual socket's.
fn with_candidates(sdp: &str, candidates: &[String]) -> String {
    let mut rewritten = String::with_capacity(sdp.len() + candidates.len() * 80);
    let ours = |it: &str| it.starts_with("a=candidate:") || it.starts_with("a=end-of-candidates");
    for line in sdp.lines().filter(|it| !ours(it)) {
        rewritten.push_str(line);
        rewritten.push_str("\r\n");
        if line.starts_with("a=ice-pwd:") {
            for candidate in candidates {
                rewritten.push_str("a=");
                rewritten.push_str(candidate);
                rewritten.push_str("\r\n");
            }
        }
    }
    rewritten
}

/// An answer without the candidates that cannot be used here: names that only the browser's network knows, TCP, and more
/// than are tried. And how many are left.
fn without_useless_candidates(sdp: &str) -> (String, usize) {
    let mut n_candidates = 0;
    let kept = sdp.lines().filter(|it| {
        if !it.starts_with("a=candidate:") {
            return true;
        }
        let is_useful = !is_hidden(it);
        n_candidates += usize::from(is_useful);
        is_useful && n_candidates <= MOST_CANDIDATES
    });
    let kept = kept.flat_map(|it| [it, "\r\n"]).collect();
    (kept, n_candidates.min(MOST_CANDIDATES))
}

fn is_hidden(candidate: &str) -> bool {
    let mut fields = candidate.split_ascii_whitespace().skip(2);
    let protocol = fields.next().unwrap_or_default();
    let address = fields.nth(1).unwrap_or_default();
    !protocol.eq_ignore_ascii_case("udp") || address.parse::<std::net::IpAddr>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_carries_the_candidates_of_the_shared_port() {
        let sdp = "v=0\r\nm=video 9 X 96\r\na=ice-ufrag:u\r\na=ice-pwd:p\r\na=candidate:1 1 udp 1 127.0.0.1 5 typ host\r\na=end-of-candidates\r\na=mid:0\r\n";
        let offer = with_candidates(sdp, &["candidate:1 1 udp 7 192.0.2.1 47998 typ host".into()]);
        assert_eq!(
            offer,
            "v=0\r\nm=video 9 X 96\r\na=ice-ufrag:u\r\na=ice-pwd:p\r\na=candidate:1 1 udp 7 192.0.2.1 47998 typ host\r\na=mid:0\r\n"
        );
        assert_eq!(attribute(sdp, "ice-ufrag").collect::<Vec<_>>(), ["u"]);
    }

    #[test]
    fn candidates_that_cannot_be_reached_are_left_out() {
        for (candidate, hidden) in [
            ("candidate:1 1 udp 2113937151 2f1c.local 50000 typ host", true),
            ("candidate:1 1 tcp 1518280447 192.0.2.1 9 typ host tcptype active", true),
            ("candidate:1 1 UDP 2113937151 192.0.2.1 50000 typ host", false),
            ("candidate:1 1 udp 2113937151 2001:db8::1 50000 typ host", false),
            ("", true),
            ("candidate:", true),
        ] {
            assert_eq!(is_hidden(candidate), hidden, "{candidate}");
        }
        let answer = "v=0\r\na=candidate:1 1 udp 1 x.local 5 typ host\r\na=mid:0\r\n";
        assert_eq!(without_useless_candidates(answer), ("v=0\r\na=mid:0\r\n".to_owned(), 0));
        let many = "a=candidate:1 1 udp 1 192.0.2.1 5 typ host\r\n".repeat(600);
        let (kept, n_kept) = without_useless_candidates(&format!("{answer}{many}a=end\r\n"));
        assert_eq!((kept.matches("a=candidate:").count(), n_kept), (MOST_CANDIDATES, MOST_CANDIDATES));
        assert!(kept.ends_with("a=end\r\n"));
    }
}
