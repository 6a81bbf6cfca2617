//! Sends the pictures to one browser: the current group at once, then as they come, never more than it can take.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, mpsc};

use crate::clock::Clock;
use crate::streaming::peer::Peer;
use crate::streaming::source::{Frame, Source};
use crate::telemetry::Metrics;

/// At most one new beginning for each of these, however often a browser asks.
const KEYFRAME_FLOOR: Duration = Duration::from_millis(500);

/// Time between the pictures of a group that is sent at once, of the 90 kHz RTP clock.
const CATCH_UP: u32 = 90;

/// Sends until it is dropped. A message on `wanted` asks for a keyframe.
pub(crate) async fn run(
    peer: Arc<dyn Peer>,
    source: Source,
    mut wanted: mpsc::Receiver<()>,
    metrics: Metrics,
    clock: Clock,
) {
    let (group, mut frames) = source.follow();
    let mut timestamp = uuid::Uuid::new_v4().as_fields().0;
    let mut last_start: Option<Instant> = None;
    let mut skips_to_key = false;
    let mut send = async |frames: &[Arc<Frame>], step: Option<u32>| {
        for frame in frames {
            timestamp = timestamp.wrapping_add(step.unwrap_or(frame.duration));
            if let Err(error) = peer.send_frame(frame, timestamp).await {
                tracing::debug!(%error, "A picture could not be sent.");
                return false;
            }
            let bytes = frame.payloads.iter().map(|it| it.len() as u64).sum();
            metrics.streaming.rtp_sent(frame.payloads.len() as u64, bytes);
        }
        true
    };
    if !send(&group, Some(CATCH_UP)).await {
        return;
    }
    loop {
        tokio::select! {
            frame = frames.recv() => match frame {
                Ok(frame) if skips_to_key && !frame.is_key => metrics.streaming.rtp_dropped("lag", frame.payloads.len() as u64),
                Ok(frame) => {
                    skips_to_key = false;
                    if !send(&[frame], None).await {
                        return;
                    }
                }
                // A slow browser does not hold up the others: it goes on at the next picture that stands for itself.
                Err(broadcast::error::RecvError::Lagged(_)) => skips_to_key = true,
                Err(broadcast::error::RecvError::Closed) => return,
            },
            Some(()) = wanted.recv() => {
                metrics.streaming.pli();
                let now = clock.now();
                if last_start.is_none_or(|it| now - it >= KEYFRAME_FLOOR) {
                    last_start = Some(now);
                    // A loop makes no keyframe on demand; the group up to now is the same picture, a little later.
                    let (group, from_now) = source.follow();
                    frames = from_now;
                    if !send(&group, Some(CATCH_UP)).await {
                        return;
                    }
                }
            }
        }
    }
}
