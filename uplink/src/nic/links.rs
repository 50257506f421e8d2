//! The links of the host's network devices, and what happens to them (rtnetlink(7)).
//!
//! Of a message only the few attributes that are needed are looked at: what newer kernels add, and what
//! drivers say of themselves, cannot make it unreadable.
//!
//! The kernel may tell of a carrier that comes and goes up to a second late, as it looks at most once a
//! second (`net/core/link_watch.c`); the first change after a quiet second is told at once.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::Mac;

/// The longest datagram the kernel makes of a dump (netlink(7)).
const ROOM: usize = 32 << 10;
/// A dump that was disturbed by a change is begun anew; so often.
const DUMPS: usize = 16;

/// The kernel, as an address.
const KERNEL: SocketAddrNetlink = SocketAddrNetlink::new(0, 0);
/// Bytes of `struct nlmsghdr`, and of `struct ifinfomsg` behind it.
const HEADER_LEN: usize = 16;
const INFO_LEN: usize = 16;
/// Bytes of `struct rtattr`.
const ATTRIBUTE_LEN: usize = 4;
/// Messages and attributes begin at multiples of this (`NLMSG_ALIGNTO`, `RTA_ALIGNTO`).
const ALIGN: usize = 4;
/// Kinds of messages (`linux/netlink.h`).
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The dump is of no one moment (`linux/netlink.h`).
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Attributes (`linux/if_link.h`).
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_OPERSTATE: u16 = 16;
/// Attributes have two flags in their type (`NLA_TYPE_MASK` of `linux/netlink.h`).
const TYPE_MASK: u16 = 0x3fff;
/// States of a link (RFC 2863; `linux/if.h`).
const IF_OPER_UNKNOWN: u8 = 0;
const IF_OPER_UP: u8 = 6;

/// A network device of the host, and its link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number of the device: one that is removed and made again has another.
    pub index: u32,
    /// Its name, which may change.
    pub name: String,
    /// It is set up (`IFF_UP`).
    pub up: bool,
    /// The other end is there: `IFF_LOWER_UP`, and an operational state of up or unknown.
    pub carrier: bool,
    /// Bytes of the largest packet.
    pub mtu: u32,
    /// Its address; zero if it has none, or one of another kind.
    pub mac: Mac,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// The device is new, or something of it may have changed.
    Changed(Link),
    /// The device is gone from this network: removed, or moved into another namespace.
    Removed {
        /// Its number.
        index: u32,
        /// The name it had last.
        name: String,
    },
    /// Events were lost, as too many came at once: to be asked for with [`Links::all`].
    Lost,
}

/// The events of all links of the network namespace it is opened in.
#[derive(Debug)]
pub struct Links {
    socket: OwnedFd,
    room: Vec<u8>,
    events: VecDeque<LinkEvent>,
}

