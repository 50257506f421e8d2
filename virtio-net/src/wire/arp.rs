//! ARP for IPv4 over Ethernet (RFC 826).

use std::net::Ipv4Addr;

use super::ethernet::{MacAddr, TYPE_IPV4};
use super::{Error, Result, split};

/// Bytes of a packet.
pub const PACKET_LEN: usize = 28;
/// Hardware type of Ethernet (RFC 826, ar$hrd).
pub const HARDWARE_ETHERNET: u16 = 1;
/// Operation: request (RFC 826, ares_op$REQUEST).
pub const REQUEST: u16 = 1;
/// Operation: reply (RFC 826, ares_op$REPLY).
pub const REPLY: u16 = 2;
/// Operation: request reverse (RFC 903).
pub const REQUEST_REVERSE: u16 = 3;
/// Operation: reply reverse (RFC 903).
pub const REPLY_REVERSE: u16 = 4;

/// A view of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    packet: &'a [u8; PACKET_LEN],
}

impl<'a> Packet<'a> {
    /// Checks that `bytes` hold a packet for IPv4 over Ethernet; padding may follow.
    ///
    /// # Errors
    /// [`Error::Malformed`] for other types or address lengths, [`Error::Truncated`] when bytes
    /// lack.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self> {
        let (packet, _) = split(bytes)?;
        let this = Self { packet };
        let fixed = (this.u16_at::<0>(), this.u16_at::<2>(), packet[4], packet[5]);
        if fixed == (HARDWARE_ETHERNET, TYPE_IPV4, 6, 4) {
            Ok(this)
        } else {
            Err(Error::Malformed)
        }
    }

    #[inline]
    fn u16_at<const AT: usize>(&self) -> u16 {
        u16::from_be_bytes([self.packet[AT], self.packet[AT + 1]])
    }

    #[inline]
    fn mac_at<const AT: usize>(&self) -> MacAddr {
        MacAddr(std::array::from_fn(|i| self.packet[AT + i]))
    }

    #[inline]
    fn ip_at<const AT: usize>(&self) -> Ipv4Addr {
        Ipv4Addr::from(std::array::from_fn::<u8, 4, _>(|i| self.packet[AT + i]))
    }

    /// The operation.
    #[inline]
    pub fn operation(&self) -> u16 {
        self.u16_at::<6>()
    }

    /// The sender's MAC address.
    #[inline]
    pub fn sender_mac(&self) -> MacAddr {
        self.mac_at::<8>()
    }

    /// The sender's IP address.
    #[inline]
    pub fn sender_ip(&self) -> Ipv4Addr {
        self.ip_at::<14>()
    }

    /// The target's MAC address.
    #[inline]
    pub fn target_mac(&self) -> MacAddr {
        self.mac_at::<18>()
    }

    /// The target's IP address.
    #[inline]
    pub fn target_ip(&self) -> Ipv4Addr {
        self.ip_at::<24>()
    }
}
