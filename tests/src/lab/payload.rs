//! Traffic whose every byte is checked: a TCP stream both ways at once, and UDP echoes.
//!
//! The bytes depend on their position, so that lost, repeated, moved or swapped data shows. The
//! guest agent serves both on [`PORT`]; the client is `guest-agent stream` and `guest-agent echo`,
//! or a test on the host.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

mod open;

pub use open::OpenStream;

/// Where every guest answers, TCP and UDP.
pub const PORT: u16 = 7000;
/// A peer that is silent for this long is gone.
const SILENCE: Duration = Duration::from_secs(20);
const CHUNK: usize = 32 * 1024;
const GOOD: u8 = b'+';

/// Byte source: 8 bytes for each position, from the splitmix64 mixing function.
struct Pattern {
    seed: u64,
    word: u64,
}

impl Pattern {
    fn new(seed: u64) -> Self {
        Self { seed, word: 0 }
    }

    /// The next bytes of the pattern. Only whole words may be taken until the last call.
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let mut z = self
                .seed
                .wrapping_add(self.word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
            self.word += 1;
        }
    }
}

/// Serves streams and echoes forever, on every address of both families.
pub fn serve() -> io::Result<()> {
    let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let datagrams = UdpSocket::bind((any, PORT))?;
    std::thread::spawn(move || serve_echo(&datagrams));
    for stream in TcpListener::bind((any, PORT))?.incoming().flatten() {
        std::thread::spawn(move || serve_stream(stream));
    }
    Ok(())
}

fn serve_echo(socket: &UdpSocket) {
    let mut buffer = vec![0; 65536];
    loop {
        // A failed datagram shows at the client, which waits for it.
        if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], peer);
        }
    }
}

fn serve_stream(mut stream: TcpStream) -> io::Result<()> {
    let mut header = [0; 16];
    stream.read_exact(&mut header)?;
    let length = u64::from_le_bytes(header[..8].try_into().unwrap_or_default());
    let seed = u64::from_le_bytes(header[8..].try_into().unwrap_or_default());
    if length == open::LENGTH {
        return open::serve(&stream, seed);
    }
    // The client sends pattern `seed`, the server its complement.
    exchange(&stream, length, !seed, seed)
}

/// Sends `length` bytes each way at once to a server at `peer`; an error unless both ends got
/// every byte right. `from` picks the local address and so the interface.
pub fn stream(peer: SocketAddr, length: u64, seed: u64) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&peer, SILENCE)?;
    let mut header = [0; 16];
    header[..8].copy_from_slice(&length.to_le_bytes());
    header[8..].copy_from_slice(&seed.to_le_bytes());
    stream.write_all(&header)?;
    exchange(&stream, length, seed, !seed)
}

fn exchange(stream: &TcpStream, length: u64, send: u64, receive: u64) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut sending = stream.try_clone()?;
    let sender = std::thread::spawn(move || send_pattern(&mut sending, length, send));
    let mut stream = stream.try_clone()?;
    let received = check_pattern(&mut stream, length, receive);
    if received.is_err() {
        // Ends the peer's sender, and so ours.
        let _ = stream.shutdown(Shutdown::Both);
    }
    let sent = sender
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the sender panicked")));
    received.and(sent)?;
    stream.write_all(&[GOOD])?;
    let mut verdict = [0];
    stream.read_exact(&mut verdict)?;
    Ok(())
}

fn send_pattern(stream: &mut TcpStream, length: u64, seed: u64) -> io::Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut buffer = vec![0; CHUNK];
    let mut left = length;
    while left > 0 {
        let part = &mut buffer[..left.min(CHUNK as u64) as usize];
        pattern.fill(part);
        stream.write_all(part)?;
        left -= part.len() as u64;
    }
    Ok(())
}

fn check_pattern(stream: &mut TcpStream, length: u64, seed: u64) -> io::Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut expected = vec![0; CHUNK];
    let mut got = vec![0; CHUNK];
    let mut done = 0;
    while done < length {
        let size = (length - done).min(CHUNK as u64) as usize;
        stream.read_exact(&mut got[..size])?;
        pattern.fill(&mut expected[..size]);
        if let Some(at) = first_difference(&got[..size], &expected[..size]) {
            let at = done + at as u64;
            return Err(io::Error::other(format!("wrong byte at {at} of {length}")));
        }
        done += size as u64;
    }
    Ok(())
}

/// Where two slices of one length differ. Whole ones are compared first: in a guest without KVM byte by byte
/// would take longer than all the rest.
fn first_difference(got: &[u8], expected: &[u8]) -> Option<usize> {
    (got != expected).then(|| (0..got.len()).find(|&i| got[i] != expected[i]))?
}

/// Sends a datagram of each size and waits for its echo; none may be lost or changed.
pub fn echo(peer: SocketAddr, sizes: &[usize]) -> io::Result<()> {
    let any: SocketAddr = if peer.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(peer)?;
    socket.set_read_timeout(Some(SILENCE))?;
    let mut got = vec![0; 65536];
    for (number, &size) in sizes.iter().enumerate() {
        let mut sent = vec![0; size];
        Pattern::new(number as u64).fill(&mut sent);
        socket.send(&sent)?;
        let length = socket.recv(&mut got)?;
        if got[..length] != sent[..] {
            return Err(io::Error::other(format!(
                "a datagram of {size} bytes came back changed"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern_bytes(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        Pattern::new(seed).fill(&mut bytes);
        bytes
    }

    /// A server that answers on a socket of its own and corrupts nothing.
    fn one_stream() -> (SocketAddr, std::thread::JoinHandle<io::Result<()>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (
            address,
            std::thread::spawn(move || serve_stream(listener.accept()?.0)),
        )
    }

    #[test]
    fn a_stream_is_checked_at_both_ends() {
        let (address, server) = one_stream();
        stream(address, 300_001, 7).unwrap();
        server.join().unwrap().unwrap();
    }

    #[test]
    fn a_wrong_byte_is_found_and_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let mut peer = listener.accept().unwrap().0;
            let mut bytes = pattern_bytes(!7, 100_000);
            bytes[77_777] ^= 1;
            peer.write_all(&bytes).unwrap();
            io::copy(&mut peer, &mut io::sink())
        });
        let error = stream(address, 100_000, 7).unwrap_err();
        assert_eq!(error.to_string(), "wrong byte at 77777 of 100000");
        // How the server ends, reset or end of file, is the kernel's choice.
        let _ = server.join().unwrap();
    }

    #[test]
    fn positions_and_seeds_give_different_bytes() {
        let bytes = pattern_bytes(1, 4096);
        assert_ne!(bytes[..2048], bytes[2048..]);
        assert_ne!(bytes, pattern_bytes(2, 4096));
    }
}
