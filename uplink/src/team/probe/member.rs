//! What is known of one member.

use std::time::Duration;

use super::{Reason, Times};
use crate::{Mac, Now};

#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) mac: Mac,
    pub(super) link: bool,
    /// What was judged last.
    pub(super) alive: Option<bool>,
    pub(super) reason: Option<Reason>,
    /// The NIC had no room for the last probe.
    pub(super) unsent: bool,
    /// The last counter of frames from the wire.
    frames: Option<u64>,
    /// When such frames were there last.
    pub(super) frames_at: Option<Now>,
    /// When it last heard another member, and another member heard it.
    pub(super) hears_at: Option<Now>,
    pub(super) is_heard_at: Option<Now>,
    /// The last proof that both directions work, and since when there was none missing.
    answered_at: Option<Now>,
    answers_since: Now,
    /// From when on answers are missing, and any sign of life; later by the time that nothing was sent.
    pub(super) unanswered_since: Now,
    pub(super) silent_since: Now,
}

impl Member {
    pub(super) fn new(mac: Mac) -> Self {
        Self {
            mac,
            link: false,
            alive: None,
            reason: Some(Reason::NoLink),
            unsent: false,
            frames: None,
            frames_at: None,
            hears_at: None,
            is_heard_at: None,
            answered_at: None,
            answers_since: Now::default(),
            unanswered_since: Now::default(),
            silent_since: Now::default(),
        }
    }

    /// The link is up, or down: what was before is of no use.
    pub(super) fn set_link(&mut self, up: bool, now: Now) {
        *self = Self {
            link: up,
            reason: Some(if up { Reason::Unproven } else { Reason::NoLink }),
            frames: self.frames,
            unanswered_since: now,
            silent_since: now,
            ..Self::new(self.mac)
        };
    }

    /// The other judgements were in comparison with members that are gone.
    pub(super) fn forget_judgement(&mut self) {
        self.alive = None;
        self.reason = Some(Reason::Unproven);
    }

    /// The counter of frames from the wire.
    pub(super) fn set_frames(&mut self, total: u64, now: Now) {
        if self.link && self.frames.is_some_and(|before| before < total) {
            self.frames_at = Some(now);
            self.silent_since = self.silent_since.max(now);
        }
        self.frames = Some(total);
    }

    /// Both directions worked at the moment `at`.
    pub(super) fn answer(&mut self, at: Now, times: &Times) {
        let last = self.answered_at.filter(|last| at <= *last + times.missing);
        if last.is_none() {
            self.answers_since = at;
        }
        self.answered_at = Some(at);
        self.unanswered_since = self.unanswered_since.max(at);
        self.silent_since = self.silent_since.max(at);
        if self.alive != Some(true) && at >= self.answers_since + times.returning {
            (self.alive, self.reason) = (Some(true), None);
        }
    }

    /// Another member heard it, or it another: an answer once both are so.
    pub(super) fn beat(&mut self, times: &Times) {
        if let (Some(hears), Some(is_heard)) = (self.hears_at, self.is_heard_at) {
            let both = hears.min(is_heard);
            if self.answered_at.is_none_or(|last| last < both) {
                self.answer(both, times);
            }
        }
    }

    /// Nothing came of a time in which nothing was sent.
    pub(super) fn excuse(&mut self, time: Duration, now: Now) {
        self.unanswered_since = (self.unanswered_since + time).min(now);
        self.silent_since = (self.silent_since + time).min(now);
    }

    /// An answer lacks, and may still come: probes are sent more often. From when on, until when.
    pub(super) fn urgent(&self, times: &Times) -> Option<(Now, Now)> {
        let waits = self.link && self.alive != Some(false);
        let from = self.unanswered_since + times.missing;
        waits.then(|| (from, self.unanswered_since + times.grace))
    }

    /// Since when, and for how long, this has not shown that it is alive; none if not for too long.
    pub(super) fn silent(&self, times: &Times, now: Now) -> Option<(Now, Duration)> {
        let unanswered = (self.unanswered_since, times.grace);
        let silent = (self.silent_since, times.limit);
        [silent, unanswered]
            .into_iter()
            .find(|(since, limit)| now >= *since + *limit)
    }

    /// It was answered while another was silent, from the beginning of that to its end.
    pub(super) fn answered_meanwhile(
        &self,
        (since, limit): (Now, Duration),
        times: &Times,
    ) -> bool {
        let both_since = since.max(self.answers_since);
        self.link && self.answered_at >= Some(both_since + (limit - times.interval))
    }

    /// When it last received anything from the wire.
    pub(super) fn received_at(&self) -> Option<Now> {
        self.hears_at.max(self.frames_at)
    }

    pub(super) fn die(&mut self, reason: Reason) {
        (self.alive, self.reason) = (Some(false), Some(reason));
    }
}
