//! The machines of one port (IEEE 802.1AX-2020, 6.4.12 to 6.4.17): receive, periodic transmission,
//! mux with independent control, and transmit.
//!
//! ```text
//!  receive   disabled ──link──► expired ──3 s──► defaulted          mux   detached
//!                                  ▲ │               │                       │ selected
//!                    silent for    │ └──── a PDU ────┤                    waiting
//!                    3 s or 90 s   │                 ▼                       │ 2 s, or all are ready
//!                                  └───────────── current                 attached
//!                                                                           │ partner in sync
//!                                                                        collecting
//!                                                                           │ partner collects
//!                                                                       distributing
//! ```

use std::time::Duration;

use super::pdu::{Lacpdu, PortInfo, State};
use crate::Now;

/// Between two PDUs to a partner with the short time-out, and for how long it may be silent (6.4.4).
const FAST_PERIODIC: Duration = Duration::from_secs(1);
const SHORT_TIMEOUT: Duration = Duration::from_secs(3);
/// The same with the long one.
const SLOW_PERIODIC: Duration = Duration::from_secs(30);
const LONG_TIMEOUT: Duration = Duration::from_secs(90);
/// After so long, what found no room is sent again.
const AGAIN: Duration = Duration::from_millis(20);
/// How long a port waits for others to be attached with it.
const AGGREGATE_WAIT: Duration = Duration::from_secs(2);
/// PDUs in one fast period at most (6.4.16).
const MAX_TRANSMITS: u8 = 3;

/// How often the two ends hear of each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Timer {
    /// Every second; a partner that is silent for three is gone.
    #[default]
    Fast,
    /// Every 30 seconds; 90.
    Slow,
}

/// What is known of the partner (6.4.12).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Receive {
    /// The link is down.
    #[default]
    Disabled,
    /// Nothing was heard since the link came up, or for too long.
    Expired,
    /// Nothing was heard for longer still.
    Defaulted,
    /// The partner was heard in time.
    Current,
}

/// What the port is used for (6.4.15, independent control).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mux {
    /// Not in the group.
    #[default]
    Detached,
    /// To be in the group with others, for which it waits.
    Waiting,
    /// In the group; the partner has not put it there yet.
    Attached,
    /// Frames from it are taken.
    Collecting,
    /// Frames are sent to it, too.
    Distributing,
}

/// One port of a group.
#[derive(Clone, Debug)]
pub struct Port {
    actor: PortInfo,
    partner: PortInfo,
    timer: Timer,
    receive: Receive,
    mux: Mux,
    selected: bool,
    /// When the partner has been silent for too long, or the state expired ends.
    current_until: Now,
    /// When the next PDU is due without a reason.
    periodic_at: Now,
    /// Until when it waits for others.
    wait_until: Now,
    need_to_transmit: bool,
    /// Not before this: the device had no room.
    not_before: Now,
    /// PDUs since `transmits_from`.
    transmits: u8,
    transmits_from: Now,
}

impl Port {
    /// A port whose link is down. The state of `actor` is the machines' business.
    pub(super) fn new(actor: PortInfo, timer: Timer) -> Self {
        let state = State::ACTIVITY | State::AGGREGATION;
        let state = state.with(State::SHORT_TIMEOUT, timer == Timer::Fast);
        Self {
            actor: PortInfo { state, ..actor },
            partner: PortInfo::default(),
            timer,
            receive: Receive::default(),
            mux: Mux::default(),
            selected: false,
            current_until: Now(0),
            periodic_at: Now(0),
            wait_until: Now(0),
            need_to_transmit: false,
            not_before: Now(0),
            transmits: 0,
            transmits_from: Now(0),
        }
    }

    /// Our end.
    pub fn actor(&self) -> &PortInfo {
        &self.actor
    }

    /// The other end; all zero if nothing was heard.
    pub fn partner(&self) -> &PortInfo {
        &self.partner
    }

    /// What is known of the partner.
    pub fn receive(&self) -> Receive {
        self.receive
    }

