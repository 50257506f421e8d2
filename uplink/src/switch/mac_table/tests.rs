use std::sync::atomic::AtomicBool;

use super::*;

fn key(n: u32) -> MacKey {
    let [a, b, c, d] = n.to_be_bytes();
    MacKey::new(7, Mac([2, 0, a, b, c, d]))
}

fn account(table: &MacTable, port: u16, limit: u32) -> Account {
    table.open(
        Owner {
            port,
            incarnation: port + 1,
        },
        limit,
    )
}

fn port_of(table: &MacTable, key: MacKey) -> Option<u16> {
    table.find(key).map(|(owner, _)| owner.port)
}

#[test]
fn a_key_is_an_address_in_a_vlan() {
    let mac = Mac([0xfe, 1, 2, 3, 4, 0xff]);
    let key = MacKey::new(4094, mac);
    assert_eq!((key.vid(), key.mac()), (4094, mac));
    assert_ne!(MacKey::new(0, Mac([0; 6])).0, 0);
}

#[test]
fn a_full_table_is_found_again_and_emptied() {
    for entries in [1, 5, 100, MAX_ENTRIES] {
        let table = MacTable::new(entries);
        let a = account(&table, 3, u32::MAX);
        for n in 0..entries as u32 {
            assert!(table.learn(key(n), &a, 0).is_some(), "{n} of {entries}");
        }
        assert_eq!(table.learn(key(entries as u32), &a, 0), None);
        assert_eq!((table.len(), a.learned() as usize), (entries, entries));
        assert!((0..entries as u32).all(|n| port_of(&table, key(n)) == Some(3)));
        assert_eq!(port_of(&table, key(entries as u32)), None);
        table.close(3);
        assert_eq!((table.len(), a.learned()), (0, 0));
        assert!(table.buckets.iter().all(|b| b.overflow.load(Relaxed) == 0));
    }
}

#[test]
fn entries_that_passed_a_bucket_outlive_those_in_it() {
    let table = MacTable::new(12);
    let a = account(&table, 0, 100);
    // Four buckets of three: some entries are not in their own.
    (0..12).for_each(|n| assert!(table.learn(key(n), &a, u64::from(n)).is_some()));
    for oldest in 0..12 {
        table.age(u64::from(oldest) + 1, 0);
        assert!((0..12).all(|n| port_of(&table, key(n)).is_some() == (n > oldest)));
        // Their places are used again, and given back.
        assert!(table.learn(key(1000 + oldest), &a, 100).is_some());
        table.forget(key(1000 + oldest).mac());
    }
    assert!(table.buckets.iter().all(|b| b.overflow.load(Relaxed) == 0));
}

#[test]
fn ageing_counts_from_the_last_frame_also_when_seconds_wrap() {
    let start = u64::from(u16::MAX) - 100;
    let table = MacTable::new(10);
    let a = account(&table, 0, 10);
    table.learn(key(1), &a, start);
    let pin = table.learn(key(2), &a, start).unwrap();
    for second in start..start + 300 {
        table.refresh(pin.slot, second);
        table.age(second, 300);
    }
    table.age(start + 301, 300);
    assert_eq!(
        (port_of(&table, key(1)), port_of(&table, key(2))),
        (None, Some(0))
    );
}

#[test]
fn a_move_changes_the_version_of_its_own_slot_only() {
    let table = MacTable::new(10);
    let (a, b) = (account(&table, 0, 10), account(&table, 1, 10));
    let one = table.learn(key(1), &a, 0).unwrap();
    let two = table.learn(key(2), &a, 0).unwrap();
    assert_eq!(table.learn(key(1), &a, 1), Some(one));
    let moved = table.learn(key(1), &b, 1).unwrap();
    assert_eq!(moved.slot, one.slot);
    assert_ne!(table.version(one.slot), one.version);
    assert_eq!(table.version(one.slot), moved.version);
    assert_eq!(table.version(two.slot), two.version);
    assert_eq!((a.learned(), b.learned(), table.len()), (1, 1, 2));
    assert_eq!(table.learn(key(1), &a, 2), None, "held");
    assert!(table.learn(key(1), &a, 3).is_some());
    assert_eq!(table.moves(), 2);
    assert_eq!(table.version(Pin::NONE.slot), Pin::NONE.version);
}

