//! A bucket of the MAC table: how an entry is read while it changes.
//!
//! ```text
//!  one cache line
//!  ┌──────┬──────┬──────┬────────┬────────┬────────┬─────────┬──────────┬──────────┐
//!  │ key0 │ key1 │ key2 │ value0 │ value1 │ value2 │ seen ×3 │ moved ×3 │ overflow │
//!  └──────┴──────┴──────┴────────┴────────┴────────┴─────────┴──────────┴──────────┘
//!    key:   1 · VLAN 12 · address 48      value: version 32 · incarnation 16 · port 16
//! ```
//!
//! Every change of an entry gives its slot a new version. A reader takes version, key, version;
//! what was read between two equal versions belongs together.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::*, fence};

use crate::Mac;

/// Entries of a bucket.
pub(super) const WAYS: usize = 3;
/// No slot has this port: the slot is empty or being changed.
const NO_PORT: u16 = u16::MAX;

/// A VLAN and an address, as one word; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MacKey(pub(super) u64);

impl MacKey {
    #[inline]
    pub(crate) fn new(vid: u16, mac: Mac) -> Self {
        let [a, b, c, d, e, f] = mac.0;
        let mac = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        Self(1 << 60 | u64::from(vid & 0xfff) << 48 | mac)
    }

    pub(crate) fn vid(self) -> u16 {
        (self.0 >> 48) as u16 & 0xfff
    }

    pub(crate) fn mac(self) -> Mac {
        let [_, _, a, b, c, d, e, f] = self.0.to_be_bytes();
        Mac([a, b, c, d, e, f])
    }
}

/// A port as the table knows it. A port that was removed or got another policy comes back with
/// another incarnation, so that what was learned before does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Owner {
    pub(crate) port: u16,
    pub(crate) incarnation: u16,
}

/// A slot and the version of what was read in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pin {
    pub(crate) slot: u16,
    pub(crate) version: u32,
}

impl Pin {
    /// Relies on no slot.
    pub(crate) const NONE: Self = Self {
        slot: u16::MAX,
        version: 0,
    };
}

#[derive(Clone, Copy)]
pub(super) struct Value {
    pub(super) version: u32,
    pub(super) owner: Owner,
}

impl Value {
    pub(super) fn unpack(v: u64) -> Self {
        let owner = Owner {
            port: v as u16,
            incarnation: (v >> 16) as u16,
        };
        Self {
            version: (v >> 32) as u32,
            owner,
        }
    }

    pub(super) fn pack(self) -> u64 {
        u64::from(self.version) << 32
            | u64::from(self.owner.incarnation) << 16
            | u64::from(self.owner.port)
    }

    /// The next version, for `port`.
    pub(super) fn next(self, port: Option<Owner>) -> Self {
        let owner = port.unwrap_or(Owner {
            port: NO_PORT,
            incarnation: 0,
        });
        Self {
            version: self.version.wrapping_add(1),
            owner,
        }
    }
}

#[repr(align(64))]
#[derive(Default)]
pub(super) struct Bucket {
    pub(super) keys: [AtomicU64; WAYS],
    pub(super) values: [AtomicU64; WAYS],
    /// Second in which the entry was last a source, its low 16 bits.
    pub(super) seen: [AtomicU16; WAYS],
    /// Second in which it last changed its port, likewise.
    pub(super) moved: [AtomicU16; WAYS],
    pub(super) overflow: AtomicU32,
}
const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    pub(super) fn empty() -> Self {
        let nobody = Value {
            version: 0,
            owner: Owner {
                port: NO_PORT,
                incarnation: 0,
            },
        };
        let bucket = Self::default();
        bucket
            .values
            .iter()
            .for_each(|v| v.store(nobody.pack(), Relaxed));
        bucket
    }

    /// The value of slot `way`, if the slot holds `key`.
    #[inline]
    pub(super) fn read(&self, way: usize, key: MacKey) -> Option<Value> {
        let before = self.values[way].load(Acquire);
        let same = self.keys[way].load(Acquire) == key.0;
        let after = self.values[way].load(Relaxed);
        let value = Value::unpack(before);
        (same && before == after && value.owner.port != NO_PORT).then_some(value)
    }

    /// Replaces slot `way`; its new version. With the lock held.
    pub(super) fn write(&self, way: usize, key: u64, owner: Option<Owner>) -> u32 {
        let changing = Value::unpack(self.values[way].load(Relaxed)).next(None);
        self.values[way].store(changing.pack(), Relaxed);
        // Whoever reads the new key also sees that the slot was being changed.
        fence(Release);
        self.keys[way].store(key, Relaxed);
        let value = changing.next(owner);
        self.values[way].store(value.pack(), Release);
        value.version
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    const KEYS: [MacKey; 2] = [MacKey(1 << 60 | 1), MacKey(1 << 60 | 2)];

    fn owner(n: usize) -> Owner {
        let port = n as u16 + 1;
        Owner {
            port,
            incarnation: port * 100,
        }
    }

    #[test]
    fn a_slot_that_is_empty_or_being_changed_holds_nothing() {
        let bucket = Bucket::empty();
        assert!(bucket.read(0, MacKey(0)).is_none());
        let version = bucket.write(0, KEYS[0].0, Some(owner(0)));
        let value = bucket.read(0, KEYS[0]).expect("it was written");
        assert_eq!((value.version, value.owner), (version, owner(0)));
        assert!(bucket.read(0, KEYS[1]).is_none() && bucket.read(1, KEYS[0]).is_none());
        bucket.values[0].store(value.next(None).pack(), Relaxed);
        assert!(bucket.read(0, KEYS[0]).is_none());
    }

    /// One slot changes hands all the time; a reader never mixes two of its entries.
    #[test]
    fn key_and_owner_belong_together() {
        let bucket = Bucket::empty();
        let done = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                for n in 0..400_000 {
                    bucket.write(0, KEYS[n % 2].0, Some(owner(n % 2)));
                }
                done.store(true, Relaxed);
            });
            while !done.load(Relaxed) {
                for (n, key) in KEYS.into_iter().enumerate() {
                    let read = bucket.read(0, key).map(|value| value.owner);
                    assert!(read.is_none_or(|o| o == owner(n)), "{read:?}");
                }
            }
        });
    }
}
