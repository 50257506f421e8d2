//! Which port a MAC address was last seen on: read without locks, changed under one.
//!
//! An entry lives in the bucket its key hashes to, or, when that is full, in the next with room;
//! `overflow` of a bucket counts the entries that have passed it on their way, so that a search
//! ends at the first bucket that none has passed. A verdict that remembers slot and version
//! ([`Pin`]) is valid while the version stays, so learning one address invalidates no verdict on
//! another.
//!
//! Only learned addresses are here. Those of ports with a fixed MAC are in the snapshot.
//!
//! Limits keep a guest from hurting its neighbours: each port owns a bounded number of entries,
//! and an address moves between ports at most once in [`MOVE_HOLD`] seconds. Both are judged
//! without the lock, so that a port over its limit does not hold it.

mod bucket;

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;

use self::bucket::{Bucket, Value, WAYS};
pub(crate) use self::bucket::{MacKey, Owner, Pin};
use crate::Mac;

/// Most entries of a table: a slot's number fits 16 bits, with a third of the slots empty.
const MAX_ENTRIES: usize = 32_768;
/// Seconds in which an address moves at most once.
const MOVE_HOLD: u16 = 2;
/// Seconds after its last frame in which an address is in use.
const IN_USE: i16 = 2;
/// Most addresses for which moves are remembered.
const MAX_MOVES: usize = 256;

/// What a port may have in the table, and has.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) owner: Owner,
    pub(crate) limit: u32,
    learned: Arc<AtomicU32>,
}

/// A MAC address that keeps moving between two ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moves {
    pub(crate) key: MacKey,
    /// The slots of the two ports of the last move.
    pub(crate) ports: [u16; 2],
    pub(crate) count: u64,
    last: u64,
}

/// What the lock protects, besides all changes of the buckets.
#[derive(Default)]
struct Control {
    accounts: Vec<Option<Account>>,
    moves: HashMap<MacKey, Moves>,
    /// Addresses that have left a port which still takes frames for them, and its slot.
    left: HashMap<MacKey, u16>,
}

pub(crate) struct MacTable {
    buckets: Box<[Bucket]>,
    hasher: SeedableRandomState,
    limit: AtomicUsize,
    entries: AtomicUsize,
    moves: AtomicU64,
    /// Some address is about to leave its port.
    has_left: AtomicBool,
    control: Mutex<Control>,
}

/// A number nobody outside can guess.
pub(crate) fn random_seed() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

impl MacTable {
    /// A table of up to `entries` addresses.
    pub(crate) fn new(entries: usize) -> Self {
        let limit = entries.clamp(1, MAX_ENTRIES);
        let buckets = (limit / 2).max(4).next_power_of_two();
        let limit = AtomicUsize::new(limit);
        Self {
            buckets: (0..buckets).map(|_| Bucket::empty()).collect(),
            hasher: SeedableRandomState::with_seed(random_seed(), SharedSeed::global_random()),
            limit,
            entries: AtomicUsize::new(0),
            moves: AtomicU64::new(0),
            has_left: AtomicBool::new(false),
            control: Mutex::default(),
        }
    }

    /// Gives it another limit, as far as it has room. What it holds beyond that ages away.
    pub(crate) fn set_limit(&self, entries: usize) {
        let room = (self.buckets.len() * WAYS).min(MAX_ENTRIES);
        self.limit.store(entries.clamp(1, room), Relaxed);
    }

    /// Addresses in the table.
    pub(crate) fn len(&self) -> usize {
        self.entries.load(Relaxed)
    }

    /// Addresses that have changed their port, ever.
    pub(crate) fn moves(&self) -> u64 {
        self.moves.load(Relaxed)
    }

