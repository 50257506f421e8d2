//! What can be listed, shown, set and removed by name.

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Condition, Control, Put, Refused, Removed};
use crate::config::{Configured, PortConfig};
use crate::status::Port;

/// A kind of thing that is configured by name and runs: a port, a switch, a team.
pub trait Resource: Configured {
    /// What the API shows of one: what was asked for and what it does.
    type Shown: Serialize;

    /// The tag of the settings of one that is shown.
    fn shown_tag(shown: &Self::Shown) -> &str;

    /// All, by name.
    fn list(control: &Control) -> Vec<Self::Shown>;

    /// One.
    ///
    /// # Errors
    /// `NotFound`.
    fn show(control: &Control, name: &str) -> Result<Self::Shown, Refused>;

    /// Makes one with just these settings, in place of one of that name. Saved before this returns.
    ///
    /// # Errors
    /// All that is wrong with the settings, or why it could not be made; then nothing changed.
    /// `Stale` if the condition is not met.
    fn put(
        control: &Control,
        name: &str,
        settings: &Map<String, Value>,
        condition: &Condition,
    ) -> Result<(Put, Self::Shown), Vec<Refused>>;

    /// Changes some settings (JSON Merge Patch, RFC 7396): those given; one that is null is set no
    /// more. The others stay what they are, wherever they came from. Saved before this returns.
    ///
    /// # Errors
    /// `NotFound`, or as for [`Resource::put`].
    fn patch(
        control: &Control,
        name: &str,
        changes: &Map<String, Value>,
        condition: &Condition,
    ) -> Result<Self::Shown, Vec<Refused>>;

    /// Forgets what was set over the API: it is again what file and command line say. Saved before
    /// this returns.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` if neither names it; `Stale` if the condition is not met; or why it could
    /// not be made. Then nothing changed.
    fn reset(
        control: &Control,
        name: &str,
        condition: &Condition,
    ) -> Result<Self::Shown, Vec<Refused>>;

    /// Ends one. Saved before this returns.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` if others need it, `Stale` if the condition is not met, or why it could
    /// not be saved; then nothing changed.
    fn remove(control: &Control, name: &str, condition: &Condition) -> Result<Removed, Refused>;
}

impl Resource for PortConfig {
    type Shown = Port;

    fn shown_tag(shown: &Port) -> &str {
        &shown.tag
    }

    fn list(control: &Control) -> Vec<Port> {
        control.ports()
    }

    fn show(control: &Control, name: &str) -> Result<Port, Refused> {
        control.port(name)
    }

    fn put(
        control: &Control,
        name: &str,
        settings: &Map<String, Value>,
        condition: &Condition,
    ) -> Result<(Put, Port), Vec<Refused>> {
        control.put(name, settings, condition)
    }

    fn patch(
        control: &Control,
        name: &str,
        changes: &Map<String, Value>,
        condition: &Condition,
    ) -> Result<Port, Vec<Refused>> {
        control.patch(name, changes, condition)
    }

    fn reset(control: &Control, name: &str, condition: &Condition) -> Result<Port, Vec<Refused>> {
        control.reset(name, condition)
    }

    fn remove(control: &Control, name: &str, condition: &Condition) -> Result<Removed, Refused> {
        control.remove(name, condition)
    }
}
