//! Capabilities (capabilities(7)).

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
};

/// Gives up all capabilities but those in `keep`, as far as they are there.
pub(super) fn keep(keep: CapabilitySet) -> io::Result<()> {
    let now = capabilities(None)?;
    // Without that right the set stays. It matters to a program that is executed, and none can
    // gain anything from it: no_new_privs.
    if now.effective.contains(CapabilitySet::SETPCAP) {
        bound(keep)?;
    }
    clear_ambient_capability_set()?;
    let kept = now.permitted & keep;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, sets)?)
}

/// Does something without the capabilities there are.
pub(super) fn without<T>(something: impl FnOnce() -> T) -> io::Result<T> {
    let now = capabilities(None)?;
    let none = CapabilitySet::empty();
    let without = CapabilitySets {
        effective: none,
        ..now
    };
    set_capabilities(None, without)?;
    let done = something();
    set_capabilities(None, now)?;
    Ok(done)
}

/// Removes all but `keep` from the bounding set.
fn bound(keep: CapabilitySet) -> io::Result<()> {
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(one) {
            Ok(true) if !keep.contains(one) => remove_capability_from_bounding_set(one)?,
            Ok(_) => {}
            // The kernel has no capability of this number.
            Err(_) => break,
        }
    }
    Ok(())
}
