//! Where a VM has gone for which frames are held.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Weak;
use std::time::{Duration, Instant};

use log::{info, warn};
use tandem_uplink::{Mac, Now, PortId, Switch};
use tandem_virtio_net::Scratch;

use crate::control::Way;
use crate::port::GuestPort;

/// For how long frames are held: who sent them has not given up on the answer yet, and a VMM that
/// takes longer to start the VM has failed.
const LIMIT: Duration = Duration::from_secs(3);
/// For how long what still comes here follows a VM that has moved.
const FOLLOW: Duration = Duration::from_secs(2);
/// For how long, after it was heard elsewhere, a VM is waited for by the daemons, if they have been told that it moves.
const AWAITED: Duration = Duration::from_millis(300);
/// How often it is looked whether the VM was heard elsewhere; once it was, a burst follows it each time, 0.8 Gbit/s of
/// long frames: all at once would be more than some switch has buffers for.
const LOOK: Duration = Duration::from_millis(1);

/// Has a thread of its own see to it that what is held for the VM goes where it is. Its stations are
/// believed to be elsewhere from now on, as soon as they are heard there.
pub(super) fn look_after(port: &Weak<GuestPort>, switch: &Weak<Switch>, id: PortId) {
    let (Some(this), Some(home)) = (port.upgrade(), switch.upgrade()) else {
        return;
    };
    let Some(turn) = this.hold_turn() else {
        return;
    };
    let stations = home.stations(id);
    home.let_move(id, Now::monotonic());
    // From the moment on in which they are heard elsewhere, what still comes here goes the same way.
    home.set_left(id, &stations);
    let (port, switch) = (port.clone(), switch.clone());
    let name: String = this
        .name()
        .chars()
        .filter(char::is_ascii)
        .take(10)
        .collect();
    let thread = std::thread::Builder::new().name(format!("{name} hold"));
    let started = thread.spawn(move || wait(&port, turn, &switch, id, &stations));
    if let Err(e) = started {
        warn!("port {}: frames are not held: {e}", this.name());
        this.end_hold(turn);
        home.set_left(id, &[]);
    }
}

fn wait(
    port: &Weak<GuestPort>,
    turn: u64,
    switch: &Weak<Switch>,
    id: PortId,
    stations: &[(Mac, u16)],
) {
    let began = Instant::now();
    let mut end = began + LIMIT;
    let (mut batch, mut scratch) = (GuestPort::batch_for_held(), Scratch::default());
    let mut since = None;
    let (mut moved, mut sent, source) = (false, 0, own_address());
    loop {
        std::thread::sleep(LOOK);
        let (Some(port), Some(switch)) = (port.upgrade(), switch.upgrade()) else {
            return;
        };
        match port.hold_turn() {
            Some(now) if now == turn => {}
            // It ran again, and has been stopped again: another thread looks after that.
            Some(_) => return,
            // Its rings run again; it is nowhere else.
            None => {
                switch.set_left(id, &[]);
                return switch.renew(id);
            }
        }
        let way = port.way();
        let heard = switch.is_elsewhere(stations, id);
        if heard {
            since.get_or_insert_with(Instant::now);
        }
        let late = since.is_some_and(|since: Instant| since.elapsed() > AWAITED);
        let is_there = match way {
            Way::Daemons => true,
            Way::Awaited => late,
            Way::Network => heard,
        };
        if moved && !heard && way != Way::Daemons {
            // They do not carry it any more, and the network does not yet: it may as well come back.
            (moved, end) = (false, began + LIMIT);
        }
        if !moved && is_there {
            (moved, end) = (true, Instant::now() + FOLLOW);
            info!(
                "port {}: its VM has moved; what is for it follows it",
                port.name()
            );
        }
        if moved && way != Way::Daemons {
            port.redirect_held(&mut batch, |batch| {
                let now = switch.redirect((id, stations), batch, source, &mut scratch);
                sent += now;
                now
            });
            scratch.call_all();
        }
        if Instant::now() < end {
            continue;
        }
        port.end_hold(turn);
        switch.forget_learned(id);
        switch.set_left(id, &[]);
        match moved {
            true => info!(
                "port {}: what came within {} s has followed its VM, {sent} frames by the network",
                port.name(),
                FOLLOW.as_secs()
            ),
            false => warn!("port {}: its VM was not heard again in time", port.name()),
        }
        return;
    }
}

/// A source address that is nobody's: random, and locally administered (IEEE 802, 8.4).
fn own_address() -> Mac {
    let [a, b, c, d, e, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    Mac([2, a, b, c, d, e])
}
