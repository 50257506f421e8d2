//! The bytes of a state; how they are laid out is in the module above.

use std::net::IpAddr;

use super::{
    Counters, Identity, LearnedAddress, Mac, Neighbour, PairCounters, PortCounters, PortState,
    StateError,
};

/// The newest version of the format.
pub(super) const FORMAT: u16 = 1;

const MAGIC: &[u8; 8] = b"TNDMPORT";
/// Bytes before the first section, and of the checksum behind the last.
const HEADER_LEN: usize = 16;
const CHECKSUM_LEN: usize = 4;
/// Flag of a section: whoever does not know it must refuse the state.
const CRITICAL: u16 = 1;

/// The names of the sections.
pub(super) const IDENTITY: &str = "identity";
pub(super) const COUNTERS: &str = "counters";
pub(super) const ADDRESSES: &str = "addresses";
pub(super) const NEIGHBOURS: &str = "neighbours";

/// A kind of section that is known.
struct Kind {
    id: u16,
    name: &'static str,
    /// The version that is written, and the newest that is read.
    version: u16,
    flags: u16,
    write: fn(&PortState, &mut Writer) -> bool,
    read: fn(&mut Reader<'_>, &mut PortState) -> Option<()>,
}

const KINDS: [Kind; 4] = [
    Kind {
        id: 1,
        name: IDENTITY,
        version: 1,
        flags: CRITICAL,
        write: |state, out| {
            write_identity(&state.identity, out);
            true
        },
        read: |section, state| {
            state.identity = read_identity(section)?;
            Some(())
        },
    },
    Kind {
        id: 2,
        name: COUNTERS,
        version: 1,
        flags: 0,
        write: |state, out| {
            let counters = state.counters.as_ref();
            counters.map(|c| write_port_counters(c, out)).is_some()
        },
        read: |section, state| {
            state.counters = Some(read_port_counters(section)?);
            Some(())
        },
    },
    Kind {
        id: 3,
        name: ADDRESSES,
        version: 1,
        flags: 0,
        write: |state, out| {
            write_list(&state.addresses, out, write_address);
            true
        },
        read: |section, state| {
            state.addresses = read_list(section, read_address)?;
            Some(())
        },
    },
    Kind {
        id: 4,
        name: NEIGHBOURS,
        version: 1,
        flags: 0,
        write: |state, out| {
            write_list(&state.neighbours, out, write_neighbour);
            true
        },
        read: |section, state| {
            state.neighbours = read_list(section, read_neighbour)?;
            Some(())
        },
    },
];

/// The bytes of a state within the limits.
pub(super) fn encode(state: &PortState) -> Vec<u8> {
    let (mut count, mut sections) = (0u16, Writer::default());
    for kind in &KINDS {
        let mut body = Writer::default();
        if !(kind.write)(state, &mut body) {
            continue;
        }
        count += 1;
        for field in [kind.id, kind.version, kind.flags] {
            sections.u16(field);
        }
        sections.u32(body.0.len() as u32);
        sections.bytes(&body.0);
    }
    let len = HEADER_LEN + sections.0.len() + CHECKSUM_LEN;
    let mut out = Writer::default();
    out.bytes(MAGIC);
    out.u16(FORMAT);
    out.u16(count);
    out.u32(len as u32);
    out.bytes(&sections.0);
    let checksum = crc32fast::hash(&out.0);
    out.u32(checksum);
    out.0
}

/// Reads a state; what it says is still to be judged.
pub(super) fn decode(bytes: &[u8]) -> Result<PortState, StateError> {
    let (count, sections) = open(bytes)?;
    let mut rest = Reader(sections);
    let mut state = PortState::default();
    let mut seen = [0usize; KINDS.len()];
    for _ in 0..count {
        let section = next_section(&mut rest).ok_or(OUTSIDE)?;
        let Some(at) = KINDS.iter().position(|kind| kind.id == section.id) else {
            if section.flags & CRITICAL != 0 {
                return Err(StateError::UnknownSection(section.id));
            }
            continue;
        };
        seen[at] += 1;
        read_section(&KINDS[at], section, &mut state)?;
    }
    if !rest.0.is_empty() {
        return Err(OUTSIDE);
    }
    for (kind, times) in KINDS.iter().zip(seen) {
        if times > 1 || (times == 0 && kind.flags & CRITICAL != 0) {
            let section = kind.name;
            return Err(StateError::Times { section, times });
        }
    }
    Ok(state)
}

/// The sections do not fill the space between header and checksum.
const OUTSIDE: StateError = StateError::Malformed {
    section: "sections",
    what: "their lengths do not add up",
};

/// Looks at what surrounds the sections: their number, and their bytes.
fn open(bytes: &[u8]) -> Result<(u16, &[u8]), StateError> {
    let arrived = bytes.len();
    let Some(mut header) = bytes.strip_prefix(MAGIC).map(Reader) else {
        // Of nothing at all it cannot be said that it was something else.
        if MAGIC.starts_with(bytes) {
            return Err(StateError::Cut {
                said: HEADER_LEN,
                arrived,
            });
        }
        return Err(StateError::NotAState);
    };
    let mut fields = || Some((header.u16()?, header.u16()?, header.u32()?));
    let (format, count, said) = fields().ok_or(StateError::Cut {
        said: HEADER_LEN,
        arrived,
    })?;
    match format {
        0 => return Err(StateError::NotAState),
        1..=FORMAT => {}
        _ => return Err(StateError::NewerFormat(format)),
    }
    let said = said as usize;
    let inside = bytes.get(HEADER_LEN..arrived.saturating_sub(CHECKSUM_LEN));
    let Some(sections) = inside.filter(|_| said == arrived) else {
        return Err(StateError::Cut { said, arrived });
    };
    let (content, checksum) = bytes.split_at(arrived - CHECKSUM_LEN);
    if checksum != crc32fast::hash(content).to_le_bytes() {
        return Err(StateError::Damaged);
    }
    Ok((count, sections))
}

struct Section<'a> {
    id: u16,
    version: u16,
    flags: u16,
    body: &'a [u8],
}

