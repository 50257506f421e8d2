//! A guest's virtio-net driver over shared memory, and the VMM around it.
//!
//! A [`Nic`] is what a VM has: guest memory, queue pairs with buffers, and a
//! [`Session`] that tells the back-end of them. It checks what comes back
//! against the specification and panics on a violation: order, lengths,
//! `num_buffers`, header bits that were not negotiated.

mod packed;
mod queue;
mod ring;
mod split;

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

pub use packed::Packed;
pub use queue::{Layout, Queue, Receive};
pub use ring::{Buffer, Done, Parts, Piece, Ring};
pub use split::{Split, write_descriptor};

use super::memory::{GuestRam, RegionSpec};
use super::session::{Order, RingSetup, Session};
use super::spec::{self, NetHdr};

/// What kind of VM to be. Start from `Config::default()`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Whose messages.
    pub order: Order,
    /// What the driver negotiates; all of it must be offered.
    pub features: u64,
    /// Descriptors per ring.
    pub queue_size: u16,
    /// Queue pairs.
    pub pairs: usize,
    /// Of them, those the driver posts buffers on, and QEMU enables; all if `None`.
    pub pairs_used: Option<usize>,
    /// Guest memory; rings lie in the first region.
    pub regions: Vec<RegionSpec>,
    /// The region buffers lie in; the last if `None`.
    pub buffer_region: Option<usize>,
    /// How transmitted frames lie in descriptors.
    pub layout: Layout,
    /// Receive buffers; `None` picks what the features need.
    pub receive: Option<Receive>,
    /// Frames in flight, and the largest of them with its header.
    pub transmit: (usize, u64),
    /// Post receive buffers before the back-end is told of the ring, as some drivers do.
    pub post_early: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            order: Order::Qemu72,
            features: spec::VERSION_1,
            queue_size: 256,
            pairs: 1,
            pairs_used: None,
            regions: vec![RegionSpec::new(0, 256 << 20)],
            buffer_region: None,
            layout: Layout::Together,
            receive: None,
            transmit: (64, 66 << 10),
            post_early: true,
        }
    }
}

impl Config {
    /// The default with these features in addition to VERSION_1.
    pub fn with(features: u64) -> Self {
        Config {
            features: spec::VERSION_1 | features,
            ..Config::default()
        }
    }

    fn receive_for(&self, features: u64) -> Receive {
        let large = spec::GUEST_TSO4 | spec::GUEST_TSO6 | spec::GUEST_USO4 | spec::GUEST_USO6;
        let header = NetHdr::len_for(features) as u32;
        let buffers = usize::from(self.queue_size);
        match &self.receive {
            Some(receive) => receive.clone(),
            None if features & spec::MRG_RXBUF != 0 => Receive::each(buffers, 1536),
            None if features & large != 0 => Receive::big(buffers, header),
            None => Receive::each(buffers, header + 1518),
        }
    }
}

/// A receive and a transmit queue.
pub struct Pair {
    /// To the VM.
    pub rx: Queue,
    /// From the VM.
    pub tx: Queue,
}

/// A VM's NIC, driven from the guest's side.
pub struct Nic {
    /// The guest's memory.
    pub ram: Arc<GuestRam>,
    /// The VMM's connection; absent after [`Nic::kill`].
    pub session: Option<Session>,
    /// The queue pairs.
    pub pairs: Vec<Pair>,
    /// What the driver negotiated.
    pub features: u64,
    config: Config,
    socket: PathBuf,
}

impl Nic {
    /// Starts a VM on the port at `socket`: connects, negotiates, lays out rings, posts buffers.
    pub fn start(socket: &Path, config: &Config) -> Result<Self> {
        let ram = Arc::new(GuestRam::new(&config.regions)?);
        let session = Session::connect(socket, config.order, config.pairs)?;
        Self::run(socket, config, ram, session)
    }

    /// The same where the back-end connects to us.
    pub fn start_listening(listener: &UnixListener, config: &Config) -> Result<Self> {
        let ram = Arc::new(GuestRam::new(&config.regions)?);
        let session = Session::accept(listener, config.order, config.pairs)?;
        Self::run(Path::new(""), config, ram, session)
    }

