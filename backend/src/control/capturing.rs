//! Captures, which change nothing and are not kept.

use hyper::body::Bytes;
use tokio::sync::mpsc::Receiver;

use super::{Control, Refused};
use crate::capture::Request;

impl Control {
    /// Starts a capture, see [`super::Engine::capture`].
    ///
    /// # Errors
    /// As there.
    pub fn capture(&self, port: &str, request: &Request) -> Result<Receiver<Bytes>, Refused> {
        self.engine.capture(port, request)
    }

    /// Ends all captures, so that nobody waits for more.
    pub fn end_captures(&self) {
        self.engine.end_captures();
    }
}