fn next_section<'a>(rest: &mut Reader<'a>) -> Option<Section<'a>> {
    Some(Section {
        id: rest.u16()?,
        version: rest.u16()?,
        flags: rest.u16()?,
        body: {
            let len = rest.u32()?;
            rest.take(len as usize)?
        },
    })
}

fn read_section(kind: &Kind, found: Section<'_>, into: &mut PortState) -> Result<(), StateError> {
    let section = kind.name;
    if found.version > kind.version {
        return Err(StateError::NewerSection {
            section,
            version: found.version,
            known: kind.version,
        });
    }
    let mut body = Reader(found.body);
    let read = (kind.read)(&mut body, into);
    if read.is_none() || !body.0.is_empty() || found.version == 0 {
        let what = "they are not what their version says";
        return Err(StateError::Malformed { section, what });
    }
    Ok(())
}

fn write_identity(identity: &Identity, out: &mut Writer) {
    out.name(&identity.name);
    out.bool(identity.mac.is_some());
    out.bytes(&identity.mac.unwrap_or_default());
    out.u32(identity.feature_level);
    out.u16(identity.queue_pairs);
    out.u16(identity.mtu);
}

fn read_identity(section: &mut Reader<'_>) -> Option<Identity> {
    Some(Identity {
        name: section.name()?,
        mac: {
            let (known, mac) = (section.bool()?, section.mac()?);
            // Each state has one form only.
            if !known && mac != [0; 6] {
                return None;
            }
            known.then_some(mac)
        },
        feature_level: section.u32()?,
        queue_pairs: section.u16()?,
        mtu: section.u16()?,
    })
}

