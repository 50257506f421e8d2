//! LACPDUs and marker PDUs as they are on the wire (IEEE 802.1AX-2020, 6.4.2.3 and 6.5.3).

use tandem_virtio_net::wire::ethernet::{HEADER_LEN, TYPE_AT, TYPE_SLOW};

use crate::Mac;

/// Where LACPDUs go: the Slow_Protocols_Multicast address (IEEE 802.3, 57A.3).
pub const SLOW_PROTOCOLS: Mac = Mac([0x01, 0x80, 0xc2, 0, 0, 2]);
/// Bytes of a LACPDU or marker PDU with its Ethernet header; the frame check sequence is the wire's.
pub const PDU_LEN: usize = HEADER_LEN + 110;

/// Subtypes of the slow protocols (IEEE 802.3, table 57A-3).
const SUBTYPE_LACP: u8 = 1;
const SUBTYPE_MARKER: u8 = 2;
/// TLVs of a LACPDU: type and length in bytes, the two included.
const ACTOR: [u8; 2] = [1, 20];
const PARTNER: [u8; 2] = [2, 20];
const COLLECTOR: [u8; 2] = [3, 16];
/// TLVs of a marker PDU.
const MARKER: [u8; 2] = [1, 16];
const MARKER_RESPONSE: [u8; 2] = [2, 16];

/// What one end says of a port (6.4.2.3, f to m).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortInfo {
    /// Lower is preferred.
    pub system_priority: u16,
    /// The system.
    pub system: Mac,
    /// Ports of a system with the same key can be in one group.
    pub key: u16,
    /// Lower is preferred.
    pub port_priority: u16,
    /// The port of the system.
    pub port: u16,
    /// How the port is.
    pub state: State,
}

/// The bits of Actor_State and Partner_State (6.4.2.3, m).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State(pub u8);

impl State {
    /// It sends without being asked.
    pub const ACTIVITY: Self = Self(0x01);
    /// It wants to hear once a second.
    pub const SHORT_TIMEOUT: Self = Self(0x02);
    /// The port can be in a group.
    pub const AGGREGATION: Self = Self(0x04);
    /// The port is in the right group.
    pub const SYNCHRONIZATION: Self = Self(0x08);
    /// Frames from the port are taken.
    pub const COLLECTING: Self = Self(0x10);
    /// Frames are sent to the port.
    pub const DISTRIBUTING: Self = Self(0x20);
    /// Nothing was heard: what it knows of the other end is assumed.
    pub const DEFAULTED: Self = Self(0x40);
    /// Nothing was heard for too long.
    pub const EXPIRED: Self = Self(0x80);

    /// Whether all these bits are set.
    pub const fn has(self, bits: Self) -> bool {
        self.0 & bits.0 == bits.0
    }

    /// The same with these bits set, or not.
    #[must_use]
    pub const fn with(self, bits: Self, on: bool) -> Self {
        if on {
            Self(self.0 | bits.0)
        } else {
            Self(self.0 & !bits.0)
        }
    }
}

impl std::ops::BitOr for State {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl PortInfo {
    fn read(b: &[u8; 18]) -> Self {
        let word = |at: usize| u16::from_be_bytes([b[at], b[at + 1]]);
        Self {
            system_priority: word(0),
            system: Mac([b[2], b[3], b[4], b[5], b[6], b[7]]),
            key: word(8),
            port_priority: word(10),
            port: word(12),
            state: State(b[14]),
        }
    }

    fn write(&self, b: &mut [u8]) {
        b[0..2].copy_from_slice(&self.system_priority.to_be_bytes());
        b[2..8].copy_from_slice(&self.system.0);
        b[8..10].copy_from_slice(&self.key.to_be_bytes());
        b[10..12].copy_from_slice(&self.port_priority.to_be_bytes());
        b[12..14].copy_from_slice(&self.port.to_be_bytes());
        b[14] = self.state.0;
    }

    /// Whether both are the same port of the same system with the same key, whatever its state.
    pub fn is_same_port(&self, other: &Self) -> bool {
        let state = State::default();
        Self { state, ..*self } == Self { state, ..*other }
    }

    /// Whether both can be reached as one group: the same system with the same key.
    pub fn is_same_group(&self, other: &Self) -> bool {
        (self.system_priority, self.system, self.key)
            == (other.system_priority, other.system, other.key)
    }
}

/// What the two ends know of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lacpdu {
    /// The end that sends it.
    pub actor: PortInfo,
    /// The other end, as the sender knows it.
    pub partner: PortInfo,
}

/// A frame of the slow protocols that is for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pdu {
    /// LACP.
    Lacp(Lacpdu),
    /// A marker, to be answered with this frame but for the source address (6.5.4.2).
    Marker([u8; PDU_LEN]),
    /// The answer to a marker; we send none.
    MarkerResponse,
}

