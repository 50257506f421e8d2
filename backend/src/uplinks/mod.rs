//! The uplinks of the switches: teams of network devices, as they run.
//!
//! One thread looks after all teams. It hears of links from the kernel, of the teams' own frames (LACP,
//! LLDP, probes) from the devices' threads, and of changes from the API; it runs the machines, and
//! tells the data path which members work. Between events it sleeps until a machine has something to do.
//!
//! ```text
//!   rtnetlink ───┐
//!   devices ─────┼──► uplinks thread ──► Machine ──► Plan ──► Team::publish
//!   API ─────────┘          └──► events, log, announcements
//! ```
//!
//! A team takes its devices once a switch has it as its uplink, and gives them back when it has not.

mod neighbour;
mod report;
mod running;
mod seat;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use log::error;
use rustix::event::{PollFd, PollFlags, Timespec};
use tandem_uplink::nic::links::{Link, LinkEvent, Links};
use tandem_uplink::{Now, PortId, PortPolicy, Switch};
use tandem_virtio_net::Call;

use self::running::{Home, Running};
use self::seat::Wire;
use crate::broker::Broker;
use crate::config::TeamConfig;
use crate::control::{Refused, RefusedKind};
use crate::events::Events;
use crate::nic_thread::Bell;
use crate::port::lock;
use crate::status::TeamStatus;

/// How often what is kept with some inertia is looked at, where there is such a thing.
const LOOK: Duration = Duration::from_millis(100);
/// The least time between two tries to open a device.
const RETRY: Duration = Duration::from_secs(1);

/// All teams, and the thread that looks after them. Ends when dropped.
pub(crate) struct Uplinks {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread and those who ask for changes share.
struct Shared {
    state: Mutex<State>,
    bell: Arc<Bell>,
    stop: AtomicBool,
    host: Host,
}

/// What teams need of the rest of the daemon.
struct Host {
    broker: Arc<Broker>,
    events: Arc<Events>,
    cpus: Vec<usize>,
    /// Wakes the thread that looks after teams.
    bell: Arc<Bell>,
}

#[derive(Default)]
struct State {
    /// Links have to be asked for anew.
    is_stale: bool,
    /// The host's devices by name, in the network namespace of the daemon.
    links: BTreeMap<String, Link>,
    teams: BTreeMap<String, Running>,
    wire: Wire,
}

impl Uplinks {
    /// Starts without teams. Their devices' threads run on `cpus`.
    pub(crate) fn start(
        broker: Arc<Broker>,
        events: Arc<Events>,
        cpus: Vec<usize>,
    ) -> io::Result<Self> {
        let bell = Bell::new()?;
        let host = Host {
            broker,
            events,
            cpus,
            bell: Arc::clone(&bell),
        };
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            bell,
            stop: AtomicBool::new(false),
            host,
        });
        let links = Links::open()?;
        lock(&shared.state).read_links(&links)?;
        let mine = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("uplinks".to_owned())
            .spawn(move || run(&mine, links))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Makes a team that no switch uses yet, or gives other settings to the one of that key. People know
    /// it as `name`.
    pub(crate) fn set(&self, key: &str, name: &str, config: &TeamConfig) {
        let mut state = lock(&self.shared.state);
        let team = state.teams.entry(key.to_owned());
        let team = team.or_insert_with(|| Running::new(name, config));
        team.configure(config, Now::monotonic());
        drop(state);
        self.shared.bell.call();
    }

    /// Ends a team that no switch uses.
    pub(crate) fn remove(&self, name: &str) {
        lock(&self.shared.state).teams.remove(name);
    }

    /// Makes a team the uplink of `switch`, for frames of these VLANs.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` if another switch has it, or what the switch says.
    pub(crate) fn attach(
        &self,
        name: &str,
        switch: &Arc<Switch>,
        policy: PortPolicy,
    ) -> Result<(), Refused> {
        let mut state = lock(&self.shared.state);
        let Some(team) = state.teams.get_mut(name) else {
            let reason = format!("there is no team {name}");
            let refused = Refused::new(RefusedKind::NotFound, reason, "see tandem team list");
            return Err(refused.about("uplink"));
        };
        if let Some(home) = &team.home {
            let reason = format!("{name} is the uplink of switch {}", home.switch.name());
            let refused = Refused::new(RefusedKind::Conflict, reason, "give each its own");
            return Err(refused.about("uplink"));
        }
        team.home = Some(Home::make(switch, team.outlet(), policy)?);
        drop(state);
        self.shared.bell.call();
        Ok(())
    }

    /// Gives the uplink's port other settings.
    pub(crate) fn change_policy(&self, name: &str, policy: PortPolicy) -> Result<(), Refused> {
        let state = lock(&self.shared.state);
        let home = state.teams.get(name).and_then(|team| team.home.as_ref());
        home.map_or(Ok(()), |home| home.set_policy(policy))
    }

