//! The running switch: switches, ports, VMs' threads and sessions, put together.
//!
//! Changes are serialised by the lock on the ports and are made whole or not at all. A `control`
//! thread looks after what needs no speed: once a second it ages addresses, ends the sessions of
//! VMs whose memory is gone, notes who is behind the ports, and gives back the memory of quiet ones;
//! at once it tells when a port comes up or goes down. A
//! `bells` thread frees threads that a VMM has made wait; it takes no lock that those may hold. An
//! `announcer` tells the neighbours of VMs that are back.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use log::{debug, warn};
use tandem_uplink::{Now, PortId, Switch};
use tokio::sync::mpsc::Receiver;

use crate::bell;
use crate::broker::Broker;
use crate::capture;
use crate::cgroup::Groups;
use crate::config::{PortConfig, SwitchConfig, TeamConfig};
use crate::control::{Engine, MovingPort, Refused, RefusedKind};
use crate::events::{Event, EventKind, Events};
use crate::port::{GuestPort, lock};
use crate::status::{PortStatus, SwitchStatus, SwitchesStatus, TeamStatus, VmUsage};
use crate::vhost::Endpoint;
use crate::worker::Workers;

mod build;
mod held;
mod moving;
mod neighbours;
mod report;
mod uplinks;
mod watch;

use build::Outside;
use neighbours::{Announcer, Desk};
use uplinks::Uplinks;
use watch::{Notified, Notifier, Published};

/// How often the `control` thread looks around.
const TICK: Duration = Duration::from_secs(1);
/// What the switch is started with.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Where the ports' sockets go; an absolute path.
    pub run_dir: PathBuf,
    /// CPUs of the data path, ascending, each one that the process may use.
    pub cpus: Vec<usize>,
    /// The switches by name.
    pub switches: BTreeMap<String, SwitchConfig>,
    /// The teams by name.
    pub teams: BTreeMap<String, TeamConfig>,
    /// Who is told what happens.
    pub events: Arc<Events>,
    /// Where the threads of VMs are put.
    pub(crate) groups: Arc<Groups>,
    /// Who does what takes privilege.
    pub broker: Arc<Broker>,
}

/// Starts the switch, without ports.
///
/// # Errors
/// What could not be set up, and what to do about it.
pub fn start(options: EngineOptions) -> Result<Arc<dyn Engine>, Refused> {
    crate::sys::install_interrupt()
        .map_err(|e| Refused::new(RefusedKind::System, e.to_string(), "see the kernel's log"))?;
    let workers = Workers::new(options.cpus.clone(), Arc::clone(&options.groups));
    let threads = |e: io::Error| {
        Refused::new(
            RefusedKind::System,
            e.to_string(),
            "see the limits on threads",
        )
    };
    let announcer = Announcer::start().map_err(threads)?;
    let uplinks = Uplinks::start(&options).map_err(threads)?;
    let (notifier, notified) = Notifier::new();
    let core = Arc::new(Core {
        options,
        notifier,
        switches: Mutex::default(),
        uplinks,
        workers,
        announcer: announcer.desk(),
        beats: AtomicU64::new(0),
        captures: capture::Slots::default(),
        ports: Mutex::default(),
    });
    let watched = Arc::downgrade(&core);
    let chores = [
        Chore::start("control", move |_| look_after(&watched, &notified)),
        Chore::start("bells", bell::watch),
    ];
    if chores.iter().any(Result::is_err) {
        // The one that runs waits for this, and is waited for.
        core.notifier.stop();
    }
    let chores = chores.into_iter().collect::<io::Result<Vec<_>>>();
    let chores = chores.map_err(threads)?;
    let running = Running {
        core,
        chores,
        _announcer: announcer,
    };
    let options = &running.core.options;
    for (name, team) in &options.teams {
        running.add_team(name, team)?;
    }
    for (name, switch) in &options.switches {
        running.add_switch(name, switch)?;
    }
    Ok(Arc::new(running))
}