fn write_port_counters(counters: &PortCounters, out: &mut Writer) {
    write_counters(&counters.switch, out);
    write_list(&counters.pairs, out, |pair, out| {
        write_counters(&pair.from_vm, out);
        write_counters(&pair.to_vm, out);
        out.u64(pair.kicks);
        out.u64(pair.calls);
    });
}

fn read_port_counters(section: &mut Reader<'_>) -> Option<PortCounters> {
    Some(PortCounters {
        switch: read_counters(section)?,
        pairs: read_list(section, |section| {
            Some(PairCounters {
                from_vm: read_counters(section)?,
                to_vm: read_counters(section)?,
                kicks: section.u64()?,
                calls: section.u64()?,
            })
        })?,
    })
}

fn write_counters(counters: &Counters, out: &mut Writer) {
    out.u64(counters.frames);
    out.u64(counters.bytes);
    write_list(&counters.drops, out, |(reason, frames), out| {
        out.name(reason);
        out.u64(*frames);
    });
}

fn read_counters(section: &mut Reader<'_>) -> Option<Counters> {
    Some(Counters {
        frames: section.u64()?,
        bytes: section.u64()?,
        drops: read_list(section, |section| Some((section.name()?, section.u64()?)))?,
    })
}

fn write_address(address: &LearnedAddress, out: &mut Writer) {
    out.bytes(&address.mac);
    out.u16(address.vlan);
}

fn read_address(section: &mut Reader<'_>) -> Option<LearnedAddress> {
    Some(LearnedAddress {
        mac: section.mac()?,
        vlan: section.u16()?,
    })
}

fn write_neighbour(neighbour: &Neighbour, out: &mut Writer) {
    match neighbour.ip {
        IpAddr::V4(ip) => {
            out.u8(4);
            out.bytes(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.u8(6);
            out.bytes(&ip.octets());
        }
    }
    out.bytes(&neighbour.mac);
    out.u16(neighbour.vlan.unwrap_or(0));
    out.bool(neighbour.router);
}

fn read_neighbour(section: &mut Reader<'_>) -> Option<Neighbour> {
    Some(Neighbour {
        ip: match section.u8()? {
            4 => section.array::<4>()?.into(),
            6 => section.array::<16>()?.into(),
            _ => return None,
        },
        mac: section.mac()?,
        vlan: Some(section.u16()?).filter(|vlan| *vlan != 0),
        router: section.bool()?,
    })
}

/// A list: its length in 16 bits, which the limits keep it below, then its elements.
fn write_list<T>(list: &[T], out: &mut Writer, each: impl Fn(&T, &mut Writer)) {
    out.u16(list.len() as u16);
    list.iter().for_each(|element| each(element, out));
}

/// No room is made before an element is there: a length alone costs nothing.
fn read_list<'a, T>(
    section: &mut Reader<'a>,
    each: impl Fn(&mut Reader<'a>) -> Option<T>,
) -> Option<Vec<T>> {
    let len = section.u16()?;
    (0..len).map(|_| each(section)).collect()
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn u8(&mut self, n: u8) {
        self.0.push(n);
    }

    fn bool(&mut self, b: bool) {
        self.u8(b.into());
    }

    fn u16(&mut self, n: u16) {
        self.bytes(&n.to_le_bytes());
    }

    fn u32(&mut self, n: u32) {
        self.bytes(&n.to_le_bytes());
    }

    fn u64(&mut self, n: u64) {
        self.bytes(&n.to_le_bytes());
    }

    /// A name, its length in 8 bits.
    fn name(&mut self, name: &str) {
        self.u8(name.len() as u8);
        self.bytes(name.as_bytes());
    }
}

/// What is still to be read. None: there is less than that, or something else.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn mac(&mut self) -> Option<Mac> {
        self.array()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn bool(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn name(&mut self) -> Option<String> {
        let len = self.u8()?;
        String::from_utf8(self.take(len.into())?.to_vec()).ok()
    }
}
