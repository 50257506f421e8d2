//! Messages nobody should send.

use std::os::fd::AsFd;

use anyhow::{Result, ensure};
use rustix::event::{EventfdFlags, eventfd};
use tandem_tests::frontend::driver::{Config, Nic};
use tandem_tests::frontend::frames::{mac, number_of, numbered};
use tandem_tests::frontend::memory::new_memfd;
use tandem_tests::frontend::rig::Rig;
use tandem_tests::frontend::session::{Order, Session};
use tandem_tests::frontend::wire::{NEED_REPLY, PATIENCE, header, request};

const A: [u8; 6] = mac(1);
const B: [u8; 6] = mac(2);

/// A frame each way, told from all others by `number`.
fn ping(a: &mut Nic, b: &mut Nic, number: u64) {
    a.send_plain(&numbered(A, B, number));
    assert_eq!(number_of(&b.recv().1), number, "to b");
    b.send_plain(&numbered(B, A, number));
    assert_eq!(number_of(&a.recv().1), number, "to a");
}

/// Requests nobody supports are refused in words of the protocol; the session goes on.
#[test]
fn unsupported_requests_are_answered() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    let mut b = rig.nic("b", &Config::default())?;
    for order in [Order::Qemu10, Order::CloudHypervisor] {
        let config = Config {
            order,
            ..Config::default()
        };
        let mut a = rig.nic("a", &config)?;
        for code in [
            request::SEND_RARP,
            request::NET_SET_MTU,
            request::SET_BACKEND_REQ_FD,
            request::IOTLB_MSG,
            request::SET_VRING_ENDIAN,
            request::RESET_DEVICE,
            request::VRING_KICK,
            request::SET_STATUS,
            33,
            99,
        ] {
            let wire = a.session()?.wire();
            let reply = wire.ask(code, NEED_REPLY, &[0; 8])?;
            ensure!(reply.number()? != 0, "request {code} was not refused");
            // And without the wish for an answer: silence.
            wire.send(code, 0, &[0; 8], &[])?;
            a.session()?.sync()?;
            ping(&mut a, &mut b, u64::from(code));
        }
        // Requests that have an answer of their own get one, empty or zero.
        for code in [
            request::GET_STATUS,
            request::GET_INFLIGHT_FD,
            request::POSTCOPY_ADVISE,
            request::GET_SHARED_OBJECT,
        ] {
            a.session()?.wire().ask(code, 0, &[0; 24])?;
            a.session()?.sync()?;
            ping(&mut a, &mut b, u64::from(code));
        }
        drop(a);
        rig.wait_disconnected("a")?;
    }
    Ok(())
}

/// Says no more, and waits until the back-end has read all and closed its side.
fn hang_up(session: &mut Session) -> Result<()> {
    let stream = session.wire().stream().try_clone()?;
    // It may have closed already.
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answers = &stream;
    stream.set_read_timeout(Some(PATIENCE))?;
    let end = std::io::copy(&mut answers, &mut std::io::sink());
    ensure!(
        !matches!(&end, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock),
        "the back-end keeps a connection that has ended"
    );
    Ok(())
}

