//! What is measured: one way to load a switch.

/// Where the guests' frames come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// testpmd `flowgen`: every port sends as fast as it can and counts what it gets. The cheapest
    /// guests, but all frames have the same two MAC addresses, so that a switch floods them to the
    /// one other port.
    Generate,
    /// Frames from a file, with the addresses of the VMs, copied into fresh buffers by the sender.
    Replay,
    /// Frames that bounce between two VMs which swap the addresses: a fixed number in flight.
    Bounce,
    /// As `Bounce`, but every VM exchanges its frames with the last one: many senders to one
    /// receiver, and no more frames than its ring has room for.
    Star,
    /// As `Replay`, but every port sends to the last one, which only receives, as much as it can:
    /// overload. testpmd takes one burst from each queue in turn, so that a receiver gets no more
    /// than one of each eight that are sent, whatever the switch does.
    Incast,
}

/// Lengths of frames, without the check sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// All alike.
    Bytes(usize),
    /// The simple Internet mix: 7 of 64 bytes, 4 of 570, 1 of 1500.
    Mix,
}

impl Size {
    /// One period of lengths.
    pub fn pattern(self) -> Vec<usize> {
        match self {
            Size::Bytes(bytes) => vec![bytes],
            Size::Mix => vec![64, 570, 64, 64, 570, 64, 1500, 64, 570, 64, 570, 64],
        }
    }

    /// Mean length in bytes.
    pub fn mean(self) -> f64 {
        let pattern = self.pattern();
        pattern.iter().sum::<usize>() as f64 / pattern.len() as f64
    }
}

/// One way to load a switch.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Unique; also its key in the JSON.
    pub name: &'static str,
    /// Where frames come from.
    pub load: Load,
    /// Their length.
    pub size: Size,
    /// Flows of each port.
    pub flows: usize,
    /// Ports of the switch, all connected.
    pub ports: usize,
    /// Queue pairs of each.
    pub pairs: usize,
    /// Packed rings, else split.
    pub packed: bool,
    /// IN_ORDER is negotiated.
    pub in_order: bool,
    /// MRG_RXBUF is negotiated.
    pub mergeable: bool,
    /// The guests sum up every byte that they send and receive (`Replay` only).
    pub touched: bool,
}

impl Cell {
    /// Two VMs, 64 B, 1024 flows, split rings, everything negotiated.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            load: Load::Generate,
            size: Size::Bytes(64),
            flows: 1024,
            ports: 2,
            pairs: 1,
            packed: false,
            in_order: true,
            mergeable: true,
            touched: false,
        }
    }

    /// With frames of so many bytes.
    pub const fn bytes(mut self, bytes: usize) -> Self {
        self.size = Size::Bytes(bytes);
        self
    }

    /// With the Internet mix.
    pub const fn mix(mut self) -> Self {
        self.size = Size::Mix;
        self
    }

    /// With so many flows.
    pub const fn flows(mut self, flows: usize) -> Self {
        self.flows = flows;
        self
    }

    /// With so many ports.
    pub const fn ports(mut self, ports: usize) -> Self {
        self.ports = ports;
        self
    }

    /// With so many queue pairs.
    pub const fn pairs(mut self, pairs: usize) -> Self {
        self.pairs = pairs;
        self
    }

    /// With packed rings.
    pub const fn packed(mut self) -> Self {
        self.packed = true;
        self
    }

    /// Without IN_ORDER, as under QEMU.
    pub const fn any_order(mut self) -> Self {
        self.in_order = false;
        self
    }

    /// Without MRG_RXBUF.
    pub const fn not_mergeable(mut self) -> Self {
        self.mergeable = false;
        self
    }

    /// With frames from elsewhere.
    pub const fn load(mut self, load: Load) -> Self {
        self.load = load;
        self
    }

    /// With guests that read what they get.
    pub const fn touched(mut self) -> Self {
        self.touched = true;
        self
    }

    /// Whether frames carry the MAC addresses of the VMs.
    pub fn real_addresses(&self) -> bool {
        self.load != Load::Generate
    }
}
