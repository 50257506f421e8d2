//! libvirt's live migration, by its program virsh.
//!
//! Source: libvirt, docs/manpages/virsh.rst, and what virsh 9.0 does. `virsh migrate` runs until the VM has moved, or
//! stays; it carries what both libvirt daemons have to say to each other, and if it is killed libvirt cancels the
//! migration. Meanwhile `virsh domjobinfo` tells how far it is.

mod job;
mod virsh;

use std::time::Instant;

use super::{ANSWER_TIME, INTERVAL, Outcome, Progress, Vmm, VmmError, Wishes, words};
use job::Job;
use virsh::{Running, Turn, Virsh};

/// What `virsh --bandwidth` counts in.
const MIB: u64 = 1 << 20;

/// How libvirt is reached, and what else it is to be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LibvirtOptions {
    /// The connection to the libvirt of this host (`virsh --connect`); none: the one virsh takes by itself.
    pub connection: Option<String>,
    /// Where QEMU on the other host waits for the VM (`--migrateuri`); none: libvirt finds out.
    pub migrate_uri: Option<String>,
    /// Further options of `virsh migrate`, such as `--persistent`.
    pub further: Vec<String>,
}

/// libvirt with the VM that moves, which it calls a domain.
///
/// To where `migrate` is given libvirt's own URI of the other host, such as `qemu+ssh://beta/system`: the VMM there is
/// started by it. It does not tell when the VM was stopped. A migration that is under way is cancelled when this value is
/// dropped, and, while it is followed, when this process is to end (SIGINT, SIGTERM): the process does not end by these
/// signals any more, once a migration was begun.
#[derive(Debug)]
pub struct Libvirt {
    virsh: Virsh,
    options: LibvirtOptions,
    domain: String,
    running: Option<Running>,
    /// The libvirt of the other host.
    there: String,
    progress: Progress,
    /// When it is to be cancelled.
    deadline: Option<Instant>,
    /// It is to be cancelled, as soon as libvirt can.
    cancelled: bool,
    next_look: Instant,
}

impl Libvirt {
    /// Asks libvirt, by the program `virsh` that is in the PATH, for this domain.
    ///
    /// # Errors
    /// See [`VmmError`].
    pub fn connect(domain: &str, options: LibvirtOptions) -> Result<Self, VmmError> {
        Self::by("virsh", domain, options)
    }

    /// As [`Self::connect`], by the program at this path.
    ///
    /// # Errors
    /// See [`VmmError`].
    pub fn by(program: &str, domain: &str, options: LibvirtOptions) -> Result<Self, VmmError> {
        let mut vmm = Self {
            virsh: Virsh::new(program)?,
            options,
            domain: domain.to_owned(),
            running: None,
            there: String::new(),
            progress: Progress::default(),
            deadline: None,
            cancelled: false,
            next_look: Instant::now(),
        };
        vmm.ask("domstate", &[])?;
        Ok(vmm)
    }

    /// What a command says of the domain on this host.
    fn ask(&mut self, command: &str, more: &[&str]) -> Result<String, VmmError> {
        let connection = self.options.connection.as_deref();
        let words = [&[command, "--domain", &self.domain], more].concat();
        self.virsh.ask(connection, &words)
    }

    /// The words of `virsh migrate`.
    fn arguments(&self, uri: &str, wishes: &Wishes) -> Result<Vec<String>, VmmError> {
        let further = &self.options.further;
        let postcopy = |word: &String| {
            word.starts_with("--postcopy") || word.starts_with("--timeout-postcopy")
        };
        if further.iter().any(postcopy) {
            return Err(VmmError::Postcopy);
        }
        let mut words = vec!["migrate", "--live", "--domain", &self.domain];
        words.extend(["--desturi", uri]);
        if let Some(uri) = &self.options.migrate_uri {
            words.extend(["--migrateuri", uri]);
        }
        let rate = wishes.max_bandwidth.map(|rate| (rate / MIB).to_string());
        match rate.as_deref() {
            Some("0") => {
                return Err(VmmError::Unsupported {
                    vmm: "libvirt".to_owned(),
                    what: "limit the bandwidth to less than 1 MiB/s",
                    remedy: "allow it more",
                });
            }
            Some(rate) => words.extend(["--bandwidth", rate]),
            None => {}
        }
        words.extend(further.iter().map(String::as_str));
        Ok(words.into_iter().map(str::to_owned).collect())
    }