    /// The same with memory and a connection of the caller's.
    pub fn run(
        socket: &Path,
        config: &Config,
        ram: Arc<GuestRam>,
        session: Session,
    ) -> Result<Self> {
        let mut nic = Nic {
            ram,
            session: Some(session),
            pairs: Vec::new(),
            features: config.features,
            config: config.clone(),
            socket: socket.to_owned(),
        };
        nic.initialise(config.features)?;
        Ok(nic)
    }

    /// What a driver does from reset to DRIVER_OK: new rings for `features`, and started.
    fn initialise(&mut self, features: u64) -> Result<()> {
        let offered = self.session()?.offered;
        ensure!(
            features & !offered == 0,
            "the back-end does not offer the features {:#x}",
            features & !offered
        );
        self.features = features;
        let region = self.config.buffer_region;
        let region = region.unwrap_or(self.ram.regions() - 1);
        let size = self.config.queue_size;
        let indirect = features & spec::INDIRECT != 0;
        self.pairs = (0..self.config.pairs)
            .map(|_| {
                let rx = Queue::new(&self.ram, region, size, features, indirect)?;
                let mut tx = Queue::new(&self.ram, region, size, features, indirect)?;
                tx.add_transmit_slots(self.config.transmit.0, self.config.transmit.1);
                Ok(Pair { rx, tx })
            })
            .collect::<Result<_>>()?;
        if self.config.post_early {
            self.post(features);
        }
        let bases = self.fresh_bases();
        self.start_rings(&bases)?;
        if !self.config.post_early {
            self.post(features);
        }
        self.pairs
            .iter_mut()
            .for_each(|p| p.rx.kick.write(1).expect("kick"));
        Ok(())
    }

    fn post(&mut self, features: u64) {
        let receive = self.config.receive_for(features);
        let used = self.config.pairs_used.unwrap_or(usize::MAX);
        for pair in self.pairs.iter_mut().take(used) {
            pair.rx.post(&receive);
        }
    }

    /// The bases of rings never started: QEMU's are zero; cloud-hypervisor sends what the guest has
    /// made available by now, posted receive buffers included.
    fn fresh_bases(&self) -> Vec<u32> {
        let avail = self.config.order == Order::CloudHypervisor;
        let base = |q: &Queue| match &q.ring {
            Ring::Split(_) if avail => q.ring.avail_base(),
            ring => ring.fresh_base(),
        };
        self.rings().map(base).collect()
    }

    fn rings(&self) -> impl Iterator<Item = &Queue> {
        self.pairs.iter().flat_map(|p| [&p.rx, &p.tx])
    }

    /// What the VMM tells of the rings, with these bases.
    pub fn setups(&self, bases: &[u32]) -> Vec<RingSetup> {
        self.rings().zip(bases).map(|(q, b)| q.setup(*b)).collect()
    }

    fn start_rings(&mut self, bases: &[u32]) -> Result<()> {
        let setups = self.setups(bases);
        let pairs = self.config.pairs_used.unwrap_or(self.pairs.len());
        let features = self.features;
        let ram = self.ram.clone();
        self.session()?.start(features, &ram, &setups, pairs)
    }

    /// The session; an error if there is none.
    pub fn session(&mut self) -> Result<&mut Session> {
        self.session.as_mut().context("no session")
    }

    /// Drops the connection as a killed VMM does; the guest's memory stays.
    pub fn kill(&mut self) {
        self.session = None;
    }

    /// Stops the rings, as at a reset or before a migration; gives what GET_VRING_BASE said.
    pub fn stop(&mut self) -> Result<Vec<u32>> {
        let rings = 2 * self.pairs.len();
        self.session()?.stop(rings)
    }

    /// Starts stopped rings again where they stood.
    pub fn resume(&mut self, bases: &[u32]) -> Result<()> {
        self.start_rings(bases)
    }

