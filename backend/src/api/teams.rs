//! The teams.

use super::schema::TeamSettings;
use crate::config::TeamConfig;
use crate::status::{Team, Teams};

super::handlers::handlers!(
    TeamConfig,
    TeamSettings,
    Team,
    Teams { teams },
    "/api/v1/teams",
    "team"
);
