use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A moment: nanoseconds of a monotonic clock. The switch never reads a clock itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now(pub u64);

impl Now {
    /// Reads the clock: nanoseconds since the process first did. Once a burst is often enough.
    pub fn monotonic() -> Self {
        static START: OnceLock<Instant> = OnceLock::new();
        Self(START.get_or_init(Instant::now).elapsed().as_nanos() as u64)
    }

    /// Whole seconds, for what is kept coarsely.
    #[inline]
    pub fn seconds(self) -> u64 {
        self.0 / 1_000_000_000
    }
}

impl std::ops::Add<Duration> for Now {
    type Output = Self;
    fn add(self, d: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}
