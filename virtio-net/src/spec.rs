//! Constants and wire structs of the virtio specification, version 1.3, each with its section.
//!
//! Everything a guest or a VMM puts into shared memory is little-endian. So is every machine
//! Tandem runs on, and the data path relies on it instead of converting at each access.

use std::mem::{offset_of, size_of};

#[cfg(not(target_endian = "little"))]
compile_error!("the data path reads rings in place and needs a little-endian machine");

macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $short:literal;)*) => {
        $($(#[$doc])* pub const $name: u32 = $bit;)*
        /// Every feature bit named here, with the name people use for it.
        pub const FEATURE_NAMES: &[(u32, &str)] = &[$(($bit, $short)),*];
    };
}

features! {
    /// The device handles packets with a partial checksum (5.1.3).
    VIRTIO_NET_F_CSUM = 0, "CSUM";
    /// The driver handles packets with a partial checksum (5.1.3).
    VIRTIO_NET_F_GUEST_CSUM = 1, "GUEST_CSUM";
    /// The device tells its maximum MTU (5.1.3).
    VIRTIO_NET_F_MTU = 3, "MTU";
    /// The device has a given MAC address (5.1.3).
    VIRTIO_NET_F_MAC = 5, "MAC";
    /// The driver can receive TSOv4 (5.1.3).
    VIRTIO_NET_F_GUEST_TSO4 = 7, "GUEST_TSO4";
    /// The driver can receive TSOv6 (5.1.3).
    VIRTIO_NET_F_GUEST_TSO6 = 8, "GUEST_TSO6";
    /// The driver can receive TSO with ECN (5.1.3).
    VIRTIO_NET_F_GUEST_ECN = 9, "GUEST_ECN";
    /// The driver can receive UFO (5.1.3).
    VIRTIO_NET_F_GUEST_UFO = 10, "GUEST_UFO";
    /// The device can receive TSOv4 (5.1.3).
    VIRTIO_NET_F_HOST_TSO4 = 11, "HOST_TSO4";
    /// The device can receive TSOv6 (5.1.3).
    VIRTIO_NET_F_HOST_TSO6 = 12, "HOST_TSO6";
    /// The device can receive TSO with ECN (5.1.3).
    VIRTIO_NET_F_HOST_ECN = 13, "HOST_ECN";
    /// The device can receive UFO (5.1.3).
    VIRTIO_NET_F_HOST_UFO = 14, "HOST_UFO";
    /// The driver can merge receive buffers (5.1.3).
    VIRTIO_NET_F_MRG_RXBUF = 15, "MRG_RXBUF";
    /// The configuration status field is available (5.1.3).
    VIRTIO_NET_F_STATUS = 16, "STATUS";
    /// The control channel is available (5.1.3).
    VIRTIO_NET_F_CTRL_VQ = 17, "CTRL_VQ";
    /// The driver can send gratuitous packets (5.1.3).
    VIRTIO_NET_F_GUEST_ANNOUNCE = 21, "GUEST_ANNOUNCE";
    /// The device supports several queue pairs (5.1.3).
    VIRTIO_NET_F_MQ = 22, "MQ";
    /// The driver tolerates missing used-buffer notifications (6.3, legacy).
    VIRTIO_F_NOTIFY_ON_EMPTY = 24, "NOTIFY_ON_EMPTY";
    /// vhost: log every write to guest memory (vhost-user specification, Migration).
    VHOST_F_LOG_ALL = 26, "LOG_ALL";
    /// Descriptors may be laid out at will (6.3, legacy; always true from version 1).
    VIRTIO_F_ANY_LAYOUT = 27, "ANY_LAYOUT";
    /// Indirect descriptors (6).
    VIRTIO_F_INDIRECT_DESC = 28, "INDIRECT_DESC";
    /// Event index notification suppression (6).
    VIRTIO_F_EVENT_IDX = 29, "EVENT_IDX";
    /// vhost-user: protocol features are negotiated (vhost-user specification).
    VHOST_USER_F_PROTOCOL_FEATURES = 30, "PROTOCOL_FEATURES";
    /// Version 1 of the specification (6).
    VIRTIO_F_VERSION_1 = 32, "VERSION_1";
    /// Packed virtqueue layout (6).
    VIRTIO_F_RING_PACKED = 34, "RING_PACKED";
    /// Buffers are used in the order they were made available (6).
    VIRTIO_F_IN_ORDER = 35, "IN_ORDER";
    /// The driver can receive USOv4 (5.1.3).
    VIRTIO_NET_F_GUEST_USO4 = 54, "GUEST_USO4";
    /// The driver can receive USOv6 (5.1.3).
    VIRTIO_NET_F_GUEST_USO6 = 55, "GUEST_USO6";
    /// The device can receive USO (5.1.3).
    VIRTIO_NET_F_HOST_USO = 56, "HOST_USO";
}

/// Tells whether `features` has the feature bit `bit`.
#[inline]
pub const fn has(features: u64, bit: u32) -> bool {
    features & (1 << bit) != 0
}

/// The names of the bits of `features`; a bit without a name is shown as its number.
pub fn feature_names(features: u64) -> Vec<String> {
    (0..64)
        .filter(|bit| has(features, *bit))
        .map(|bit| match FEATURE_NAMES.iter().find(|(b, _)| *b == bit) {
            Some((_, name)) => (*name).to_owned(),
            None => format!("BIT_{bit}"),
        })
        .collect()
}

/// `flags` of [`NetHdr`]: the checksum is partial and must be completed (5.1.6).
pub const NET_HDR_F_NEEDS_CSUM: u8 = 1;
/// `flags` of [`NetHdr`]: the checksum was found good (5.1.6).
pub const NET_HDR_F_DATA_VALID: u8 = 2;
/// `flags` of [`NetHdr`]: `csum_start` and `csum_offset` hold RSC information (5.1.6).
pub const NET_HDR_F_RSC_INFO: u8 = 4;
/// `gso_type` of [`NetHdr`]: not a segment offload (5.1.6).
pub const NET_HDR_GSO_NONE: u8 = 0;
/// `gso_type` of [`NetHdr`]: TCP over IPv4 (5.1.6).
pub const NET_HDR_GSO_TCPV4: u8 = 1;
/// `gso_type` of [`NetHdr`]: UDP fragmentation, which Tandem never offers (5.1.6).
pub const NET_HDR_GSO_UDP: u8 = 3;
/// `gso_type` of [`NetHdr`]: TCP over IPv6 (5.1.6).
pub const NET_HDR_GSO_TCPV6: u8 = 4;
/// `gso_type` of [`NetHdr`]: UDP segmentation (5.1.6).
pub const NET_HDR_GSO_UDP_L4: u8 = 5;
/// Added to a TCP `gso_type`: the frame has ECN set (5.1.6).
pub const NET_HDR_GSO_ECN: u8 = 0x80;

/// `struct virtio_net_hdr`, in front of every frame in a ring (5.1.6).
///
/// Drivers without `VERSION_1` and without `MRG_RXBUF` use it without `num_buffers`: 10 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetHdr {
    /// `NET_HDR_F_*`.
    pub flags: u8,
    /// `NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Length of the headers up to the payload, a hint.
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// Where summing starts, from the start of the frame.
    pub csum_start: u16,
    /// Where the checksum goes, from `csum_start`.
    pub csum_offset: u16,
    /// Receive only: buffers this frame was merged over.
    pub num_buffers: u16,
}

