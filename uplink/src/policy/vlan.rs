//! Which VLAN a frame of a port is in, and how it leaves through another.
//!
//! | port | takes | gives |
//! |---|---|---|
//! | untagged | untagged frames, into a domain of its own | untagged |
//! | access N | untagged frames, into VLAN N | untagged |
//! | trunk | frames tagged with a VLAN of its set; untagged ones into its native VLAN | tagged, but the native VLAN untagged |
//! | uplink | the same; without a native VLAN, untagged ones into the domain of untagged ports | the same, that domain untagged |
//!
//! A priority tag (VLAN 0) counts as untagged (IEEE 802.1Q, 6.9). Everything else is dropped. So
//! is a frame with a second 802.1Q tag behind the first: taking off the first would let its
//! sender choose the VLAN that a receiver sees (double tagging). An 802.1ad tag is payload.

use std::fmt;
use std::str::FromStr;

use tandem_virtio_net::wire::vlan::MAX_VID;

/// Bits of a tag that are not its VLAN: priority and drop eligible (IEEE 802.1Q, 9.6).
const PRIORITY: u16 = 0xf000;

/// What is wrong with the VLAN settings of a port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VlanError {
    /// Not in 1 to 4094.
    #[error("VLAN {0} does not exist; use 1 to {MAX_VID}")]
    OutOfRange(u64),
    /// Not a number.
    #[error("\"{0}\" is not a VLAN; write numbers and ranges, such as 10,20-29")]
    NotANumber(String),
    /// A range that ends before it begins.
    #[error("the range {0}-{1} ends before it begins")]
    Backwards(u16, u16),
    /// No VLAN at all.
    #[error("the list of VLANs is empty; write numbers and ranges, such as 10,20-29")]
    Empty,
}

/// A VLAN identifier, 1 to 4094 (IEEE 802.1Q, table 9-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vid(u16);

impl Vid {
    /// Checks the number.
    ///
    /// # Errors
    /// [`VlanError::OutOfRange`].
    pub fn new(vid: u16) -> Result<Self, VlanError> {
        if (1..=MAX_VID).contains(&vid) {
            Ok(Self(vid))
        } else {
            Err(VlanError::OutOfRange(vid.into()))
        }
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl FromStr for Vid {
    type Err = VlanError;

    fn from_str(text: &str) -> Result<Self, VlanError> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(VlanError::NotANumber(text.to_owned()));
        }
        let number = text.parse().unwrap_or(u64::MAX);
        u16::try_from(number)
            .ok()
            .and_then(|n| Self::new(n).ok())
            .ok_or(VlanError::OutOfRange(number))
    }
}

/// A set of VLANs, written as `10,20-29`.
#[derive(Clone, PartialEq, Eq)]
pub struct VlanSet(Box<[u64; 64]>);

impl VlanSet {
    fn insert(&mut self, vid: u16) {
        self.0[usize::from(vid / 64)] |= 1 << (vid % 64);
    }

    /// Is `vid` in the set? Numbers that are no VLAN are not.
    #[inline]
    pub fn contains(&self, vid: u16) -> bool {
        self.0
            .get(usize::from(vid / 64))
            .is_some_and(|word| word & 1 << (vid % 64) != 0)
    }

    /// The VLANs, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (1..=MAX_VID).filter(|vid| self.contains(*vid))
    }
}

impl FromIterator<Vid> for VlanSet {
    fn from_iter<I: IntoIterator<Item = Vid>>(vids: I) -> Self {
        let mut set = Self(Box::new([0; 64]));
        vids.into_iter().for_each(|vid| set.insert(vid.0));
        set
    }
}

impl FromStr for VlanSet {
    type Err = VlanError;

    fn from_str(text: &str) -> Result<Self, VlanError> {
        if text.trim().is_empty() {
            return Err(VlanError::Empty);
        }
        let mut set = Self::from_iter([]);
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (Vid, Vid) = (first.parse()?, last.parse()?);
            if last < first {
                return Err(VlanError::Backwards(first.0, last.0));
            }
            (first.0..=last.0).for_each(|vid| set.insert(vid));
        }
        Ok(set)
    }
}

