//! QEMU's live migration, by its monitor.
//!
//! Source: QEMU, qapi/migration.json, of versions 7.2 and 10.0. States come by events (capability `events`), figures
//! by `query-migrate`. A source that has sent its VM stays, stopped (`postmigrate`), until somebody ends it.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::monitor::{Event, Monitor};
use super::{INTERVAL, Outcome, Progress, Vmm, VmmError, Wishes, words};

/// Time in which the figures follow the event that the migration is over, and the VM runs again.
const SETTLE_TIME: Duration = Duration::from_secs(2);
/// From one look for these figures to the next.
const SETTLE_INTERVAL: Duration = Duration::from_millis(20);

/// Kinds of URI by which the destination can answer. The source waits then for it to have taken the VM over, and goes
/// on with the VM if it has not; without an answer it takes what it has sent for done.
const TWO_WAYS: [&str; 3] = ["tcp:", "unix:", "vsock:"];

/// QEMU with the VM that moves.
#[derive(Debug)]
pub struct Qmp {
    monitor: Monitor,
    progress: Progress,
    begun: bool,
    /// When it is to be cancelled.
    deadline: Option<Instant>,
    go_on_at_switchover: bool,
    next_query: Instant,
}

impl Qmp {
    /// Connects to the monitor at `socket` (`-qmp unix:PATH,server=on,wait=off`).
    ///
    /// # Errors
    /// See [`VmmError`].
    pub fn connect(socket: &Path) -> Result<Self, VmmError> {
        Ok(Self {
            monitor: Monitor::connect(socket)?,
            progress: Progress::default(),
            begun: false,
            deadline: None,
            go_on_at_switchover: false,
            next_query: Instant::now(),
        })
    }

    fn set_capabilities(&mut self, uri: &str) -> Result<(), VmmError> {
        let list = self
            .monitor
            .execute("query-migrate-capabilities", json!({}))?;
        let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
        for capability in list.iter().filter(|capability| capability["state"] == true) {
            match capability["capability"].as_str() {
                Some("postcopy-ram") => return Err(VmmError::Postcopy),
                Some(name @ ("background-snapshot" | "x-colo")) => {
                    return Err(VmmError::Stays(name.to_owned()));
                }
                _ => {}
            }
        }
        let mut wanted = vec![json!({ "capability": "events", "state": true })];
        if TWO_WAYS.iter().any(|kind| uri.starts_with(kind)) {
            wanted.push(json!({ "capability": "return-path", "state": true }));
        }
        let wanted = json!({ "capabilities": wanted });
        self.monitor
            .execute("migrate-set-capabilities", wanted)
            .map(drop)
    }

    fn set_parameters(&mut self, wishes: &Wishes) -> Result<(), VmmError> {
        let mut parameters = json!({});
        if let Some(rate) = wishes.max_bandwidth {
            parameters["max-bandwidth"] = rate.into();
        }
        if let Some(limit) = wishes.downtime {
            let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
            parameters["downtime-limit"] = limit.into();
        }
        if parameters.as_object().is_some_and(|given| given.is_empty()) {
            return Ok(());
        }
        self.monitor
            .execute("migrate-set-parameters", parameters)
            .map(drop)
    }

