//! A street with a bad neighbour: what a hostile VM does to others.

use anyhow::Result;
use serde_json::Value;

use super::driver::{Config, Nic};
use super::frames::{BROADCAST, mac, number_of, numbered};
use super::rig::Rig;
use super::spec;

/// The address of the VM on the hostile port.
pub const A: [u8; 6] = mac(1);
/// The address of a neighbour.
pub const C: [u8; 6] = mac(3);
/// The address of the other.
pub const D: [u8; 6] = mac(4);

/// Two good neighbours on the same switch as the hostile port `a`.
pub struct Street {
    /// The daemon.
    pub rig: Rig,
    /// A neighbour.
    pub c: Nic,
    /// Another.
    pub d: Nic,
    /// The hostile port may send frames like any other: they are passed over.
    pub noisy: bool,
    sent: u64,
}

impl Street {
    /// Starts it, with nobody on `a`.
    pub fn new() -> Result<Self> {
        // Addresses known from the start, so that nothing between them is flooded.
        let rig = Rig::new(&["a", "c,mac=52:54:00:00:00:03", "d,mac=52:54:00:00:00:04"])?;
        let config = Config::with(spec::MRG_RXBUF | spec::EVENT_IDX);
        let c = rig.nic("c", &config)?;
        let d = rig.nic("d", &config)?;
        Ok(Street {
            rig,
            c,
            d,
            noisy: false,
            sent: 0,
        })
    }

    /// The neighbours talk, and hear only each other.
    pub fn still_quiet(&mut self) {
        for _ in 0..20 {
            self.sent += 1;
            self.c.send_plain(&numbered(C, D, self.sent));
            assert_eq!(hear(&mut self.d, self.noisy), numbered(C, D, self.sent));
            self.d.send_plain(&numbered(D, C, self.sent));
            assert_eq!(hear(&mut self.c, self.noisy), numbered(D, C, self.sent));
        }
    }

    /// A broadcast that the port under attack is meant to receive too.
    pub fn knock(&mut self) {
        self.sent += 1;
        self.c.send_plain(&numbered(C, BROADCAST, self.sent));
        assert_eq!(number_of(&hear(&mut self.d, self.noisy)), self.sent);
    }

    /// Waits until port `a` no longer carries frames, with a reason that has `word` in it.
    pub fn wait_down(&self, word: &str) -> Result<Value> {
        self.rig
            .wait_port("a", &format!("should be down: {word}"), |port| {
                let reason = port["reason"].as_str().unwrap_or_default().to_lowercase();
                port["state"] == "down" && reason.contains(word)
            })
    }

    /// A fresh VM on the port works: nothing of the attack stays.
    pub fn next_tenant(&mut self) -> Result<()> {
        self.rig.wait_disconnected("a")?;
        let mut a = self.rig.nic("a", &Config::default())?;
        // The neighbours' broadcasts may have been kept from nobody: ask for an answer.
        a.send_plain(&numbered(A, C, u64::MAX));
        while number_of(&self.c.recv().1) != u64::MAX {}
        self.c.send_plain(&numbered(C, A, 1));
        while number_of(&a.recv().1) != 1 {}
        Ok(())
    }
}

/// The next frame; with `noisy` the next from a good neighbour. Nobody else can have their address.
fn hear(nic: &mut Nic, noisy: bool) -> Vec<u8> {
    loop {
        let (_, frame) = nic.recv();
        if !noisy || [C, D].iter().any(|good| frame[6..12] == good[..]) {
            return frame;
        }
    }
}
