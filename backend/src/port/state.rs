//! What a port takes along when its VM moves to another host, and finds again there.
//!
//! A state that is loaded waits until the first ring starts: only then is it known that the VM runs
//! here, and not on the host that it comes from. Then it replaces what the port has counted and
//! heard, and the driver counts as one that is back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use log::{info, warn};
use tandem_migration::state::{
    self, Counters as Saved, Identity, LearnedAddress, MAX_ADDRESSES, PairCounters, PortCounters,
    PortState,
};
use tandem_uplink::switch::Neighbour;
use tandem_uplink::{Mac, Now, PortId, Switch};
use tandem_virtio_net::{Counters, DropReason};

use super::{GuestPort, Pair, lock};

impl GuestPort {
    /// Who the port is, to be compared with a state.
    pub(crate) fn identity(&self) -> Identity {
        let policy = (self.home()).and_then(|(switch, id)| Some(switch.port(id)?.policy));
        Identity {
            name: self.config.name.clone(),
            mac: policy.and_then(|policy| policy.mac).map(|mac| mac.0),
            feature_level: self.config.feature_level,
            queue_pairs: self.pairs.len() as u16,
            mtu: self.config.mtu,
        }
    }

    /// What the port takes along. A VM that moves on before it has run here takes what it brought.
    pub(crate) fn state(&self) -> PortState {
        if let Some(brought) = &*lock(&self.brought) {
            return brought.clone();
        }
        let mut state = PortState {
            identity: self.identity(),
            counters: Some(PortCounters {
                switch: saved(&self.from_vm),
                pairs: self.pairs.iter().map(saved_pair).collect(),
            }),
            ..PortState::default()
        };
        if let Some((switch, id)) = self.home() {
            state.addresses = addresses(&switch, id);
            let neighbours = switch.neighbours(id).into_iter();
            state.neighbours = neighbours
                .map(|n| state::Neighbour {
                    ip: n.ip,
                    mac: n.mac.0,
                    vlan: n.vlan,
                    router: n.router,
                })
                .collect();
        }
        state
    }

    /// What another host says that a VM has which comes from there; none: none comes.
    pub fn expect(&self, state: Option<PortState>) {
        *lock(&self.expected) = state;
    }

    /// A ring starts: makes what was brought the port's own, if anything was.
    pub(super) fn settle_in(&self) {
        if let Some(state) = lock(&self.brought).take() {
            // It is the later one.
            self.expect(None);
            self.settle(state);
        }
    }

    /// A ring has started whose driver has run before: if the VM has brought nothing, it has what was expected.
    pub(super) fn settle_expected(&self) {
        let expected = lock(&self.expected).take();
        if let Some(state) = expected {
            self.settle(state);
        }
    }

    fn settle(&self, state: PortState) {
        if let Some(counters) = &state.counters {
            self.report_unknown(counters);
            restore(&self.from_vm, &counters.switch);
            for (pair, brought) in self.pairs.iter().zip(&counters.pairs) {
                restore(&pair.from_vm, &brought.from_vm);
                restore(&pair.to_vm, &brought.to_vm);
                pair.kicks.store(brought.kicks, Ordering::Relaxed);
                pair.calls.store(brought.calls, Ordering::Relaxed);
            }
        }
        if let Some((switch, id)) = self.home() {
            let neighbours = state.neighbours.into_iter();
            let neighbours = neighbours.map(|n| Neighbour {
                ip: n.ip,
                mac: Mac(n.mac),
                vlan: n.vlan,
                router: n.router,
            });
            switch.set_neighbours(id, neighbours.collect());
            let addresses = state.addresses.into_iter();
            let addresses: Vec<_> = addresses.map(|a| (Mac(a.mac), a.vlan)).collect();
            switch.forget_learned(id);
            switch.learn(id, &addresses, Now::monotonic());
        }
        self.expect_driver();
        info!("port {}: its VM goes on here", self.config.name);
    }

    /// The driver that starts next is the one that the state is of.
    pub(super) fn expect_driver(&self) {
        self.arrived.store(true, Ordering::Relaxed);
    }

    /// Is the driver that starts the TX ring `ring` that one? It is told once: who starts anew later
    /// is another.
    pub(super) fn has_arrived(&self, ring: u16) -> bool {
        ring == 1 && self.arrived.swap(false, Ordering::Relaxed)
    }

    /// The VMM is gone, and with it the VM that was to come.
    pub(super) fn give_up_state(&self) {
        *lock(&self.brought) = None;
        self.arrived.store(false, Ordering::Relaxed);
    }

    fn home(&self) -> Option<(Arc<Switch>, PortId)> {
        let (switch, id) = self.place.get()?;
        Some((switch.upgrade()?, *id))
    }

    /// Counts that a newer tandemd has, and we have no place for.
    fn report_unknown(&self, counters: &PortCounters) {
        let of_pairs = counters.pairs.iter().flat_map(|p| [&p.from_vm, &p.to_vm]);
        let drops = of_pairs.chain([&counters.switch]).flat_map(|c| &c.drops);
        let unknown = |(name, _): &&(String, u64)| DropReason::from_name(name).is_none();
        if let Some((reason, _)) = drops.into_iter().find(unknown) {
            warn!(
                "port {}: drops for {reason:?} were counted where its VM comes from, which this \
                 tandemd does not count: they are left out",
                self.config.name
            );
        }
    }
}

fn saved(counters: &Counters) -> Saved {
    let drops = counters.drops();
    Saved {
        frames: counters.frames(),
        bytes: counters.bytes(),
        drops: drops.map(|(r, n)| (r.name().to_owned(), n)).collect(),
    }
}

fn saved_pair(pair: &Pair) -> PairCounters {
    PairCounters {
        from_vm: saved(&pair.from_vm),
        to_vm: saved(&pair.to_vm),
        kicks: pair.kicks.load(Ordering::Relaxed),
        calls: pair.calls.load(Ordering::Relaxed),
    }
}

fn restore(counters: &Counters, saved: &Saved) {
    counters.set(saved.frames, saved.bytes, |reason| {
        let mut drops = saved.drops.iter();
        drops
            .find(|(name, _)| name == reason.name())
            .map_or(0, |(_, frames)| *frames)
    });
}

/// The addresses learned on a port; of very many, some: the rest is heard again.
fn addresses(switch: &Switch, id: PortId) -> Vec<LearnedAddress> {
    let all = switch.mac_entries().into_iter();
    let learned = all.filter(|entry| entry.port == id).filter_map(|entry| {
        Some(LearnedAddress {
            mac: entry.mac.0,
            vlan: entry.vlan?,
        })
    });
    learned.take(MAX_ADDRESSES).collect()
}