    /// The team is nobody's uplink any more, and has given its devices back when this returns.
    pub(crate) fn detach(&self, name: &str) {
        let mut state = lock(&self.shared.state);
        if let Some(team) = state.teams.get_mut(name) {
            team.leave();
        }
    }

    /// The ports of a switch that have a member of their own, and its device.
    pub(crate) fn set_pins(&self, switch: &str, pins: &[(PortId, String)]) {
        let mut state = lock(&self.shared.state);
        let mut teams = state.teams.values_mut();
        let team = teams.find(|team| team.is_uplink_of(switch));
        if team.is_some_and(|team| team.set_pins(pins)) {
            self.shared.bell.call();
        }
    }

    /// Frames that were cut up because a device does not take them whole, and the segments they became.
    pub(crate) fn segmented(&self, name: &str) -> (u64, u64) {
        let state = lock(&self.shared.state);
        let seats = state.teams.get(name).map(|team| team.seats.iter());
        let open = seats
            .into_iter()
            .flatten()
            .filter_map(|seat| seat.open.as_ref());
        open.map(|open| open.member.nic.segmented())
            .fold((0, 0), |(a, b), (c, d)| (a + c, b + d))
    }

    /// Looks for what nothing tells of by itself. Call once a second.
    pub(crate) fn look(&self) {
        let mut state = lock(&self.shared.state);
        for team in state.teams.values_mut() {
            team.look_for_loops(&self.shared.host);
        }
    }

    /// What a team does.
    pub(crate) fn status(&self, name: &str) -> Option<TeamStatus> {
        let state = lock(&self.shared.state);
        let team = state.teams.get(name)?;
        Some(report::team(team, &state.links))
    }
}

impl Drop for Uplinks {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.bell.call();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // Devices are given back here and not when some thread lets go of its last reference.
        lock(&self.shared.state).teams.clear();
    }
}

impl State {
    fn read_links(&mut self, links: &Links) -> io::Result<()> {
        let all = links.all()?.into_iter();
        self.links = all.map(|link| (link.name.clone(), link)).collect();
        Ok(())
    }

    /// Takes what has happened to links.
    fn hear(&mut self, links: &mut Links) -> io::Result<()> {
        if std::mem::take(&mut self.is_stale) {
            self.is_stale = true;
            self.read_links(links)?;
            self.is_stale = false;
        }
        while let Some(event) = links.next_event()? {
            match event {
                LinkEvent::Changed(link) => {
                    // It may have had another name.
                    self.links.retain(|_, old| old.index != link.index);
                    self.links.insert(link.name.clone(), link);
                }
                LinkEvent::Removed { index, .. } => {
                    self.links.retain(|_, old| old.index != index);
                }
                LinkEvent::Lost => {
                    self.is_stale = true;
                    self.read_links(links)?;
                    self.is_stale = false;
                }
            }
        }
        Ok(())
    }

    /// Lets all teams do what is to be done now; until when nothing more is, if nothing happens.
    fn run(&mut self, host: &Host, noticed: Now) -> Option<Now> {
        let Self {
            links, teams, wire, ..
        } = self;
        // What has failed comes first: to open a device takes its time.
        for team in teams.values_mut() {
            team.receive_all(noticed, wire);
            team.look_at_links(links, noticed);
            team.run(noticed, wire, host);
        }
        for team in teams.values_mut() {
            if team.follow(links, host, noticed) {
                team.look_at_links(links, noticed);
                team.run(noticed, wire, host);
            }
        }
        let retry = self.is_stale.then(|| noticed + LOOK);
        let teams = self.teams.values().filter_map(Running::next);
        teams.chain(retry).min()
    }
}

fn run(shared: &Shared, mut links: Links) {
    while !shared.stop.load(Ordering::Acquire) {
        let now = Now::monotonic();
        let mut state = lock(&shared.state);
        if let Err(e) = state.hear(&mut links) {
            error!("link events cannot be read: {e}");
        }
        let next = state.run(&shared.host, now);
        drop(state);
        wait(shared, &links, next);
    }
}

/// Waits until something happens, or `until`.
fn wait(shared: &Shared, links: &Links, until: Option<Now>) {
    let mut polled = [
        PollFd::from_borrowed_fd(links.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(shared.bell.as_fd(), PollFlags::IN),
    ];
    let left = until.map(|until| until.0.saturating_sub(Now::monotonic().0));
    // Not before the moment, so that nothing is looked at in vain.
    let time = left.map(|left| Timespec {
        tv_sec: (left / 1_000_000_000) as i64,
        tv_nsec: (left % 1_000_000_000) as i64,
    });
    match rustix::event::poll(&mut polled, time.as_ref()) {
        Ok(_) if !polled[1].revents().is_empty() => shared.bell.hear(),
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(e) => {
            error!("waiting for link events failed: {e}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