    /// The port of an address.
    #[inline]
    pub(crate) fn find(&self, key: MacKey) -> Option<(Owner, Pin)> {
        let mut at = self.home(key);
        for _ in 0..self.buckets.len() {
            let bucket = &self.buckets[at];
            for way in 0..WAYS {
                if bucket.keys[way].load(Relaxed) == key.0
                    && let Some(value) = bucket.read(way, key)
                {
                    let slot = (at * WAYS + way) as u16;
                    return Some((
                        value.owner,
                        Pin {
                            slot,
                            version: value.version,
                        },
                    ));
                }
            }
            if bucket.overflow.load(Relaxed) == 0 {
                return None;
            }
            at = self.after(at);
        }
        None
    }

    /// The version of a slot; zero for that of [`Pin::NONE`].
    #[inline]
    pub(crate) fn version(&self, slot: u16) -> u32 {
        match self.buckets.get(usize::from(slot) / WAYS) {
            Some(b) => (b.values[usize::from(slot) % WAYS].load(Acquire) >> 32) as u32,
            None => 0,
        }
    }

    /// Notes that the address in `slot` was a source in second `now`.
    #[inline]
    pub(crate) fn refresh(&self, slot: u16, now: u64) {
        if let Some(b) = self.buckets.get(usize::from(slot) / WAYS) {
            let seen = &b.seen[usize::from(slot) % WAYS];
            if seen.load(Relaxed) != now as u16 {
                seen.store(now as u16, Relaxed);
            }
        }
    }

    /// Notes that `key` was a source on the port of `account`. None: it was not learned.
    #[inline]
    pub(crate) fn learn(&self, key: MacKey, account: &Account, now: u64) -> Option<Pin> {
        match self.find(key) {
            Some((owner, pin)) if owner == account.owner => {
                self.refresh(pin.slot, now);
                Some(pin)
            }
            found => self.learn_new(key, found.map(|(_, pin)| pin), account, now),
        }
    }

    /// Whether an address is that of another port, which has used it just now.
    #[inline]
    pub(crate) fn is_in_use_elsewhere(&self, key: MacKey, account: &Account, now: u64) -> bool {
        let theirs = self.find(key).filter(|(owner, _)| *owner != account.owner);
        theirs.is_some_and(|(_, pin)| {
            let (bucket, way) = self.place(pin.slot);
            // Signed: a thread may have read its clock after the caller did.
            (now as u16).wrapping_sub(bucket.seen[way].load(Relaxed)) as i16 <= IN_USE
        })
    }

    /// The slot of a port that an address has left, and which still takes frames for it.
    #[inline]
    pub(crate) fn left(&self, key: MacKey) -> Option<u16> {
        match self.has_left.load(Relaxed) {
            true => self.lock().left.get(&key).copied(),
            false => None,
        }
    }

    /// These addresses are about to leave the port in slot `port`, or none of it any more.
    pub(crate) fn set_left(&self, port: u16, keys: impl Iterator<Item = MacKey>) {
        let left = &mut self.lock().left;
        left.retain(|_, slot| *slot != port);
        left.extend(keys.map(|key| (key, port)));
        self.has_left.store(!left.is_empty(), Relaxed);
    }

    /// Whether an address has come to the port it is on from the port in slot `port`.
    #[cold]
    pub(crate) fn was_taken_from(&self, key: MacKey, port: u16) -> bool {
        let control = self.lock();
        let moves = control.moves.get(&key);
        moves.is_some_and(|moves| moves.ports[0] == port)
    }

    #[cold]
    fn learn_new(
        &self,
        key: MacKey,
        found: Option<Pin>,
        account: &Account,
        now: u64,
    ) -> Option<Pin> {
        let full = account.learned.load(Relaxed) >= account.limit;
        let held = found.is_some_and(|pin| self.is_held(pin.slot, now));
        if full || held || (found.is_none() && self.len() >= self.limit.load(Relaxed)) {
            return None;
        }
        let mut control = self.lock();
        // The port may be gone by now, or another thread may have been faster.
        let known = control
            .accounts
            .get(usize::from(account.owner.port))?
            .as_ref()?;
        if known.owner != account.owner || known.learned.load(Relaxed) >= known.limit {
            return None;
        }
        match self.find(key) {
            Some((owner, pin)) if owner == account.owner => Some(pin),
            Some((_, pin)) if self.is_held(pin.slot, now) => None,
            Some((from, pin)) => Some(self.move_entry(&mut control, key, pin, from, account, now)),
            None => self.insert(key, account, now),
        }
    }

