//! What becomes of a frame: a short list of actions, carried out in order.

use tandem_virtio_net::DropReason;

/// One step of a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// The list ends here.
    End,
    /// What is delivered from here on carries this tag, or none.
    SetTag(Option<u16>),
    /// Goes to the port in this slot of the snapshot.
    Deliver(u16),
    /// Goes to every other member of its VLAN, tagged as each wants it.
    Flood,
    /// Goes nowhere.
    Drop(DropReason),
}

/// The actions for a frame, up to the first [`Action::End`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict([Action; 2]);
const _: () = assert!(
    size_of::<Verdict>() == 8,
    "two verdicts and their keys fit a cache line"
);

impl Verdict {
    /// Does nothing; for places that hold no verdict.
    pub(crate) const NONE: Self = Self([Action::End; 2]);
    pub(crate) const FLOOD: Self = Self([Action::Flood, Action::End]);

    pub(crate) const fn drop(reason: DropReason) -> Self {
        Self([Action::Drop(reason), Action::End])
    }

    #[inline]
    pub(crate) const fn deliver(port: u16, tag: Option<u16>) -> Self {
        Self([Action::SetTag(tag), Action::Deliver(port)])
    }

    #[inline]
    pub(crate) fn actions(self) -> impl Iterator<Item = Action> {
        self.0
            .into_iter()
            .take_while(|action| *action != Action::End)
    }
}