/// Messages that are no messages end their session at most; the neighbour does not notice.
#[test]
fn malformed_messages() -> Result<()> {
    let mut rig = Rig::new(&["a", "b", "c"])?;
    let mut b = rig.nic("b", &Config::default())?;
    let mut c = rig.nic("c", &Config::default())?;
    let file = new_memfd("x")?;
    let state = [&0u32.to_le_bytes()[..], &1u32.to_le_bytes()].concat();
    let message = |code: u32, flags: u32, size: u32, body: &[u8]| {
        [&header(code, flags, size)[..], body].concat()
    };
    let cases: Vec<Vec<u8>> = vec![
        message(request::GET_FEATURES, 0, 0, &[]),
        message(request::GET_FEATURES, 2, 0, &[]),
        message(request::GET_FEATURES, 1 | 4, 0, &[]),
        message(0, 1, 0, &[]),
        message(u32::MAX, 1, 0, &[]),
        message(request::SET_FEATURES, 1, u32::MAX, &[]),
        message(request::SET_FEATURES, 1, 4097, &[0; 4097]),
        message(request::SET_FEATURES, 1, 4, &[0; 4]),
        message(request::SET_FEATURES, 1, 16, &[0; 16]),
        message(request::SET_FEATURES, 1, 8, &[0xff; 8]),
        message(request::SET_MEM_TABLE, 1, 8, &[0xff; 8]),
        message(request::SET_MEM_TABLE, 1, 8, &[0; 8]),
        message(request::SET_MEM_TABLE, 1, 40, &[1; 40]),
        message(request::SET_VRING_NUM, 1, 8, &[0xff; 8]),
        message(request::SET_VRING_NUM, 1, 8, &[0, 0, 0, 0, 3, 0, 0, 0]),
        message(request::SET_VRING_NUM, 1, 8, &[0, 0, 0, 0, 0, 0, 0, 0]),
        message(request::SET_VRING_ADDR, 1, 40, &[0; 40]),
        message(request::SET_VRING_ADDR, 1, 40, &[0xff; 40]),
        message(request::SET_VRING_BASE, 1, 8, &[0xff; 8]),
        message(request::GET_VRING_BASE, 1, 8, &[0xff; 8]),
        message(request::SET_VRING_KICK, 1, 8, &[0; 8]),
        message(request::SET_VRING_CALL, 1, 8, &[0xff; 8]),
        message(request::SET_VRING_ENABLE, 1, 8, &[0xff; 8]),
        message(request::SET_VRING_ENABLE, 1, 8, &state),
        message(request::SET_LOG_BASE, 1, 16, &[0xff; 16]),
        message(request::SET_LOG_BASE, 1, 16, &[0; 16]),
        message(request::GET_CONFIG, 1, 12, &[0xff; 12]),
        message(request::SET_DEVICE_STATE_FD, 1, 8, &[0xff; 8]),
        message(request::REM_MEM_REG, 1, 40, &[0xff; 40]),
    ];
    let mut before = None;
    for round in 0..3 {
        for (i, bytes) in cases.iter().enumerate() {
            for descriptors in [0, 1, 30] {
                let mut session = Session::connect(&rig.socket("a"), Order::Qemu72, 1)?;
                let fds = vec![file.as_fd(); descriptors];
                // The other end may have hung up half way through.
                let _ = session.wire().send_bytes(bytes, &fds);
                hang_up(&mut session)?;
                drop(session);
                rig.wait_disconnected("a")?;
                ping(&mut b, &mut c, (100 * i + descriptors) as u64);
            }
        }
        if round == 0 {
            before = Some(rig.holdings()?);
        }
    }
    if let Some(before) = before {
        rig.back_to(&before)?;
    }
    let mut a = rig.nic("a", &Config::default())?;
    // The address B lives at c by now.
    ping(&mut a, &mut c, 1);
    rig.settled()?;
    Ok(())
}

/// Numbers from a seed (xorshift), the same on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// Messages of every kind in any order with nearly sensible contents, before and after a VM runs:
/// sessions end or go on, the neighbours talk on, and nothing is left behind.
#[test]
fn random_messages() -> Result<()> {
    let mut rig = Rig::new(&["a", "b", "c"])?;
    let mut b = rig.nic("b", &Config::default())?;
    let mut c = rig.nic("c", &Config::default())?;
    let mut random = Random(0x7461_6e64_656d);
    let config = Config {
        transmit: (4, 2048),
        ..Config::default()
    };
    let mut before = None;
    for round in 0..400 {
        let mut a = rig.nic("a", &config)?;
        if random.below(2) == 0 {
            a.session = Some(reconnected(&rig, &mut a)?);
        }
        let memfd = new_memfd("x")?;
        memfd_grow(&memfd)?;
        let event = eventfd(0, EventfdFlags::NONBLOCK)?;
        for _ in 0..8 {
            let code = random.below(46) as u32;
            let size = random.pick(&[0, 8, 8, 8, 16, 40, 40, 12, 24, 72]);
            let words = [
                0,
                1,
                2,
                3,
                64,
                256,
                0x100,
                0x1000,
                u64::MAX,
                1 << 30,
                1 << 32,
            ];
            let mut body = Vec::new();
            while body.len() < size {
                body.extend_from_slice(&random.pick(&words).to_le_bytes());
            }
            body.truncate(size);
            let flags = random.pick(&[0, NEED_REPLY]);
            let fds = [event.as_fd(), memfd.as_fd(), event.as_fd()];
            let fds = random.pick(&[&fds[..0], &fds[..1], &fds[1..2], &fds[..2]]);
            // It may have hung up already.
            let _ = a.session()?.wire().send(code, flags, &body, fds);
        }
        hang_up(a.session()?)?;
        drop(a);
        rig.wait_disconnected("a")?;
        ping(&mut b, &mut c, round);
        if round == 100 {
            before = Some(rig.holdings()?);
        }
    }
    if let Some(before) = before {
        rig.back_to(&before)?;
    }
    let mut a = rig.nic("a", &config)?;
    ping(&mut a, &mut c, 1);
    rig.settled()?;
    Ok(())
}

/// Gives the file a size, so that some of the regions offered can be mapped.
fn memfd_grow(memfd: &std::os::fd::OwnedFd) -> Result<()> {
    Ok(rustix::fs::ftruncate(memfd, 1 << 20)?)
}

/// A connection that has negotiated and started nothing.
fn reconnected(rig: &Rig, a: &mut Nic) -> Result<Session> {
    a.kill();
    rig.wait_disconnected("a")?;
    Session::connect(&rig.socket("a"), Order::Qemu10, 1)
}
