//! A frame as a line of text: when, which way, who to whom, and what became of it.

use std::fmt::Write;

use super::blocks::{kind, option, packet, packet_options};
use crate::capture::{COMMENT, PACKET};

/// `epb_flags` (pcapng 4.3), of which the low two bits are the direction.
const FLAGS: u16 = 2;

/// The line for a block, if it is a frame.
pub(super) fn of(block: &[u8]) -> Option<String> {
    let (at, bytes, len) = packet(block).filter(|_| kind(block) == PACKET)?;
    let options = packet_options(block);
    let direction = match option(block, options, FLAGS)?.first()? & 3 {
        1 => "from_vm",
        2 => "to_vm  ",
        _ => "       ",
    };
    let mut line = format!("{} {direction}", time(at));
    if let Some(names) = names(bytes) {
        let _ = write!(line, " {names}");
    }
    let _ = write!(line, ", length {len}");
    if let Some(comment) = option(block, options, COMMENT) {
        let _ = write!(line, ", {}", String::from_utf8_lossy(comment));
    }
    line.push('\n');
    Some(line)
}

/// The time of the day, UTC.
fn time(at: u64) -> String {
    let (seconds, micros) = (at / 1_000_000_000, at / 1000 % 1_000_000);
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{micros:06}", seconds % 60)
}

/// Who to whom, VLAN and type.
fn names(frame: &[u8]) -> Option<String> {
    let mac = |at: usize| {
        let bytes: Vec<String> = frame
            .get(at..at + 6)?
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        Some(bytes.join(":"))
    };
    let half = |at: usize| Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?));
    let mut names = format!("{} > {}", mac(6)?, mac(0)?);
    let mut kind = half(12)?;
    if let (0x8100, Some(tag), Some(inner)) = (kind, half(14), half(16)) {
        let _ = write!(names, ", vlan {}", tag & 0xfff);
        kind = inner;
    }
    let protocol = match kind {
        0x0800 => "IPv4".to_owned(),
        0x0806 => "ARP".to_owned(),
        0x86dd => "IPv6".to_owned(),
        _ => format!("type {kind:#06x}"),
    };
    let _ = write!(names, ", {protocol}");
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_to_whom_in_which_vlan() {
        let mut frame = vec![0xff; 6];
        frame.extend([0x52, 0x54, 0, 0, 0, 1]);
        assert_eq!(names(&frame), None);
        frame.extend([8, 6]);
        let macs = "52:54:00:00:00:01 > ff:ff:ff:ff:ff:ff";
        assert_eq!(names(&frame), Some(format!("{macs}, ARP")));
        frame.splice(12.., [0x81, 0, 0x60, 10, 0x88, 0xb5]);
        assert_eq!(names(&frame), Some(format!("{macs}, vlan 10, type 0x88b5")));
    }

    #[test]
    fn the_time_of_the_day() {
        assert_eq!(
            time(86_400_000_000_000 * 3 + 3_661_000_002_999),
            "01:01:01.000002"
        );
    }
}