impl Links {
    /// Starts to listen; takes no privilege. What is asked for with [`Links::all`] afterwards misses
    /// nothing: a change that is not in it will be an event.
    ///
    /// # Errors
    /// Of `socket(2)` and `bind(2)`.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            socket: open_socket(libc::RTMGRP_LINK as u32)?,
            room: vec![0; ROOM],
            events: VecDeque::new(),
        })
    }

    /// All links as they are now. Events that come later may be of before.
    ///
    /// # Errors
    /// Of `socket(2)`, `sendto(2)` and `recvfrom(2)`; `Interrupted` when links change all the time.
    pub fn all(&self) -> io::Result<Vec<Link>> {
        // A socket of its own, which gets no events.
        let socket = open_socket(0)?;
        for sequence in 1..=DUMPS as u32 {
            if let Some(links) = dump(&socket, sequence)? {
                return Ok(links);
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    /// The next event; none if there is none now.
    ///
    /// # Errors
    /// Of `recvfrom(2)`.
    pub fn next_event(&mut self) -> io::Result<Option<LinkEvent>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            let received = match receive(&self.socket, &mut self.room) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return Ok(None),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.discard()?;
                    return Ok(Some(LinkEvent::Lost));
                }
                Err(e) => return Err(e),
            };
            let events = Messages(received).filter_map(|message| event_of(&message));
            self.events.extend(events);
        }
    }

    /// Discards what came before events were lost: it would be taken for news after a dump.
    fn discard(&mut self) -> io::Result<()> {
        loop {
            match receive(&self.socket, &mut self.room) {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl AsFd for Links {
    /// Readable when there are events.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The speed of the device `name` in bit/s; none if there is no such device, or it does not know, such
/// as without a carrier. That of a veth or TAP device is fiction.
pub fn speed(name: &str) -> Option<u64> {
    // Names come from a configuration, and have to stay within the directory.
    if name.is_empty() || name == "." || name == ".." || name.contains('/') {
        return None;
    }
    let path = Path::new("/sys/class/net").join(name).join("speed");
    parse_speed(&std::fs::read_to_string(path).ok()?)
}

/// What the kernel writes: Mbit/s, or -1 (`SPEED_UNKNOWN`), which some have written without its sign.
fn parse_speed(text: &str) -> Option<u64> {
    let megabits: u32 = text.trim_end().parse().ok()?;
    (megabits != 0 && megabits != u32::MAX).then(|| u64::from(megabits) * 1_000_000)
}

fn open_socket(groups: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // NETLINK_ROUTE is 0, which is the protocol when none is named.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// The next datagram of the kernel; none if there is none now. One that did not fit is lost (`ENOBUFS`).
fn receive<'a>(socket: &OwnedFd, room: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
    let len = loop {
        let (_, len, from) = match rustix::net::recvfrom(socket, &mut *room, RecvFlags::TRUNC) {
            Ok(received) => received,
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        };
        // Root could write to the socket as well.
        let from = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
        if from.is_some_and(|from| from.pid() == KERNEL.pid()) {
            break len;
        }
    };
    match room.get(..len) {
        Some(bytes) => Ok(Some(bytes)),
        None => Err(Errno::NOBUFS.into()),
    }
}

/// Asks for all links; none if they changed meanwhile.
fn dump(socket: &OwnedFd, sequence: u32) -> io::Result<Option<Vec<Link>>> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let mut request = [0; HEADER_LEN + INFO_LEN];
    request[..4].copy_from_slice(&((HEADER_LEN + INFO_LEN) as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    request[6..8].copy_from_slice(&flags.to_ne_bytes());
    request[8..12].copy_from_slice(&sequence.to_ne_bytes());
    rustix::net::sendto(socket, &request, SendFlags::empty(), &KERNEL)?;
    let (mut links, mut room) = (Vec::new(), vec![0; ROOM]);
    let mut disturbed = false;
    loop {
        // The kernel has the first answer ready, and with each that is taken the next.
        let bytes = receive(socket, &mut room)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        for message in Messages(bytes).filter(|message| message.sequence == sequence) {
            disturbed |= message.flags & NLM_F_DUMP_INTR != 0;
            match message.kind {
                NLMSG_DONE | NLMSG_ERROR => {
                    status(&message)?;
                    return Ok((!disturbed).then_some(links));
                }
                _ => links.extend(link_of(&message)),
            }
        }
    }
}

/// What a message that ends a dump begins with: zero, or a negative errno.
fn status(message: &Message<'_>) -> io::Result<()> {
    match message
        .body
        .first_chunk()
        .map(|code| i32::from_ne_bytes(*code))
    {
        Some(code) if code < 0 => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Ok(()),
    }
}

/// One message (`struct nlmsghdr`).
#[derive(Clone, Copy)]
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The messages of a datagram, up to the first that is not whole.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let len = u32::from_ne_bytes(*self.0.first_chunk()?) as usize;
        let message = self.0.get(..len)?;
        let body = message.get(HEADER_LEN..)?;
        self.0 = self
            .0
            .get(len.next_multiple_of(ALIGN)..)
            .unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([message[4], message[5]]),
            flags: u16::from_ne_bytes([message[6], message[7]]),
            sequence: u32::from_ne_bytes([message[8], message[9], message[10], message[11]]),
            body,
        })
    }
}

/// The attributes of a message, up to the first that is not whole: their types and values.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let [a, b, c, d] = *self.0.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = self.0.get(ATTRIBUTE_LEN..len)?;
        self.0 = self
            .0
            .get(len.next_multiple_of(ALIGN)..)
            .unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & TYPE_MASK, value))
    }
}

fn event_of(message: &Message<'_>) -> Option<LinkEvent> {
    let link = link_of(message)?;
    Some(match message.kind {
        libc::RTM_DELLINK => LinkEvent::Removed {
            index: link.index,
            name: link.name,
        },
        _ => LinkEvent::Changed(link),
    })
}

/// The link that a message is about, if it is about one.
fn link_of(message: &Message<'_>) -> Option<Link> {
    let info: &[u8; INFO_LEN] = message.body.first_chunk()?;
    // A bridge tells of its ports with the same messages, as a family of its own: a port that left
    // the bridge is not removed.
    let is_link = matches!(message.kind, libc::RTM_NEWLINK | libc::RTM_DELLINK);
    if !is_link || info[0] != libc::AF_UNSPEC as u8 {
        return None;
    }
    let word = |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    let flags = word(8);
    let has = |flag: i32| flags & flag as u32 != 0;
    let mut state = IF_OPER_UNKNOWN;
    let mut link = Link {
        index: word(4),
        name: String::new(),
        up: has(libc::IFF_UP),
        carrier: false,
        mtu: 0,
        mac: Mac::default(),
    };
    for (kind, value) in Attributes(&message.body[INFO_LEN..]) {
        match (kind, value) {
            (IFLA_IFNAME, [name @ .., 0]) => link.name = String::from_utf8_lossy(name).into_owned(),
            (IFLA_MTU, &[a, b, c, d]) => link.mtu = u32::from_ne_bytes([a, b, c, d]),
            (IFLA_ADDRESS, &[a, b, c, d, e, f]) => link.mac = Mac([a, b, c, d, e, f]),
            (IFLA_OPERSTATE, &[value]) => state = value,
            _ => {}
        }
    }
    link.carrier = has(libc::IFF_LOWER_UP) && matches!(state, IF_OPER_UNKNOWN | IF_OPER_UP);
    (!link.name.is_empty()).then_some(link)
}

#[cfg(test)]
#[path = "links_tests.rs"]
mod tests;
