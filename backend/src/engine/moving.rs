//! A port as the hand-off of its VM sees it.

use std::sync::{Arc, Weak};

use tandem_migration::frames;
use tandem_migration::state::PortState;
use tandem_virtio_net::Batch;
use tokio::sync::watch;

use super::build::Outside;
use super::{Port, no_such_port};
use crate::control::{Motion, MovingPort, Refused, RefusedKind, Way};
use crate::port::GuestPort;

/// Does not keep the port: one that is removed is not there any more.
struct Moving(Weak<GuestPort>);

impl Port {
    pub(super) fn moving(&self) -> Result<Arc<dyn MovingPort>, Refused> {
        match &self.outside {
            Outside::Guest { port, .. } => Ok(Arc::new(Moving(Arc::downgrade(port)))),
            Outside::Host { .. } => {
                let reason = format!("port {} is a TAP of the host's", self.config.name);
                let remedy = "name a VM whose ports are all served by vhost-user";
                Err(Refused::new(RefusedKind::Invalid, reason, remedy).about("vm"))
            }
        }
    }
}

impl Moving {
    fn port(&self) -> Result<Arc<GuestPort>, Refused> {
        self.0.upgrade().ok_or_else(|| no_such_port("of that VM"))
    }
}

impl MovingPort for Moving {
    fn motion(&self) -> Option<Motion> {
        self.0.upgrade().map(|port| port.motion())
    }

    fn changes(&self) -> Option<watch::Receiver<()>> {
        self.0.upgrade().map(|port| port.changes())
    }

    fn save(&self) -> Result<Vec<u8>, Refused> {
        let bytes = self.port()?.state().to_bytes();
        bytes.map_err(|e| {
            Refused::new(
                RefusedKind::System,
                e.to_string(),
                "see the log, and report it",
            )
        })
    }

    fn check(&self, state: &[u8]) -> Result<(), Refused> {
        self.read(state).map(drop)
    }

    fn expect(&self, state: &[u8]) -> Result<(), Refused> {
        let (port, state) = self.read(state)?;
        port.expect(Some(state));
        Ok(())
    }

    fn forget(&self) {
        if let Some(port) = self.0.upgrade() {
            port.expect(None);
        }
    }

    fn follow(&self, way: Way) {
        if let Some(port) = self.0.upgrade() {
            port.set_way(way);
        }
    }

    fn way(&self) -> Way {
        self.0.upgrade().map(|port| port.way()).unwrap_or_default()
    }

    fn take_held(&self, room: &mut Batch) -> Option<Vec<u8>> {
        self.0.upgrade()?.take_held(room)
    }

    fn room(&self) -> Batch {
        GuestPort::batch_for_held()
    }

    fn deliver(&self, bytes: &[u8]) -> Result<u64, Refused> {
        let frames = frames::all(bytes).map_err(|e| {
            Refused::new(
                RefusedKind::Invalid,
                e.to_string(),
                "report it, if it is tandemd that has sent it",
            )
        })?;
        Ok(self.port()?.deliver_followers(&frames))
    }
}

impl Moving {
    fn read(&self, state: &[u8]) -> Result<(Arc<GuestPort>, PortState), Refused> {
        let port = self.port()?;
        let refused = |words: String| {
            let remedy = "see that both hosts have the same settings and releases of Tandem";
            Refused::new(RefusedKind::Invalid, words, remedy)
        };
        let state = PortState::try_from(state).map_err(|e| refused(e.to_string()))?;
        let checked = state.identity.check(&port.identity());
        checked.map_err(|e| refused(e.to_string()))?;
        Ok((port, state))
    }
}