    /// The guest resets the device and negotiates anew: new rings on the same connection.
    pub fn reset(&mut self, features: u64) -> Result<()> {
        self.stop()?;
        self.initialise(features)
    }

    /// The back-end went away and is there again: a new connection for the same rings, which the
    /// guest knows nothing of, with `bases` of the VMM.
    pub fn reconnect(&mut self, bases: &[u32]) -> Result<()> {
        self.session = None;
        let (order, pairs) = (self.config.order, self.config.pairs);
        self.session = Some(Session::connect(&self.socket, order, pairs)?);
        self.start_rings(bases)?;
        // QEMU and cloud-hypervisor kick rings that may have work.
        self.rings().for_each(|q| q.kick.write(1).expect("kick"));
        Ok(())
    }

    /// The VM moves to the port at `socket` of another back-end, as in a live migration: its rings are
    /// stopped, its state is saved, loaded there, and the rings go on. Gives the state.
    pub fn move_to(&mut self, socket: &Path) -> Result<Vec<u8>> {
        let bases = self.stop()?;
        let state = self.session()?.save_state()?;
        self.session = None;
        self.set_socket(socket);
        self.arrive(&bases, |session| session.load_state(&state))?;
        Ok(state)
    }

    /// The same of a VMM that carries no state, with rings that were stopped at `bases`.
    pub fn move_rings(&mut self, socket: &Path, bases: &[u32]) -> Result<()> {
        self.session = None;
        self.set_socket(socket);
        self.arrive(bases, |_| Ok(()))
    }

    /// Says where to connect from now on.
    pub fn set_socket(&mut self, socket: &Path) {
        self.socket = socket.to_owned();
    }

    /// Its second half, with rings that were stopped at `bases`, and a way of its own to load.
    pub fn arrive(
        &mut self,
        bases: &[u32],
        load: impl FnOnce(&mut Session) -> Result<()>,
    ) -> Result<()> {
        let (order, pairs) = (self.config.order, self.config.pairs);
        let mut session = Session::connect(&self.socket, order, pairs)?;
        load(&mut session)?;
        self.session = Some(session);
        self.start_rings(bases)?;
        self.rings().for_each(|q| q.kick.write(1).expect("kick"));
        Ok(())
    }

    /// The bases a VMM sends after it lost the back-end: QEMU restores `used->idx` of a split ring,
    /// and replays what it last knew of a packed one; cloud-hypervisor sends the available index, or
    /// `used->idx` with IN_ORDER.
    pub fn bases_after_loss(&self) -> Vec<u32> {
        let in_order = self.features & spec::IN_ORDER != 0;
        let stale = self.config.order == Order::CloudHypervisor && !in_order;
        let base = |q: &Queue| match &q.ring {
            Ring::Split(_) if stale => q.ring.avail_base(),
            Ring::Split(_) => u32::from(self.ram.load16(q.ring.parts().used + 2)),
            Ring::Packed(_) => q.ring.fresh_base(),
        };
        self.rings().map(base).collect()
    }

    /// Sends a frame on the first pair.
    pub fn send(&mut self, hdr: NetHdr, frame: &[u8]) {
        self.send_on(0, hdr, frame);
    }

    /// Sends a frame that needs no offload.
    pub fn send_plain(&mut self, frame: &[u8]) {
        self.send_on(0, NetHdr::default(), frame);
    }

    /// Sends a frame on `pair`. Does not wait; see [`Nic::flush`].
    pub fn send_on(&mut self, pair: usize, hdr: NetHdr, frame: &[u8]) {
        let layout = self.config.layout;
        let tx = &mut self.pairs[pair].tx;
        tx.queue_frame(hdr, frame, layout);
        tx.ring_bell();
    }

    /// Sends a frame from a buffer at `gpa`, which the caller chose.
    pub fn send_across(&mut self, gpa: u64, frame: &[u8]) {
        let tx = &mut self.pairs[0].tx;
        tx.queue_frame_at(gpa, frame);
        tx.ring_bell();
    }

