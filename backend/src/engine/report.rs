//! What ports and switches report.

use std::sync::atomic::Ordering;

use tandem_uplink::{Mac, Switch, Tap};
use tandem_virtio_net::Counters;
use tandem_virtio_net::spec::feature_names;

use super::Port;
use super::build::Outside;
use crate::nic_thread::NicThread;
use crate::port::{GuestPort, Pair};
use crate::status::{
    DirectionCounters, PortCounters, PortState, PortStatus, QueueStatus, RingFormat, SessionStatus,
    SwitchCounters, SwitchStatus, Traffic,
};
use crate::vhost;

/// A port, with the addresses it has learned.
pub(super) fn port(port: &Port, macs: &[Mac]) -> PortStatus {
    let neighbours = port.switch.neighbours(port.id);
    let status = PortStatus {
        name: port.config.name.clone(),
        learned_macs: macs.iter().map(ToString::to_string).collect(),
        addresses: neighbours.iter().map(|n| n.ip).collect(),
        captures: port.captures().status(),
        ..PortStatus::default()
    };
    let (reason, session) = state(port);
    let status = PortStatus {
        state: match reason {
            None => PortState::Up,
            Some(_) => PortState::Down,
        },
        reason,
        ..status
    };
    match &port.outside {
        Outside::Guest { port, .. } => guest(port, &session.unwrap_or_default(), status),
        Outside::Host { tap, .. } => PortStatus {
            counters: PortCounters {
                from_vm: DirectionCounters::from(&**tap.from_vm()),
                to_vm: DirectionCounters::from(&**tap.to_vm()),
            },
            ..status
        },
    }
}

/// Notifications in vain, a second from one to the next, that are no accident.
const IN_VAIN: u32 = 2;

/// Why the port is down, if it is, and its session with a VMM.
pub(super) fn state(port: &Port) -> (Option<String>, Option<vhost::SessionStatus>) {
    match &port.outside {
        Outside::Guest {
            port: guest,
            endpoint,
            ..
        } => {
            let session = endpoint.status();
            let broken = vhost::Device::broken(&**guest);
            let reason = broken.or_else(|| session.reason.clone());
            let rings = (guest.pairs().iter()).map(|pair| pair.ring_state());
            let carries = rings
                .into_iter()
                .any(|rings| rings.running && rings.enabled);
            let reason = reason.or_else(|| match (carries, port.in_vain) {
                (false, _) => Some("the VM's driver has not started the device".to_owned()),
                (true, IN_VAIN..) => Some(
                    "the VM's driver notifies us, and we see nothing in its rings: is its memory \
                     shared (share=on)?"
                        .to_owned(),
                ),
                (true, _) => None,
            });
            (reason, Some(session))
        }
        Outside::Host { tap, thread, .. } => (host_reason(tap, thread), None),
    }
}

/// Why the host's port is down, if it is.
fn host_reason(tap: &Tap, thread: &NicThread) -> Option<String> {
    let lost = thread.lost();
    let lost = lost.map(|words| format!("{words}: remove the port and add it again"));
    lost.or_else(|| {
        let down = !tap.link_is_up();
        down.then(|| format!("the link of {0} is down: ip link set {0} up", tap.name()))
    })
}

fn guest(port: &GuestPort, session: &vhost::SessionStatus, status: PortStatus) -> PortStatus {
    let queues: Vec<QueueStatus> = port
        .pairs()
        .iter()
        .enumerate()
        .map(|(i, pair)| queue(i as u16, pair))
        .collect();
    let carries = queues.iter().any(|q| q.running && q.enabled);
    PortStatus {
        session: Some(SessionStatus {
            connected: session.connected,
            connects: session.connects,
            refused_connections: session.refused_connections,
            features: feature_names(session.acked_features),
            ring: carries.then_some(match session.packed {
                true => RingFormat::Packed,
                false => RingFormat::Split,
            }),
            memory_regions: session.memory_regions as u32,
            last_error: session.last_error.clone(),
        }),
        counters: counters(port),
        queues,
        ..status
    }
}

fn counters(port: &GuestPort) -> PortCounters {
    let mut sum = PortCounters {
        from_vm: DirectionCounters::from(&*port.from_vm),
        to_vm: DirectionCounters::from(&port.to_vm),
    };
    for pair in port.pairs() {
        sum.from_vm.add(&pair.from_vm);
        sum.to_vm.add(&pair.to_vm);
    }
    sum
}

fn queue(pair_index: u16, pair: &Pair) -> QueueStatus {
    let rings = pair.ring_state();
    let traffic = |c: &Counters| Traffic {
        frames: c.frames(),
        bytes: c.bytes(),
    };
    QueueStatus {
        pair: pair_index,
        enabled: rings.enabled,
        running: rings.running,
        size: rings.size,
        from_vm: traffic(&pair.from_vm),
        to_vm: traffic(&pair.to_vm),
        kicks: pair.kicks.load(Ordering::Relaxed),
        calls: pair.calls.load(Ordering::Relaxed),
    }
}

pub(super) fn switch<'a>(
    name: &str,
    switch: &Switch,
    ports: impl Iterator<Item = &'a Port>,
) -> SwitchStatus {
    let counted = switch.counters();
    let mut status = SwitchStatus {
        name: name.to_owned(),
        mac_table_entries: switch.mac_entry_count() as u32,
        duplicate_macs: switch
            .duplicates()
            .iter()
            .map(|d| d.mac.to_string())
            .collect(),
        counters: SwitchCounters {
            frames: counted.frames,
            unicast: counted.unicast,
            flooded: counted.flooded,
            copies: counted.copies,
            announced: counted.announced,
            ..SwitchCounters::default()
        },
        ..SwitchStatus::default()
    };
    for port in ports {
        status.ports += 1;
        let (frames, segments) = match &port.outside {
            Outside::Guest { port, .. } => port.segmented(),
            Outside::Host { tap, .. } => tap.segmented(),
        };
        status.counters.segmented_frames += frames;
        status.counters.segments += segments;
    }
    status
}