/// A thread that does something now and then, until this is dropped.
struct Chore {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Chore {
    fn start(
        name: &str,
        work: impl FnOnce(&mpsc::Receiver<()>) + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || work(&stopped))?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Chore {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The engine and the threads that look after it.
struct Running {
    core: Arc<Core>,
    chores: Vec<Chore>,
    _announcer: Announcer,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.core.notifier.stop();
        self.chores.clear();
        // Frames from the wire come first to an end, then the ports.
        let switches = self.core.switches();
        switches.keys().for_each(|name| self.core.uplinks.end(name));
        // Ports end here and not when some thread lets go of its last reference.
        lock(&self.core.ports).clear();
    }
}

struct Core {
    options: EngineOptions,
    notifier: Notifier,
    /// Never locked for long: what goes through all of them takes a copy.
    switches: Mutex<BTreeMap<String, Arc<Switch>>>,
    uplinks: Uplinks,
    workers: Workers,
    announcer: Desk,
    /// How often the `control` thread has looked after the ports.
    beats: AtomicU64,
    captures: capture::Slots,
    ports: Mutex<BTreeMap<String, Port>>,
}

/// A port of either kind, attached to its switch.
struct Port {
    config: PortConfig,
    switch: Arc<Switch>,
    id: PortId,
    outside: Outside,
    /// What is known to be broken, so that it is logged once.
    broken: Option<String>,
    /// Frames from the VM when last looked at.
    seen: u64,
    /// How often in a row its driver was found to notify us in vain.
    in_vain: u32,
    published: Published,
}

fn look_after(core: &Weak<Core>, notified: &Notified) {
    let mut tick = Instant::now() + TICK;
    let mut duplicates = BTreeSet::new();
    while notified.wait(tick) {
        let Some(core) = core.upgrade() else { return };
        if tick <= Instant::now() {
            tick = Instant::now() + TICK;
            let switches = core.switches();
            (switches.values()).for_each(|switch| switch.age(Now::monotonic()));
            lock(&core.ports).values_mut().for_each(Port::look_after);
            core.publish_duplicates(&mut duplicates);
            core.uplinks.look();
            core.beats.fetch_add(1, Ordering::Relaxed);
        }
        let events = &core.options.events;
        (lock(&core.ports).values_mut()).for_each(|port| port.publish(events));
    }
}

impl Port {
    fn look_after(&mut self) {
        let Outside::Guest {
            port,
            endpoint,
            neighbours,
        } = &mut self.outside
        else {
            return;
        };
        neighbours.keep(self.switch.neighbours(self.id));
        port.look_for_buffers();
        self.in_vain = match port.is_notified_in_vain() {
            true => self.in_vain.saturating_add(1),
            false => 0,
        };
        let seen = port.pairs().iter().map(|p| p.from_vm.frames()).sum();
        if seen == self.seen {
            port.pairs().iter().for_each(|p| p.rest());
        }
        self.seen = seen;
        let broken = broken(port, endpoint);
        if broken != self.broken
            && let Some(words) = &broken
        {
            warn!("port {}: {words}", self.config.name);
        }
        self.broken = broken;
    }
}

/// What the guest has broken, in words. A session whose VMM must not be trusted with it ends.
fn broken(port: &GuestPort, endpoint: &Endpoint) -> Option<String> {
    let words = crate::vhost::Device::broken(port)?;
    if port.must_end() {
        endpoint.disconnect(words.clone());
    }
    Some(words)
}

fn no_such_port(name: &str) -> Refused {
    let reason = format!("there is no port {name}");
    Refused::new(
        RefusedKind::NotFound,
        reason,
        "see `tandem port list` for the ports there are",
    )
}

impl Core {
    /// Tells the uplink of a switch which ports leave by a member of their own.
    fn set_pins(&self, ports: &BTreeMap<String, Port>, switch: &str) {
        let on_it = ports.values().filter(|port| port.config.switch == switch);
        let pins = on_it.filter_map(|port| Some((port.id, port.config.uplink_member.clone()?)));
        self.uplinks.set_pins(switch, &pins.collect::<Vec<_>>());
    }

    fn switches(&self) -> BTreeMap<String, Arc<Switch>> {
        lock(&self.switches).clone()
    }
}

fn no_such_switch(name: &str) -> Refused {
    let reason = format!("there is no switch {name}");
    Refused::new(RefusedKind::NotFound, reason, "see tandem switch list")
}

impl Engine for Running {
    fn add_team(&self, name: &str, team: &TeamConfig) -> Result<(), Refused> {
        self.core.uplinks.add_team(name, team)
    }

    fn change_team(&self, name: &str, team: &TeamConfig) -> Result<(), Refused> {
        self.core.uplinks.change_team(name, team)
    }

    fn remove_team(&self, name: &str) -> Result<(), Refused> {
        self.core.uplinks.remove_team(name)
    }

    fn teams(&self) -> Vec<TeamStatus> {
        self.core.uplinks.teams()
    }

    fn add_switch(&self, name: &str, config: &SwitchConfig) -> Result<(), Refused> {
        let mut switches = lock(&self.core.switches);
        if switches.contains_key(name) {
            let reason = format!("there is a switch {name} already");
            let remedy = "choose another name";
            return Err(Refused::new(RefusedKind::Conflict, reason, remedy).about("name"));
        }
        let switch = Arc::new(build::switch(name, config));
        self.core.uplinks.set(&switch, config)?;
        switches.insert(name.to_owned(), switch);
        Ok(())
    }

    fn change_switch(&self, name: &str, config: &SwitchConfig) -> Result<(), Refused> {
        let switches = self.core.switches();
        let switch = switches.get(name).ok_or_else(|| no_such_switch(name))?;
        self.core.uplinks.set(switch, config)?;
        switch.configure(build::sizes(config));
        drop(switches);
        self.core.set_pins(&lock(&self.core.ports), name);
        Ok(())
    }

