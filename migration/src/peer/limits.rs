//! How many strangers are let in at once, so that none of them keeps out a host that is known.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::{HANDSHAKES, HANDSHAKES_OF_ONE};

/// Counts connections in their handshake, by where they come from.
#[derive(Clone, Default)]
pub(super) struct Handshakes {
    from: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// The place of one, until it is dropped.
pub(super) struct Place {
    of: Handshakes,
    from: IpAddr,
}

impl Handshakes {
    /// A place for one from there, if there is any left.
    pub(super) fn enter(&self, from: IpAddr) -> Option<Place> {
        let from = neighbourhood(from);
        let mut counts = self.from.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = counts.values().sum();
        let those = counts.get(&from).copied().unwrap_or(0);
        if all >= HANDSHAKES || those >= HANDSHAKES_OF_ONE {
            return None;
        }
        counts.insert(from, those + 1);
        let of = self.clone();
        Some(Place { of, from })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.of.from.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.from);
            }
        }
    }
}

/// Whoever has one IPv6 address has all of its /64.
fn neighbourhood(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V4(from) => from.into(),
        IpAddr::V6(from) => {
            let prefix = u128::from(from) & !u128::from(u64::MAX);
            std::net::Ipv6Addr::from(prefix).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_room_for_others() {
        let handshakes = Handshakes::default();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut held: Vec<Place> = (0..HANDSHAKES_OF_ONE)
            .map(|n| {
                handshakes
                    .enter(address(&format!("2001:db8::{n}")))
                    .unwrap()
            })
            .collect();
        assert!(handshakes.enter(address("2001:db8::1:1")).is_none());
        assert!(handshakes.enter(address("2001:db8:0:1::1")).is_some());
        assert!(handshakes.enter(address("10.0.0.1")).is_some());
        held.pop();
        assert!(handshakes.enter(address("2001:db8::1:1")).is_some());
        drop(held);
        assert!(handshakes.from.lock().unwrap().is_empty());
    }

    #[test]
    fn there_is_an_end_to_them() {
        let handshakes = Handshakes::default();
        let address = |n: usize| IpAddr::from([10, 0, 0, u8::try_from(n).unwrap()]);
        let _held: Vec<Place> = (0..HANDSHAKES)
            .map(|n| handshakes.enter(address(n)).unwrap())
            .collect();
        assert!(handshakes.enter(address(HANDSHAKES)).is_none());
    }
}
