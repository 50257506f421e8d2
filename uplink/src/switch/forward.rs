//! The data side of a switch: from a burst to its receivers.

use std::sync::Arc;

use tandem_virtio_net::{BURST, Batch, Counters, Direction, DropReason, Scratch};

use super::counters::SwitchCounters;
use super::flow_cache::FlowCache;
use super::pipeline::{Judged, L2_WORDS, Pipeline, key_of};
use super::snapshot::{Port, Snapshot};
use super::verdict::{Action, Verdict};
use super::{PortId, Switch};
use crate::Now;
use crate::policy::vlan::Class;

// A set of frames of a burst is one word.
const _: () = assert!(BURST == u64::BITS as usize);

/// Forwards the frames of one TX queue. It lives behind that queue's lock.
pub struct Forwarder {
    switch: Arc<Switch>,
    port: PortId,
    /// For frames that come when the port is gone.
    from_vm: Option<Arc<Counters>>,
    stripe: usize,
    generation: u64,
    cache: FlowCache<L2_WORDS>,
    burst: Burst,
}

/// Where the frames of the burst at hand go. Sets of frames are words, bit `i` for frame `i`.
struct Burst {
    /// For each slot of the snapshot, the frames to the port in it.
    to: Vec<u64>,
    /// The slots with frames, in the order they got their first.
    receivers: Vec<u16>,
    /// The slots that take the frames of the VLAN at hand.
    members: Vec<u16>,
    /// The frames to be flooded.
    floods: u64,
    /// The VLAN of each frame that is to be flooded.
    class: [Class; BURST],
    /// The tag for each frame that goes to one port.
    tag: [Option<u16>; BURST],
    drops: [u8; DropReason::ALL.len()],
    counts: SwitchCounters,
    deaf: bool,
}

impl Forwarder {
    /// A forwarder for a queue of `port`. If there is no such port it drops everything.
    pub fn new(switch: Arc<Switch>, port: PortId) -> Self {
        let from_vm = switch.snapshot.load().get(port).map(|p| p.from_vm.clone());
        Self {
            stripe: switch.counts.stripe(),
            cache: FlowCache::new(switch.budget.clone()),
            generation: 0,
            burst: Burst::new(),
            from_vm,
            port,
            switch,
        }
    }

    /// One that does not listen to who the frames say they are from: they are our own.
    pub(super) fn deaf(switch: Arc<Switch>, port: PortId) -> Self {
        let mut this = Self::new(switch, port);
        this.burst.deaf = true;
        this
    }

    /// Judges the frames of `batch`, delivers them through the outlets of their receivers and
    /// counts those that are dropped as `from_vm` of the port they came from.
    ///
    /// Frames from this port to one receiver arrive in the order they have in `batch`. Their tags
    /// are changed.
    pub fn forward(&mut self, batch: &mut Batch, scratch: &mut Scratch, now: Now) {
        self.forward_but(0, batch, scratch, now);
    }

    /// The same without the frames in the set `but`, bit `i` for frame `i`: somebody else has dealt with
    /// them.
    pub fn forward_but(&mut self, but: u64, batch: &mut Batch, scratch: &mut Scratch, now: Now) {
        let frames = all(batch.len()) & !but;
        if frames == 0 {
            return;
        }
        let switch = &*self.switch;
        let snapshot = switch.snapshot.load();
        let snapshot: &Snapshot = &snapshot;
        let Some(port) = snapshot.get(self.port) else {
            if let Some(counters) = &self.from_vm {
                counters.count_drop(DropReason::NoReceiver, frames.count_ones().into());
            }
            switch.counts.add(
                self.stripe,
                &SwitchCounters {
                    frames: frames.count_ones().into(),
                    ..Default::default()
                },
            );
            return;
        };
        if self.generation != snapshot.generation {
            self.generation = snapshot.generation;
            self.cache.clear();
            self.burst.adopt(snapshot);
        }
        let pipeline = Pipeline {
            snapshot,
            table: &switch.table,
            port,
            now: now.seconds(),
        };
        let tracepoint = port.tracepoint.as_ref().filter(|_| !self.burst.deaf);
        let trace = tracepoint.and_then(|point| point.start(batch));
        batch.set_source(port.id.slot);
        self.burst.start(frames);
        self.burst.judge(frames, batch, &mut self.cache, &pipeline);
        self.burst.flood(batch, snapshot, port, now);
        if let Some(trace) = trace {
            // Before receivers change their tags.
            let (list, n) = listed(frames);
            trace.see(Direction::FromVm, batch, &list[..n]);
        }
        self.burst.deliver(batch, snapshot, scratch);
        self.burst.count(&port.from_vm);
        switch.counts.add(self.stripe, &self.burst.counts);
        self.cache.tune();
    }

