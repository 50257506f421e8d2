//! Making a port, and taking it apart again.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tandem_uplink::switch::{Neighbour, SwitchError};
use tandem_uplink::{
    Forwarder, Outlet, PortId, PortPolicy, PortSpec, StormLimit, Switch, Tap, TapError, Vid,
    VlanPolicy,
};
use tandem_virtio_net::{Counters, Tracepoint};

use super::held;
use super::neighbours::{Back, NeighbourFile};
use super::watch::Published;
use super::{Core, Port};
use crate::capture::Captures;
use crate::config::{PortConfig, SocketRole, SwitchConfig};
use crate::control::{Refused, RefusedKind};
use crate::nic_thread::{Bell, NicThread, Work};
use crate::port::{Event, GuestPort, GuestPortConfig};
use crate::vhost::{Device, Endpoint, EndpointError, Source};

/// What is behind a port.
pub(super) enum Outside {
    /// A VM.
    Guest {
        port: Arc<GuestPort>,
        endpoint: Endpoint,
        neighbours: NeighbourFile,
    },
    /// The host.
    Host {
        tap: Arc<Tap>,
        thread: NicThread,
        captures: Captures,
    },
}

/// What `mac_limit` may be raised to.
const MAC_ROOM: usize = 32_768;

pub(super) fn switch(name: &str, config: &SwitchConfig) -> Switch {
    Switch::with_room(name, sizes(config), MAC_ROOM)
}

pub(super) fn sizes(config: &SwitchConfig) -> tandem_uplink::SwitchConfig {
    tandem_uplink::SwitchConfig {
        mac_entries: config.mac_limit as usize,
        mac_ageing: Duration::from_secs(config.ageing_seconds.into()),
        ..tandem_uplink::SwitchConfig::default()
    }
}

impl Core {
    /// Makes a port. An error leaves nothing behind.
    pub(super) fn build(&self, config: &PortConfig) -> Result<Port, Refused> {
        let switches = self.switches();
        let Some(switch) = switches.get(&config.switch) else {
            let known: Vec<&str> = switches.keys().map(String::as_str).collect();
            let reason = format!("there is no switch {}", config.switch);
            let remedy = format!("use one of: {}", known.join(", "));
            return Err(Refused::new(RefusedKind::NotFound, reason, remedy).about("switch"));
        };
        match &config.tap {
            Some(tap) => self.build_host(config, switch, tap),
            None => self.build_guest(config, switch),
        }
    }

    fn build_guest(&self, config: &PortConfig, switch: &Arc<Switch>) -> Result<Port, Refused> {
        let port = Arc::new(GuestPort::new(GuestPortConfig {
            name: config.name.clone(),
            queue_pairs: config.queue_pairs,
            mtu: config.mtu,
            failover: config.failover,
            feature_level: config.feature_level,
            journal: Some(self.options.run_dir.join(format!("{}.rings", config.name))),
        }));
        let outlet: Arc<dyn Outlet> = port.clone();
        let file = format!("{}.neighbours", config.name);
        let neighbours = NeighbourFile::open(self.options.run_dir.join(file));
        let known = neighbours.saved();
        let outside = (outlet, port.captures().tracepoint());
        let id = add_to(switch, config, Arc::clone(&port.from_vm), outside, known)?;
        let undo_switch = Undo::new(|| {
            switch.remove_port(id);
        });
        let (home, desk) = (Arc::downgrade(switch), self.announcer.clone());
        let notifier = self.notifier.clone();
        let held = Arc::downgrade(&port);
        port.attach((switch, id), move |event| {
            let Some(switch) = home.upgrade() else { return };
            match event {
                Event::Gone => {
                    // What is held for a VM that has moved is not flooded as well.
                    if held.upgrade().is_none_or(|port| !port.is_holding()) {
                        switch.forget_learned(id);
                    }
                    // It may be known to be elsewhere by now.
                    switch.judge_anew();
                }
                Event::Held => held::look_after(&held, &home, id),
                Event::NewDriver => {
                    switch.forget_neighbours(id);
                    switch.renew(id);
                }
                Event::Back | Event::Arrived => {
                    switch.renew(id);
                    desk.is_back(Back {
                        switch: home.clone(),
                        port: id,
                        arrives: event == Event::Arrived,
                    });
                }
                Event::Changed => notifier.notify(),
            }
        });
        self.workers
            .add_port(&config.vm, Arc::clone(&port))
            .map_err(|e| threads(&e))?;
        let undo_workers = Undo::new(|| self.workers.remove_port(&config.vm, &port));
        let device: Arc<dyn Device> = port.clone();
        let endpoint = Endpoint::open(
            &config.name,
            &self.options.run_dir,
            self.source(config)?,
            device,
            &self.options.broker,
        )
        .map_err(|e| not_opened(&e))?;
        undo_workers.keep();
        undo_switch.keep();
        let outside = Outside::Guest {
            port,
            endpoint,
            neighbours,
        };
        let switch = Arc::clone(switch);
        Ok(Port {
            config: config.clone(),
            switch,
            id,
            outside,
            broken: None,
            seen: 0,
            in_vain: 0,
            published: Published::default(),
        })
    }

