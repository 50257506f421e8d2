//! What is counted, and the closed list of reasons why a frame can end without being delivered.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// Why a frame was dropped. Every frame ends once: delivered, or dropped with one of these.
        ///
        /// Reasons of the sender's side are counted `from_vm` on the port that sent the frame,
        /// those of the receiver's side `to_vm` on the port it was meant for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// All of them, in the order of their discriminants.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$name),*];

            /// The name used in the API, the CLI and in metrics.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$name => $text,)* }
            }

            /// The reason of that name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(DropReason::$name),)* _ => None }
            }
        }
    };
}

drop_reasons! {
    /// from_vm: shorter than the vnet header and an Ethernet header with its 802.1Q tag, if any.
    TooShort = "too_short";
    /// from_vm: longer than any frame may be, see [`crate::spec::MAX_FRAME`].
    TooLong = "too_long";
    /// from_vm: longer than the port's MTU allows, and not a segment offload.
    MtuExceeded = "mtu_exceeded";
    /// from_vm: spread over more buffers than are followed.
    TooManyBuffers = "too_many_buffers";
    /// from_vm: a buffer of the frame is not in the VM's memory.
    BadBuffer = "bad_buffer";
    /// from_vm: the vnet header contradicts the frame or what was negotiated.
    BadVnetHeader = "bad_vnet_header";
    /// from_vm: the headers are longer than is looked at.
    HeadersTooLong = "headers_too_long";
    /// from_vm: the source address is a group address, or all zero.
    BadSourceMac = "bad_source_mac";
    /// from_vm: the source address belongs to another port for good.
    SpoofedMac = "spoofed_mac";
    /// from_vm: the tag is not one this port may send.
    VlanNotAllowed = "vlan_not_allowed";
    /// from_vm: more broadcast, multicast or unknown unicast than the storm limit allows.
    StormLimit = "storm_limit";
    /// from_vm: the destination is the port the frame came from.
    Hairpin = "hairpin";
    /// from_vm: a flooded frame that no other port is a member to receive.
    NoReceiver = "no_receiver";
    /// from_vm: a link-local group address that a bridge does not forward (IEEE 802.1Q 8.6.3).
    LinkLocal = "link_local";
    /// from_vm of an uplink: a frame of one of our own ports that comes back from the wire.
    OwnFrame = "own_frame";
    /// from_vm of an uplink: it came in by a member that takes no such frames now; the same frame comes
    /// in by another.
    InactiveMember = "inactive_member";
    /// from_vm of an uplink: it is for the host's own address of the device.
    ForHost = "for_host";
    /// from_vm of an uplink: the kernel had no room for it, for we were too slow.
    Missed = "missed";
    /// to_vm: no VMM is connected or the VM's driver is not running.
    NotReady = "not_ready";
    /// to_vm: the VM has posted no buffer for it.
    RingFull = "ring_full";
    /// to_vm: the VM's buffers are too small for it.
    BufferTooSmall = "buffer_too_small";
    /// to_vm: the VM's ring broke the rules and is stopped.
    RingBroken = "ring_broken";
    /// to_vm: the frame could not be segmented or completed for a VM without that offload.
    OffloadFailed = "offload_failed";
    /// to_vm: more frames than are held for a VM that is on its way to another host, or back.
    HoldFull = "hold_full";
    /// to_vm: it was held for a VM that did not come back in time, nor was heard elsewhere.
    HoldExpired = "hold_expired";
    /// to_vm: no loss: it was held for a VM that has moved, and has followed it.
    Redirected = "redirected";
    /// to_vm: the host's network stack did not take it.
    HostRefused = "host_refused";
    /// to_vm of an uplink: no member of its team works.
    UplinkDown = "uplink_down";
    /// to_vm of an uplink: more waits for the member's device than the sending port may have there.
    UplinkFull = "uplink_full";
}

/// Frames and bytes in one direction, and the drops by reason. Bytes are of the frame, from the
/// destination address on, without vnet header and frame check sequence.
#[derive(Debug)]
pub struct Counters {
    frames: AtomicU64,
    bytes: AtomicU64,
    drops: [AtomicU64; DropReason::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            frames: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            drops: [const { AtomicU64::new(0) }; DropReason::ALL.len()],
        }
    }
}

impl Counters {
    /// Counts frames that went through. Call once a burst.
    #[inline]
    pub fn add(&self, frames: u64, bytes: u64) {
        if frames != 0 {
            self.frames.fetch_add(frames, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Counts dropped frames.
    #[inline]
    pub fn count_drop(&self, reason: DropReason, frames: u64) {
        if frames != 0 {
            self.drops[reason as usize].fetch_add(frames, Ordering::Relaxed);
        }
    }

    /// Goes on from what was counted elsewhere, instead of what was counted here. What is counted while
    /// this runs may be lost, but for what comes after.
    pub fn set(&self, frames: u64, bytes: u64, drops: impl Fn(DropReason) -> u64) {
        self.frames.store(frames, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        for reason in DropReason::ALL {
            self.drops[*reason as usize].store(drops(*reason), Ordering::Relaxed);
        }
    }

    /// Frames that went through.
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Bytes that went through.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Frames dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].load(Ordering::Relaxed)
    }

    /// The reasons that occurred, with their counts.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .iter()
            .map(|r| (*r, self.dropped(*r)))
            .filter(|(_, n)| *n != 0)
    }
}