/// Bytes of [`NetHdr`] with `num_buffers`.
pub const NET_HDR_LEN: usize = 12;
/// Bytes of [`NetHdr`] for a legacy driver without mergeable buffers.
pub const NET_HDR_LEN_LEGACY: usize = 10;
const _: () = assert!(size_of::<NetHdr>() == NET_HDR_LEN);
const _: () = assert!(offset_of!(NetHdr, num_buffers) == NET_HDR_LEN_LEGACY);

impl NetHdr {
    /// The header of a frame that asks for nothing, as it is received in one buffer.
    pub const PLAIN: Self = Self {
        flags: 0,
        gso_type: 0,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
        num_buffers: 1,
    };

    /// Reads a header from its bytes.
    #[inline]
    pub fn from_bytes(b: &[u8; NET_HDR_LEN]) -> Self {
        let word = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        Self {
            flags: b[0],
            gso_type: b[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
            num_buffers: word(10),
        }
    }

    /// The header's bytes.
    #[inline]
    pub fn to_bytes(self) -> [u8; NET_HDR_LEN] {
        let mut b = [0; NET_HDR_LEN];
        b[0] = self.flags;
        b[1] = self.gso_type;
        for (at, v) in [
            (2, self.hdr_len),
            (4, self.gso_size),
            (6, self.csum_start),
            (8, self.csum_offset),
            (10, self.num_buffers),
        ] {
            b[at..at + 2].copy_from_slice(&v.to_le_bytes());
        }
        b
    }

    /// Bytes of the header a driver with these features uses (5.1.6.1).
    pub const fn len_for(features: u64) -> usize {
        if has(features, VIRTIO_F_VERSION_1) || has(features, VIRTIO_NET_F_MRG_RXBUF) {
            NET_HDR_LEN
        } else {
            NET_HDR_LEN_LEGACY
        }
    }
}

/// Descriptor flag: the chain goes on at `next` (2.7.5, 2.8.13).
pub const DESC_F_NEXT: u16 = 1;
/// Descriptor flag: the device writes to this buffer (2.7.5, 2.8.13).
pub const DESC_F_WRITE: u16 = 2;
/// Descriptor flag: the buffer holds a table of descriptors (2.7.5, 2.8.13).
pub const DESC_F_INDIRECT: u16 = 4;
/// Packed descriptor flag: available, relative to the driver's wrap counter (2.8.1).
pub const PACKED_F_AVAIL: u16 = 1 << 7;
/// Packed descriptor flag: used, relative to the device's wrap counter (2.8.1).
pub const PACKED_F_USED: u16 = 1 << 15;

/// `struct virtq_desc` of a split virtqueue (2.7.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Desc {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// `DESC_F_*`.
    pub flags: u16,
    /// Next descriptor of the chain when `flags` has [`DESC_F_NEXT`].
    pub next: u16,
}
const _: () = assert!(size_of::<Desc>() == 16 && offset_of!(Desc, flags) == 12);