    /// Has the address in `slot` moved just now?
    fn is_held(&self, slot: u16, now: u64) -> bool {
        let (bucket, way) = self.place(slot);
        (now as u16).wrapping_sub(bucket.moved[way].load(Relaxed)) < MOVE_HOLD
    }

    fn move_entry(
        &self,
        control: &mut Control,
        key: MacKey,
        pin: Pin,
        from: Owner,
        to: &Account,
        now: u64,
    ) -> Pin {
        let (bucket, way) = self.place(pin.slot);
        let value = Value::unpack(bucket.values[way].load(Relaxed)).next(Some(to.owner));
        bucket.seen[way].store(now as u16, Relaxed);
        bucket.moved[way].store(now as u16, Relaxed);
        bucket.values[way].store(value.pack(), Release);
        control.credit(from);
        to.learned.fetch_add(1, Relaxed);
        self.moves.fetch_add(1, Relaxed);
        control.note_move(key, [from.port, to.owner.port], now);
        Pin {
            slot: pin.slot,
            version: value.version,
        }
    }

    fn insert(&self, key: MacKey, account: &Account, now: u64) -> Option<Pin> {
        if self.len() >= self.limit.load(Relaxed) {
            return None;
        }
        let home = self.home(key);
        let mut at = home;
        // There are more slots than entries, so this ends.
        let way = loop {
            match (0..WAYS).find(|way| self.buckets[at].keys[*way].load(Relaxed) == 0) {
                Some(way) => break way,
                None => at = self.after(at),
            }
        };
        self.pass(home, at, |n| n + 1);
        let bucket = &self.buckets[at];
        bucket.seen[way].store(now as u16, Relaxed);
        bucket.moved[way].store((now as u16).wrapping_sub(MOVE_HOLD), Relaxed);
        let version = bucket.write(way, key.0, Some(account.owner));
        account.learned.fetch_add(1, Relaxed);
        self.entries.fetch_add(1, Relaxed);
        Some(Pin {
            slot: (at * WAYS + way) as u16,
            version,
        })
    }

    /// Changes the overflow counts of the buckets from `home` up to, not including, `at`.
    fn pass(&self, home: usize, at: usize, change: impl Fn(u32) -> u32) {
        let mut passed = home;
        while passed != at {
            let count = &self.buckets[passed].overflow;
            count.store(change(count.load(Relaxed)), Relaxed);
            passed = self.after(passed);
        }
    }

    /// Opens the account of a port, in place of the one that its slot had.
    pub(crate) fn open(&self, owner: Owner, limit: u32) -> Account {
        let account = Account {
            owner,
            limit,
            learned: Arc::default(),
        };
        let mut control = self.lock();
        self.purge(&mut control, owner.port);
        let at = usize::from(owner.port);
        if control.accounts.len() <= at {
            control.accounts.resize(at + 1, None);
        }
        control.accounts[at] = Some(account.clone());
        account
    }

    /// Closes the account of a port: forgets its addresses, and learns no more for it.
    pub(crate) fn close(&self, port: u16) {
        self.purge(&mut self.lock(), port);
    }

    fn purge(&self, control: &mut Control, port: u16) {
        self.remove_if(control, |_, owner, _| owner.port == port);
        if let Some(account) = control.accounts.get_mut(usize::from(port)) {
            *account = None;
        }
        control.moves.retain(|_, m| !m.ports.contains(&port));
        control.left.retain(|_, slot| *slot != port);
        let has_left = !control.left.is_empty();
        self.has_left.store(has_left, Relaxed);
    }

    /// Forgets what was learned on a port.
    pub(crate) fn forget_port(&self, port: u16) {
        self.remove_if(&mut self.lock(), |_, owner, _| owner.port == port);
    }

