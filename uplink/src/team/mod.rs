//! The team: one or several NICs as one uplink, a port of the switch.
//!
//! ```text
//!                       ┌ distribution ─ bucket ─ member ┐
//!   switch ─► Team ─────┤ a port's own member            ├─► Member ─► Nic        to the wire
//!   (any thread)        └ the primary, for all           ┘      └─ backlog ─► the device's thread
//!
//!   Nic ─► Member::sift ─► Forwarder of the uplink's port                        from the wire
//!   (the device's thread)    └─ LACP, LLDP, probes ─► control
//! ```
//!
//! What decides which members work has no part in this: it publishes with [`Team::publish`].

pub mod distribution;
mod flowlets;
pub mod lacp;
pub mod lldp;
pub mod machine;
mod member;
pub mod probe;
mod table;

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tandem_virtio_net::{BURST, Batch, Counters, Direction, DropReason, Scratch, Tracepoint};

use self::distribution::{Buckets, Distribution};
use self::flowlets::Flowlets;
use self::table::Table;
use crate::switch::PortId;
use crate::{Mac, Now, Outlet};

pub use self::member::{COLLECTS, GROUPS, HEARTBEAT_GROUP, Member, PROBES, Rest, SHARED, WORKS};

/// What the network at the other end knows of the team.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: the members may be on different switches.
    #[default]
    SwitchIndependent,
    /// That the members are one link, by its configuration.
    Static,
    /// The same, agreed by LACP (IEEE 802.1AX).
    Lacp,
}

/// Names, as the configuration has them.
const MODES: [(Mode, &str); 3] = [
    (Mode::SwitchIndependent, "switch_independent"),
    (Mode::Static, "static"),
    (Mode::Lacp, "lacp"),
];

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = MODES.iter().find(|(mode, _)| mode == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

impl FromStr for Mode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let named = MODES.iter().find(|(_, name)| *name == text);
        named.map(|(mode, _)| *mode).ok_or(())
    }
}

/// One member as control sees it.
#[derive(Clone)]
pub struct Place {
    /// The member's number, its own for good.
    pub id: u32,
    /// Its device; none: it is not there.
    pub member: Option<Arc<Member>>,
    /// Frames may come in by it.
    pub collects: bool,
    /// Frames may leave by it.
    pub works: bool,
    /// It is used only while another does not work.
    pub standby: bool,
}

/// What a team is, and who has what in it.
#[derive(Clone, Default)]
pub struct Plan {
    /// What the other end knows.
    pub mode: Mode,
    /// What tells conversations apart.
    pub distribution: Distribution,
    /// The members, in the order of the configuration.
    pub places: Vec<Place>,
    /// Ports that leave by a member of their own while it works, and its number.
    pub pins: Vec<(PortId, u32)>,
    /// Answers to probes are looked for.
    pub probes: bool,
    /// Addresses of members' devices that ports have, too.
    pub shared: Vec<Mac>,
}

/// Several NICs as one uplink.
pub struct Team {
    table: ArcSwap<Table>,
    flowlets: Flowlets,
    /// What is dropped for want of a member, and what the switch drops of frames from the wire.
    sent: Arc<Counters>,
    received: Arc<Counters>,
    tracepoint: Option<Arc<Tracepoint>>,
    /// Tables that a burst may still be using, so that none is freed on the data path.
    retired: Mutex<Vec<Arc<Table>>>,
}

impl Team {
    /// A team without members, whose frames can be watched.
    pub fn new(tracepoint: Option<Arc<Tracepoint>>) -> Self {
        Self {
            table: ArcSwap::from_pointee(table_of(&Plan::default(), None)),
            flowlets: Flowlets::default(),
            sent: Arc::default(),
            received: Arc::default(),
            tracepoint,
            retired: Mutex::default(),
        }
    }

    /// What the switch drops of frames from the wire.
    pub fn received(&self) -> &Arc<Counters> {
        &self.received
    }

    /// What is dropped because no member works.
    pub fn sent(&self) -> &Arc<Counters> {
        &self.sent
    }

    /// Lets frames leave and come in by `plan` from now on. The number of the primary member: frames
    /// to all leave by it, and of those from a network that knows nothing of the team only its are
    /// taken. It stays the same for as long as it works.
    pub fn publish(&self, plan: &Plan) -> Option<u32> {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.table.load_full();
        let was = old.primary.map(|at| old.members[at].id);
        let new = Arc::new(table_of(plan, was));
        let primary = new.primary.map(|at| new.members[at].id);
        let open = plan.places.iter().filter_map(|p| p.member.as_ref());
        let macs = Arc::new(open.map(|member| member.mac).collect::<Vec<_>>());
        for place in &plan.places {
            let Some(member) = &place.member else {
                continue;
            };
            let groups = plan.mode != Mode::SwitchIndependent || primary == Some(member.id);
            let flag = |on: bool, flag: u8| if on { flag } else { 0 };
            member.set_macs(&macs);
            member.set_takes(
                flag(place.collects, COLLECTS)
                    | flag(place.collects && groups, GROUPS)
                    | flag(plan.probes, PROBES)
                    | flag(place.works, WORKS)
                    | flag(plan.shared.contains(&member.mac), SHARED),
            );
        }
        self.table.store(new);
        retired.push(old);
        retired.retain(|table| Arc::strong_count(table) > 1);
        primary
    }

