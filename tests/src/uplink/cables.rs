//! veth pairs from a namespace `near` to a namespace `far`: `u0` to `f0` and so on.

use anyhow::Result;

use super::socket::Socket;
use crate::lab::Namespace;

/// Some cables, in namespaces of their own. Everything goes with the value.
#[derive(Debug)]
pub struct Cables {
    /// Where the daemon is.
    pub near: Namespace,
    /// Where they lead to.
    pub far: Namespace,
}

impl Cables {
    /// `count` cables, up at the far end only.
    pub fn new(count: usize) -> Result<Self> {
        let cables = Self {
            near: Namespace::new()?,
            far: Namespace::new()?,
        };
        (0..count).try_for_each(|i| cables.make(i))?;
        Ok(cables)
    }

    /// Makes a cable, also once more after [`Cables::remove`].
    pub fn make(&self, i: usize) -> Result<()> {
        self.lay(i)?;
        self.mend(i)
    }

    /// Makes a cable without a carrier.
    pub fn lay(&self, i: usize) -> Result<()> {
        // The kernel is in no hurry to tell of a carrier where both ends have the same number, each in
        // its namespace: it takes such a device for one that is no end of a pair (link_watch.c).
        let (near, far) = (100 + i, 200 + i);
        let path = self.far.path();
        let path = path.display();
        self.near
            .ip(&format!(
                "link add u{i} index {near} type veth peer name f{i} index {far} netns {path}"
            ))
            .map(drop)
    }

    /// Makes a pair of devices in the far namespace: `h` for a host behind a switch, `p` the switch's
    /// port for it.
    pub fn make_host(&self, h: &str, p: &str) -> Result<()> {
        self.far
            .ip(&format!("link add {h} type veth peer name {p}"))?;
        self.far.ip(&format!("link set {h} up"))?;
        self.far.ip(&format!("link set {p} up")).map(drop)
    }

    /// Takes the carrier from the near end.
    pub fn cut(&self, i: usize) -> Result<()> {
        self.far.ip(&format!("link set f{i} down")).map(drop)
    }

    /// Gives it back.
    pub fn mend(&self, i: usize) -> Result<()> {
        self.far.ip(&format!("link set f{i} up")).map(drop)
    }

    /// Removes both ends.
    pub fn remove(&self, i: usize) -> Result<()> {
        self.near.ip(&format!("link del u{i}")).map(drop)
    }

    /// A socket at the far end of cable `i`.
    pub fn socket(&self, i: usize) -> Result<Socket> {
        Socket::open(&self.far, &format!("f{i}"))
    }
}