    fn source(&self, config: &PortConfig) -> Result<Source, Refused> {
        if let Some(fd) = &config.socket_fd {
            let fd = fd.try_clone().map_err(|e| {
                Refused::new(
                    RefusedKind::System,
                    e.to_string(),
                    "see the limit on descriptors",
                )
            })?;
            return Ok(Source::Socket(fd));
        }
        let path = config
            .socket_path(&self.options.run_dir)
            .unwrap_or_default();
        Ok(match config.socket_role {
            SocketRole::Connect => Source::Connect { path },
            SocketRole::Listen => Source::Listen {
                path,
                permissions: config.socket_permissions,
                group: config.socket_group.clone(),
            },
        })
    }

    fn build_host(
        &self,
        config: &PortConfig,
        switch: &Arc<Switch>,
        tap: &str,
    ) -> Result<Port, Refused> {
        let captures = Captures::default();
        let device = self.options.broker.tap(tap, config.mtu, config.mac);
        let tap = Tap::new(tap, device.map_err(|e| no_tap(&e))?);
        let tap = Arc::new(tap.watched(captures.tracepoint()));
        let from_vm = Arc::clone(tap.from_vm());
        let outside: (Arc<dyn Outlet>, _) = (tap.clone(), captures.tracepoint());
        let id = add_to(switch, config, from_vm, outside, Vec::new())?;
        let undo_switch = Undo::new(|| {
            switch.remove_port(id);
        });
        let forwarder = Forwarder::new(Arc::clone(switch), id);
        let work = Work {
            nic: tap.clone(),
            forwarder: Some(forwarder),
            member: None,
            cpus: self.options.cpus.clone(),
        };
        let thread = Bell::new().and_then(|bell| NicThread::start(&config.name, bell, work));
        let thread = thread.map_err(|e| threads(&e))?;
        undo_switch.keep();
        let outside = Outside::Host {
            tap,
            thread,
            captures,
        };
        let switch = Arc::clone(switch);
        Ok(Port {
            config: config.clone(),
            switch,
            id,
            outside,
            broken: None,
            seen: 0,
            in_vain: 0,
            published: Published::default(),
        })
    }

    /// Ends a port: its session first, so that nothing comes from it any more.
    pub(super) fn end(&self, port: Port) {
        port.captures().end();
        match port.outside {
            Outside::Guest {
                port: guest,
                endpoint,
                mut neighbours,
            } => {
                // A VM that is there comes back to the next one who serves the port, and is to be
                // known as who it was.
                let connected = endpoint.status().connected;
                drop(endpoint);
                neighbours.keep(port.switch.neighbours(port.id));
                if !connected {
                    guest.forget_positions();
                    neighbours.remove();
                }
                self.workers.remove_port(&port.config.vm, &guest);
            }
            Outside::Host { thread, .. } => drop(thread),
        }
        port.switch.remove_port(port.id);
    }
}

impl Port {
    pub(super) fn captures(&self) -> &Captures {
        match &self.outside {
            Outside::Guest { port, .. } => port.captures(),
            Outside::Host { captures, .. } => captures,
        }
    }

    /// Gives the port other settings if those that differ are the switch's business only.
    pub(super) fn change(&mut self, new: &PortConfig) -> Result<bool, Refused> {
        if !self.config.differs_in_policy_only(new) {
            return Ok(false);
        }
        // A TAP has its address, too.
        if matches!(self.outside, Outside::Host { .. }) && self.config.mac != new.mac {
            return Ok(false);
        }
        let changed = self.switch.update_port(self.id, policy(new)?);
        changed.map_err(|e| not_on_switch(&e))?;
        self.config = new.clone();
        Ok(true)
    }
}

/// A refusal from words that say behind their last colon what to do.
fn refused(kind: RefusedKind, key: &str, words: &str) -> Refused {
    let (reason, remedy) = words.rsplit_once(": ").unwrap_or((words, "see the log"));
    Refused::new(kind, reason, remedy).about(key)
}

fn not_opened(e: &EndpointError) -> Refused {
    let (kind, key) = match e {
        EndpointError::PathTooLong { .. } | EndpointError::NotASession => {
            (RefusedKind::Invalid, "socket")
        }
        EndpointError::Group { .. } => (RefusedKind::Invalid, "socket_group"),
        EndpointError::InUse { .. } | EndpointError::NotASocket { .. } => {
            (RefusedKind::Conflict, "socket")
        }
        EndpointError::Listen { source, .. } => match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                (RefusedKind::Invalid, "socket")
            }
            _ => (RefusedKind::System, "socket"),
        },
        EndpointError::Socket(_) | EndpointError::NoBroker { .. } => {
            (RefusedKind::System, "socket")
        }
    };
    refused(kind, key, &e.to_string())
}

