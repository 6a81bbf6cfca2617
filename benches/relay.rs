//! What a frame costs on its way through a session, by size and direction: `cargo bench --bench relay`.
//!
//! The time is the CPU time of the gateway's worker, as the kernel accounts for it, with its reads and writes on loopback
//! sockets: the inverse is frames per second and core. `one_by_one` sends a frame when the one before has arrived, which
//! is what an event loop costs at low rates; `in_bursts` sends them as fast as they go.

#[path = "support/gateway.rs"]
mod gateway;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// What carries a frame of this payload from a client.
fn frame(size: usize) -> Vec<u8> {
    let mut frame = vec![0x82];
    match size {
        0..126 => frame.push(0x80 | size as u8),
        126..65536 => {
            frame.push(0x80 | 126);
            frame.extend((size as u16).to_be_bytes());
        }
        _ => {
            frame.push(0x80 | 127);
            frame.extend((size as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]); // the mask; it changes nothing
    frame.resize(frame.len() + size, 0);
    frame
}

/// Sends back what a client sends, without its mask, and knows no control frames but that they are short.
fn echo(mut tcp: TcpStream) {
    let mut buf = vec![0; 1 << 20];
    let (mut have, mut out) = (0, Vec::new());
    while let Ok(n) = tcp.read(&mut buf[have..]) {
        if n == 0 {
            return;
        }
        have += n;
        let mut at = 0;
        while have - at >= 14 || (have - at >= 6 && buf[at + 1] & 127 < 126) {
            let (header, size) = match buf[at + 1] & 127 {
                126 => (4, usize::from(u16::from_be_bytes([buf[at + 2], buf[at + 3]]))),
                127 => {
                    (10, u32::from_be_bytes([buf[at + 6], buf[at + 7], buf[at + 8], buf[at + 9]]) as usize)
                }
                short => (2, usize::from(short)),
            };
            let end = at + header + 4 + size;
            if have < end {
                break;
            }
            if buf[at] == 0x82 {
                out.push(0x82);
                out.push(buf[at + 1] & 127);
                out.extend_from_slice(&buf[at + 2..at + header]);
                out.extend_from_slice(&buf[at + header + 4..end]);
            }
            at = end;
        }
        buf.copy_within(at..have, 0);
        have -= at;
        if tcp.write_all(&out).is_err() {
            return;
        }
        out.clear();
    }
}

/// Takes the frames that come back from as many echoes, and the pings in between.
fn take(tcp: &mut TcpStream, bytes: usize, buf: &mut [u8]) {
    let mut left = bytes;
    while left > 0 {
        let want = left.min(buf.len());
        left -= tcp.read(&mut buf[..want]).expect("the echo comes");
    }
}

fn relay(c: &mut Criterion) {
    let gateway = gateway::Gateway::start(
        gateway::upstream(echo),
        "[sessions.keepalive]\ninterval = \"1h\"\ntimeout = \"2h\"\n[[route]]\npath = \"/**\"\nchain = []\n",
    );
    let mut group = c.benchmark_group("relay");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    for size in [0, 120, 1200, 16 << 10, 256 << 10] {
        let (frame, mut buf) = (frame(size), vec![0; 1 << 20]);
        let back = frame.len() - 4;
        let mut browser = gateway::browser(gateway.address);
        group.throughput(Throughput::Elements(2)); // there and back
        group.bench_function(BenchmarkId::new("one_by_one", size), |b| {
            b.iter_custom(|n| {
                let began = gateway::worker_cpu();
                for _ in 0..n {
                    browser.write_all(&frame).expect("the gateway reads");
                    take(&mut browser, back, &mut buf);
                }
                gateway::worker_cpu() - began
            });
        });
        let burst = ((64 << 10) / frame.len()).clamp(1, 200);
        let frames = frame.repeat(burst);
        group.throughput(Throughput::Elements(2 * burst as u64));
        group.bench_function(BenchmarkId::new("in_bursts", size), |b| {
            b.iter_custom(|n| {
                let began = gateway::worker_cpu();
                for _ in 0..n {
                    browser.write_all(&frames).expect("the gateway reads");
                    take(&mut browser, back * burst, &mut buf);
                }
                gateway::worker_cpu() - began
            });
        });
    }
    group.finish();
}

criterion_group!(benches, relay);
criterion_main!(benches);