impl Pdu {
    /// Reads a frame. Versions above 1 have the same first TLVs (6.4.2.3, c); what is longer is looked
    /// at as far as it is known (6.4.2.3, t).
    pub fn read(frame: &[u8]) -> Option<Self> {
        let frame: &[u8; PDU_LEN] = frame.get(..PDU_LEN)?.try_into().ok()?;
        if frame[..6] != SLOW_PROTOCOLS.0 || frame[TYPE_AT..HEADER_LEN] != TYPE_SLOW.to_be_bytes() {
            return None;
        }
        let (subtype, version) = (frame[HEADER_LEN], frame[HEADER_LEN + 1]);
        let tlv = |at: usize| [frame[HEADER_LEN + at], frame[HEADER_LEN + at + 1]];
        match subtype {
            SUBTYPE_LACP if version >= 1 && tlv(2) == ACTOR && tlv(22) == PARTNER => {
                let info = |at: usize| {
                    let bytes = frame[HEADER_LEN + at..HEADER_LEN + at + 18]
                        .try_into()
                        .ok()?;
                    Some(PortInfo::read(bytes))
                };
                let (actor, partner) = (info(4)?, info(24)?);
                Some(Self::Lacp(Lacpdu { actor, partner }))
            }
            SUBTYPE_MARKER if tlv(2) == MARKER => {
                let mut response = *frame;
                response[HEADER_LEN + 2..HEADER_LEN + 4].copy_from_slice(&MARKER_RESPONSE);
                Some(Self::Marker(response))
            }
            SUBTYPE_MARKER if tlv(2) == MARKER_RESPONSE => Some(Self::MarkerResponse),
            _ => None,
        }
    }
}

impl Lacpdu {
    /// The frame, from the station `source`.
    pub fn frame(&self, source: Mac) -> [u8; PDU_LEN] {
        let mut frame = [0; PDU_LEN];
        frame[..6].copy_from_slice(&SLOW_PROTOCOLS.0);
        frame[6..12].copy_from_slice(&source.0);
        frame[TYPE_AT..HEADER_LEN].copy_from_slice(&TYPE_SLOW.to_be_bytes());
        let pdu = &mut frame[HEADER_LEN..];
        pdu[..2].copy_from_slice(&[SUBTYPE_LACP, 1]);
        pdu[2..4].copy_from_slice(&ACTOR);
        self.actor.write(&mut pdu[4..22]);
        pdu[22..24].copy_from_slice(&PARTNER);
        self.partner.write(&mut pdu[24..42]);
        // CollectorMaxDelay 0: what is collected is forwarded at once (6.4.2.3, q).
        pdu[42..44].copy_from_slice(&COLLECTOR);
        // The terminator and what is reserved are zero.
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(n: u8) -> PortInfo {
        PortInfo {
            system_priority: 0x100 + u16::from(n),
            system: Mac([2, 0, 0, 0, 0, n]),
            key: 0x200 + u16::from(n),
            port_priority: 0x300 + u16::from(n),
            port: 0x400 + u16::from(n),
            state: State(0x3d + n),
        }
    }

    #[test]
    fn a_frame_says_what_was_written() {
        let (actor, partner) = (info(1), info(2));
        let pdu = Lacpdu { actor, partner };
        let frame = pdu.frame(Mac([2, 0, 0, 0, 0, 9]));
        assert_eq!(Pdu::read(&frame), Some(Pdu::Lacp(pdu)));
        // Where IEEE 802.1AX, figure 6-7, has the fields.
        assert_eq!(frame[12..18], [0x88, 0x09, 1, 1, 1, 20]);
        assert_eq!(frame[18..20], [1, 1]);
        assert_eq!(frame[32], 0x3e);
        assert_eq!(frame[36..38], [2, 20]);
        assert_eq!(frame[56..58], [3, 16]);
        let longer = [&frame[..], &[7; 60]].concat();
        assert_eq!(Pdu::read(&longer), Some(Pdu::Lacp(pdu)));
        for len in 0..frame.len() {
            assert_eq!(Pdu::read(&frame[..len]), None);
        }
        for at in [0, 5, 12, 13, 14, 15, 16, 17, 36, 37] {
            let mut other = frame;
            other[at] ^= if at == 15 { 1 } else { 0x40 };
            assert_eq!(Pdu::read(&other), None, "byte {at}");
        }
    }

    #[test]
    fn a_marker_is_answered_with_itself() {
        let mut marker = Lacpdu {
            actor: info(1),
            partner: info(2),
        }
        .frame(Mac([2, 0, 0, 0, 0, 9]));
        marker[14..18].copy_from_slice(&[2, 1, 1, 16]);
        let Some(Pdu::Marker(answer)) = Pdu::read(&marker) else {
            panic!("no marker");
        };
        assert_eq!(answer[16..18], [2, 16]);
        assert_eq!(answer[18..], marker[18..]);
        assert_eq!(Pdu::read(&answer), Some(Pdu::MarkerResponse));
    }
}