    fn remove_switch(&self, name: &str) -> Result<(), Refused> {
        // Ports are made with their lock held: none comes while we look.
        let ports = lock(&self.core.ports);
        if let Some(port) = ports.values().find(|port| port.config.switch == name) {
            let reason = format!("port {} is on switch {name}", port.config.name);
            let remedy = "remove it, or move it to another switch";
            return Err(Refused::new(RefusedKind::Conflict, reason, remedy).about("name"));
        }
        let removed = lock(&self.core.switches).remove(name);
        removed.ok_or_else(|| no_such_switch(name))?;
        self.core.uplinks.end(name);
        Ok(())
    }

    fn add_port(&self, config: &PortConfig, event: EventKind) -> Result<(), Refused> {
        let core = &self.core;
        let mut ports = lock(&core.ports);
        if ports.contains_key(&config.name) {
            let reason = format!("there is a port {} already", config.name);
            let remedy = "choose another name, or remove that port first";
            return Err(Refused::new(RefusedKind::Conflict, reason, remedy).about("name"));
        }
        let port = core.build(config)?;
        // Before anything that its VM does.
        core.options
            .events
            .publish(Event::of_port(event, &config.name));
        ports.insert(config.name.clone(), port);
        core.set_pins(&ports, &config.switch);
        debug!("port {}: on switch {}", config.name, config.switch);
        Ok(())
    }

    fn change_port(&self, config: &PortConfig) -> Result<bool, Refused> {
        let mut ports = lock(&self.core.ports);
        let name = &config.name;
        let port = ports.get_mut(name).ok_or_else(|| no_such_port(name))?;
        let changed = port.change(config)?;
        self.core.set_pins(&ports, &config.switch);
        Ok(changed)
    }

    fn remove_port(&self, name: &str) -> Result<(), Refused> {
        let mut ports = lock(&self.core.ports);
        let port = ports.remove(name).ok_or_else(|| no_such_port(name))?;
        port.published.ended(name, &self.core.options.events);
        let switch = port.config.switch.clone();
        self.core.end(port);
        self.core.set_pins(&ports, &switch);
        Ok(())
    }

    fn ports(&self) -> Vec<PortStatus> {
        let switches = self.core.switches();
        let learned: BTreeMap<&str, _> = (switches.iter())
            .map(|(name, switch)| (name.as_str(), switch.all_learned_macs()))
            .collect();
        let macs = |port: &Port| {
            let of_switch = learned.get(port.config.switch.as_str());
            of_switch
                .and_then(|all| all.get(&port.id))
                .map_or(&[][..], Vec::as_slice)
        };
        let ports = lock(&self.core.ports);
        ports
            .values()
            .map(|port| report::port(port, macs(port)))
            .collect()
    }

    fn port(&self, name: &str) -> Option<PortStatus> {
        let ports = lock(&self.core.ports);
        let port = ports.get(name)?;
        Some(report::port(port, &port.switch.learned_macs(port.id)))
    }

    fn has_port(&self, name: &str) -> bool {
        lock(&self.core.ports).contains_key(name)
    }

    fn ports_up(&self) -> usize {
        let ports = lock(&self.core.ports);
        let up = ports
            .values()
            .filter(|port| report::state(port).0.is_none());
        up.count()
    }

    fn moving(&self, name: &str) -> Result<Arc<dyn MovingPort>, Refused> {
        let ports = lock(&self.core.ports);
        ports.get(name).ok_or_else(|| no_such_port(name))?.moving()
    }

    fn capture(&self, name: &str, request: &capture::Request) -> Result<Receiver<Bytes>, Refused> {
        let ports = lock(&self.core.ports);
        let port = ports.get(name).ok_or_else(|| no_such_port(name))?;
        let switch = &port.config.switch;
        (port.captures()).start((name, switch), request, &self.core.captures)
    }

    fn end_captures(&self) {
        (lock(&self.core.ports).values()).for_each(|port| port.captures().end());
    }

    fn vms(&self) -> Vec<VmUsage> {
        let usage = self.core.workers.usage().into_iter();
        usage
            .map(|(name, (threads, time))| VmUsage {
                name,
                threads: threads as u32,
                cpu_seconds: time.as_secs_f64(),
            })
            .collect()
    }

    fn beats(&self) -> u64 {
        self.core.beats.load(Ordering::Relaxed)
    }

    fn status(&self) -> SwitchesStatus {
        let ports = lock(&self.core.ports);
        let switches = self.core.switches();
        let switches = switches.iter().map(|(name, switch)| {
            let mine = ports.values().filter(|port| port.config.switch == *name);
            let mut status = report::switch(name, switch, mine);
            let (frames, segments) = self.core.uplinks.segmented(name);
            status.counters.segmented_frames += frames;
            status.counters.segments += segments;
            status.uplink_status = self.core.uplinks.of(name);
            status
        });
        let switches: Vec<SwitchStatus> = switches.collect();
        SwitchesStatus {
            cpus: self.core.options.cpus.clone(),
            switches,
        }
    }
}