    /// The share of the buckets that a member has, of 1.
    pub fn share(&self, id: u32) -> f64 {
        let table = self.table.load();
        let all = 0..distribution::BUCKETS as u16;
        let mine = all.filter(|bucket| {
            let at = table.buckets.member(*bucket);
            at.is_some_and(|at| table.members[at].id == id)
        });
        mine.count() as f64 / distribution::BUCKETS as f64
    }

    /// Looks after what is kept with some inertia. Call ten times a second.
    pub fn look(&self) {
        self.flowlets.look(&self.table.load().members);
    }

    /// How often a bucket has moved to a member that had less to do.
    pub fn flowlets_moved(&self) -> u64 {
        self.flowlets.moved()
    }

    /// Frees what no burst uses any more.
    pub fn sweep(&self) {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.retain(|table| Arc::strong_count(table) > 1);
    }
}

/// The table for a plan; the primary member stays `was` while it works.
fn table_of(plan: &Plan, was: Option<u32>) -> Table {
    let (active, standby): (Vec<&Place>, Vec<&Place>) =
        plan.places.iter().partition(|place| !place.standby);
    let spare = standby.into_iter().find(|place| place.works);
    // The standby member takes the place of the first that does not work.
    let failed = active.iter().position(|place| !place.works);
    let in_place = |at: usize| match failed {
        Some(failed) if failed == at => spare.unwrap_or(active[at]),
        _ => active[at],
    };
    let places: Vec<&Place> = (0..active.len()).map(in_place).collect();
    // By the numbers of those whose places they are: so that only the failed member's flows move.
    let able: Vec<(u32, bool)> = (active.iter().zip(&places))
        .map(|(home, place)| (home.id, place.works && place.member.is_some()))
        .collect();
    let mut members = Vec::new();
    let mut numbers = vec![None; places.len()];
    for (at, place) in places.iter().enumerate() {
        if let (true, Some(member)) = (place.works, &place.member) {
            numbers[at] = Some(members.len());
            members.push(Arc::clone(member));
        }
    }
    let position = |id: u32| members.iter().position(|m: &Arc<Member>| m.id == id);
    let primary = was
        .and_then(position)
        .or((!members.is_empty()).then_some(0));
    let pins = (plan.pins.iter())
        .filter_map(|(port, id)| Some((port.slot, position(*id)?)))
        .collect::<HashMap<_, _>>();
    Table {
        buckets: Buckets::deal(&able).renumbered(|at| numbers.get(at).copied().flatten()),
        distribution: plan.distribution,
        mode: plan.mode,
        primary,
        pins,
        members,
    }
}

impl Outlet for Team {
    fn deliver(&self, batch: &mut Batch, frames: &[u8], scratch: &mut Scratch) {
        let trace = self.tracepoint.as_ref().and_then(|t| t.start(batch));
        let table = self.table.load();
        let port = batch.source();
        match table.of_port(port) {
            Some(route) => {
                let member = &table.members[route.member];
                member.count_load(batch, frames);
                member.send(batch, frames, port, scratch);
            }
            None => self.spread(&table, batch, frames, scratch),
        }
        if let Some(trace) = trace {
            trace.see(Direction::ToVm, batch, frames);
        }
    }

    fn ready(&self) -> bool {
        !self.table.load().members.is_empty()
    }
}

impl Team {
    /// Sends each frame by the member that it belongs to.
    fn spread(&self, table: &Table, batch: &mut Batch, frames: &[u8], scratch: &mut Scratch) {
        if table.distribution == Distribution::Dynamic {
            self.flowlets.set_clock(Now::monotonic());
        }
        let port = batch.source();
        let mut to = [0u64; distribution::MAX_MEMBERS];
        let mut rewrite = 0u64;
        let mut lost = 0;
        for &i in frames {
            match table.route(batch, i.into(), &self.flowlets) {
                Some(route) => {
                    to[route.member] |= 1 << i;
                    rewrite |= u64::from(route.rewrite) << i;
                }
                None => {
                    batch.set_end(i.into(), DropReason::UplinkDown);
                    lost += 1;
                }
            }
        }
        self.sent.count_drop(DropReason::UplinkDown, lost);
        for (member, set) in table.members.iter().zip(to) {
            if set == 0 {
                continue;
            }
            let (mut list, mut n) = ([0; BURST], 0);
            for &i in frames.iter().filter(|i| set & 1 << **i != 0) {
                list[n] = i;
                n += 1;
            }
            let list = &list[..n];
            let rewrite = rewrite & set;
            member.count_load(batch, list);
            if rewrite == 0 {
                member.send(batch, list, port, scratch);
            } else {
                send_rewritten(member, batch, list, rewrite, scratch);
            }
        }
    }
}

/// Sends frames, those of the set `rewrite` with the member's own source address.
fn send_rewritten(
    member: &Member,
    batch: &mut Batch,
    frames: &[u8],
    rewrite: u64,
    scratch: &mut Scratch,
) {
    let mut macs = [Mac::default(); BURST];
    let rewritten = frames.iter().filter(|i| rewrite & 1 << **i != 0);
    let rewritten = rewritten.map(|i| usize::from(*i));
    for i in rewritten.clone() {
        macs[i] = batch.source_mac(i);
        batch.set_source_mac(i, member.mac);
    }
    member.send(batch, frames, batch.source(), scratch);
    // Flooded, a frame goes to others, too.
    for i in rewritten {
        batch.set_source_mac(i, macs[i]);
    }
}
