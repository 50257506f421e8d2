//! The seam between what a user asks for and what does it.

mod capturing;
mod ports;
mod resource;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use tandem_virtio_net::Batch;
use tokio::sync::mpsc::Receiver;
use tokio::sync::watch;

use crate::capture;
use crate::config::{PortConfig, SwitchConfig, TeamConfig};
use crate::events::EventKind;
use crate::status::{PortStatus, SwitchesStatus, TeamStatus, VmUsage};

pub use ports::{Base, Condition, Control, Put, Reloaded, Removed, Setup};
pub use resource::Resource;

/// What kind of refusal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedKind {
    /// What was asked for is wrong by itself.
    Invalid,
    /// It contradicts something that exists.
    Conflict,
    /// What it names does not exist.
    NotFound,
    /// It is no longer, or not yet, what the request depends on.
    Stale,
    /// The operating system said no.
    System,
}

/// A change that was not made; nothing of it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{reason}; {remedy}", .field.as_ref().map(|f| format!("{f}: ")).unwrap_or_default())]
pub struct Refused {
    /// The setting at fault, by its key.
    pub field: Option<String>,
    /// Why, in words, without a full stop.
    pub reason: String,
    /// What to do about it, in words, without a full stop.
    pub remedy: String,
    /// What kind of refusal it is.
    pub kind: RefusedKind,
}

impl Refused {
    /// A refusal that is about no single setting.
    pub fn new(kind: RefusedKind, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            field: None,
            reason: reason.into(),
            remedy: remedy.into(),
            kind,
        }
    }

    /// The same refusal, about the setting `key`.
    #[must_use]
    pub fn about(self, key: impl Into<String>) -> Self {
        Self {
            field: Some(key.into()),
            ..self
        }
    }
}

/// How things are with a port whose VM may be on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Motion {
    /// The VMM has all writes to the VM's memory logged, as for a migration.
    pub logging: bool,
    /// The VM is served: a queue pair has been started and enabled.
    pub running: bool,
    /// Frames for the VM are held.
    pub holding: bool,
    /// Frames that the VM has sent.
    pub frames: u64,
    /// Frames that found it gone: those that followed it, those that were dropped because they were held for too
    /// long, and because there were too many.
    pub followed: u64,
    /// See `followed`.
    pub expired: u64,
    /// See `followed`.
    pub overflowed: u64,
    /// What the port has cost in the change that is on, or was last: how long the VMM has waited for its answers
    /// from when its rings were about to be stopped, or were started.
    pub waited: Duration,
    /// Of that, how long our thread has waited for a CPU.
    pub starved: Duration,
}

/// A port of a VM that moves from host to host. It may be removed at any time.
pub trait MovingPort: Send + Sync {
    /// How things are; none: it is not there any more.
    fn motion(&self) -> Option<Motion>;

    /// Is told when [`MovingPort::motion`] may be different.
    fn changes(&self) -> Option<watch::Receiver<()>>;

    /// What it takes along: see [`tandem_migration::state`].
    ///
    /// # Errors
    /// It is not there any more, or what it has does not fit.
    fn save(&self) -> Result<Vec<u8>, Refused>;

    /// Whether a VM that has run elsewhere can bring this state here.
    ///
    /// # Errors
    /// Why not.
    fn check(&self, state: &[u8]) -> Result<(), Refused>;

    /// The VM that comes from elsewhere has this state, unless it brings one itself.
    ///
    /// # Errors
    /// As [`MovingPort::check`].
    fn expect(&self, state: &[u8]) -> Result<(), Refused>;

    /// None comes.
    fn forget(&self);

    /// Has frames that are held for the VM follow it by this way.
    fn follow(&self, way: Way);

    /// By what way they do.
    fn way(&self) -> Way;

    /// Takes a burst of the frames that are held, as [`tandem_migration::frames`], with `room` for it, a batch of
    /// [`MovingPort::room`]. None: nothing is held now.
    fn take_held(&self, room: &mut Batch) -> Option<Vec<u8>>;

    /// Room for [`MovingPort::take_held`].
    fn room(&self) -> Batch;

    /// Delivers frames that another host has held for the VM. How many were no frames.
    ///
    /// # Errors
    /// The bytes are something else, or the port is not there any more.
    fn deliver(&self, frames: &[u8]) -> Result<u64, Refused>;
}

