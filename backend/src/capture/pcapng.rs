//! The capture's file format, pcapng: draft-ietf-opsawg-pcapng, whose sections are named here.
//!
//! One section with one interface, the port. Its direction bits are those of the port as the host sees
//! it: `inbound` came from the VM. Numbers are little-endian.

use std::time::Duration;

use tandem_virtio_net::Direction;
use tandem_virtio_net::spec::{
    NET_HDR_F_NEEDS_CSUM, NET_HDR_GSO_ECN, NET_HDR_GSO_TCPV4, NET_HDR_GSO_TCPV6, NET_HDR_GSO_UDP_L4,
};

use super::record::Head;

/// Section Header Block (4.1).
const SECTION: u32 = 0x0a0d_0d0a;
/// Interface Description Block (4.2).
const INTERFACE: u32 = 1;
/// Interface Statistics Block (4.6).
pub(crate) const STATISTICS: u32 = 5;
/// Enhanced Packet Block (4.3).
pub(crate) const PACKET: u32 = 6;
/// Tells the byte order (4.1).
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// `LINKTYPE_ETHERNET`.
const ETHERNET: u16 = 1;

/// `opt_endofopt` (3.5).
const END: u16 = 0;
/// `opt_comment` (3.5).
pub(crate) const COMMENT: u16 = 1;
/// `shb_hardware`, `shb_os`, `shb_userappl` (4.1).
const MACHINE: [u16; 3] = [2, 3, 4];
/// `if_name`, `if_description`, `if_tsresol`, `if_filter` (4.2).
const NAME: u16 = 2;
const DESCRIPTION: u16 = 3;
const RESOLUTION: u16 = 9;
const FILTER: u16 = 11;
/// `epb_flags`, `epb_dropcount` (4.3).
const FLAGS: u16 = 2;
pub(crate) const LOST: u16 = 4;
/// `epb_flags`: the direction (4.3.1).
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;
/// `isb_starttime`, `isb_endtime`, `isb_ifrecv`, `isb_ifdrop`, `isb_filteraccept` (4.6).
const START: u16 = 2;
const STOP: u16 = 3;
const RECEIVED: u16 = 4;
pub(crate) const DROPPED: u16 = 5;
const ACCEPTED: u16 = 6;

/// What a capture is of.
pub(super) struct Interface<'a> {
    pub(super) port: &'a str,
    pub(super) description: &'a str,
    pub(super) snaplen: u32,
    /// The filter as it was written.
    pub(super) expression: Option<&'a str>,
}

/// What a capture has counted; times since 1970.
pub(super) struct Statistics {
    pub(super) start: Duration,
    pub(super) end: Duration,
    pub(super) received: u64,
    pub(super) accepted: u64,
    pub(super) dropped: u64,
}

/// Puts a block at the end of `out`, what `body` adds between its type and its lengths (3.1).
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    body(out);
    let len = ((out.len() - start + 4) as u32).to_le_bytes();
    out[start + 4..start + 8].copy_from_slice(&len);
    out.extend(len);
}

/// Adds an option, padded to 32 bits (3.5).
fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    // A text too long is cut off; none of ours is.
    let value = &value[..value.len().min(u16::MAX.into())];
    out.extend(code.to_le_bytes());
    out.extend((value.len() as u16).to_le_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Nanoseconds since 1970, the high 32 bits first (4.3).
fn timestamp(at: Duration) -> [u8; 8] {
    let nanos = at.as_nanos() as u64;
    let [high, low] = [(nanos >> 32) as u32, nanos as u32].map(u32::to_le_bytes);
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&high);
    bytes[4..].copy_from_slice(&low);
    bytes
}

/// What every capture begins with.
pub(super) fn header(out: &mut Vec<u8>, interface: &Interface<'_>) {
    block(out, SECTION, |out| {
        out.extend(BYTE_ORDER.to_le_bytes());
        out.extend([1u16, 0].map(u16::to_le_bytes).concat());
        // A section of unknown length.
        out.extend(u64::MAX.to_le_bytes());
        let system = rustix::system::uname();
        let os = [system.sysname(), system.release()].map(|s| s.to_string_lossy().into_owned());
        let program = concat!("tandemd ", env!("CARGO_PKG_VERSION"));
        let machine = system.machine().to_string_lossy();
        for (code, text) in MACHINE.iter().zip([&*machine, &os.join(" "), program]) {
            option(out, *code, text.as_bytes());
        }
        option(out, END, &[]);
    });
    block(out, INTERFACE, |out| {
        out.extend(ETHERNET.to_le_bytes());
        out.extend([0; 2]);
        out.extend(interface.snaplen.to_le_bytes());
        option(out, NAME, interface.port.as_bytes());
        option(out, DESCRIPTION, interface.description.as_bytes());
        // 10^-9 of a second.
        option(out, RESOLUTION, &[9]);
        if let Some(expression) = interface.expression {
            // 0: it is one of libpcap's.
            option(out, FILTER, &[&[0], expression.as_bytes()].concat());
        }
        option(out, END, &[]);
    });
}

/// Adds a frame, of which `bytes` were captured.
pub(super) fn packet(out: &mut Vec<u8>, packet: &Head, bytes: &[u64]) {
    block(out, PACKET, |out| {
        out.extend(0u32.to_le_bytes());
        out.extend(timestamp(packet.at));
        out.extend(packet.captured.to_le_bytes());
        out.extend(packet.len.to_le_bytes());
        let start = out.len();
        for word in bytes {
            out.extend(word.to_le_bytes());
        }
        let end = start + packet.captured as usize;
        out.truncate(end);
        out.resize(start + (end - start).next_multiple_of(4), 0);
        let direction = match packet.direction {
            Direction::FromVm => INBOUND,
            Direction::ToVm => OUTBOUND,
        };
        option(out, FLAGS, &direction.to_le_bytes());
        if packet.lost != 0 {
            option(out, LOST, &packet.lost.to_le_bytes());
        }
        if let Some(comment) = comment(packet) {
            option(out, COMMENT, comment.as_bytes());
        }
        option(out, END, &[]);
    });
}

/// What there is no field for.
fn comment(packet: &Head) -> Option<String> {
    let mut words = Vec::new();
    if let Some(reason) = packet.drop {
        words.push(format!("drop_reason={}", reason.name()));
    }
    let offload = packet.offload;
    if offload.flags & NET_HDR_F_NEEDS_CSUM != 0 {
        words.push("checksum=partial".to_owned());
    }
    let kind = match offload.gso_type & !NET_HDR_GSO_ECN {
        NET_HDR_GSO_TCPV4 => Some("tcpv4"),
        NET_HDR_GSO_TCPV6 => Some("tcpv6"),
        NET_HDR_GSO_UDP_L4 => Some("udp"),
        _ => None,
    };
    if let Some(kind) = kind {
        words.push(format!("gso={kind} gso_size={}", offload.gso_size));
    }
    (!words.is_empty()).then(|| words.join(" "))
}

/// Adds what was counted. Of several in one section the last one holds.
pub(super) fn statistics(out: &mut Vec<u8>, counted: &Statistics) {
    block(out, STATISTICS, |out| {
        out.extend(0u32.to_le_bytes());
        out.extend(timestamp(counted.end));
        option(out, START, &timestamp(counted.start));
        option(out, STOP, &timestamp(counted.end));
        option(out, RECEIVED, &counted.received.to_le_bytes());
        option(out, DROPPED, &counted.dropped.to_le_bytes());
        option(out, ACCEPTED, &counted.accepted.to_le_bytes());
        option(out, END, &[]);
    });
}
