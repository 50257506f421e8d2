//! Migrations as the API shows them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
pub use tandem_migration::handoff::Stage;
use tandem_migration::handoff::{Entry, Moment as What};
use utoipa::ToSchema;

use super::plan::PlannedHere;
use crate::control::{Motion, MovingPort, Refused, RefusedKind};

/// Where a VM goes.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Prepare {
    /// The other host: the address and port that its tandemd listens on (`--migration-listen`). An IPv6 address is in
    /// brackets.
    #[schema(example = "192.0.2.7:4792", max_length = 255)]
    pub to: String,
    /// The name of the host in its certificate; absent: the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "beta", max_length = 253)]
    pub name: Option<String>,
    /// Seconds in which the VM must have begun to move; absent: 60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 86400)]
    pub limit_seconds: Option<u32>,
}

impl Prepare {
    /// The name that the other host's certificate must have.
    pub(super) fn name(&self) -> &str {
        let host = self.to.rsplit_once(':').map_or(&*self.to, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        self.name.as_deref().unwrap_or(host)
    }

    pub(super) fn limit(&self) -> Duration {
        Duration::from_secs(self.limit_seconds.unwrap_or(60).into())
    }

    /// Looks whether it can be meant.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), Refused> {
        let wrong = |reason: String, remedy, key| {
            Err(Refused::new(RefusedKind::Invalid, reason, remedy).about(key))
        };
        if self.to.parse::<std::net::SocketAddr>().is_err() {
            let reason = format!("{:?} is no address and port", self.to);
            return wrong(
                reason,
                "use one such as 192.0.2.7:4792 or [2001:db8::7]:4792",
                "to",
            );
        }
        if self.name().is_empty() || self.name().len() > 253 {
            let reason = "a host has a name of 1 to 253 bytes".to_owned();
            return wrong(reason, "use that of its certificate", "name");
        }
        match self.limit_seconds {
            Some(0) | Some(86_401..) => {
                let reason = "it is not in 1 to 86400".to_owned();
                wrong(reason, "use seconds, 60 for example", "limit_seconds")
            }
            _ => Ok(()),
        }
    }
}

/// Which side this host is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The VM leaves.
    #[default]
    Source,
    /// It comes.
    Destination,
}

fn words(stage: Stage) -> &'static str {
    match stage {
        Stage::Preparing => "is being prepared",
        Stage::Prepared => "may move",
        Stage::Moving => "is on its way",
        Stage::There => "has arrived",
        Stage::Committed => "has moved",
        Stage::Aborted => "stays",
    }
}

/// Something that happened in a migration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Moment {
    /// Milliseconds since the migration was prepared.
    pub at_ms: f64,
    /// What: `prepared`, `started` (the VM's memory is logged, or its state has come), `stopped` (a port's rings, on
    /// the source), `state_saved`, `state_sent`, `running_there`, `first_frame_there`, `flushed` (what was held has
    /// followed the VM), `committed`, `aborted`.
    pub what: String,
    /// The port it happened to; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
}

/// What a migration cost a port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Cost {
    /// The port.
    pub port: String,
    /// Frames for the VM that were held, or came late, and followed it to the other host.
    pub followed: u64,
    /// Frames that were held, and dropped after 3 s.
    pub expired: u64,
    /// Frames that found too many held already, and were dropped.
    pub overflowed: u64,
    /// The back-end's part of the downtime on this host: milliseconds for which the VMM has waited for its answers,
    /// from the first ring's stop on (source) or until the rings run (destination).
    pub waited_ms: f64,
    /// Of these, milliseconds for which its thread was ready to run and waited for a CPU.
    pub starved_ms: f64,
}

impl Cost {
    fn of(port: &str, before: &Motion, now: &Motion) -> Self {
        Self {
            port: port.to_owned(),
            followed: now.followed.saturating_sub(before.followed),
            expired: now.expired.saturating_sub(before.expired),
            overflowed: now.overflowed.saturating_sub(before.overflowed),
            waited_ms: ms(now.waited),
            starved_ms: ms(now.starved),
        }
    }
}

/// A VM's migration, as this host sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Migration {
    /// The VM.
    pub vm: String,
    /// Which side this host is.
    pub role: Role,
    /// The other host, by its name.
    pub peer: String,
    /// The number of this migration on both hosts.
    pub id: String,
    /// How far it is.
    pub stage: Stage,
    /// Why it was aborted.
    pub reason: Option<String>,
    /// Milliseconds since it was prepared.
    pub age_ms: u64,
    /// What happened so far, in order.
    pub timeline: Vec<Moment>,
    /// What it cost each port.
    pub ports: Vec<Cost>,
}

impl Migration {
    /// In words.
    pub(super) fn words(&self) -> String {
        let way = match self.role {
            Role::Source => "to",
            Role::Destination => "from",
        };
        let because = self.reason.iter().map(|reason| format!(": {reason}"));
        let because: String = because.collect();
        let words = words(self.stage);
        format!(
            "migration of {} {way} {}: it {words}{because}",
            self.vm, self.peer
        )
    }
}

/// The answer to a list of migrations.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Migrations {
    /// By VM, of each the one that is on, or was last.
    pub migrations: Vec<Migration>,
}

/// What a host knows of a migration from its beginning.
pub(super) struct Subject {
    pub(super) vm: String,
    pub(super) id: String,
    /// The other host.
    pub(super) peer: String,
    /// The VM's ports, as the plan has them.
    pub(super) names: Vec<String>,
    pub(super) ports: Vec<Arc<dyn MovingPort>>,
    /// How things were with each.
    before: Vec<Motion>,
    pub(super) began: Instant,
}

impl Subject {
    pub(super) fn new(vm: &str, id: &str, peer: &str, ports: Vec<PlannedHere>) -> Self {
        let motion = |port: &PlannedHere| port.port.motion().unwrap_or_default();
        Self {
            vm: vm.to_owned(),
            id: id.to_owned(),
            peer: peer.to_owned(),
            before: ports.iter().map(motion).collect(),
            names: ports.iter().map(|port| port.config.name.clone()).collect(),
            ports: ports.into_iter().map(|port| port.port).collect(),
            began: Instant::now(),
        }
    }

    /// How it stands.
    pub(super) fn status(
        &self,
        role: Role,
        stage: Stage,
        reason: Option<&str>,
        timeline: &[Entry],
    ) -> Migration {
        Migration {
            vm: self.vm.clone(),
            role,
            peer: self.peer.clone(),
            id: self.id.clone(),
            stage,
            reason: reason.map(str::to_owned),
            age_ms: self.began.elapsed().as_millis() as u64,
            timeline: timeline.iter().map(|entry| self.moment(entry)).collect(),
            ports: self.costs(),
        }
    }

    fn moment(&self, entry: &Entry) -> Moment {
        Moment {
            at_ms: ms(entry.at),
            what: name(entry.what),
            port: entry.port.and_then(|port| self.names.get(port)).cloned(),
        }
    }

    fn costs(&self) -> Vec<Cost> {
        let all = self.names.iter().zip(&self.before).zip(&self.ports);
        all.map(|((name, before), port)| {
            let now = port.motion().unwrap_or(*before);
            Cost::of(name, before, &now)
        })
        .collect()
    }
}

fn name(what: What) -> String {
    let json = serde_json::to_value(what).unwrap_or_default();
    json.as_str().unwrap_or_default().to_owned()
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
