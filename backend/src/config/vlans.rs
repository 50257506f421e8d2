//! A list of VLANs as a user writes it: `10,20-29`.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// VLAN identifiers that a tag may carry (IEEE 802.1Q, table 9-2).
pub(super) const VLANS: RangeInclusive<u16> = 1..=4094;

/// VLANs, 1 to 4094 each, as ranges in ascending order that neither overlap nor touch. Not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VlanList(Vec<RangeInclusive<u16>>);

impl VlanList {
    /// Tells whether `vlan` is in the list.
    pub fn contains(&self, vlan: u16) -> bool {
        self.0.iter().any(|range| range.contains(&vlan))
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> &[RangeInclusive<u16>] {
        &self.0
    }
}

impl FromStr for VlanList {
    type Err = String;

    /// Reads `10,20-29`. The error is the reason, in words.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut ranges = text.split(',').map(range).collect::<Result<Vec<_>, _>>()?;
        ranges.sort_by_key(|range| *range.start());
        let mut merged: Vec<RangeInclusive<u16>> = Vec::with_capacity(ranges.len());
        for next in ranges {
            match merged.last_mut() {
                Some(last) if *next.start() <= *last.end() + 1 => {
                    *last = *last.start()..=*last.end().max(next.end());
                }
                _ => merged.push(next),
            }
        }
        Ok(Self(merged))
    }
}

fn range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (vlan(first)?, vlan(last)?);
    if first > last {
        return Err(format!("the range {} runs backwards", text.trim()));
    }
    Ok(first..=last)
}

fn vlan(text: &str) -> Result<u16, String> {
    let text = text.trim();
    match text.parse() {
        Ok(vlan) if VLANS.contains(&vlan) => Ok(vlan),
        _ if text.is_empty() => Err("a VLAN is missing".into()),
        _ => Err(format!("{text:?} is not a VLAN from 1 to 4094")),
    }
}

impl fmt::Display for VlanList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if range.start() == range.end() {
                write!(f, "{comma}{}", range.start())?;
            } else {
                write!(f, "{comma}{}-{}", range.start(), range.end())?;
            }
        }
        Ok(())
    }
}

impl Serialize for VlanList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_sorted_and_merged() {
        for (text, list) in [
            ("10", "10"),
            ("10,20-29", "10,20-29"),
            ("20-29,10,30", "10,20-30"),
            ("5-9,6,7-20,1", "1,5-20"),
            ("1-4094", "1-4094"),
            (" 3 , 4 - 5 ", "3-5"),
        ] {
            assert_eq!(
                text.parse::<VlanList>().unwrap().to_string(),
                list,
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in [
            "", ",", "10,", "0", "4095", "9-5", "a", "1-2-3", "-1", "65546",
        ] {
            assert!(text.parse::<VlanList>().is_err(), "{text}");
        }
    }

    #[test]
    fn membership() {
        let list: VlanList = "10,20-29".parse().unwrap();
        let members: Vec<u16> = (0..=4095).filter(|v| list.contains(*v)).collect();
        let expected: Vec<u16> = [10].into_iter().chain(20..=29).collect();
        assert_eq!(members, expected);
    }
}
