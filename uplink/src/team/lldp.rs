//! The Link Layer Discovery Protocol (IEEE 802.1AB-2016): to which port of which switch a member is
//! cabled, and the same for the switch. No I/O and no clock.
//!
//! What a neighbour says is anybody's who has a cable: it is shown to people, and decides nothing.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tandem_virtio_net::wire::ethernet::{Frame, HEADER_LEN, TYPE_LLDP};
use tandem_virtio_net::wire::vlan::MAX_VID;

use crate::Mac;

/// Where LLDP goes: the nearest bridge's group address (7.1), which no bridge passes on, so that who is
/// heard is at the other end of the cable.
pub const NEAREST_BRIDGE: Mac = Mac([0x01, 0x80, 0xc2, 0, 0, 0x0e]);

/// Shortest frame, without the frame check sequence (IEEE 802.3, 3.2.8).
const MIN_FRAME: usize = 60;
/// Most octets of an ID and of a name (8.5.2.3, 8.5.3.3, 8.5.5.2, 8.5.6.2).
const MAX_TEXT: usize = 255;

/// Types of TLVs (8.4.1, table 8-1).
const END: u8 = 0;
const CHASSIS_ID: u8 = 1;
const PORT_ID: u8 = 2;
const TIME_TO_LIVE: u8 = 3;
const PORT_DESCRIPTION: u8 = 4;
const SYSTEM_NAME: u8 = 5;
const ORGANIZATION: u8 = 127;

/// Subtypes of a chassis ID (table 8-2).
const CHASSIS_MAC: u8 = 4;
const CHASSIS_NETWORK: u8 = 5;
/// Subtypes of a port ID (table 8-3).
const PORT_MAC: u8 = 3;
const PORT_NETWORK: u8 = 4;
const PORT_INTERFACE_NAME: u8 = 5;
/// Kinds of network addresses (IANA, address family numbers).
const FAMILY_IPV4: u8 = 1;
const FAMILY_IPV6: u8 = 2;
/// The organization IEEE 802.1 and its subtype for the port VLAN ID (IEEE 802.1Q, D.2.1).
const PORT_VLAN_ID: [u8; 4] = [0x00, 0x80, 0xc2, 1];

/// What the other end of a cable says of itself. All text is free of control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The switch: a MAC address, an IP address, or a name; what is none of them is in hex digits.
    pub chassis_id: String,
    /// Its port, likewise.
    pub port_id: String,
    /// The name of the switch.
    pub system_name: Option<String>,
    /// What its administrator calls the port.
    pub port_description: Option<String>,
    /// The VLAN of untagged frames.
    pub vlan: Option<u16>,
    /// For how long this is true. Zero: no longer, see [`Neighbour::is_shutdown`].
    pub ttl: Duration,
}

impl Neighbour {
    /// Reads a frame; none if it is none of LLDP, or not one that the standard accepts (9.2.7.7).
    /// Optional TLVs that are unknown, wrong, or there for the second time are passed over.
    pub fn read(frame: &[u8]) -> Option<Self> {
        let frame = Frame::new_checked(frame).ok()?;
        if (frame.dst(), frame.ethertype()) != (NEAREST_BRIDGE, TYPE_LLDP) {
            return None;
        }
        let mut rest = frame.payload();
        let (chassis, port) = (
            mandatory(&mut rest, CHASSIS_ID)?,
            mandatory(&mut rest, PORT_ID)?,
        );
        let &[high, low, ..] = mandatory(&mut rest, TIME_TO_LIVE)? else {
            return None;
        };
        let ttl = u16::from_be_bytes([high, low]);
        let mut neighbour = Self {
            chassis_id: id(chassis, CHASSIS_MAC, CHASSIS_NETWORK)?,
            port_id: id(port, PORT_MAC, PORT_NETWORK)?,
            system_name: None,
            port_description: None,
            vlan: None,
            ttl: Duration::from_secs(ttl.into()),
        };
        // Who says goodbye says nothing else (9.2.7.7.1).
        while ttl != 0 && !rest.is_empty() {
            match take(&mut rest)? {
                (END, _) => break,
                (CHASSIS_ID | PORT_ID | TIME_TO_LIVE, _) => return None,
                (kind, value) => neighbour.take_optional(kind, value),
            }
        }
        Some(neighbour)
    }

    fn take_optional(&mut self, kind: u8, value: &[u8]) {
        match kind {
            PORT_DESCRIPTION => set_once(&mut self.port_description, name(value)),
            SYSTEM_NAME => set_once(&mut self.system_name, name(value)),
            ORGANIZATION => {
                if let Some(&[high, low]) = value.strip_prefix(&PORT_VLAN_ID) {
                    let vid = u16::from_be_bytes([high, low]);
                    // 0: it has none (IEEE 802.1Q, D.2.1.1).
                    set_once(&mut self.vlan, (1..=MAX_VID).contains(&vid).then_some(vid));
                }
            }
            _ => {}
        }
    }

    /// It takes back what it has said before, as its port is going down.
    pub fn is_shutdown(&self) -> bool {
        self.ttl.is_zero()
    }
}

fn set_once<T>(to: &mut Option<T>, value: Option<T>) {
    if to.is_none() {
        *to = value;
    }
}