impl fmt::Display for VlanSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut vids = self.iter().peekable();
        let mut comma = "";
        while let Some(first) = vids.next() {
            let mut last = first;
            while let Some(next) = vids.next_if_eq(&(last + 1)) {
                last = next;
            }
            write!(f, "{comma}{first}")?;
            if last != first {
                write!(f, "-{last}")?;
            }
            comma = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for VlanSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VlanSet({self})")
    }
}

/// The VLAN settings of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum VlanPolicy {
    /// No VLAN: the domain of all ports without VLAN settings. Tags are not let through.
    #[default]
    Untagged,
    /// One VLAN, which the port does not see.
    Access(Vid),
    /// Several VLANs, which the port tells apart by tags.
    Trunk {
        /// Those that are tagged.
        vlans: VlanSet,
        /// The one of untagged frames; none: they are dropped. Need not be in `vlans`.
        native: Option<Vid>,
    },
    /// The wire: as a trunk, and it has the domain of ports without VLAN settings, too.
    Uplink {
        /// Those that are tagged; none: all.
        vlans: Option<VlanSet>,
        /// The one of untagged frames, in place of that domain.
        native: Option<Vid>,
    },
}

/// The VLAN of a frame inside the switch; 0 is the domain of ports without VLAN settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Class {
    pub(crate) vid: u16,
    /// Priority and drop eligible, at their place in a tag.
    priority: u16,
}

impl Class {
    /// A frame without priority in VLAN `vid`.
    pub(crate) fn of(vid: u16) -> Self {
        Self { vid, priority: 0 }
    }
}

impl VlanPolicy {
    /// The class of a frame that comes in with the tag `tag`; none: it may not.
    #[inline]
    pub(crate) fn ingress(&self, tag: Option<u16>) -> Option<Class> {
        let tci = tag.unwrap_or(0);
        let vid = match (self, tci & !PRIORITY) {
            (Self::Untagged, 0) => 0,
            (Self::Access(vid), 0) => vid.0,
            (Self::Trunk { native, .. }, 0) => (*native)?.0,
            (Self::Uplink { native, .. }, 0) => native.map_or(0, Vid::get),
            (Self::Trunk { .. } | Self::Uplink { .. }, vid) if self.carries(vid) => vid,
            _ => return None,
        };
        Some(Class {
            vid,
            priority: tci & PRIORITY,
        })
    }

    /// The tag that a frame of this class leaves with.
    #[inline]
    pub(crate) fn egress(&self, class: Class) -> Option<u16> {
        match self {
            Self::Trunk { native, .. } if native.is_none_or(|n| n.0 != class.vid) => {
                Some(class.priority | class.vid)
            }
            Self::Uplink { native, .. } if class.vid != 0 && *native != Some(Vid(class.vid)) => {
                Some(class.priority | class.vid)
            }
            _ => None,
        }
    }

    /// Is the port a member of VLAN `vid`?
    #[inline]
    pub(crate) fn carries(&self, vid: u16) -> bool {
        match self {
            Self::Untagged => vid == 0,
            Self::Access(v) => v.0 == vid,
            Self::Trunk { vlans, native } => {
                vlans.contains(vid) || native.is_some_and(|n| n.0 == vid)
            }
            Self::Uplink { native, .. } if vid == 0 => native.is_none(),
            Self::Uplink { vlans, native } => {
                vid <= MAX_VID && vlans.as_ref().is_none_or(|vlans| vlans.contains(vid))
                    || native.is_some_and(|n| n.0 == vid)
            }
        }
    }