    /// What the port is used for.
    pub fn mux(&self) -> Mux {
        self.mux
    }

    /// Whether the other end would have this port in a group.
    pub(super) fn is_candidate(&self) -> bool {
        self.receive == Receive::Current && self.partner.state.has(State::AGGREGATION)
    }

    /// Whether it has yet to hear from the partner.
    pub(super) fn is_undecided(&self) -> bool {
        // But for what is assumed of its state.
        self.receive == Receive::Expired && self.partner.is_same_port(&PortInfo::default())
    }

    pub(super) fn set_key(&mut self, key: u16) {
        if self.actor.key != key {
            self.actor.key = key;
            self.need_to_transmit = true;
            self.unselect();
        }
    }

    pub(super) fn set_timer(&mut self, timer: Timer) {
        self.timer = timer;
        self.set_state(State::SHORT_TIMEOUT, timer == Timer::Fast);
    }

    /// The last PDU was not sent.
    pub(super) fn not_sent(&mut self, now: Now) {
        self.need_to_transmit = true;
        self.transmits = self.transmits.saturating_sub(1);
        self.not_before = now + AGAIN;
    }

    pub(super) fn set_link(&mut self, up: bool, now: Now) {
        if !up {
            self.receive = Receive::Disabled;
            // What is known of the partner is kept: the same one may come back (6.4.12).
            self.partner.state = self.partner.state.with(State::SYNCHRONIZATION, false);
            self.unselect();
        } else if self.receive == Receive::Disabled {
            self.partner = PortInfo::default();
            self.expire(now);
            self.periodic_at = now;
        }
    }

    /// The partner may have gone: it has three seconds to say that it has not (EXPIRED).
    fn expire(&mut self, now: Now) {
        self.receive = Receive::Expired;
        let partner = self.partner.state.with(State::SYNCHRONIZATION, false);
        self.partner.state = partner.with(State::SHORT_TIMEOUT, true);
        self.current_until = now + SHORT_TIMEOUT;
        self.periodic_at = self.periodic_at.min(now + FAST_PERIODIC);
        self.set_state(State::EXPIRED, true);
    }

    /// Takes a PDU from the wire.
    pub(super) fn receive_pdu(&mut self, pdu: &Lacpdu, now: Now) {
        if self.receive == Receive::Disabled {
            return;
        }
        // update_Selected: another partner, or the same one with another key.
        let aggregates = |info: &PortInfo| info.state.has(State::AGGREGATION);
        let heard = &pdu.actor;
        if !heard.is_same_port(&self.partner) || aggregates(heard) != aggregates(&self.partner) {
            self.unselect();
        }
        // update_NTT: the partner does not know how we are.
        let told =
            State::ACTIVITY | State::SHORT_TIMEOUT | State::SYNCHRONIZATION | State::AGGREGATION;
        let known = &pdu.partner;
        let same_state = (known.state.0 ^ self.actor.state.0) & told.0 == 0;
        self.need_to_transmit |= !(known.is_same_port(&self.actor) && same_state);
        // recordPDU: it is in sync if it means this port, or uses its own for itself.
        let means_us = known.is_same_port(&self.actor)
            && known.state.has(State::AGGREGATION) == aggregates(&self.actor);
        let synced = heard.state.has(State::SYNCHRONIZATION) && (means_us || !aggregates(heard));
        let was_short = self.partner.state.has(State::SHORT_TIMEOUT);
        self.partner = *heard;
        self.partner.state = heard.state.with(State::SYNCHRONIZATION, synced);
        if heard.state.has(State::SHORT_TIMEOUT) && !was_short {
            self.periodic_at = self.periodic_at.min(now + FAST_PERIODIC);
        }
        self.receive = Receive::Current;
        self.current_until = now
            + match self.timer {
                Timer::Fast => SHORT_TIMEOUT,
                Timer::Slow => LONG_TIMEOUT,
            };
        self.set_state(State::EXPIRED, false);
        self.set_state(State::DEFAULTED, false);
    }

