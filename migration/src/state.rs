//! The state of a port that travels with its VM, as plain values and as bytes.
//!
//! The bytes come from another host, by way of a VMM, and are believed in nothing: they are either
//! restored whole or refused with a reason. Configuration does not travel; the control plane has
//! given the port on the other host its own before.
//!
//! ```text
//!   offset  bytes
//!        0      8   "TNDMPORT"
//!        8      2   version of the format: 1
//!       10      2   number of sections
//!       12      4   length of all, from the first byte to the last of the checksum
//!       16      …   the sections, one after the other
//!     last      4   CRC-32 (IEEE 802.3) of all before it
//!
//!   section     2   id
//!               2   version
//!               2   flags; bit 0: critical; the others are 0 and not looked at
//!               4   length of what follows
//!               …
//! ```
//!
//! Numbers are in little endian. Each section is there once at most. What a section of one version
//! holds never changes: something new is a section of its own, which an older receiver skips unless
//! it is critical; what means something else than before gets another version, which an older
//! receiver refuses. An id is never used again.
//!
//! | id | name | critical | since format | holds |
//! |---|---|---|---|---|
//! | 1 | identity | yes | 1 | [`Identity`] |
//! | 2 | counters | no | 1 | [`PortCounters`] |
//! | 3 | addresses | no | 1 | [`LearnedAddress`] each |
//! | 4 | neighbours | no | 1 | [`Neighbour`] each |

mod codec;

use std::collections::HashSet;
use std::hash::Hash;
use std::net::IpAddr;

use thiserror::Error;

use self::codec::FORMAT;

/// Most bytes of a state.
pub const MAX_LEN: usize = 1 << 20;
/// Most addresses it has of those learned on the port.
pub const MAX_ADDRESSES: usize = 1024;
/// Most neighbours.
pub const MAX_NEIGHBOURS: usize = 1024;
/// Most queue pairs.
pub const MAX_PAIRS: usize = 256;
/// Most reasons by which drops of one direction are counted.
pub const MAX_REASONS: usize = 256;
/// Most bytes of a name: a port's, or that of a reason.
pub const MAX_NAME: usize = 255;

/// What all counts of a port add up to at most, so that nobody's sum overflows: bytes at 100 Gbit/s
/// for two years.
pub const MAX_COUNT: u64 = 1 << 60;

/// A MAC address, as it is on the wire.
pub type Mac = [u8; 6];

/// All that travels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortState {
    /// Whose state it is.
    pub identity: Identity,
    /// What has been counted. None: the sender does not say.
    pub counters: Option<PortCounters>,
    /// Addresses that the switch has learned on the port.
    pub addresses: Vec<LearnedAddress>,
    /// IP addresses behind the port, those heard last first.
    pub neighbours: Vec<Neighbour>,
}

/// What has to be the same on both hosts, or the VM would find another NIC than it left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The port's name.
    pub name: String,
    /// Its configured address; none: it is learned.
    pub mac: Option<Mac>,
    /// The set of features offered.
    pub feature_level: u32,
    /// Queue pairs.
    pub queue_pairs: u16,
    /// Longest packet in bytes, without Ethernet header.
    pub mtu: u16,
}

/// What a port has counted since it was made, wherever that was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Of frames from the VM that the switch has dropped; of no pair.
    pub switch: Counters,
    /// Of each queue pair, in order.
    pub pairs: Vec<PairCounters>,
}

/// What a queue pair has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PairCounters {
    /// Frames that the VM has sent.
    pub from_vm: Counters,
    /// Frames for the VM.
    pub to_vm: Counters,
    /// Times the VM notified the switch.
    pub kicks: u64,
    /// Times the switch notified the VM.
    pub calls: u64,
}

/// Frames of one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that went through.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Dropped frames by the name of the reason, each once; not those of which there were none.
    pub drops: Vec<(String, u64)>,
}

/// An address that was learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LearnedAddress {
    /// The address.
    pub mac: Mac,
    /// Its VLAN in the switch, up to 4094; 0: none.
    pub vlan: u16,
}

/// An IP address behind the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Neighbour {
    /// The address.
    pub ip: IpAddr,
    /// The station's.
    pub mac: Mac,
    /// The VLAN of the tag on the station's frames, 1 to 4094; none: they have none.
    pub vlan: Option<u16>,
    /// It says that it is an IPv6 router.
    pub router: bool,
}

/// Why a state is refused, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StateError {
    /// Longer than any.
    #[error("the port's state is longer than {MAX_LEN} bytes, the most that is accepted: {AGAIN}")]
    TooLong,
    /// It does not start as one.
    #[error(
        "what arrived is not the state of a Tandem port: let both hosts serve this NIC with tandemd"
    )]
    NotAState,
    /// Of a format that came later.
    #[error(
        "the port's state has format {0}, and this tandemd knows formats up to {FORMAT}: {UPDATE}"
    )]
    NewerFormat(u16),
    /// Its end is missing, or there is something behind it.
    #[error("the port's state says that it has {said} bytes, and {arrived} have arrived: {AGAIN}")]
    Cut {
        /// What it says.
        said: usize,
        /// What there is.
        arrived: usize,
    },
    /// The checksum is another one.
    #[error("the port's state was damaged on its way (its checksum is wrong): {AGAIN}")]
    Damaged,
    /// It has a section that must not be passed over.
    #[error("the port's state has a section {0} that this tandemd does not know: {UPDATE}")]
    UnknownSection(u16),
    /// A section means something else than here.
    #[error(
        "the port's state has its {section} in version {version}, and this tandemd knows versions up \
         to {known}: {UPDATE}"
    )]
    NewerSection {
        /// Its name.
        section: &'static str,
        /// Its version.
        version: u16,
        /// The newest version that is known.
        known: u16,
    },
    /// A section is there twice, or one is not there that has to be.
    #[error("the port's state has its {section} {times} times: {REPORT}")]
    Times {
        /// Its name.
        section: &'static str,
        /// How often it is there.
        times: usize,
    },
    /// A section does not hold what it should.
    #[error("the port's state has {section} that make no sense ({what}): {REPORT}")]
    Malformed {
        /// Its name.
        section: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
}