    /// Takes an event into account; whether it is a change that the caller has to hear of.
    fn take(&mut self, event: &Event) -> Result<bool, VmmError> {
        match event.name.as_str() {
            "STOP" => {
                self.progress.stopped_at = Some(event.at);
                self.progress.resumed_at = None;
            }
            "RESUME" if self.progress.stopped_at.is_some() => {
                self.progress.resumed_at = Some(event.at);
            }
            "MIGRATION" => {
                let state = event.data["status"].as_str().unwrap_or_default();
                self.enter(state)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn enter(&mut self, state: &str) -> Result<(), VmmError> {
        let state = words(state);
        if state.is_empty() || self.progress.state == state {
            return Ok(());
        }
        self.progress.state.clone_from(&state);
        if state == "pre-switchover" && self.go_on_at_switchover {
            let on = json!({ "state": "pre-switchover" });
            match self.monitor.execute("migrate-continue", on) {
                // It has been cancelled, or has failed, meanwhile: the next event says so.
                Err(VmmError::Refused { .. }) => {}
                done => return done.map(drop),
            }
        }
        Ok(())
    }

    /// Looks at the figures, and what QEMU says of the migration besides.
    fn query(&mut self) -> Result<Value, VmmError> {
        let info = self.monitor.execute("query-migrate", json!({}))?;
        let ram = &info["ram"];
        let progress = &mut self.progress;
        if ram.is_object() {
            progress.transferred = ram["transferred"].as_u64();
            progress.remaining = ram["remaining"].as_u64();
            progress.total = ram["total"].as_u64();
        }
        let downtime = info["downtime"].as_u64();
        progress.downtime_ms = downtime.or(info["expected-downtime"].as_u64());
        self.next_query = Instant::now() + INTERVAL;
        Ok(info)
    }

    /// How it ended, if the state is one in which a migration has.
    fn outcome(&mut self) -> Result<Option<Outcome>, VmmError> {
        match self.progress.state.as_str() {
            "completed" => Ok(Some(self.completed())),
            "failed" => {
                let info = self.query()?;
                self.wait_resumed()?;
                let reason = info["error-desc"].as_str().map(words);
                let reason = reason.unwrap_or_else(|| "QEMU does not say why; see its log".into());
                Ok(Some(Outcome::Failed(reason)))
            }
            "cancelled" => {
                self.query()?;
                self.wait_resumed()?;
                Ok(Some(Outcome::Cancelled))
            }
            _ => Ok(None),
        }
    }

    /// The figures, which come after the event. QEMU may be ended as soon as its VM is gone, before they are read.
    fn completed(&mut self) -> Outcome {
        let deadline = Instant::now() + SETTLE_TIME;
        let mut info = self.query().unwrap_or_default();
        while info["total-time"] == 0 && Instant::now() < deadline {
            std::thread::sleep(SETTLE_INTERVAL);
            info = self.query().unwrap_or_default();
        }
        Outcome::Completed {
            downtime_ms: info["downtime"].as_u64(),
            total_ms: info["total-time"].as_u64().filter(|ms| *ms > 0),
        }
    }

    /// If the VM was stopped and has to stay, it runs again after the event.
    fn wait_resumed(&mut self) -> Result<(), VmmError> {
        let deadline = Instant::now() + SETTLE_TIME;
        while self.progress.stopped_at.is_some() && self.progress.resumed_at.is_none() {
            match self.monitor.event(deadline)? {
                Some(event) if event.name == "MIGRATION" => {}
                Some(event) => drop(self.take(&event)?),
                None => break,
            }
        }
        Ok(())
    }

    /// The end, if this is it; the caller hears of it first.
    fn end(&mut self, each: &mut dyn FnMut(&Progress)) -> Result<Option<Outcome>, VmmError> {
        let outcome = self.outcome()?;
        each(&self.progress);
        self.begun = outcome.is_none();
        Ok(outcome)
    }
}

impl Vmm for Qmp {
    fn migrate(&mut self, uri: &str, wishes: &Wishes) -> Result<(), VmmError> {
        self.set_capabilities(uri)?;
        self.set_parameters(wishes)?;
        // Those of a migration before are not of this one.
        self.monitor.forget();
        self.progress = Progress::default();
        self.go_on_at_switchover = wishes.go_on_at_switchover;
        self.monitor.execute("migrate", json!({ "uri": uri }))?;
        self.begun = true;
        self.deadline = wishes
            .time
            .and_then(|time| Instant::now().checked_add(time));
        self.next_query = Instant::now();
        Ok(())
    }

    fn follow(
        &mut self,
        until: Instant,
        each: &mut dyn FnMut(&Progress),
    ) -> Result<Option<Outcome>, VmmError> {
        if !self.begun {
            return Err(VmmError::NotBegun);
        }
        loop {
            if self.deadline.is_some_and(|at| Instant::now() >= at) {
                self.deadline = None;
                self.cancel()?;
            }
            if let Some(event) = self.monitor.event(self.next_query.min(until))? {
                if self.take(&event)?
                    && let Some(outcome) = self.end(each)?
                {
                    return Ok(Some(outcome));
                }
                continue;
            }
            if Instant::now() >= self.next_query {
                let info = self.query()?;
                // Should the event be lost: somebody has switched them off, say. Those that are there come first.
                if let Some(state) = info["status"].as_str()
                    && self.monitor.is_quiet()
                {
                    self.enter(state)?;
                }
                if let Some(outcome) = self.end(each)? {
                    return Ok(Some(outcome));
                }
            }
            if Instant::now() >= until {
                return Ok(None);
            }
        }
    }

    fn cancel(&mut self) -> Result<(), VmmError> {
        self.monitor.execute("migrate_cancel", json!({})).map(drop)
    }
}
