//! Who is at the other end of a member, and who we are, by LLDP.

use std::time::Duration;

use tandem_uplink::team::lldp::{Announcement, Neighbour};
use tandem_uplink::{Mac, Now};

use crate::status::LldpStatus;

/// Between two announcements, and for how long one holds (IEEE 802.1AB, 9.2.5.6 and 9.2.5.7:
/// msgTxInterval and msgTxHold).
const INTERVAL: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(120);

/// What one member hears and says.
#[derive(Default)]
pub(super) struct Lldp {
    heard: Option<(Neighbour, Now)>,
    next: Now,
}

impl Lldp {
    /// Takes a frame. False: it is not LLDP.
    pub(super) fn receive(&mut self, frame: &[u8], now: Now) -> bool {
        let Some(neighbour) = Neighbour::read(frame) else {
            return false;
        };
        // One that goes says so (shutdown).
        self.heard = (!neighbour.is_shutdown()).then_some((neighbour, now));
        true
    }

    /// What is to be said now, if something is.
    pub(super) fn say(
        &mut self,
        device: &str,
        (chassis, mac): (Mac, Mac),
        now: Now,
    ) -> Option<Vec<u8>> {
        if now < self.next {
            return None;
        }
        self.next = now + INTERVAL;
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy();
        let description = format!("tandemd {}", env!("CARGO_PKG_VERSION"));
        let announcement = Announcement {
            chassis,
            port: device,
            system_name: &host,
            port_description: &description,
            ttl: TTL,
        };
        Some(announcement.frame(mac))
    }

    /// When there is something to say.
    pub(super) fn next(&self) -> Now {
        self.next
    }

    /// The neighbour, as long as it is to be believed.
    pub(super) fn status(&self, now: Now) -> Option<LldpStatus> {
        let (neighbour, heard) = self.heard.as_ref()?;
        if *heard + neighbour.ttl < now {
            return None;
        }
        Some(LldpStatus {
            chassis_id: neighbour.chassis_id.clone(),
            port_id: neighbour.port_id.clone(),
            system_name: neighbour.system_name.clone(),
            port_description: neighbour.port_description.clone(),
            vlan: neighbour.vlan,
            age_seconds: now.seconds().saturating_sub(heard.seconds()),
        })
    }
}