const AGAIN: &str = "start the migration again";
const UPDATE: &str = "update tandemd on this host first, or migrate to one that is up to date";
const REPORT: &str =
    "a fault of the sender, please report it; without DEVICE_STATE the VM still moves";

/// Why a state is not that of a port.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "the VM comes from a port with {key} = {theirs}, and here it is {ours}: give both the same {key}"
)]
pub struct IdentityMismatch {
    /// What differs, as the configuration calls it.
    pub key: &'static str,
    /// What the state says.
    pub theirs: String,
    /// What it is here.
    pub ours: String,
}

impl Identity {
    /// Compares the identity in a state with that of the port that is to have it.
    ///
    /// # Errors
    /// The first thing that differs.
    pub fn check(&self, ours: &Self) -> Result<(), IdentityMismatch> {
        let values = |id: &Self| {
            let mac = id.mac.map_or_else(|| "none".to_owned(), mac_text);
            [
                ("name", id.name.clone()),
                ("mac", mac),
                ("feature_level", id.feature_level.to_string()),
                ("queue_pairs", id.queue_pairs.to_string()),
                ("mtu", id.mtu.to_string()),
            ]
        };
        for ((key, theirs), (_, ours)) in values(self).into_iter().zip(values(ours)) {
            if theirs != ours {
                return Err(IdentityMismatch { key, theirs, ours });
            }
        }
        Ok(())
    }
}

fn mac_text([a, b, c, d, e, f]: Mac) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

impl PortState {
    /// The state as bytes.
    ///
    /// # Errors
    /// It breaks a limit, so that nobody would accept it.
    pub fn to_bytes(&self) -> Result<Vec<u8>, StateError> {
        self.check()?;
        let bytes = codec::encode(self);
        if bytes.len() > MAX_LEN {
            return Err(StateError::TooLong);
        }
        Ok(bytes)
    }

    /// What is true of every state.
    fn check(&self) -> Result<(), StateError> {
        let malformed = |section, what| Err(StateError::Malformed { section, what });
        if self.identity.name.len() > MAX_NAME {
            return malformed(codec::IDENTITY, "the name is too long");
        }
        if let Some(counters) = &self.counters {
            let pairs = &counters.pairs;
            if pairs.len() > MAX_PAIRS || pairs.len() != usize::from(self.identity.queue_pairs) {
                return malformed(codec::COUNTERS, "they are not one for each queue pair");
            }
            if !counters.all().all(Counters::is_sound) {
                return malformed(
                    codec::COUNTERS,
                    "their reasons of drops are no list of names",
                );
            }
            let sum = counters.counts().try_fold(0u64, u64::checked_add);
            if sum.is_none_or(|sum| sum > MAX_COUNT) {
                return malformed(codec::COUNTERS, "nobody counts that far");
            }
        }
        if self.addresses.len() > MAX_ADDRESSES || !is_set(&self.addresses) {
            return malformed(codec::ADDRESSES, "they are too many, or one is there twice");
        }
        if !self.addresses.iter().all(|a| a.vlan <= MAX_VLAN) {
            return malformed(codec::ADDRESSES, "there is no such VLAN");
        }
        let claims: Vec<_> = self.neighbours.iter().map(|n| (n.ip, n.vlan)).collect();
        if claims.len() > MAX_NEIGHBOURS || !is_set(&claims) {
            return malformed(
                codec::NEIGHBOURS,
                "they are too many, or one is there twice",
            );
        }
        let vlans = self.neighbours.iter().filter_map(|n| n.vlan);
        if !vlans.into_iter().all(|vlan| (1..=MAX_VLAN).contains(&vlan)) {
            return malformed(codec::NEIGHBOURS, "there is no such VLAN");
        }
        Ok(())
    }
}

/// IEEE 802.1Q, 9.6: 4095 is reserved.
const MAX_VLAN: u16 = 4094;

impl PortCounters {
    fn all(&self) -> impl Iterator<Item = &Counters> {
        let of_pairs = self.pairs.iter().flat_map(|p| [&p.from_vm, &p.to_vm]);
        of_pairs.chain([&self.switch])
    }

    /// All numbers there are.
    fn counts(&self) -> impl Iterator<Item = u64> {
        let frames = self.all().flat_map(|c| {
            let drops = c.drops.iter().map(|(_, frames)| *frames);
            drops.chain([c.frames, c.bytes])
        });
        frames.chain(self.pairs.iter().flat_map(|p| [p.kicks, p.calls]))
    }
}

impl Counters {
    fn is_sound(&self) -> bool {
        let names: Vec<&str> = self.drops.iter().map(|(name, _)| name.as_str()).collect();
        names.len() <= MAX_REASONS
            && is_set(&names)
            && names
                .iter()
                .all(|name| !name.is_empty() && name.len() <= MAX_NAME)
    }
}

fn is_set<T: Eq + Hash>(list: &[T]) -> bool {
    list.iter().collect::<HashSet<_>>().len() == list.len()
}

/// Restores a state, whole or not at all.
impl TryFrom<&[u8]> for PortState {
    type Error = StateError;

    fn try_from(bytes: &[u8]) -> Result<Self, StateError> {
        if bytes.len() > MAX_LEN {
            return Err(StateError::TooLong);
        }
        let state = codec::decode(bytes)?;
        state.check()?;
        Ok(state)
    }
}