    /// Gives back the memory of a flow cache that has grown. Call when the queue has been quiet for
    /// a second or so; before every short sleep, the cache would never grow.
    pub fn shrink(&mut self) {
        self.cache.shrink();
    }
}

impl Burst {
    fn new() -> Self {
        Self {
            to: Vec::new(),
            receivers: Vec::new(),
            members: Vec::new(),
            floods: 0,
            class: [Class::default(); BURST],
            tag: [None; BURST],
            drops: [0; DropReason::ALL.len()],
            counts: SwitchCounters::default(),
            deaf: false,
        }
    }

    /// Makes room for the ports of a new snapshot.
    fn adopt(&mut self, snapshot: &Snapshot) {
        self.to.clear();
        self.to.resize(snapshot.slots(), 0);
        self.receivers.reserve(snapshot.slots());
        self.members.reserve(snapshot.slots());
    }

    fn start(&mut self, frames: u64) {
        self.floods = 0;
        self.counts = SwitchCounters {
            frames: frames.count_ones().into(),
            ..SwitchCounters::default()
        };
    }

    /// Finds and carries out the verdict for each frame. Frames of one flow that follow each
    /// other share it.
    fn judge(
        &mut self,
        frames: u64,
        batch: &mut Batch,
        cache: &mut FlowCache<L2_WORDS>,
        pipeline: &Pipeline<'_>,
    ) {
        let mut last = ([0; L2_WORDS], Judged::cached(Verdict::NONE));
        for i in bits(frames) {
            let Some(key) = key_of(batch.head(i), batch.tag(i)) else {
                self.drop(batch, i, DropReason::TooShort);
                continue;
            };
            if key != last.0 {
                last = (key, self.look_up(&key, cache, pipeline));
            }
            if last.1.admitted && !self.deaf {
                let neighbours = &pipeline.port.neighbours;
                neighbours.hear(batch.head(i), batch.tag(i));
            }
            self.carry_out(batch, i, last.1);
        }
    }

    #[inline]
    fn look_up(
        &mut self,
        key: &[u64; L2_WORDS],
        cache: &mut FlowCache<L2_WORDS>,
        pipeline: &Pipeline<'_>,
    ) -> Judged {
        if let Some((verdict, src)) = cache.get(key, pipeline.table) {
            pipeline.table.refresh(src, pipeline.now);
            return Judged::cached(verdict);
        }
        let judged = pipeline.judge(key);
        if let Some((src, dst)) = judged.relied_on {
            cache.put(key, judged.verdict, src, dst);
        }
        self.counts.unlearned |= u64::from(judged.unlearned);
        judged
    }

    #[inline]
    fn carry_out(&mut self, batch: &mut Batch, i: usize, judged: Judged) {
        for action in judged.verdict.actions() {
            match action {
                Action::SetTag(tag) => self.tag[i] = tag,
                Action::Deliver(slot) => {
                    self.counts.unicast += 1;
                    self.send(slot, 1 << i);
                }
                Action::Flood => {
                    self.class[i] = judged.class;
                    self.floods |= 1 << i;
                }
                Action::Drop(reason) => self.drop(batch, i, reason),
                Action::End => {}
            }
        }
    }

    #[inline]
    fn send(&mut self, slot: u16, frames: u64) {
        let to = &mut self.to[usize::from(slot)];
        if *to == 0 {
            self.receivers.push(slot);
        }
        *to |= frames;
    }