/// Takes a TLV from the front, type and value; none if it is not whole (8.4).
fn take<'a>(rest: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (header, behind) = rest.split_first_chunk()?;
    let header = u16::from_be_bytes(*header);
    let (value, behind) = behind.split_at_checked(usize::from(header & 0x1ff))?;
    *rest = behind;
    Some(((header >> 9) as u8, value))
}

fn mandatory<'a>(rest: &mut &'a [u8], wanted: u8) -> Option<&'a [u8]> {
    take(rest).and_then(|(kind, value)| (kind == wanted).then_some(value))
}

/// The text of a chassis or port ID, of which the subtypes `mac` and `network` are no text.
fn id(value: &[u8], mac: u8, network: u8) -> Option<String> {
    let (&subtype, value) = value.split_first()?;
    if value.is_empty() || value.len() > MAX_TEXT {
        return None;
    }
    Some(match (subtype, value) {
        (kind, &[a, b, c, d, e, f]) if kind == mac => Mac([a, b, c, d, e, f]).to_string(),
        (kind, [family, address @ ..]) if kind == network => network_address(*family, address),
        (kind, _) if kind == mac => hex(value),
        _ => text(value),
    })
}

fn network_address(family: u8, address: &[u8]) -> String {
    if let (FAMILY_IPV4, &[a, b, c, d]) = (family, address) {
        return Ipv4Addr::new(a, b, c, d).to_string();
    }
    match <[u8; 16]>::try_from(address) {
        Ok(address) if family == FAMILY_IPV6 => Ipv6Addr::from(address).to_string(),
        _ => hex(address),
    }
}

/// An ID as it is if it can be shown, else in hex digits: two that differ look different.
fn text(value: &[u8]) -> String {
    match std::str::from_utf8(without_zeros(value)) {
        Ok(text) if !text.is_empty() && text.chars().all(is_shown) => text.to_owned(),
        _ => hex(value),
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (i, byte) in bytes.iter().enumerate() {
        let colon = if i == 0 { "" } else { ":" };
        // Writing to a string does not fail.
        let _ = write!(text, "{colon}{byte:02x}");
    }
    text
}

/// A name or description, with a sign for each character that is not to be shown; none if it is empty
/// or too long.
fn name(value: &[u8]) -> Option<String> {
    let value = without_zeros(value);
    if value.is_empty() || value.len() > MAX_TEXT {
        return None;
    }
    let shown = |c| {
        if is_shown(c) {
            c
        } else {
            char::REPLACEMENT_CHARACTER
        }
    };
    Some(String::from_utf8_lossy(value).chars().map(shown).collect())
}

/// Some switches end their text as C does.
fn without_zeros(value: &[u8]) -> &[u8] {
    let len = value
        .iter()
        .rposition(|b| *b != 0)
        .map_or(0, |last| last + 1);
    &value[..len]
}

/// Neither a control character nor one that changes how others are shown: no width, direction, lines.
fn is_shown(c: char) -> bool {
    !c.is_control()
        && !matches!(
            c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// What a member says of itself to the other end of its cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement<'a> {
    /// The host: the same for all its members.
    pub chassis: Mac,
    /// The member's device. Not empty, else the other end refuses it.
    pub port: &'a str,
    /// The name of the host; if empty, none is given.
    pub system_name: &'a str,
    /// What the device is for; if empty, nothing is said.
    pub port_description: &'a str,
    /// For how long this is true, of which the wire has whole seconds up to 65535: four times as long as
    /// it takes to say it anew (9.2.5.6). Zero takes back what was said.
    pub ttl: Duration,
}

impl Announcement<'_> {
    /// The frame, from the station `source`: the member's own address, so that the other end does not see
    /// one station on several ports. Text over 255 bytes is cut.
    pub fn frame(&self, source: Mac) -> Vec<u8> {
        let mut frame = [&NEAREST_BRIDGE.0[..], &source.0, &TYPE_LLDP.to_be_bytes()].concat();
        debug_assert_eq!(frame.len(), HEADER_LEN);
        // A part of a second is not zero, which would be goodbye.
        let part = u64::from(self.ttl.subsec_nanos() != 0);
        let seconds = self.ttl.as_secs().saturating_add(part);
        let ttl = u16::try_from(seconds).unwrap_or(u16::MAX);
        put(&mut frame, CHASSIS_ID, &[&[CHASSIS_MAC], &self.chassis.0]);
        put(
            &mut frame,
            PORT_ID,
            &[&[PORT_INTERFACE_NAME], cut(self.port)],
        );
        put(&mut frame, TIME_TO_LIVE, &[&ttl.to_be_bytes()]);
        if ttl != 0 {
            for (kind, text) in [
                (PORT_DESCRIPTION, self.port_description),
                (SYSTEM_NAME, self.system_name),
            ] {
                if !text.is_empty() {
                    put(&mut frame, kind, &[cut(text)]);
                }
            }
        }
        put(&mut frame, END, &[]);
        frame.resize(frame.len().max(MIN_FRAME), 0);
        frame
    }
}

/// Adds a TLV, whose parts are no more than 511 bytes together.
fn put(frame: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    frame.extend((u16::from(kind) << 9 | len as u16).to_be_bytes());
    parts.iter().for_each(|part| frame.extend(*part));
}

/// As much of a text as fits, in whole characters.
fn cut(text: &str) -> &[u8] {
    &text.as_bytes()[..text.floor_char_boundary(MAX_TEXT)]
}

#[cfg(test)]
#[path = "lldp_tests.rs"]
mod tests;
