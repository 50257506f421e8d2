//! vhost-user: how a VMM hands a port its queues.

mod device;
mod endpoint;

pub use device::Device;
pub use endpoint::{Endpoint, EndpointError, SessionStatus, Source};