    /// Lets time pass for what is known of the partner.
    pub(super) fn pass_time(&mut self, now: Now) {
        if now < self.current_until {
            return;
        }
        match self.receive {
            Receive::Current => self.expire(now),
            Receive::Expired => {
                self.receive = Receive::Defaulted;
                self.partner = PortInfo::default();
                self.unselect();
                self.set_state(State::EXPIRED, false);
                self.set_state(State::DEFAULTED, true);
            }
            Receive::Disabled | Receive::Defaulted => {}
        }
    }

    fn unselect(&mut self) {
        self.selected = false;
        self.detach();
    }

    /// Says whether it is to be in the group.
    pub(super) fn select(&mut self, selected: bool, now: Now) {
        if selected && !self.selected {
            self.wait_until = now + AGGREGATE_WAIT;
        }
        if !selected {
            self.detach();
        }
        self.selected = selected;
    }

    fn detach(&mut self) {
        if self.mux != Mux::Detached {
            self.set_mux(Mux::Detached);
        }
    }

    /// Moves on as far as it can; `ready`: no other port has to be waited for.
    pub(super) fn run_mux(&mut self, ready: bool, now: Now) {
        let synced =
            self.receive == Receive::Current && self.partner.state.has(State::SYNCHRONIZATION);
        loop {
            let next = match self.mux {
                Mux::Detached if self.selected => Mux::Waiting,
                Mux::Waiting if ready || now >= self.wait_until => Mux::Attached,
                Mux::Attached if synced => Mux::Collecting,
                Mux::Collecting | Mux::Distributing if !synced => Mux::Attached,
                Mux::Collecting if self.partner.state.has(State::COLLECTING) => Mux::Distributing,
                Mux::Distributing if !self.partner.state.has(State::COLLECTING) => Mux::Collecting,
                _ => return,
            };
            self.set_mux(next);
        }
    }

    fn set_mux(&mut self, mux: Mux) {
        self.mux = mux;
        self.set_state(State::SYNCHRONIZATION, mux >= Mux::Attached);
        self.set_state(State::COLLECTING, mux >= Mux::Collecting);
        self.set_state(State::DISTRIBUTING, mux == Mux::Distributing);
    }

    fn set_state(&mut self, bits: State, on: bool) {
        let state = self.actor.state.with(bits, on);
        if state != self.actor.state {
            self.actor.state = state;
            self.need_to_transmit = true;
        }
    }

    /// The PDU to send now, if there is one.
    pub(super) fn transmit(&mut self, now: Now) -> Option<Lacpdu> {
        if self.receive == Receive::Disabled || now < self.not_before {
            return None;
        }
        if now >= self.transmits_from + FAST_PERIODIC {
            (self.transmits, self.transmits_from) = (0, now);
        }
        let due = self.need_to_transmit || now >= self.periodic_at;
        if !due || self.transmits == MAX_TRANSMITS {
            return None;
        }
        self.transmits += 1;
        self.need_to_transmit = false;
        self.periodic_at = now
            + match self.partner.state.has(State::SHORT_TIMEOUT) {
                true => FAST_PERIODIC,
                false => SLOW_PERIODIC,
            };
        Some(Lacpdu {
            actor: self.actor,
            partner: self.partner,
        })
    }

    /// When something is to be done without being asked.
    pub(super) fn next(&self) -> Option<Now> {
        if self.receive == Receive::Disabled {
            return None;
        }
        let next = match (self.need_to_transmit, self.transmits == MAX_TRANSMITS) {
            (false, false) => self.periodic_at,
            (true, false) => self.transmits_from,
            (false, true) => self.periodic_at.max(self.transmits_from + FAST_PERIODIC),
            (true, true) => self.transmits_from + FAST_PERIODIC,
        };
        let mut next = next.max(self.not_before);
        if self.receive != Receive::Defaulted {
            next = next.min(self.current_until);
        }
        if self.mux == Mux::Waiting {
            next = next.min(self.wait_until);
        }
        Some(next)
    }
}
