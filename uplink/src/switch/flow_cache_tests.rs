use super::*;
use crate::Mac;
use crate::switch::mac_table::{Account, MacKey, Owner};

const BUDGET: usize = 1 << 20;

struct World {
    table: MacTable,
    budget: Arc<Budget>,
    accounts: [Account; 2],
}

impl World {
    fn new(budget: usize) -> Self {
        let table = MacTable::new(1000);
        let accounts = [0, 1].map(|port| {
            table.open(
                Owner {
                    port,
                    incarnation: 1,
                },
                1000,
            )
        });
        Self {
            table,
            budget: Budget::new(budget),
            accounts,
        }
    }

    fn learn(&self, n: u8, port: usize, now: u64) -> Pin {
        let key = MacKey::new(0, Mac([2, 0, 0, 0, 0, n]));
        self.table
            .learn(key, &self.accounts[port], now)
            .expect("room")
    }

    fn left(&self) -> usize {
        self.budget.0.load(Relaxed)
    }
}

const GOES: Verdict = Verdict::deliver(1, None);

#[test]
fn a_verdict_is_kept_while_both_addresses_stay() {
    let world = World::new(BUDGET);
    let mut cache = FlowCache::<2>::new(world.budget.clone());
    let (one, two, three) = (
        world.learn(1, 0, 0),
        world.learn(2, 1, 0),
        world.learn(3, 0, 0),
    );
    assert_eq!(cache.get(&[1, 2], &world.table), None);
    cache.put(&[1, 2], GOES, one, two);
    cache.put(&[3, 2], GOES, three, two);
    // Of three flows one might have to give way to the others: one in a thousand times.
    let mut other = FlowCache::<2>::new(world.budget.clone());
    other.put(&[4, 4], GOES, Pin::NONE, Pin::NONE);
    assert_eq!(cache.get(&[1, 2], &world.table), Some((GOES, one.slot)));
    world.learn(9, 0, 0);
    assert!(
        cache.get(&[1, 2], &world.table).is_some(),
        "a new address invalidates nothing"
    );
    world.learn(1, 1, 5);
    assert_eq!(
        cache.get(&[1, 2], &world.table),
        None,
        "the source has moved"
    );
    assert!(cache.get(&[3, 2], &world.table).is_some());
    world.table.forget(Mac([2, 0, 0, 0, 0, 2]));
    assert_eq!(
        cache.get(&[3, 2], &world.table),
        None,
        "the destination is gone"
    );
    assert!(
        other.get(&[4, 4], &world.table).is_some(),
        "it relies on no address"
    );
    other.clear();
    assert_eq!(other.get(&[4, 4], &world.table), None);
}

#[test]
fn the_same_flow_has_one_place() {
    let world = World::new(BUDGET);
    let mut cache = FlowCache::<2>::new(world.budget.clone());
    let other = Verdict::deliver(2, Some(7));
    cache.put(&[1, 2], GOES, Pin::NONE, Pin::NONE);
    cache.put(&[1, 2], other, Pin::NONE, Pin::NONE);
    assert_eq!(
        cache.get(&[1, 2], &world.table),
        Some((other, Pin::NONE.slot))
    );
    let used = cache
        .sets
        .iter()
        .flat_map(|s| s.0)
        .filter(|e| e.key != [0, 0])
        .count();
    assert_eq!(used, 1);
}

/// Looks up flows in turn as forwarding does; the share of hits in the last round.
fn rounds(cache: &mut FlowCache<2>, world: &World, flows: u64, rounds: usize) -> f64 {
    let mut hits = 0;
    for _ in 0..rounds {
        hits = 0;
        for n in 1..=flows {
            match cache.get(&[n, n], &world.table) {
                Some(_) => hits += 1,
                None => cache.put(&[n, n], GOES, Pin::NONE, Pin::NONE),
            }
            cache.tune();
        }
    }
    hits as f64 / flows as f64
}

#[test]
fn it_grows_with_the_flows_and_shrinks_for_sleep() {
    let world = World::new(BUDGET);
    let mut cache = FlowCache::<2>::new(world.budget.clone());
    let small = cache.bytes();
    assert_eq!(rounds(&mut cache, &world, 2, 10_000), 1.0);
    assert_eq!(cache.bytes(), small, "few flows need no more");
    assert!(rounds(&mut cache, &world, 4000, 30) > 0.8);
    assert!(cache.bytes() > small && world.left() < BUDGET);
    cache.shrink();
    assert_eq!((cache.bytes(), world.left()), (small, BUDGET));
    rounds(&mut cache, &world, 4000, 30);
    drop(cache);
    assert_eq!(world.left(), BUDGET);
}

#[test]
fn it_stays_within_the_budget_and_its_own_limit() {
    let world = World::new(10_000);
    let mut cache = FlowCache::<2>::new(world.budget.clone());
    rounds(&mut cache, &world, 4000, 30);
    assert!(cache.bytes() <= 10_000 + MIN_SETS * 64);
    let rich = World::new(usize::MAX);
    let mut cache = FlowCache::<2>::new(rich.budget.clone());
    rounds(&mut cache, &rich, 300_000, 3);
    assert_eq!(cache.sets.len(), MAX_SETS);
}

#[test]
fn growing_keeps_what_is_known() {
    let world = World::new(BUDGET);
    let mut cache = FlowCache::<2>::new(world.budget.clone());
    (1..20).for_each(|n| cache.put(&[n, 5], GOES, Pin::NONE, Pin::NONE));
    let before: Vec<u64> = (1..20)
        .filter(|n| cache.get(&[*n, 5], &world.table).is_some())
        .collect();
    cache.resize(MIN_SETS * 4);
    assert!(
        before
            .iter()
            .all(|n| cache.get(&[*n, 5], &world.table).is_some())
    );
    assert!(!before.is_empty());
}
