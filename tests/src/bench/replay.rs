//! Files of frames for testpmd's net_pcap ports to send.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use etherparse::PacketBuilder;

use super::cell::Size;

/// A capture file's header (pcap(5), version 2.4): microseconds, Ethernet.
fn file_header() -> Vec<u8> {
    let mut header = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
    header.extend([2u16, 4].map(u16::to_le_bytes).concat());
    header.extend([0u32, 0, 65_535, 1].map(u32::to_le_bytes).concat());
    header
}

/// Writes `flows` UDP flows from VM `from` to VM `to`, each with every length of `size`'s pattern in
/// turn, with right checksums. Gives the number of frames.
pub fn write(path: &Path, from: usize, to: usize, flows: usize, size: Size) -> Result<usize> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    file.write_all(&file_header())?;
    let pattern = size.pattern();
    // So that every flow meets every length, and lengths come in the order of the pattern.
    let frames = flows.next_multiple_of(pattern.len());
    for n in 0..frames {
        let frame = frame(from, to, n % flows, pattern[n % pattern.len()])?;
        let length = frame.len() as u32;
        file.write_all(&[0, 0, length, length].map(u32::to_le_bytes).concat())?;
        file.write_all(&frame)?;
    }
    file.flush()?;
    Ok(frames)
}

fn frame(from: usize, to: usize, flow: usize, length: usize) -> Result<Vec<u8>> {
    /// Ethernet, IPv4 and UDP.
    const HEADERS: usize = 14 + 20 + 8;
    let mac = |vm: usize| [2, 0, 0, 0, 1, vm as u8];
    // Addresses for benchmarks (RFC 2544, C.2.2).
    let address = |vm: usize| [198, 18, vm as u8, 1];
    let [high, low] = (flow as u16).to_be_bytes();
    let payload: Vec<u8> = (0..length - HEADERS)
        .map(|n| n as u8 ^ low ^ high)
        .collect();
    let mut bytes = Vec::with_capacity(length);
    PacketBuilder::ethernet2(mac(from), mac(to))
        .ipv4(address(from), address(to), 64)
        .udp(1024 + (flow as u16 & 0x7fff), 9 + (flow >> 15) as u16)
        .write(&mut bytes, &payload)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_their_length_and_right_checksums() {
        for length in [64, 570, 1500] {
            let frame = frame(0, 1, 5, length).expect("frame");
            assert_eq!(frame.len(), length);
            let parsed = etherparse::PacketHeaders::from_ethernet_slice(&frame).expect("parsed");
            let Some(etherparse::NetHeaders::Ipv4(ip, _)) = parsed.net else {
                panic!("not IPv4");
            };
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        }
    }

    #[test]
    fn the_file_holds_every_frame() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("f.pcap");
        let frames = write(&path, 0, 1, 10, Size::Mix).expect("written");
        assert_eq!(frames, 12);
        let bytes: usize = Size::Mix.pattern().iter().sum();
        let length = std::fs::metadata(&path).expect("file").len() as usize;
        assert_eq!(length, 24 + 12 * 16 + bytes);
    }
}