    /// Can the two be members of one VLAN?
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        (0..=MAX_VID).any(|vid| self.carries(vid) && other.carries(vid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trunk(vlans: &str, native: Option<u16>) -> VlanPolicy {
        let native = native.map(|n| Vid::new(n).unwrap());
        VlanPolicy::Trunk {
            vlans: vlans.parse().unwrap(),
            native,
        }
    }

    /// Where a frame with `tag` goes and how it leaves through `out`.
    fn through(port: &VlanPolicy, tag: Option<u16>, out: &VlanPolicy) -> Option<Option<u16>> {
        let class = port.ingress(tag)?;
        out.carries(class.vid).then(|| out.egress(class))
    }

    #[test]
    fn lists_are_read_and_written() {
        for (text, shown) in [
            ("10,20-29", "10,20-29"),
            ("1-4094", "1-4094"),
            (" 7 , 5-6,9 ", "5-7,9"),
            ("3-3", "3"),
        ] {
            assert_eq!(text.parse::<VlanSet>().unwrap().to_string(), shown);
        }
        let set: VlanSet = "63-65,4094".parse().unwrap();
        assert_eq!(set.iter().collect::<Vec<_>>(), [63, 64, 65, 4094]);
        assert!(!set.contains(4095) && !set.contains(0xffff));
    }

    #[test]
    fn wrong_lists_say_what_is_wrong() {
        for (text, error) in [
            ("", VlanError::Empty),
            ("10,", VlanError::NotANumber("".into())),
            ("ten", VlanError::NotANumber("ten".into())),
            ("+1", VlanError::NotANumber("+1".into())),
            ("1-2-3", VlanError::NotANumber("2-3".into())),
            ("0", VlanError::OutOfRange(0)),
            ("4095", VlanError::OutOfRange(4095)),
            ("65537", VlanError::OutOfRange(65537)),
            ("29-20", VlanError::Backwards(29, 20)),
        ] {
            assert_eq!(text.parse::<VlanSet>(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_port_without_vlan_and_an_access_port_take_no_tags() {
        let plain = VlanPolicy::Untagged;
        let access = VlanPolicy::Access(Vid::new(10).unwrap());
        for port in [&plain, &access] {
            assert_eq!(through(port, None, port), Some(None));
            assert_eq!(through(port, Some(0xe000), port), Some(None));
            assert_eq!(through(port, Some(10), port), None);
        }
        assert_eq!(through(&plain, None, &access), None);
    }

    #[test]
    fn an_uplink_carries_untagged_frames_and_all_vlans_or_those_it_is_given() {
        let plain = VlanPolicy::Untagged;
        let access = VlanPolicy::Access(Vid::new(10).unwrap());
        let uplink = |vlans: Option<&str>, native: Option<u16>| VlanPolicy::Uplink {
            vlans: vlans.map(|vlans| vlans.parse().unwrap()),
            native: native.map(|vid| Vid::new(vid).unwrap()),
        };
        let all = uplink(None, None);
        assert_eq!(through(&plain, None, &all), Some(None));
        assert_eq!(through(&all, Some(0xe000), &plain), Some(None));
        assert_eq!(through(&access, Some(0xb000), &all), Some(Some(0xb00a)));
        assert_eq!(through(&all, Some(10), &access), Some(None));
        assert_eq!(through(&all, Some(4095), &all), None);
        let some = uplink(Some("20"), Some(10));
        assert_eq!(through(&access, None, &some), Some(None));
        assert_eq!(through(&some, None, &access), Some(None));
        assert_eq!(through(&plain, None, &some), None);
        assert_eq!(through(&some, Some(20), &trunk("20", None)), Some(Some(20)));
        assert_eq!(through(&some, Some(30), &trunk("30", None)), None);
    }

    #[test]
    fn a_trunk_tags_all_but_its_native_vlan_and_keeps_the_priority() {
        let access = VlanPolicy::Access(Vid::new(10).unwrap());
        let trunk10 = trunk("10,20", Some(10));
        let all = trunk("1-4094", None);
        assert_eq!(through(&access, None, &trunk10), Some(None));
        assert_eq!(through(&access, Some(0xb000), &all), Some(Some(0xb00a)));
        assert_eq!(through(&all, Some(0x700a), &access), Some(None));
        assert_eq!(through(&trunk10, None, &all), Some(Some(10)));
        assert_eq!(through(&trunk10, Some(20), &all), Some(Some(20)));
        assert_eq!(through(&trunk10, Some(30), &all), None);
        assert_eq!(through(&all, None, &trunk10), None);
        assert_eq!(through(&all, Some(4095), &all), None);
        assert!(trunk10.overlaps(&access) && !trunk10.overlaps(&VlanPolicy::Untagged));
    }
}
