//! The Link Aggregation Control Protocol (IEEE 802.1AX-2020, 6.4) for one group of ports, always
//! active. No I/O and no clock: frames and moments come in, frames and states go out.
//!
//! Selection (6.4.14): all ports whose partners are one system with one key are one group. A port
//! with another partner is left out and says so, see [`Reason`]; of several partners the one that is
//! used stays as long as a port reaches it, else the one that most ports reach is taken.

mod pdu;
mod port;

use std::fmt;

pub use pdu::{Lacpdu, PDU_LEN, Pdu, PortInfo, SLOW_PROTOCOLS, State};
pub use port::{Mux, Port, Receive, Timer};

use crate::{Mac, Now};

/// The system priority that is usual (6.3.2).
const PRIORITY: u16 = 0x8000;

/// A group of ports and what they say to their partners.
#[derive(Clone, Debug)]
pub struct Group {
    system: Mac,
    key: u16,
    timer: Timer,
    /// By number, from 1; a port that was removed leaves its place.
    ports: Vec<Option<Port>>,
    partner: Option<PortInfo>,
}

/// Why a port carries no frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The link is down.
    NoLink,
    /// The partner has said nothing yet, or nothing any more.
    NoPartner,
    /// The partner does not have the port in a group.
    Individual,
    /// The partner is another system, or has another key, than that of the other ports.
    OtherPartner,
    /// The two ends are still agreeing.
    Negotiating,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoLink => "the link is down",
            Self::NoPartner => {
                "no LACP partner answers: is LACP on at the other end, and the cable in the right port?"
            }
            Self::Individual => "the partner does not aggregate this port",
            Self::OtherPartner => {
                "its partner is another system or has another key than that of the other members: check \
                 the cabling and the other end's group"
            }
            Self::Negotiating => "LACP is negotiating",
        })
    }
}

impl Group {
    /// A group without ports, of the station `system`, whose ports have the key `key`.
    pub fn new(system: Mac, key: u16, timer: Timer) -> Self {
        Self {
            system,
            key,
            timer,
            ports: Vec::new(),
            partner: None,
        }
    }

    /// Adds a port whose link is down; its number.
    pub fn add(&mut self) -> u16 {
        let free = self.ports.iter().position(Option::is_none);
        let at = free.unwrap_or(self.ports.len());
        self.ports.resize(self.ports.len().max(at + 1), None);
        let number = at as u16 + 1;
        let actor = PortInfo {
            system_priority: PRIORITY,
            system: self.system,
            key: self.key,
            port_priority: PRIORITY,
            port: number,
            state: State::default(),
        };
        self.ports[at] = Some(Port::new(actor, self.timer));
        number
    }

    /// Removes a port.
    pub fn remove(&mut self, number: u16) {
        if let Some(slot) = self.slot(number) {
            *slot = None;
        }
    }

    fn slot(&mut self, number: u16) -> Option<&mut Option<Port>> {
        self.ports.get_mut(usize::from(number).checked_sub(1)?)
    }

    /// One port.
    pub fn port(&self, number: u16) -> Option<&Port> {
        self.ports
            .get(usize::from(number).checked_sub(1)?)?
            .as_ref()
    }

    /// The partner that the group is with.
    pub fn partner(&self) -> Option<&PortInfo> {
        self.partner.as_ref()
    }

    /// Gives all ports another key, such as when they have another speed (6.3.5).
    pub fn set_key(&mut self, key: u16) {
        self.key = key;
        self.ports
            .iter_mut()
            .flatten()
            .for_each(|port| port.set_key(key));
    }

    /// The ends of a link hear of each other as often as this from now on.
    pub fn set_timer(&mut self, timer: Timer) {
        self.timer = timer;
        self.ports
            .iter_mut()
            .flatten()
            .for_each(|port| port.set_timer(timer));
    }

    /// What [`Group::run`] gave to send on a port was not sent: the device has no room.
    pub fn not_sent(&mut self, number: u16, now: Now) {
        if let Some(Some(port)) = self.slot(number) {
            port.not_sent(now);
        }
    }

    /// The link of a port is up, or down.
    pub fn set_link(&mut self, number: u16, up: bool, now: Now) {
        if let Some(Some(port)) = self.slot(number) {
            port.set_link(up, now);
        }
    }

    /// Takes a frame of the slow protocols from a port. What is to be sent back on it at once, but
    /// for the source address: the answer to a marker.
    pub fn receive(&mut self, number: u16, frame: &[u8], now: Now) -> Option<[u8; PDU_LEN]> {
        let system = self.system;
        let port = self.slot(number)?.as_mut()?;
        match Pdu::read(frame)? {
            // Our own, come back by a loop or between two ports: no partner (6.4.14.1, b).
            Pdu::Lacp(pdu) if pdu.actor.system == system => None,
            Pdu::Lacp(pdu) => {
                port.receive_pdu(&pdu, now);
                None
            }
            Pdu::Marker(response) => Some(response),
            Pdu::MarkerResponse => None,
        }
    }

    /// Runs the machines and hands what is to be sent to `send`: the port's number, and the PDU.
    pub fn run(&mut self, now: Now, mut send: impl FnMut(u16, Lacpdu)) {
        let ports = || 1u16..;
        for port in self.ports.iter_mut().flatten() {
            port.pass_time(now);
        }
        self.choose_partner();
        let ready = !self.ports.iter().flatten().any(Port::is_undecided);
        let partner = self.partner;
        for (number, port) in ports().zip(&mut self.ports) {
            let Some(port) = port else { continue };
            let ours = partner.is_some_and(|partner| partner.is_same_group(port.partner()));
            let keeps = ours && port.receive() == Receive::Expired && port.mux() != Mux::Detached;
            port.select(ours && port.is_candidate() || keeps, now);
            port.run_mux(ready, now);
            if let Some(pdu) = port.transmit(now) {
                send(number, pdu);
            }
        }
    }

    /// When [`Group::run`] has something to do without being asked.
    pub fn next(&self) -> Option<Now> {
        self.ports.iter().flatten().filter_map(Port::next).min()
    }

    fn choose_partner(&mut self) {
        let reached = |partner: &PortInfo| {
            let ports = self.ports.iter().flatten();
            let theirs = ports.filter(|port| port.partner().is_same_group(partner));
            theirs.filter(|port| port.is_candidate()).count()
        };
        if self
            .partner
            .as_ref()
            .is_some_and(|partner| reached(partner) > 0)
        {
            return;
        }
        let candidates = self
            .ports
            .iter()
            .flatten()
            .filter(|port| port.is_candidate());
        let partners = candidates.map(Port::partner);
        // The first of those that most reach.
        let mut best: Option<(usize, PortInfo)> = None;
        for partner in partners {
            let ports = reached(partner);
            if best.is_none_or(|(most, _)| ports > most) {
                best = Some((ports, *partner));
            }
        }
        self.partner = best.map(|(_, partner)| partner);
    }

    /// Why a port carries no frames; none if it does.
    pub fn reason(&self, number: u16) -> Option<Reason> {
        let port = self.port(number)?;
        let ours = |partner: &PortInfo| partner.is_same_group(port.partner());
        Some(match port.receive() {
            Receive::Disabled => Reason::NoLink,
            Receive::Expired | Receive::Defaulted => Reason::NoPartner,
            Receive::Current if !port.is_candidate() => Reason::Individual,
            Receive::Current if !self.partner.as_ref().is_some_and(ours) => Reason::OtherPartner,
            Receive::Current if port.mux() != Mux::Distributing => Reason::Negotiating,
            Receive::Current => return None,
        })
    }
}

#[cfg(test)]
mod tests;