#[test]
fn a_full_port_can_neither_learn_nor_take_over() {
    let table = MacTable::new(10);
    let (a, b) = (account(&table, 0, 1), account(&table, 1, 1));
    assert!(table.learn(key(1), &a, 0).is_some());
    assert!(table.learn(key(2), &b, 0).is_some());
    assert_eq!(
        (table.learn(key(3), &a, 9), table.learn(key(2), &a, 9)),
        (None, None)
    );
    table.forget(key(1).mac());
    assert!(table.learn(key(2), &a, 9).is_some());
    assert_eq!((a.learned(), b.learned()), (1, 0));
}

#[test]
fn nothing_is_learned_for_a_port_that_is_gone() {
    let table = MacTable::new(10);
    let old = account(&table, 0, 10);
    assert!(table.learn(key(1), &old, 0).is_some());
    let new = table.open(
        Owner {
            port: 0,
            incarnation: 9,
        },
        10,
    );
    assert_eq!(port_of(&table, key(1)), None);
    assert_eq!(table.learn(key(1), &old, 0), None);
    assert!(table.learn(key(1), &new, 0).is_some());
    table.close(0);
    assert_eq!((table.learn(key(2), &new, 0), table.len()), (None, 0));
}

#[test]
fn moves_are_remembered_for_so_many_addresses() {
    let table = MacTable::new(1000);
    let (a, b) = (account(&table, 0, 1000), account(&table, 1, 1000));
    for (now, port) in [(0, &a), (2, &b), (4, &a)] {
        (0..300).for_each(|n| assert!(table.learn(key(n), port, now).is_some()));
    }
    assert_eq!(table.restless().len(), MAX_MOVES);
    table.close(1);
    assert!(table.restless().is_empty());
}

/// Every port learns and moves addresses whose number tells which ports may have it, while
/// another thread forgets and ages; a reader never sees an owner that an address cannot have.
#[test]
fn readers_see_whole_entries_while_writers_change_them() {
    const KEYS: u32 = 48;
    let table = MacTable::new(64);
    let accounts: Vec<_> = (0..4).map(|port| account(&table, port, 30)).collect();
    let done = AtomicBool::new(false);
    // Address n is used on the ports n % 4 and n % 4 ^ 1.
    let may_have = |n: u32, port: u16| u32::from(port) / 2 == n % 4 / 2;
    std::thread::scope(|s| {
        let writers: Vec<_> = accounts
            .iter()
            .map(|a| {
                let table = &table;
                s.spawn(move || {
                    let mine = |n: &u32| may_have(*n, a.owner.port);
                    for round in 0..300u64 {
                        for n in (0..KEYS).filter(mine) {
                            table.learn(key(n), a, round);
                        }
                    }
                })
            })
            .collect();
        s.spawn(|| {
            let mut n = 0;
            while !done.load(Relaxed) {
                table.forget(key(n % KEYS).mac());
                n += 1;
            }
        });
        s.spawn(|| {
            while !done.load(Relaxed) {
                for n in 0..KEYS {
                    if let Some((owner, _)) = table.find(key(n)) {
                        assert!(may_have(n, owner.port), "{n} on {owner:?}");
                        assert_eq!(owner.incarnation, owner.port + 1);
                    }
                }
            }
        });
        let joined: Vec<_> = writers.into_iter().map(|w| w.join()).collect();
        done.store(true, Relaxed);
        joined.into_iter().for_each(|j| j.expect("a writer"));
    });
    let entries = table.entries();
    assert_eq!(entries.len(), table.len());
    for a in &accounts {
        let mine = entries
            .iter()
            .filter(|(_, owner)| *owner == a.owner)
            .count();
        assert_eq!(mine, a.learned() as usize);
    }
    table.age(10_000, 1);
    assert!(table.buckets.iter().all(|b| b.overflow.load(Relaxed) == 0));
}