    #[inline]
    fn drop(&mut self, batch: &mut Batch, i: usize, reason: DropReason) {
        self.drops[reason as usize] += 1;
        batch.set_end(i, reason);
    }

    /// Gives the frames to be flooded to the members of their VLANs.
    fn flood(&mut self, batch: &mut Batch, snapshot: &Snapshot, port: &Port, now: Now) {
        let mut left = self.floods;
        while left != 0 {
            let vid = self.class[left.trailing_zeros() as usize].vid;
            let frames = bits(left)
                .filter(|i| self.class[*i].vid == vid)
                .fold(0, |m, i| m | 1 << i);
            left &= !frames;
            // Who is ready may change at any time: asked once.
            self.members.clear();
            let ready = snapshot
                .members(vid)
                .filter(|m| m.id != port.id && m.outlet.ready());
            self.members.extend(ready.map(|m| m.id.slot));
            let receivers = self.members.len() as u64;
            if receivers == 0 {
                self.floods &= !frames;
                bits(frames).for_each(|i| self.drop(batch, i, DropReason::NoReceiver));
                continue;
            }
            let frames = self.limit(frames, receivers, batch, port, now);
            if frames == 0 {
                continue;
            }
            for at in 0..self.members.len() {
                self.send(self.members[at], frames);
            }
        }
    }

    /// Drops what is over the port's storm limit; what is left of `frames`.
    ///
    /// Unknown unicast that only one port can get costs what known unicast does: no storm.
    fn limit(&mut self, frames: u64, copies: u64, batch: &mut Batch, port: &Port, now: Now) -> u64 {
        let mut charged = if copies > 1 {
            frames
        } else {
            bits(frames)
                .filter(|i| batch.head(*i).first().is_some_and(|b| b & 1 != 0))
                .fold(0, |m, i| m | 1 << i)
        };
        let mut kept = frames;
        if charged != 0 {
            let granted = port.storm.take(charged.count_ones(), now);
            while charged.count_ones() > granted {
                let last = charged.ilog2();
                charged &= !(1 << last);
                kept &= !(1 << last);
                self.drop(batch, last as usize, DropReason::StormLimit);
            }
        }
        self.floods &= !(frames & !kept);
        self.counts.flooded += u64::from(kept.count_ones());
        self.counts.copies += u64::from(kept.count_ones()) * copies;
        kept
    }

    /// Hands the frames over, receiver by receiver.
    fn deliver(&mut self, batch: &mut Batch, snapshot: &Snapshot, scratch: &mut Scratch) {
        for slot in self.receivers.drain(..) {
            let frames = std::mem::take(&mut self.to[usize::from(slot)]);
            // A verdict names ports of this snapshot only.
            let Some(port) = snapshot.at(slot) else {
                continue;
            };
            let mut list = [0; BURST];
            let mut n = 0;
            for i in bits(frames) {
                let flooded = self.floods & 1 << i != 0;
                let tag = if flooded {
                    port.vlan.egress(self.class[i])
                } else {
                    self.tag[i]
                };
                batch.set_tag(i, tag);
                list[n] = i as u8;
                n += 1;
            }
            port.outlet.deliver(batch, &list[..n], scratch);
        }
    }

    /// Counts the frames that were dropped.
    fn count(&mut self, from_vm: &Counters) {
        for reason in DropReason::ALL {
            let dropped = std::mem::take(&mut self.drops[*reason as usize]);
            from_vm.count_drop(*reason, dropped.into());
        }
    }
}

/// The set of the first `n` frames.
#[inline]
fn all(n: usize) -> u64 {
    match n {
        0 => 0,
        n => u64::MAX >> (BURST - n.min(BURST)),
    }
}

/// The frames of a set as a list, and how many.
fn listed(frames: u64) -> ([u8; BURST], usize) {
    let (mut list, mut n) = ([0; BURST], 0);
    for i in bits(frames) {
        list[n] = i as u8;
        n += 1;
    }
    (list, n)
}

/// The frames of a set, in order.
#[inline]
fn bits(mut set: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let i = (set != 0).then(|| set.trailing_zeros() as usize)?;
        set &= set - 1;
        Some(i)
    })
}
