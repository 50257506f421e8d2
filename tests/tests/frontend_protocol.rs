//! Messages nobody should send.

use std::os::fd::AsFd;

use anyhow::{Result, ensure};
use tandem_tests::frontend::driver::{Config, Nic};
use tandem_tests::frontend::frames::{mac, number_of, numbered};
use tandem_tests::frontend::memory::new_memfd;
use tandem_tests::frontend::rig::Rig;
use tandem_tests::frontend::session::{Order, Session};
use tandem_tests::frontend::wire::{NEED_REPLY, header, request};

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
            request::CHECK_DEVICE_STATE,
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
                let _ = session.wire().stream().shutdown(std::net::Shutdown::Write);
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
