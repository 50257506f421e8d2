//! The switches.

use super::schema::SwitchSettings;
use crate::config::SwitchConfig;
use crate::status::{Switch, Switches};

super::handlers::handlers!(
    SwitchConfig,
    SwitchSettings,
    Switch,
    Switches { switches },
    "/api/v1/switches",
    "switch"
);
