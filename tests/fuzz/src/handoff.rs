//! What comes from another host in a migration: a port's state, frames that follow the VM, the plan of its move.

use tandem_migration::frames;
use tandem_migration::peer::Plan;
use tandem_migration::state::PortState;

use crate::Input;

/// Bytes of a state around its sections, and where its length stands.
const ENDS: usize = 20;
const LENGTH: std::ops::Range<usize> = 12..16;
const MAGIC: &[u8] = b"TNDMPORT";

/// What it is, and its bytes. What is taken says the same when it is written again.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.u8();
    let bytes = input.rest();
    match kind % 4 {
        0 => state(bytes),
        // Nothing else gets past the checksum.
        1 => state(&sealed(bytes)),
        2 => following(bytes),
        _ => plan(bytes),
    }
}

fn state(bytes: &[u8]) {
    let Ok(state) = PortState::try_from(bytes) else {
        return;
    };
    let again = state.to_bytes().expect("what was read can be written");
    assert_eq!(PortState::try_from(&again[..]).as_ref(), Ok(&state));
}

/// With the beginning, the length and the checksum that these sections have to have.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().max(ENDS), 0);
    bytes[..MAGIC.len()].copy_from_slice(MAGIC);
    let len = bytes.len();
    bytes[LENGTH].copy_from_slice(&(len as u32).to_le_bytes());
    let sum = crc32fast::hash(&bytes[..len - 4]);
    bytes[len - 4..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn following(bytes: &[u8]) {
    let Ok(all) = frames::all(bytes) else {
        return;
    };
    let mut again = Vec::new();
    for (header, frame) in &all {
        frames::add(&mut again, header, frame.len(), |room| {
            room.copy_from_slice(frame);
        });
    }
    assert_eq!(again, bytes);
}

fn plan(bytes: &[u8]) {
    let Ok(plan) = serde_json::from_slice::<Plan>(bytes) else {
        return;
    };
    let again = serde_json::to_vec(&plan).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<Plan>(&again).ok(), Some(plan));
}
