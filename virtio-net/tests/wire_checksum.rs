//! The Internet checksum against the long way and against published examples.

mod offload_frames;

use offload_frames::{cases, naive_sum};
use proptest::prelude::*;
use tandem_virtio_net::wire::checksum::{Checksum, checksum, update};

#[test]
fn the_example_of_rfc_1071() {
    // RFC 1071, section 3: the sum is ddf2.
    let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(Checksum::new().bytes(&data).partial(), 0xddf2);
    assert_eq!(checksum(&data), !0xddf2);
}

#[test]
fn the_example_of_rfc_1624() {
    // RFC 1624, section 4: the update that must give zero, not its complement.
    assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
}

#[test]
fn a_real_ipv4_header() {
    let header = [
        0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0x00, 0x00, 0xc0, 0xa8, 0x00,
        0x01, 0xc0, 0xa8, 0x00, 0xc7,
    ];
    assert_eq!(checksum(&header), 0xb861);
}

#[test]
fn carries_go_all_the_way_round() {
    for len in [0, 1, 2, 3, 4, 5, 65535, 65536, 200_001] {
        let data = vec![0xff; len];
        assert_eq!(
            Checksum::new().bytes(&data).partial(),
            naive_sum(&data),
            "{len}"
        );
    }
    assert_eq!(checksum(&[]), 0xffff);
    assert_eq!(Checksum::new().finish_transport(), 0xffff);
    assert_eq!(Checksum::new().word(0xffff).finish(), 0);
    assert_eq!(Checksum::new().word(0xffff).finish_transport(), 0xffff);
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn pieces_of_any_length_sum_up_to_the_whole(
        data in prop::collection::vec(any::<u8>(), 0..600),
        at in prop::collection::vec(0..600usize, 0..5),
    ) {
        let mut at: Vec<usize> = at.into_iter().map(|at| at.min(data.len())).collect();
        at.extend([0, data.len()]);
        at.sort_unstable();
        let sum = at.windows(2).fold(Checksum::new(), |sum, w| sum.bytes(&data[w[0]..w[1]]));
        prop_assert_eq!(sum.partial(), naive_sum(&data));
    }

    #[test]
    fn words_count_like_their_bytes(data in prop::collection::vec(any::<u8>(), 0..100), word: u16) {
        let (mut bytes, even) = (data.clone(), data.len() & !1);
        bytes.truncate(even);
        let sum = Checksum::new().bytes(&bytes).word(word);
        bytes.extend(word.to_be_bytes());
        prop_assert_eq!(sum.partial(), naive_sum(&bytes));
    }

    #[test]
    fn an_update_is_as_good_as_a_new_sum(
        mut words in prop::collection::vec(1..=u16::MAX, 2..40),
        at: prop::sample::Index,
        new: u16,
    ) {
        let sum = |words: &[u16]| {
            checksum(&words.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<_>>())
        };
        let (before, at) = (sum(&words), at.index(words.len()));
        let updated = update(before, words[at], new);
        words[at] = new;
        prop_assert_eq!(updated, sum(&words));
    }
}
