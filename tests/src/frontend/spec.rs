//! Constants of the virtio 1.2 specification, written down a second time on
//! purpose: the front-end must not share a mistake with the back-end.

/// VIRTIO_NET_F_CSUM: the device completes partial checksums (5.1.3).
pub const CSUM: u64 = 1 << 0;
/// VIRTIO_NET_F_GUEST_CSUM: the driver takes partial checksums.
pub const GUEST_CSUM: u64 = 1 << 1;
/// VIRTIO_NET_F_MTU.
pub const MTU: u64 = 1 << 3;
/// VIRTIO_NET_F_MAC.
pub const MAC: u64 = 1 << 5;
/// VIRTIO_NET_F_GUEST_TSO4.
pub const GUEST_TSO4: u64 = 1 << 7;
/// VIRTIO_NET_F_GUEST_TSO6.
pub const GUEST_TSO6: u64 = 1 << 8;
/// VIRTIO_NET_F_GUEST_ECN.
pub const GUEST_ECN: u64 = 1 << 9;
/// VIRTIO_NET_F_HOST_TSO4.
pub const HOST_TSO4: u64 = 1 << 11;
/// VIRTIO_NET_F_HOST_TSO6.
pub const HOST_TSO6: u64 = 1 << 12;
/// VIRTIO_NET_F_HOST_ECN.
pub const HOST_ECN: u64 = 1 << 13;
/// VIRTIO_NET_F_MRG_RXBUF.
pub const MRG_RXBUF: u64 = 1 << 15;
/// VIRTIO_NET_F_CTRL_VQ.
pub const CTRL_VQ: u64 = 1 << 17;
/// VIRTIO_NET_F_GUEST_ANNOUNCE.
pub const GUEST_ANNOUNCE: u64 = 1 << 21;
/// VIRTIO_NET_F_MQ.
pub const MQ: u64 = 1 << 22;
/// VHOST_F_LOG_ALL (vhost-user specification, "Migration").
pub const LOG_ALL: u64 = 1 << 26;
/// VIRTIO_F_ANY_LAYOUT, of drivers before VERSION_1 (7.4).
pub const ANY_LAYOUT: u64 = 1 << 27;
/// VIRTIO_F_INDIRECT_DESC (6).
pub const INDIRECT: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX.
pub const EVENT_IDX: u64 = 1 << 29;
/// VHOST_USER_F_PROTOCOL_FEATURES (vhost-user specification).
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// VIRTIO_F_VERSION_1.
pub const VERSION_1: u64 = 1 << 32;
/// VIRTIO_F_RING_PACKED.
pub const RING_PACKED: u64 = 1 << 34;
/// VIRTIO_F_IN_ORDER.
pub const IN_ORDER: u64 = 1 << 35;
/// VIRTIO_NET_F_GUEST_USO4.
pub const GUEST_USO4: u64 = 1 << 54;
/// VIRTIO_NET_F_GUEST_USO6.
pub const GUEST_USO6: u64 = 1 << 55;
/// VIRTIO_NET_F_HOST_USO.
pub const HOST_USO: u64 = 1 << 56;

/// Descriptor flag: the chain goes on (2.7.5, 2.8.13).
pub const DESC_NEXT: u16 = 1;
/// Descriptor flag: the device writes here.
pub const DESC_WRITE: u16 = 2;
/// Descriptor flag: the descriptor points at a table of descriptors.
pub const DESC_INDIRECT: u16 = 4;
/// Packed descriptor flag: made available when equal to the driver's wrap counter (2.8.1).
pub const DESC_AVAIL: u16 = 1 << 7;
/// Packed descriptor flag: used when equal to the device's wrap counter.
pub const DESC_USED: u16 = 1 << 15;

/// Header flag: checksum from csum_start to be completed at csum_offset (5.1.6).
pub const HDR_NEEDS_CSUM: u8 = 1;
/// Header flag: the checksum was checked.
pub const HDR_DATA_VALID: u8 = 2;

/// Header gso_type: not a super-frame.
pub const GSO_NONE: u8 = 0;
/// Header gso_type: TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// Header gso_type: TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// Header gso_type: UDP, cut into datagrams.
pub const GSO_UDP_L4: u8 = 5;
/// Header gso_type bit: TCP with the CWR flag on the first segment only.
pub const GSO_ECN: u8 = 0x80;

/// The header in front of every frame (5.1.6). `num_buffers` is absent on the
/// ring for drivers with neither VERSION_1 nor MRG_RXBUF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetHdr {
    /// `HDR_*`.
    pub flags: u8,
    /// `GSO_*`.
    pub gso_type: u8,
    /// Bytes of Ethernet, network and transport header.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// First byte the checksum covers, from the start of the frame.
    pub csum_start: u16,
    /// Where the checksum goes, from `csum_start`.
    pub csum_offset: u16,
    /// Receive only: the buffers this frame spreads over.
    pub num_buffers: u16,
}

impl NetHdr {
    /// The longest form on the ring.
    pub const LEN: usize = 12;

    /// Bytes of the header on the ring of a driver that negotiated `features`.
    pub fn len_for(features: u64) -> usize {
        if features & (VERSION_1 | MRG_RXBUF) != 0 {
            12
        } else {
            10
        }
    }

    /// The header as bytes, little-endian, of which a driver may use the first ten only.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        let words = [
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            self.num_buffers,
        ];
        for (at, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads a header of ten or twelve bytes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let word = |at: usize| {
            bytes
                .get(at..at + 2)
                .map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
        };
        NetHdr {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
            num_buffers: word(10),
        }
    }
}