/// `struct pvirtq_desc` of a packed virtqueue (2.8.13).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PackedDesc {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// Buffer id, the driver's own.
    pub id: u16,
    /// `DESC_F_*` and `PACKED_F_*`.
    pub flags: u16,
}
const _: () = assert!(size_of::<PackedDesc>() == 16 && offset_of!(PackedDesc, flags) == 14);

/// `flags` of the available ring: the driver wants no used-buffer notification (2.7.6).
pub const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// `flags` of the used ring: the device wants no available-buffer notification (2.7.8).
pub const USED_F_NO_NOTIFY: u16 = 1;

/// Packed event suppression: notify always (2.8.14).
pub const EVENT_FLAGS_ENABLE: u16 = 0;
/// Packed event suppression: never notify (2.8.14).
pub const EVENT_FLAGS_DISABLE: u16 = 1;
/// Packed event suppression: notify at a given descriptor; needs `EVENT_IDX` (2.8.14).
pub const EVENT_FLAGS_DESC: u16 = 2;

/// Largest queue of a split virtqueue, a power of two (2.7); packed ones are kept to the same.
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// Largest number of queue pairs Tandem serves on one port.
pub const MAX_QUEUE_PAIRS: u16 = 32;

/// Largest frame in a ring: 64 KiB of IP (a segment offload) behind Ethernet and two tags.
pub const MAX_FRAME: usize = 65535 + 14 + 8;
/// Largest frame that is delivered: the switch may have put a tag on it.
pub const MAX_DELIVERED: usize = MAX_FRAME + 4;
/// Smallest frame that has an Ethernet header (IEEE 802.3 clause 3.1.1; padding is the wire's).
pub const MIN_FRAME: usize = 14;