    /// Looks how far it is. That libvirt does not say so, is no harm: the end comes by another way.
    fn look(&mut self) {
        if let Ok(text) = self.ask("domjobinfo", &[]) {
            Job::parse(&text).tell(&mut self.progress);
        }
        if self.cancelled {
            // There is nothing to cancel before libvirt has begun, and when it is done.
            let _ = self.ask("domjobabort", &[]);
        }
        self.next_look = Instant::now() + INTERVAL;
    }

    /// How it ended, as virsh has.
    fn outcome(&mut self, failure: Option<String>) -> Outcome {
        let Some(failure) = failure else {
            return self.completed();
        };
        // It says so, too, when only what comes after the move has failed.
        let state = self.ask("domstate", &[]).unwrap_or_default();
        if state.is_empty() || state == "shut off" {
            self.progress.state = failure;
            return Outcome::Ended;
        }
        match self.cancelled || failure.contains("canceled by client") {
            true => Outcome::Cancelled,
            false => Outcome::Failed(failure),
        }
    }

    /// The figures: the libvirt of the other host has them, ours may have forgotten the domain.
    fn completed(&mut self) -> Outcome {
        let words = ["domjobinfo", "--domain", &self.domain, "--completed"];
        let there = self.virsh.ask(Some(&self.there), &words);
        let said = there.or_else(|_| self.ask("domjobinfo", &["--completed"]));
        let job = said.map(|text| Job::parse(&text)).unwrap_or_default();
        job.tell(&mut self.progress);
        self.progress.state = "Completed".to_owned();
        Outcome::Completed {
            downtime_ms: job.downtime_ms,
            total_ms: job.elapsed_ms,
        }
    }
}

impl Vmm for Libvirt {
    fn migrate(&mut self, uri: &str, wishes: &Wishes) -> Result<(), VmmError> {
        let arguments = self.arguments(uri, wishes)?;
        if let Some(limit) = wishes.downtime {
            let limit = limit.as_millis().max(1).to_string();
            self.ask("migrate-setmaxdowntime", &["--downtime", &limit])?;
        }
        let connection = self.options.connection.as_deref();
        self.running = Some(self.virsh.start(connection, &arguments)?);
        self.there = uri.to_owned();
        self.progress = Progress {
            state: "asked".to_owned(),
            ..Progress::default()
        };
        self.cancelled = false;
        self.deadline = wishes
            .time
            .and_then(|time| Instant::now().checked_add(time));
        self.next_look = Instant::now() + INTERVAL;
        Ok(())
    }

    fn follow(
        &mut self,
        until: Instant,
        each: &mut dyn FnMut(&Progress),
    ) -> Result<Option<Outcome>, VmmError> {
        loop {
            if self.deadline.is_some_and(|at| Instant::now() >= at) {
                self.deadline = None;
                self.cancel()?;
            }
            let running = self.running.as_mut().ok_or(VmmError::NotBegun)?;
            match self.virsh.wait(running, self.next_look.min(until))? {
                Turn::Pending => {}
                Turn::Interrupted => self.cancel()?,
                Turn::Ended(failure) => {
                    self.running = None;
                    let outcome = self.outcome(failure);
                    each(&self.progress);
                    return Ok(Some(outcome));
                }
            }
            if Instant::now() >= self.next_look {
                self.look();
                each(&self.progress);
            }
            if Instant::now() >= until {
                return Ok(None);
            }
        }
    }

    /// Of a migration that this value has not begun, too.
    fn cancel(&mut self) -> Result<(), VmmError> {
        self.cancelled = true;
        match self.ask("domjobabort", &[]) {
            // Too early or too late: it is tried again until virsh has ended.
            Err(VmmError::Refused { .. }) if self.running.is_some() => Ok(()),
            done => done.map(drop),
        }
    }
}

impl Drop for Libvirt {
    /// virsh is asked to end in order, as long as it does so soon.
    fn drop(&mut self) {
        let Some(mut running) = self.running.take() else {
            return;
        };
        let deadline = Instant::now() + ANSWER_TIME;
        while Instant::now() < deadline {
            let _ = self.ask("domjobabort", &[]);
            let next = Instant::now() + INTERVAL;
            if matches!(self.virsh.wait(&mut running, next), Ok(Turn::Ended(_))) {
                return;
            }
        }
        self.virsh.kill(running);
    }
}