    /// Sends frames with one publish and at most one kick.
    pub fn send_burst(&mut self, frames: &[(NetHdr, Vec<u8>)]) {
        let layout = self.config.layout;
        let tx = &mut self.pairs[0].tx;
        for (hdr, frame) in frames {
            tx.queue_frame(*hdr, frame, layout);
        }
        tx.ring_bell();
    }

    /// Waits until the device has taken all frames sent.
    pub fn flush(&mut self) {
        self.pairs.iter_mut().for_each(|p| p.tx.flush());
    }

    /// Waits for a frame on the first pair; panics when none comes.
    pub fn recv(&mut self) -> (NetHdr, Vec<u8>) {
        self.recv_on(0)
    }

    /// Waits for a frame on `pair`; panics when none comes.
    pub fn recv_on(&mut self, pair: usize) -> (NetHdr, Vec<u8>) {
        loop {
            if let Some(frame) = self.try_recv(pair) {
                return frame;
            }
            self.pairs[pair].rx.wait_used("a frame");
        }
    }

    /// Waits for a frame on any pair; gives the pair too.
    pub fn recv_any(&mut self) -> (usize, NetHdr, Vec<u8>) {
        let end = Instant::now() + super::wire::PATIENCE;
        while Instant::now() < end {
            for pair in 0..self.pairs.len() {
                if let Some((hdr, frame)) = self.try_recv(pair) {
                    return (pair, hdr, frame);
                }
            }
            let turn = Instant::now() + Duration::from_millis(5);
            self.pairs[0].rx.wait_used_until(turn);
        }
        panic!("no frame came on any pair");
    }

    /// A frame on `pair` if one is there.
    pub fn try_recv(&mut self, pair: usize) -> Option<(NetHdr, Vec<u8>)> {
        let header = NetHdr::len_for(self.features);
        let bytes = self.pairs[pair].rx.take_received()?;
        let hdr = NetHdr::from_bytes(&bytes[..header]);
        check_header(&hdr, self.features, bytes.len() - header);
        Some((hdr, bytes[header..].to_vec()))
    }
}

/// Panics if a received header says what the driver did not negotiate (virtio 1.2, 5.1.6.4.1), or
/// what makes no sense.
pub fn check_header(hdr: &NetHdr, features: u64, frame_len: usize) {
    let has = |bit: u64| features & bit != 0;
    let flags = hdr.flags;
    assert!(
        flags & !(spec::HDR_NEEDS_CSUM | spec::HDR_DATA_VALID) == 0,
        "unknown header flags: {hdr:?}"
    );
    assert!(flags == 0 || has(spec::GUEST_CSUM), "GUEST_CSUM: {hdr:?}");
    let allowed = match hdr.gso_type & !spec::GSO_ECN {
        spec::GSO_NONE => hdr.gso_type == spec::GSO_NONE,
        spec::GSO_TCPV4 => has(spec::GUEST_TSO4),
        spec::GSO_TCPV6 => has(spec::GUEST_TSO6),
        spec::GSO_UDP_L4 => has(spec::GUEST_USO4) || has(spec::GUEST_USO6),
        _ => false,
    };
    assert!(allowed, "gso_type was not negotiated: {hdr:?}");
    assert!(
        hdr.gso_type & spec::GSO_ECN == 0 || has(spec::GUEST_ECN),
        "GUEST_ECN: {hdr:?}"
    );
    if hdr.gso_type != spec::GSO_NONE {
        assert_ne!(hdr.gso_size, 0, "{hdr:?}");
        assert_ne!(flags & spec::HDR_NEEDS_CSUM, 0, "{hdr:?}");
    }
    if flags & spec::HDR_NEEDS_CSUM != 0 {
        let field = usize::from(hdr.csum_start) + usize::from(hdr.csum_offset);
        assert!(field + 2 <= frame_len, "checksum outside: {hdr:?}");
    }
    if has(spec::VERSION_1) && !has(spec::MRG_RXBUF) {
        assert_eq!(hdr.num_buffers, 1, "without MRG_RXBUF: {hdr:?}");
    }
}
