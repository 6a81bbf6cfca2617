//! What the kernel knows about a TCP connection.
//!
//! No safe crate in use reads `TCP_INFO`, so this file does: one call, into a buffer of our own whose length it is told.
#![allow(unsafe_code)] // getsockopt

use std::os::fd::AsRawFd;

/// Where `tcpi_bytes_acked` stands in `struct tcp_info` (`linux/tcp.h`), in words of eight bytes. The struct only grows.
const BYTES_ACKED: usize = 120 / 8;

/// Bytes that the peer's kernel has acknowledged on a connection that was accepted (one that was dialled counts its SYN as
/// one more); zero when the kernel does not say.
pub(crate) fn acknowledged(socket: &impl AsRawFd) -> u64 {
    let mut info = [0_u64; 32];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which has them, and any bytes are valid there.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    let is_told = status == 0 && length as usize >= (BYTES_ACKED + 1) * size_of::<u64>();
    if is_told { info[BYTES_ACKED] } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn what_a_peer_has_read_and_answered_was_acknowledged() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut peer = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let (mut ours, _) = listener.accept().expect("a connection");
        let mut sent = 0;
        for size in [1, 120, 70_000] {
            ours.write_all(&vec![7; size]).expect("sent");
            sent += size as u64;
            peer.read_exact(&mut vec![0; size]).expect("it came");
            peer.write_all(b"x").expect("an answer, which carries the acknowledgement");
            ours.read_exact(&mut [0]).expect("the answer");
            assert_eq!(acknowledged(&ours), sent);
        }
        drop(peer);
        assert_eq!(ours.read(&mut [0]).expect("its end"), 0);
        assert_eq!(acknowledged(&ours), sent, "also after the connection broke");
    }

    #[test]
    fn a_socket_of_another_kind_has_nothing_acknowledged() {
        assert_eq!(acknowledged(&UdpSocket::bind("127.0.0.1:0").expect("a port")), 0);
    }
}