/// The way of frames that follow a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Way {
    /// The network's, once the VM was heard there.
    #[default]
    Network,
    /// The daemons will say so when it runs there; if they say nothing, the network's.
    Awaited,
    /// It runs there, and the daemons carry them.
    Daemons,
}

/// The running switch, as the control plane drives it. Calls may block; changes are made whole or
/// not at all. Callers serialise changes, reads may come at any time.
pub trait Engine: Send + Sync {
    /// Makes a team. Devices that are not there are no error: they are members that are down.
    ///
    /// # Errors
    /// `Conflict` if the name or a device is taken, `System` for the rest.
    fn add_team(&self, name: &str, team: &TeamConfig) -> Result<(), Refused>;

    /// Gives a team other settings while its switch goes on; members come and go. There may be none
    /// for a moment, while a reload gives devices from one team to another.
    ///
    /// # Errors
    /// `NotFound` if there is none of that name, `Conflict` if a device is taken, `System` for the rest.
    fn change_team(&self, name: &str, team: &TeamConfig) -> Result<(), Refused>;

    /// Ends a team.
    ///
    /// # Errors
    /// `NotFound` if there is none of that name, `Conflict` if it is the uplink of a switch.
    fn remove_team(&self, name: &str) -> Result<(), Refused>;

    /// The teams, by name.
    fn teams(&self) -> Vec<TeamStatus>;

    /// Makes a switch without ports, and its uplink. A team that it names is there before.
    ///
    /// # Errors
    /// `Conflict` if the name or its uplink is taken, `System` if it cannot have that.
    fn add_switch(&self, name: &str, switch: &SwitchConfig) -> Result<(), Refused>;

    /// Gives a switch other settings, another uplink as well; its ports notice nothing.
    ///
    /// # Errors
    /// `NotFound` if there is none of that name; for its uplink as [`Engine::add_switch`].
    fn change_switch(&self, name: &str, switch: &SwitchConfig) -> Result<(), Refused>;

    /// Ends a switch.
    ///
    /// # Errors
    /// `NotFound` if there is none of that name, `Conflict` if it has ports.
    fn remove_switch(&self, name: &str) -> Result<(), Refused>;

    /// Makes the port; when this returns, its socket exists. Publishes `event` of it before anything
    /// that its VM does.
    ///
    /// # Errors
    /// `Conflict` if the name, the socket or the TAP is taken, `NotFound` if the switch is not there,
    /// `Invalid` if this host lacks what a setting names, such as a group, `System` for the rest.
    fn add_port(&self, port: &PortConfig, event: EventKind) -> Result<(), Refused>;

    /// Gives the running port of this name other settings while its VM stays connected. False: more
    /// differs than can be changed so, and nothing was changed.
    ///
    /// # Errors
    /// `NotFound` if there is none of that name, `Conflict` if the address is another port's.
    fn change_port(&self, port: &PortConfig) -> Result<bool, Refused>;

    /// Ends the port; when this returns, its session and its socket are gone.
    ///
    /// # Errors
    /// `NotFound` if there is none of that name.
    fn remove_port(&self, name: &str) -> Result<(), Refused>;

    /// All ports, by name.
    fn ports(&self) -> Vec<PortStatus>;

    /// One port.
    fn port(&self, name: &str) -> Option<PortStatus>;

    /// Whether there is such a port.
    fn has_port(&self, name: &str) -> bool;

    /// How many ports are up.
    fn ports_up(&self) -> usize;

    /// A port whose VM is to move.
    ///
    /// # Errors
    /// `NotFound` if there is no such port, `Invalid` if no VM is behind it.
    fn moving(&self, name: &str) -> Result<Arc<dyn MovingPort>, Refused>;

    /// Starts a capture of a port's frames. What comes is pcapng; it ends when the port does, or when
    /// nobody takes it any more.
    ///
    /// # Errors
    /// `NotFound` if there is no such port, `Conflict` if there are too many captures, `System` for the
    /// rest.
    fn capture(&self, port: &str, request: &capture::Request) -> Result<Receiver<Bytes>, Refused>;

    /// Ends all captures.
    fn end_captures(&self);

    /// What each VM's threads have used, by VM.
    fn vms(&self) -> Vec<VmUsage>;

    /// The switches and what they run on.
    fn status(&self) -> SwitchesStatus;

    /// A number that grows each second for as long as the engine can get at its ports.
    fn beats(&self) -> u64;
}