    /// Lets the addresses learned on the port in slot `port` move at once, however short ago they came there.
    pub(crate) fn let_move(&self, port: u16, now: u64) {
        let _control = self.lock();
        for bucket in &self.buckets {
            for way in 0..WAYS {
                let value = Value::unpack(bucket.values[way].load(Relaxed));
                if value.owner.port == port {
                    bucket.moved[way].store((now as u16).wrapping_sub(MOVE_HOLD), Relaxed);
                }
            }
        }
    }

    /// Forgets an address in all VLANs.
    pub(crate) fn forget(&self, mac: Mac) {
        self.remove_if(&mut self.lock(), |key, _, _| key.mac() == mac);
    }

    /// Forgets addresses not seen for more than `limit` seconds, and moves as old as that. Called
    /// often enough to find each before its age reaches 32,768.
    pub(crate) fn age(&self, now: u64, limit: u16) {
        if self.len() == 0 {
            return;
        }
        let mut control = self.lock();
        // Signed: a thread may have read its clock after the caller did.
        let age = |seen| i32::from((now as u16).wrapping_sub(seen) as i16);
        self.remove_if(&mut control, |_, _, seen| age(seen) > limit.into());
        control
            .moves
            .retain(|_, m| now.saturating_sub(m.last) <= limit.into());
    }

    fn remove_if(&self, control: &mut Control, which: impl Fn(MacKey, Owner, u16) -> bool) {
        for at in 0..self.buckets.len() {
            let bucket = &self.buckets[at];
            for way in 0..WAYS {
                let key = MacKey(bucket.keys[way].load(Relaxed));
                let owner = Value::unpack(bucket.values[way].load(Relaxed)).owner;
                if key.0 != 0 && which(key, owner, bucket.seen[way].load(Relaxed)) {
                    bucket.write(way, 0, None);
                    self.pass(self.home(key), at, |n| n - 1);
                    control.credit(owner);
                    self.entries.fetch_sub(1, Relaxed);
                }
            }
        }
    }

    /// All entries, as they are now.
    pub(crate) fn entries(&self) -> Vec<(MacKey, Owner)> {
        let _unchanged = self.lock();
        let slots = self
            .buckets
            .iter()
            .flat_map(|b| b.keys.iter().zip(&b.values));
        slots
            .map(|(k, v)| {
                (
                    MacKey(k.load(Relaxed)),
                    Value::unpack(v.load(Relaxed)).owner,
                )
            })
            .filter(|(key, _)| key.0 != 0)
            .collect()
    }

    /// The addresses that have moved more than once of late.
    pub(crate) fn restless(&self) -> Vec<Moves> {
        self.lock()
            .moves
            .values()
            .filter(|m| m.count > 1)
            .copied()
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    fn home(&self, key: MacKey) -> usize {
        self.hasher.hash_one(key.0) as usize & (self.buckets.len() - 1)
    }

    #[inline]
    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.buckets.len() - 1)
    }

    fn place(&self, slot: u16) -> (&Bucket, usize) {
        (
            &self.buckets[usize::from(slot) / WAYS],
            usize::from(slot) % WAYS,
        )
    }
}

impl Control {
    /// Gives a port back one of the addresses it may have.
    fn credit(&mut self, owner: Owner) {
        if let Some(Some(account)) = self.accounts.get(usize::from(owner.port))
            && account.owner == owner
        {
            account.learned.fetch_sub(1, Relaxed);
        }
    }

    fn note_move(&mut self, key: MacKey, ports: [u16; 2], now: u64) {
        if self.moves.len() < MAX_MOVES || self.moves.contains_key(&key) {
            let new = Moves {
                key,
                ports,
                count: 0,
                last: now,
            };
            let noted = self.moves.entry(key).or_insert(new);
            *noted = Moves {
                count: noted.count + 1,
                ..new
            };
        }
    }
}

impl Account {
    /// Addresses the port has in the table.
    pub(crate) fn learned(&self) -> u32 {
        self.learned.load(Relaxed)
    }
}

#[cfg(test)]
mod tests;
