//! What is streamed: a loop of encoded frames, packetised once and shared by all viewers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rtc::media::io::ivf_reader::IVFReader;
use rtc::rtp::codec::vp8::Vp8Payloader;
use rtc::rtp::packetizer::Payloader;
use tokio::sync::broadcast;

use crate::clock::Clock;
use crate::config;

/// A source. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Source {
    frames: Arc<[Arc<Frame>]>,
    interval: Duration,
    sender: broadcast::Sender<Arc<Frame>>,
    /// The frames from the last keyframe on, so that a new viewer starts at once.
    group: Arc<Mutex<Vec<Arc<Frame>>>>,
    clock: Clock,
}

/// One encoded picture.
#[derive(Debug)]
pub(crate) struct Frame {
    /// RTP payloads, in order.
    pub(crate) payloads: Vec<Bytes>,
    /// Whether it can be decoded without those before it.
    pub(crate) is_key: bool,
    /// How long it is shown, in units of the 90 kHz RTP clock.
    pub(crate) duration: u32,
}

/// The built-in loop; `pattern/README.md` says how it was made.
static PATTERN: &[u8] = include_bytes!("pattern/pattern.ivf");

/// RTP payload of one packet: an Ethernet frame without IP, UDP, SRTP and a VPN's headers.
const MTU: usize = 1180;

/// Frames that a slow viewer may be behind before it skips to the next keyframe.
const BEHIND: usize = 64;

impl Source {
    /// Reads and packetises the source. The error is a sentence for the operator.
    pub(crate) fn new(source: &config::Source, clock: &Clock) -> Result<Source, String> {
        let bytes = match source {
            config::Source::Pattern => Bytes::from_static(PATTERN),
            config::Source::File(path) => Bytes::from(
                std::fs::read(path).map_err(|it| format!("cannot read {}: {it}", path.display()))?,
            ),
        };
        let (mut reader, header) =
            IVFReader::new(&bytes[..]).map_err(|it| format!("not an IVF file: {it}"))?;
        if &header.four_cc != b"VP80" {
            return Err(format!(
                "expected VP8 in the IVF file, not {:?}",
                String::from_utf8_lossy(&header.four_cc)
            ));
        }
        if header.timebase_numerator == 0 || header.timebase_denominator == 0 {
            return Err("the IVF file has no frame rate".into());
        }
        let rate = f64::from(header.timebase_denominator) / f64::from(header.timebase_numerator);
        let rate = rate.clamp(1.0, 120.0);
        let mut frames = Vec::new();
        while let Ok((frame, _)) = reader.parse_next_frame() {
            let frame = frame.freeze();
            let is_key = frame.first().is_some_and(|it| it & 1 == 0); // RFC 6386 section 9.1
            let payloads = Vp8Payloader::default().payload(MTU, &frame).map_err(|it| it.to_string())?;
            frames.push(Arc::new(Frame { payloads, is_key, duration: (90_000.0 / rate) as u32 }));
        }
        if !frames.first().is_some_and(|it| it.is_key) {
            return Err("the IVF file does not begin with a keyframe".into());
        }
        Ok(Source {
            frames: frames.into(),
            interval: Duration::from_secs_f64(1.0 / rate),
            sender: broadcast::Sender::new(BEHIND),
            group: Arc::default(),
            clock: clock.clone(),
        })
    }

    /// The codec, as SDP names it.
    pub(crate) fn mime(&self) -> &'static str {
        "video/VP8"
    }

    /// Follows the source: the frames since the last keyframe, and those to come.
    pub(crate) fn follow(&self) -> (Vec<Arc<Frame>>, broadcast::Receiver<Arc<Frame>>) {
        let group = self.group.lock().unwrap_or_else(PoisonError::into_inner);
        (group.clone(), self.sender.subscribe())
    }

    /// Plays the loop for ever.
    pub(crate) async fn run(self) {
        let mut next = self.clock.now();
        loop {
            for frame in self.frames.iter() {
                self.clock.sleep_until(next).await;
                {
                    let mut group = self.group.lock().unwrap_or_else(PoisonError::into_inner);
                    if frame.is_key {
                        group.clear();
                    }
                    group.push(Arc::clone(frame));
                    // Under the lock, so that a viewer that follows now misses no frame and gets none twice.
                    drop(self.sender.send(Arc::clone(frame))); // nobody may be watching
                }
                next += self.interval;
                let now = self.clock.now();
                if next + self.interval * 10 < now {
                    next = now; // the machine slept; a burst of late frames helps nobody
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_loop_is_whole() {
        let source = Source::new(&config::Source::Pattern, &Clock::paused()).expect("it was made for this");
        assert_eq!(source.frames.len(), 180, "six seconds at 30 frames");
        assert!(source.frames.iter().filter(|it| it.is_key).count() >= 3, "a keyframe every two seconds");
        assert!(source.frames.iter().flat_map(|it| &it.payloads).all(|it| it.len() <= MTU));
        assert_eq!(source.frames[0].duration, 3000);
    }

    #[test]
    fn what_is_no_video_is_told() {
        let folder = std::env::temp_dir().join(format!("streamgate-source-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        for (name, content) in [
            ("empty.ivf", &b""[..]),
            ("text.ivf", b"hello"),
            ("vp9.ivf", b"DKIF\0\0\x20\0VP90\x10\0\x10\0\x1e\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0"),
        ] {
            let path = folder.join(name);
            std::fs::write(&path, content).expect("a file");
            assert!(Source::new(&config::Source::File(path), &Clock::paused()).is_err(), "{name}");
        }
        assert!(Source::new(&config::Source::File(folder.join("none.ivf")), &Clock::paused()).is_err());
        std::fs::remove_dir_all(&folder).expect("the folder can go");
    }
}
