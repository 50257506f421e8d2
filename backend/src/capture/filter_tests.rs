use std::io::Write;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::*;

impl Packet for &[u8] {
    fn len(&self) -> u32 {
        <[u8]>::len(self) as u32
    }

    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        self.get(at as usize..)?.first_chunk().copied()
    }
}

fn filter(text: &str) -> Result<Filter, FilterError> {
    text.parse()
}

#[test]
fn what_tcpdump_prints_is_taken() {
    let arp = "4\n40 0 0 12\n21 0 1 2054\n6 0 0 262144\n6 0 0 0\n";
    for text in [arp, &arp.replace('\n', ","), arp.trim_end()] {
        let arp = filter(text).unwrap();
        let mut frame = [0; 60];
        assert_eq!(arp.run(&&frame[..]), 0);
        frame[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(arp.run(&&frame[..]), 262_144);
        assert_eq!(arp.run(&&frame[..13]), 0, "too short to be one");
    }
}

#[test]
fn what_is_no_program_is_refused() {
    use FilterError::*;
    let long = format!("4097{}", ",6 0 0 1".repeat(4097));
    for (text, error) in [
        ("", Length(0)),
        ("0", Length(0)),
        ("2,6 0 0 1", Length(1)),
        (&long, Length(4097)),
        ("1,6 0 0", Syntax(0)),
        ("1,6 0 0 1 1", Syntax(0)),
        ("1,6 0 0 -1", Syntax(0)),
        ("1,6 256 0 1", Syntax(0)),
        ("1,0 0 0 1", NoReturn),
        ("2,6 0 0 1,5 0 0 0", Jump(1)),
        ("2,21 1 0 0,6 0 0 1", Jump(0)),
        ("2,21 0 255 0,6 0 0 1", Jump(0)),
        ("2,5 0 0 4294967295,6 0 0 1", Jump(0)),
        ("2,5 0 0 1,6 0 0 1", Jump(0)),
        ("2,13 0 0 0,6 0 0 1", Code(0, 13)),
        ("2,65535 0 0 0,6 0 0 1", Code(0, 65535)),
        ("2,56 0 0 0,6 0 0 1", Code(0, 56)),
        ("2,228 0 0 0,6 0 0 1", Code(0, 228)),
        ("2,2 0 0 16,6 0 0 1", Memory(0, 16)),
        ("2,96 0 0 4294967295,6 0 0 1", Memory(0, u32::MAX)),
        ("2,52 0 0 0,6 0 0 1", Division(0)),
        ("2,148 0 0 0,6 0 0 1", Division(0)),
        ("2,100 0 0 32,6 0 0 1", Shift(0, 32)),
        ("2,48 0 0 4294963200,6 0 0 1", Extension(0)),
    ] {
        assert_eq!(filter(text), Err(error), "{text:.60}");
    }
}

/// Runs a program on six bytes.
fn value(program: &str) -> u32 {
    let lines = program.split(',').count();
    let filter = filter(&format!("{lines},{program}")).unwrap();
    filter.run(&&[0x81, 0x02, 0xf3, 0x04, 0x05, 0x06][..])
}

#[test]
fn instructions_do_what_they_say() {
    for (program, expected) in [
        ("32 0 0 0,22 0 0 0", 0x8102_f304),
        ("40 0 0 4,22 0 0 0", 0x0506),
        ("48 0 0 2,22 0 0 0", 0xf3),
        ("1 0 0 3,64 0 0 0,22 0 0 0", 0), // bytes 3 to 6, and there is no 6
        ("1 0 0 1,72 0 0 1,22 0 0 0", 0xf304),
        ("1 0 0 4294967295,80 0 0 2,22 0 0 0", 0), // no wrapping around
        ("177 0 0 2,135 0 0 0,22 0 0 0", 12),
        ("128 0 0 0,22 0 0 0", 6),
        ("129 0 0 0,135 0 0 0,22 0 0 0", 6),
        ("0 0 0 7,2 0 0 15,0 0 0 1,96 0 0 15,22 0 0 0", 7),
        ("1 0 0 7,3 0 0 0,97 0 0 0,135 0 0 0,22 0 0 0", 7),
        ("96 0 0 9,4 0 0 1,22 0 0 0", 1), // memory is zero at first
        ("0 0 0 7,132 0 0 0,22 0 0 0", 7u32.wrapping_neg()),
        ("0 0 0 7,7 0 0 0,12 0 0 0,22 0 0 0", 14),
        ("0 0 0 3,20 0 0 5,22 0 0 0", u32::MAX - 1),
        ("0 0 0 65536,36 0 0 65537,22 0 0 0", 65_536),
        ("0 0 0 7,52 0 0 2,22 0 0 0", 3),
        ("0 0 0 7,148 0 0 4,22 0 0 0", 3),
        ("0 0 0 7,60 0 0 0,22 0 0 0", 0), // x is zero
        ("0 0 0 7,156 0 0 0,22 0 0 0", 0),
        ("0 0 0 6,68 0 0 3,22 0 0 0", 7),
        ("0 0 0 6,84 0 0 3,22 0 0 0", 2),
        ("0 0 0 6,164 0 0 3,22 0 0 0", 5),
        ("0 0 0 1,100 0 0 31,22 0 0 0", 1 << 31),
        ("0 0 0 9,116 0 0 3,22 0 0 0", 1),
        ("0 0 0 9,1 0 0 32,108 0 0 0,22 0 0 0", 0),
        ("0 0 0 9,1 0 0 32,124 0 0 0,22 0 0 0", 0),
        ("0 0 0 5,21 0 1 5,6 0 0 1,6 0 0 2", 1),
        ("0 0 0 5,37 0 1 5,6 0 0 1,6 0 0 2", 2),
        ("0 0 0 5,53 0 1 5,6 0 0 1,6 0 0 2", 1),
        ("0 0 0 5,69 0 1 2,6 0 0 1,6 0 0 2", 2),
        ("0 0 0 5,1 0 0 4,45 0 1 0,6 0 0 1,6 0 0 2", 1),
        ("5 0 0 1,6 0 0 1,6 0 0 2", 2),
    ] {
        assert_eq!(value(program), expected, "{program}");
    }
}

proptest! {
    /// Whatever it is: refused, or it ends.
    #[test]
    fn no_program_runs_on_or_away(
        raw in prop::collection::vec(
            (prop_oneof![0u16..0xc0, any::<u16>()], 0u8..4, 0u8..4, prop_oneof![0u32..20, any::<u32>()]),
            1..12,
        ),
        packet in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut raw: Vec<Raw> = raw.into_iter().map(|(code, jt, jf, k)| Raw { code, jt, jf, k }).collect();
        raw.push(Raw { code: 0x16, jt: 0, jf: 0, k: 0 });
        if let Ok(filter) = Filter::check(&raw) {
            filter.run(&&packet[..]);
        }
    }
}

/// Expressions of every kind that compiles for Ethernet.
const EXPRESSIONS: &[&str] = &[
    "arp",
    "ip",
    "ip6",
    "tcp",
    "udp port 53",
    "tcp portrange 20-80",
    "src host 10.0.0.1",
    "dst net 10.0.0.0/24 and not icmp",
    "ip6 host fd00::1",
    "ether src 52:54:00:00:00:01",
    "ether broadcast",
    "ether multicast",
    "vlan",
    "vlan 10 and udp",
    "vlan 10 or (vlan 20 and tcp)",
    "less 60",
    "greater 100",
    "ether proto 0x88b5",
    "tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn",
    "ip[8] < 64",
    "ip[0] & 0xf > 5",
    "(ip[2:2] - ((ip[0] & 0xf) << 2)) % 7 == 3",
    "ether[0:4] / 3 * 3 == ether[0:4]",
    "ip[6:2] & 0x1fff != 0",
    "tcp[((tcp[12] & 0xf0) >> 2):1] < 128",
    "len ^ 3 > 70",
    "icmp[icmptype] != icmp-echo",
    "ip proto 47 or ip6 proto 58",
];

/// A frame that is likely to be of a kind which an expression looks for.
fn packet() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![
        Just(vec![8, 0, 0x45]),
        Just(vec![8, 0, 0x46]),
        Just(vec![8, 6]),
        Just(vec![0x86, 0xdd, 0x60]),
        Just(vec![0x88, 0xb5]),
        Just(vec![0x81, 0, 0, 10, 8, 0, 0x45]),
        Just(vec![0x81, 0, 0, 20, 8, 0, 0x45]),
    ];
    let protocol = prop_oneof![Just(1u8), Just(6), Just(17), Just(47), Just(58)];
    let port = prop_oneof![Just(53u16), Just(80), any::<u16>()];
    let mac = prop_oneof![Just([0xff; 6]), Just([0x52, 0x54, 0, 0, 0, 1])];
    let bytes = prop::collection::vec(any::<u8>(), 14..140);
    (kind, protocol, port, mac, any::<bool>(), bytes).prop_map(
        |(kind, protocol, port, mac, ours, mut bytes)| {
            let mut put = |at: usize, what: &[u8]| {
                if let Some(place) = bytes.get_mut(at..at + what.len()) {
                    place.copy_from_slice(what);
                }
            };
            put(if ours { 0 } else { 6 }, &mac);
            put(12, &kind);
            let ip = 12 + kind.len() - 1;
            match kind.last() {
                Some(0x60) => {
                    put(ip + 6, &[protocol]);
                    put(ip + 40, &port.to_be_bytes());
                    put(ip + 8, &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
                }
                _ => {
                    put(
                        ip + 6,
                        &[if ours { 0x40 } else { 0x20 }, u8::from(port % 3 == 0)],
                    );
                    put(ip + 9, &[protocol]);
                    put(ip + 12, &[10, 0, 0, 1, 10, 0, u8::from(ours), 2]);
                    put(ip + 20, &port.to_be_bytes());
                }
            }
            bytes
        },
    )
}

/// A capture file of Ethernet frames (pcap-savefile(5)).
fn savefile(packets: &[Vec<u8>]) -> Vec<u8> {
    let mut file = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0];
    file.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0]);
    for (i, packet) in packets.iter().enumerate() {
        let len = <[u8]>::len(packet) as u32;
        for word in [i as u32, 0, len, len] {
            file.extend(word.to_le_bytes());
        }
        file.extend(packet);
    }
    file
}

