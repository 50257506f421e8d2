//! Which thread serves a queue pair, and which pair a flow to the VM goes to.
//!
//! Today both are fixed while the set of queues is: pairs are dealt to a VM's threads in turn, and
//! flows are spread by hash over the pairs the guest uses.

/// Threads for a VM with `pairs` queue pairs on `cpus` CPUs: never more than either, so that at
/// most one thread of the VM is awake on a CPU.
pub fn threads(pairs: usize, cpus: usize) -> usize {
    pairs.min(cpus).max(1)
}

/// Picks one of the pairs in the bit set `active` for a flow with this hash. 0 if there is none.
#[inline]
pub fn pick(hash: u64, active: u32) -> u32 {
    let n = active.count_ones();
    if n == 0 {
        return 0;
    }
    // The high bits of the product are even over 0..n, without a division.
    let mut nth = ((hash >> 32) * u64::from(n)) >> 32;
    let mut left = active;
    while nth != 0 {
        left &= left - 1;
        nth -= 1;
    }
    left.trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_goes_to_one_of_the_active_pairs_and_all_get_some() {
        for active in [0b1u32, 0b1010, 0b1111, u32::MAX] {
            let mut seen = 0;
            for i in 0..10_000u64 {
                let pair = pick(i.wrapping_mul(0x9e37_79b9_7f4a_7c15), active);
                assert!(active & 1 << pair != 0);
                seen |= 1 << pair;
            }
            assert_eq!(seen, active);
        }
        assert_eq!(pick(12345, 0), 0);
    }

    #[test]
    fn threads_are_bounded_by_pairs_and_cpus() {
        assert_eq!(threads(4, 2), 2);
        assert_eq!(threads(1, 8), 1);
        assert_eq!(threads(0, 8), 1);
    }
}
