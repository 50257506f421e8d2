//! The ports.

use super::handlers::Note;
use super::schema::PortSettings;
use crate::config::PortConfig;
use crate::status::{Port, Ports};

super::handlers::handlers!(
    PortConfig,
    PortSettings,
    Port,
    Ports { ports },
    "/api/v1/ports",
    "port",
    Note
);