/// What libpcap itself, in tcpdump, finds in the same frames.
#[test]
fn a_filter_finds_what_libpcap_finds() {
    let tcpdump = |arguments: &[&str], input: &[u8]| {
        let mut command = Command::new("tcpdump");
        command.args(arguments).stdin(Stdio::piped());
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut stdin = child.stdin.take().expect("a pipe");
        let writer = std::thread::scope(|s| {
            s.spawn(move || stdin.write_all(input));
            child.wait_with_output()
        })?;
        assert!(writer.status.success(), "{arguments:?}");
        Ok::<_, std::io::Error>(writer.stdout)
    };
    if Command::new("tcpdump").arg("--version").output().is_err() {
        let line = "SKIPPED a_filter_finds_what_libpcap_finds: tcpdump is not installed (package tcpdump)\n";
        let _ = std::io::stderr().write_all(line.as_bytes());
        return;
    }
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = prop::collection::vec(packet(), 2000);
    let packets = strategy.new_tree(&mut runner).expect("frames").current();
    let file = savefile(&packets);
    for expression in EXPRESSIONS {
        let program = tcpdump(&["-ddd", "-r", "-", expression], &savefile(&[])).unwrap();
        let filter = filter(std::str::from_utf8(&program).unwrap()).expect(expression);
        let theirs = tcpdump(&["-r", "-", "-w", "-", expression], &file).unwrap();
        let numbers = |file: &[u8]| -> Vec<u32> {
            let mut at = 24;
            let mut numbers = Vec::new();
            while let Some(head) = file.get(at..at + 16) {
                let word =
                    |i: usize| u32::from_le_bytes(head[4 * i..4 * i + 4].try_into().unwrap());
                numbers.push(word(0));
                at += 16 + word(2) as usize;
            }
            numbers
        };
        let ours: Vec<u32> = (0..)
            .zip(&packets)
            .filter(|(_, p)| filter.run(&&p[..]) != 0)
            .map(|(i, _)| i)
            .collect();
        assert_eq!(numbers(&theirs), ours, "{expression}");
        assert!(!ours.is_empty(), "{expression}: none of the frames is one");
    }
}
