//! Which member a frame leaves by, as the data path sees it: immutable, replaced as a whole.

use std::collections::HashMap;
use std::sync::Arc;

use tandem_virtio_net::Batch;
use tandem_virtio_net::wire::ethernet::{TYPE_AT, TYPE_IPV4, TYPE_IPV6};
use tandem_virtio_net::wire::protocol;
use tandem_virtio_net::wire::vlan::{TAG_LEN, TPID_CUSTOMER};

use super::Mode;
use super::distribution::{Buckets, Distribution};
use super::flowlets::Flowlets;
use super::member::Member;

/// Where IPv6 says what follows (RFC 8200, 3).
pub(super) const NEXT_HEADER: usize = 6;

/// The members that work, and who has which frames.
pub(super) struct Table {
    pub(super) members: Vec<Arc<Member>>,
    pub(super) buckets: Buckets,
    pub(super) distribution: Distribution,
    pub(super) mode: Mode,
    /// Place of the member that frames for all leave by, unless it depends on the port.
    pub(super) primary: Option<usize>,
    /// Ports that have a member of their own, by slot, and its place.
    pub(super) pins: HashMap<u16, usize>,
}

/// A frame's way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// Place of the member.
    pub(super) member: usize,
    /// The frame has the member's own source address there, so that the network does not take the
    /// station for being behind this member.
    pub(super) rewrite: bool,
}

impl Route {
    fn to(member: usize) -> Self {
        Self {
            member,
            rewrite: false,
        }
    }
}

impl Table {
    /// The member that a port is at home with.
    fn affinity(&self, port: u16) -> Option<usize> {
        let by_port = || self.buckets.member(Distribution::Port.bucket(&[], 0, port));
        match (self.mode, self.distribution) {
            (_, Distribution::Port) | (Mode::SwitchIndependent, Distribution::Dynamic) => by_port(),
            _ => self.primary,
        }
    }

    /// The member for all frames of a port; none: it depends on the frame.
    #[inline]
    pub(super) fn of_port(&self, port: u16) -> Option<Route> {
        if !self.pins.is_empty()
            && let Some(member) = self.pins.get(&port)
        {
            return Some(Route::to(*member));
        }
        if self.members.len() == 1 {
            return self.primary.map(Route::to);
        }
        match self.distribution {
            Distribution::Port => self.affinity(port).map(Route::to),
            _ => None,
        }
    }

    /// The way of frame `i`; none: no member works.
    pub(super) fn route(&self, batch: &Batch, i: usize, flowlets: &Flowlets) -> Option<Route> {
        let head = batch.head(i);
        if self.mode == Mode::SwitchIndependent && !may_leave_home(head) {
            return self.affinity(batch.source()).map(Route::to);
        }
        let bucket = (self.distribution).bucket(head, batch.frame_len(i), batch.source());
        let home = self.buckets.member(bucket)?;
        let member = match self.distribution {
            Distribution::Dynamic => flowlets.member(bucket, home, &self.members),
            _ => home,
        };
        let independent = self.mode == Mode::SwitchIndependent;
        let rewrite = independent && Some(member) != self.affinity(batch.source());
        Some(Route { member, rewrite })
    }
}

/// Whether a frame may leave with the source address of another member: only IP to one station, and
/// not the messages by which stations learn each other's addresses.
fn may_leave_home(head: &[u8]) -> bool {
    let kind = |at: usize| {
        let bytes = head.get(at..at + 2).unwrap_or(&[0, 0]);
        u16::from_be_bytes([bytes[0], bytes[1]])
    };
    let at = match kind(TYPE_AT) {
        TPID_CUSTOMER => TYPE_AT + TAG_LEN,
        _ => TYPE_AT,
    };
    let single = head.first().is_some_and(|byte| byte & 1 == 0);
    single
        && match kind(at) {
            TYPE_IPV4 => true,
            TYPE_IPV6 => head.get(at + 2 + NEXT_HEADER) != Some(&protocol::ICMPV6),
            _ => false,
        }
}