fn no_tap(e: &TapError) -> Refused {
    let (kind, key) = match e {
        TapError::BadName(_) => (RefusedKind::Invalid, "tap"),
        TapError::BadMtu { .. } => (RefusedKind::Invalid, "mtu"),
        TapError::Busy(_) | TapError::NotATap(_) => (RefusedKind::Conflict, "tap"),
        TapError::NoTun | TapError::NotPermitted(_) | TapError::Io { .. } => {
            let key = if e.is_about_mac() { "mac" } else { "tap" };
            (RefusedKind::System, key)
        }
    };
    refused(kind, key, &e.to_string())
}

fn threads(e: &io::Error) -> Refused {
    let reason = format!("a thread could not be started: {e}");
    Refused::new(
        RefusedKind::System,
        reason,
        "see the limits on threads and descriptors",
    )
}

fn vlan(config: &PortConfig) -> Result<VlanPolicy, Refused> {
    let vid = |key: &str, vlan: u16| {
        Vid::new(vlan).map_err(|e| {
            Refused::new(RefusedKind::Invalid, e.to_string(), "use 1 to 4094").about(key)
        })
    };
    if let Some(vlan) = config.vlan {
        return vid("vlan", vlan).map(VlanPolicy::Access);
    }
    let Some(list) = &config.trunk_vlans else {
        return Ok(VlanPolicy::Untagged);
    };
    let native = config
        .native_vlan
        .map(|v| vid("native_vlan", v))
        .transpose()?;
    Ok(VlanPolicy::Trunk {
        vlans: list.clone(),
        native,
    })
}

fn add_to(
    switch: &Switch,
    config: &PortConfig,
    from_vm: Arc<Counters>,
    (outlet, tracepoint): (Arc<dyn Outlet>, Arc<Tracepoint>),
    neighbours: Vec<Neighbour>,
) -> Result<PortId, Refused> {
    let PortPolicy {
        mac,
        vlan,
        storm,
        mac_limit,
    } = policy(config)?;
    let spec = PortSpec {
        mac,
        vlan,
        storm,
        mac_limit,
        neighbours,
        tracepoint: Some(tracepoint),
        ..PortSpec::new(&config.name, from_vm, outlet)
    };
    switch.add_port(spec).map_err(|e| not_on_switch(&e))
}

/// What the switch has to know of a port.
fn policy(config: &PortConfig) -> Result<PortPolicy, Refused> {
    Ok(PortPolicy {
        mac: config.mac,
        vlan: vlan(config)?,
        storm: match config.storm_limit {
            0 => StormLimit::UNLIMITED,
            rate => StormLimit::per_second(rate),
        },
        ..PortPolicy::default()
    })
}

fn not_on_switch(e: &SwitchError) -> Refused {
    let key = match e {
        SwitchError::MacInUse { .. } | SwitchError::BadMac(_) => "mac",
        _ => "name",
    };
    let remedy = match key {
        "mac" => "give every port an address of its own",
        _ => "choose another name, or another switch",
    };
    // Some of its words say what to do behind a semicolon; here it is said for all.
    let words = e.to_string();
    let (reason, _) = words.split_once(';').unwrap_or((&words, ""));
    Refused::new(RefusedKind::Conflict, reason, remedy).about(key)
}

/// Runs an action unless it is kept: takes back what was made when a later step fails.
struct Undo<F: FnMut()>(Option<F>);

impl<F: FnMut()> Undo<F> {
    fn new(action: F) -> Self {
        Self(Some(action))
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl<F: FnMut()> Drop for Undo<F> {
    fn drop(&mut self) {
        if let Some(mut action) = self.0.take() {
            action();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kind, a setting, and neither lost.
    #[test]
    fn refusals_name_the_setting_and_whose_fault_it_is() {
        let path = || "/run/tandem/a.sock".into();
        let tap = || "tandem0".to_owned();
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let gone = io::ErrorKind::NotFound.into();
        let name = tap();
        for (refused, kind, key) in [
            (
                not_opened(&EndpointError::Group { group: "x".into() }),
                RefusedKind::Invalid,
                "socket_group",
            ),
            (
                not_opened(&EndpointError::InUse { path: path() }),
                RefusedKind::Conflict,
                "socket",
            ),
            (
                not_opened(&EndpointError::Listen {
                    path: path(),
                    source: gone,
                }),
                RefusedKind::Invalid,
                "socket",
            ),
            (
                not_opened(&EndpointError::Listen {
                    path: path(),
                    source: denied(),
                }),
                RefusedKind::System,
                "socket",
            ),
            (no_tap(&TapError::Busy(tap())), RefusedKind::Conflict, "tap"),
            (
                no_tap(&TapError::BadMtu { name, mtu: 67 }),
                RefusedKind::Invalid,
                "mtu",
            ),
            (
                no_tap(&TapError::Io {
                    name: tap(),
                    what: "it".into(),
                    error: denied(),
                }),
                RefusedKind::System,
                "tap",
            ),
        ] {
            assert_eq!(
                (refused.kind, refused.field.as_deref()),
                (kind, Some(key)),
                "{refused}"
            );
            assert!(!refused.reason.is_empty() && !refused.remedy.is_empty());
        }
    }
}
