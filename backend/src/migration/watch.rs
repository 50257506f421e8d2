//! Looks after the ports of a VM that moves.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::control::{Motion, MovingPort};

/// How soon a port is asked again how things are, if it says nothing.
pub(super) const LOOK: Duration = Duration::from_millis(100);
/// The same while something is expected that it does not tell of.
pub(super) const LOOK_SOON: Duration = Duration::from_millis(2);

/// Tells `each` how things are with a port, now and whenever they may be different, until the port is gone or it
/// answers with none. It answers how soon it wants to be told again.
pub(super) async fn watch(
    port: Arc<dyn MovingPort>,
    mut each: impl FnMut(&Motion) -> Option<Duration>,
) {
    let Some(mut changes) = port.changes() else {
        return;
    };
    while let Some(motion) = port.motion() {
        let Some(again) = each(&motion) else { return };
        let _ = timeout(again, changes.changed()).await;
    }
}
