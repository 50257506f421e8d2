//! Captures: every frame of a port that was asked for, byte for byte, with its direction and what
//! became of it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tandem_tests::frontend::capture::{Capture, Frame, Reading, Statistics};
use tandem_tests::frontend::driver::{Config, Layout, Nic, Receive};
use tandem_tests::frontend::frames::{
    BROADCAST, Offload, Shape, mac, number_of, numbered, payload, raw, tagged,
};
use tandem_tests::frontend::rig::Rig;
use tandem_tests::frontend::spec::{self, NetHdr};
use tandem_tests::frontend::wire::PATIENCE;
use tandem_tests::lab::{built_program, find_program, skip, skip_part, wait_until};

const A: [u8; 6] = mac(1);
const B: [u8; 6] = mac(2);

/// Two ports whose VMs know each other.
const PORTS: [&str; 2] = ["a,mac=52:54:00:00:00:01", "b,mac=52:54:00:00:00:02"];

fn pair(rig: &Rig) -> Result<(Nic, Nic)> {
    let config = Config::with(spec::MRG_RXBUF);
    Ok((rig.nic("a", &config)?, rig.nic("b", &config)?))
}

/// What a frame should look like in a capture.
fn is(frame: &Frame, direction: &str, bytes: &[u8], comment: &str) {
    assert_eq!(
        (frame.direction, &frame.bytes[..], &frame.comment[..]),
        (direction, bytes, comment)
    );
    assert_eq!(frame.len as usize, bytes.len());
}

fn udp(len: usize) -> Shape {
    Shape {
        v6: false,
        udp: true,
        ecn: false,
        offload: Offload::None,
        len,
    }
}

/// A UDP datagram of `len` bytes, to port 5000.
fn datagram(src: [u8; 6], dst: [u8; 6], seed: u32, len: usize) -> Vec<u8> {
    udp(len).build(src, dst, &payload(seed, len)).1
}

/// The frames that tshark reads out of a capture.
fn read_by_tshark(file: &Path) -> Result<Vec<(String, String, Vec<u8>)>> {
    let run = |arguments: &[&str]| -> Result<String> {
        let output = Command::new("tshark")
            .arg("-r")
            .arg(file)
            .args(arguments)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "tshark: {said}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let pcap = file.with_extension("pcap");
    run(&["-F", "nsecpcap", "-w", pcap.to_str().context("path")?])?;
    let bytes = std::fs::read(&pcap)?;
    let text = run(&[
        "-T",
        "fields",
        "-e",
        "frame.packet_flags_direction",
        "-e",
        "frame.comment",
    ])?;
    let mut at = 24;
    let mut frames = Vec::new();
    for line in text.lines() {
        let (direction, comment) = line.split_once('\t').context("two columns")?;
        let len = bytes.get(at + 8..at + 12).context("a frame too few")?;
        let len = u32::from_le_bytes(len.try_into()?) as usize;
        frames.push((
            direction.to_owned(),
            comment.to_owned(),
            bytes[at + 16..at + 16 + len].to_vec(),
        ));
        at += 16 + len;
    }
    assert_eq!(at, bytes.len(), "as many frames in both");
    Ok(frames)
}

/// The acceptance test of captures: what goes through a filter, and nothing else, is in Wireshark's
/// own reader what it was on the wire.
#[test]
fn a_thousand_frames_through_a_filter() -> Result<()> {
    const NAME: &str = "a_thousand_frames_through_a_filter";
    if find_program("tcpdump").is_none() {
        skip(NAME, "tcpdump is not installed (package tcpdump)");
        return Ok(());
    }
    let rig = Rig::new(&PORTS)?;
    let (mut a, mut b) = pair(&rig)?;
    let filter = "udp port 5000 or (vlan and udp port 5000)";
    let mut capture = Capture::start(&rig, "a", &["--count", "1000", filter])?;
    let mut expected = Vec::new();
    for i in 0..250u32 {
        let len = i as usize * 5 + (i as usize % 3);
        let sent = datagram(A, B, i, len);
        a.send_plain(&sent);
        a.send_plain(&numbered(A, B, i.into()));
        assert_eq!(b.recv().1, sent);
        b.recv();
        let dropped = [tagged(&sent, 7), datagram([0; 6], B, i, len)];
        dropped.iter().for_each(|frame| a.send_plain(frame));
        a.flush();
        let back = datagram(B, A, i, len);
        b.send_plain(&back);
        assert_eq!(a.recv().1, back);
        let [tag, zero] = dropped;
        expected.push(("from_vm", "", sent));
        expected.push(("from_vm", "drop_reason=vlan_not_allowed", tag));
        expected.push(("from_vm", "drop_reason=bad_source_mac", zero));
        expected.push(("to_vm", "", back));
    }
    let got = capture.frames(1000)?;
    for (frame, (direction, comment, bytes)) in got.iter().zip(&expected) {
        is(frame, direction, bytes, comment);
    }
    assert!(got.is_sorted_by_key(|frame| frame.at));
    let (reading, status, said) = capture.end()?;
    assert!(
        status.success() && reading.frames.is_empty(),
        "{status} {said}"
    );
    assert_eq!(said, "1000 frames captured, 0 lost\n");
    assert_eq!(reading.interface, Some(("a".into(), Some(filter.into()))));
    let counted = reading.statistics.context("no statistics")?;
    assert_eq!((counted.accepted, counted.lost), (1000, 0), "{counted:?}");
    assert_eq!(counted.received, 1250);
    // Once more, into a file, for tshark.
    if find_program("tshark").is_none() {
        skip_part(NAME, "tshark is not installed (package tshark)");
        return Ok(());
    }
    into_a_file(&rig, filter, (&mut a, &mut b), &expected)
}

/// Sends the frames again, and reads the file with tshark.
fn into_a_file(
    rig: &Rig,
    filter: &str,
    (a, b): (&mut Nic, &mut Nic),
    expected: &[(&str, &str, Vec<u8>)],
) -> Result<()> {
    let file = rig.dir().join("a.pcapng");
    let count = expected.len().to_string();
    let words = [
        "capture",
        "a",
        "--count",
        &count,
        "-w",
        file.to_str().context("path")?,
        filter,
    ];
    std::thread::scope(|s| {
        let capture = s.spawn(|| rig.daemon.cli_output(&words));
        wait_until("a capture", PATIENCE, || {
            Ok(rig.port("a")?["captures"]["active"] == 1)
        })?;
        for (direction, comment, bytes) in expected {
            let (from, to) = match *direction {
                "from_vm" => (&mut *a, &mut *b),
                _ => (&mut *b, &mut *a),
            };
            from.send_plain(bytes);
            match comment.is_empty() {
                true => assert_eq!(&to.recv().1, bytes),
                false => from.flush(),
            }
        }
        let output = capture.join().expect("the capture")?;
        ensure!(output.status.success(), "{output:?}");
        let got = read_by_tshark(&file)?;
        assert_eq!(got.len(), expected.len());
        for ((flags, comment, bytes), expected) in got.iter().zip(expected) {
            let direction = match &flags[..] {
                "1" | "0x00000001" => "from_vm",
                "2" | "0x00000002" => "to_vm",
                other => panic!("direction {other}"),
            };
            assert_eq!(
                (direction, &comment[..], bytes),
                (expected.0, expected.1, &expected.2)
            );
        }
        Ok(())
    })
}

/// Frames that the VM sent and that went nowhere: each with its bytes and why.
#[test]
fn dropped_frames_from_the_vm() -> Result<()> {
    let rig = Rig::new(&[
        "a,storm_limit=10",
        "b,mac=52:54:00:00:00:02",
        "s,switch=default,vlan=9",
    ])?;
    let config = Config {
        queue_size: 1024,
        ..Config::with(spec::MRG_RXBUF)
    };
    let (mut a, mut b) = (rig.nic("a", &config)?, rig.nic("b", &config)?);
    let mut s = rig.nic("s", &config)?;
    // A frame that is let through tells that all before it have been dealt with.
    a.send_plain(&numbered(A, B, 0));
    b.recv();
    let mut capture = Capture::start(&rig, "a", &["--drops", "only"])?;
    let mut alone = Capture::start(&rig, "s", &["--drops", "only"])?;
    let partial = NetHdr {
        flags: spec::HDR_NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 6,
        ..NetHdr::default()
    };
    let stp = [0x01, 0x80, 0xc2, 0, 0, 0];
    let plain = NetHdr::default();
    let cases: Vec<(&str, NetHdr, Vec<u8>)> = vec![
        ("too_short", plain, vec![0xff; 13]),
        (
            "too_short",
            plain,
            tagged(&raw(A, B, &[]), 0)[..17].to_vec(),
        ),
        ("too_long", plain, raw(A, B, &payload(1, 66_000))),
        ("mtu_exceeded", plain, raw(A, B, &payload(2, 1600))),
        ("bad_vnet_header", partial, datagram(A, B, 3, 300)),
        ("bad_source_mac", plain, numbered(BROADCAST, B, 4)),
        ("spoofed_mac", plain, numbered(B, BROADCAST, 5)),
        ("vlan_not_allowed", plain, tagged(&numbered(A, B, 6), 30)),
        ("hairpin", plain, numbered(mac(77), A, 7)),
        ("link_local", plain, numbered(A, stp, 8)),
    ];
    let mut expected = BTreeMap::new();
    for (reason, hdr, frame) in &cases {
        a.send(*hdr, frame);
        a.flush();
        let seen = capture.frame()?;
        let checksum = if hdr.flags == 0 {
            ""
        } else {
            " checksum=partial"
        };
        is(
            &seen,
            "from_vm",
            frame,
            &format!("drop_reason={reason}{checksum}"),
        );
        *expected.entry(reason.to_string()).or_default() += 1;
    }
    let frame = numbered(A, B, 9);
    a.pairs[0]
        .tx
        .queue_frame(plain, &raw(A, B, &payload(9, 300)), Layout::Pieces(1));
    a.pairs[0].tx.ring_bell();
    let seen = capture.frame()?;
    assert_eq!(seen.comment, "drop_reason=too_many_buffers");
    assert_eq!(
        seen.bytes,
        raw(A, B, &payload(9, 300))[..seen.bytes.len()],
        "as far as it goes"
    );
    send_out_of_memory(&mut a, &frame);
    is(
        &capture.frame()?,
        "from_vm",
        &frame[..28],
        "drop_reason=bad_buffer",
    );
    // More broadcasts than the limit allows.
    for i in 0..20 {
        a.send_plain(&numbered(A, BROADCAST, 100 + i));
    }
    a.flush();
    let port = rig.port("a")?;
    let drops = &port["counters"]["from_vm"]["drops"];
    let limited = drops["storm_limit"]
        .as_u64()
        .context("none over the limit")?;
    for seen in capture.frames(limited as usize)? {
        assert_eq!(seen.comment, "drop_reason=storm_limit");
        let number = number_of(&seen.bytes);
        is(
            &seen,
            "from_vm",
            &numbered(A, BROADCAST, number),
            "drop_reason=storm_limit",
        );
    }
    expected.extend([("too_many_buffers".into(), 1), ("bad_buffer".into(), 1)]);
    expected.insert("storm_limit".into(), limited);
    assert_eq!(*drops, serde_json::json!(expected), "all that were counted");
    s.send_plain(&numbered(mac(3), BROADCAST, 1));
    is(
        &alone.frame()?,
        "from_vm",
        &numbered(mac(3), BROADCAST, 1),
        "drop_reason=no_receiver",
    );
    Ok(())
}

/// Sends a frame of pieces of 40 bytes, the second of which lies nowhere.
fn send_out_of_memory(nic: &mut Nic, frame: &[u8]) {
    let ring = nic.pairs[0].tx.ring.parts();
    let place = u64::from(nic.ram.load16(ring.avail + 2) % ring.size);
    nic.pairs[0]
        .tx
        .queue_frame(NetHdr::default(), frame, Layout::Pieces(40));
    let head = nic.ram.load16(ring.avail + 4 + 2 * place);
    let second = nic.ram.load16(ring.desc + 16 * u64::from(head) + 14);
    nic.ram.store64(ring.desc + 16 * u64::from(second), 1 << 50);
    nic.pairs[0].tx.ring_bell();
    nic.flush();
}

/// Frames that did not reach the VM they were for.
#[test]
fn dropped_frames_to_the_vm() -> Result<()> {
    let rig = Rig::new(&PORTS)?;
    let mut a = rig.nic("a", &Config::default())?;
    let mut capture = Capture::start(&rig, "b", &["--direction", "to_vm"])?;
    let mut both = Capture::start(&rig, "a", &[])?;
    let frame = numbered(A, B, 1);
    a.send_plain(&frame);
    is(&capture.frame()?, "to_vm", &frame, "drop_reason=not_ready");
    is(&both.frame()?, "from_vm", &frame, "");
    let config = Config {
        receive: Some(Receive::each(2, 12 + 100)),
        ..Config::default()
    };
    let mut b = rig.nic("b", &config)?;
    let long = raw(A, B, &payload(1, 200));
    a.send_plain(&long);
    is(
        &capture.frame()?,
        "to_vm",
        &long,
        "drop_reason=buffer_too_small",
    );
    for i in 2..4 {
        a.send_plain(&numbered(A, B, i));
        is(&capture.frame()?, "to_vm", &numbered(A, B, i), "");
    }
    a.send_plain(&numbered(A, B, 4));
    is(
        &capture.frame()?,
        "to_vm",
        &numbered(A, B, 4),
        "drop_reason=ring_full",
    );
    let ring = b.pairs[0].rx.ring.parts();
    let idx = b.ram.load16(ring.avail + 2);
    b.ram.store16(ring.avail + 2, idx.wrapping_add(0x4000));
    a.send_plain(&numbered(A, B, 5));
    is(
        &capture.frame()?,
        "to_vm",
        &numbered(A, B, 5),
        "drop_reason=ring_broken",
    );
    b.reset(spec::VERSION_1)?;
    a.send_plain(&numbered(A, B, 6));
    is(&capture.frame()?, "to_vm", &numbered(A, B, 6), "");
    let port = rig.port("b")?;
    let drops = serde_json::json!({
        "not_ready": 1, "buffer_too_small": 1, "ring_full": 1, "ring_broken": 1
    });
    assert_eq!(port["counters"]["to_vm"]["drops"], drops);
    Ok(())
}

/// What a sender leaves to others is told from what is wrong; a frame that is cut up for its
/// receiver is captured once.
#[test]
fn offloads_are_told() -> Result<()> {
    let rig = Rig::new(&PORTS)?;
    let sums = Shape {
        offload: Offload::Checksum,
        ..udp(100)
    };
    let tso = Shape {
        udp: false,
        offload: Offload::Segment(1000),
        ..udp(5500)
    };
    let features = spec::MRG_RXBUF | sums.sender_features() | tso.sender_features();
    let mut a = rig.nic("a", &Config::with(features))?;
    let mut b = rig.nic("b", &Config::with(spec::MRG_RXBUF))?;
    let mut sent = Capture::start(&rig, "a", &[])?;
    let mut got = Capture::start(&rig, "b", &["--snaplen", "60"])?;
    for (shape, comment, frames) in [
        (sums, "checksum=partial", 1),
        (tso, "checksum=partial gso=tcpv4 gso_size=1000", 6),
    ] {
        let (hdr, frame) = shape.build(A, B, &payload(1, shape.len));
        a.send(hdr, &frame);
        (0..frames).for_each(|_| drop(b.recv()));
        is(&sent.frame()?, "from_vm", &frame, comment);
        let seen = got.frame()?;
        assert_eq!((seen.direction, &seen.comment[..]), ("to_vm", comment));
        assert_eq!(
            (seen.len as usize, &seen.bytes[..]),
            (frame.len(), &frame[..60])
        );
    }
    Ok(())
}

/// On a trunk and an access port, each sees the frame as its own VM does.
#[test]
fn tags_are_as_the_vm_sees_them() -> Result<()> {
    let rig = Rig::new(&[
        "a,vlan=10,mac=52:54:00:00:00:01",
        "b,trunk_vlans=10+20,mac=52:54:00:00:00:02",
    ])?;
    let (mut a, mut b) = pair(&rig)?;
    let mut access = Capture::start(&rig, "a", &[])?;
    let mut trunk = Capture::start(&rig, "b", &[])?;
    let there = raw(A, B, &payload(1, 1000));
    a.send_plain(&there);
    assert_eq!(b.recv().1, tagged(&there, 10));
    is(&access.frame()?, "from_vm", &there, "");
    is(&trunk.frame()?, "to_vm", &tagged(&there, 10), "");
    let back = raw(B, A, &payload(2, 1000));
    b.send_plain(&tagged(&back, 10));
    assert_eq!(a.recv().1, back);
    is(&trunk.frame()?, "from_vm", &tagged(&back, 10), "");
    is(&access.frame()?, "to_vm", &back, "");
    Ok(())
}

fn active(rig: &Rig, port: &str) -> Result<u64> {
    rig.port(port)?["captures"]["active"]
        .as_u64()
        .context("captures")
}

/// Several at once see each what they asked for; each ends alone, and takes its thread and its memory
/// with it.
#[test]
fn several_captures_that_end_each_in_its_own_way() -> Result<()> {
    let mut rig = Rig::new(&PORTS)?;
    let (mut a, mut b) = pair(&rig)?;
    let before = rig.holdings()?;
    let arguments: [&[&str]; 4] = [
        &["--direction", "from_vm", "--drops", "without"],
        &["--direction", "to_vm"],
        &["--drops", "only"],
        &["--count", "3"],
    ];
    let captures: Result<Vec<_>> = arguments
        .iter()
        .map(|words| Capture::start(&rig, "a", words))
        .collect();
    let mut captures = captures?;
    assert_eq!(active(&rig, "a")?, 4);
    let (one, two, dropped) = (numbered(A, B, 1), numbered(B, A, 2), numbered([0; 6], B, 3));
    a.send_plain(&one);
    b.recv();
    b.send_plain(&two);
    a.recv();
    a.send_plain(&dropped);
    let bad = "drop_reason=bad_source_mac";
    is(&captures[0].frame()?, "from_vm", &one, "");
    is(&captures[1].frame()?, "to_vm", &two, "");
    is(&captures[2].frame()?, "from_vm", &dropped, bad);
    let counted = captures.pop().context("four")?;
    let (reading, status, _) = counted.end()?;
    assert!(status.success());
    assert_eq!(reading.frames.len(), 3);
    assert_eq!(
        reading.statistics,
        Some(Statistics {
            received: 3,
            accepted: 3,
            lost: 0
        })
    );
    // Killed: nobody says so, the connection does.
    let mut killed = captures.pop().context("three")?;
    killed.process.kill()?;
    rig.wait_port("a", "should have two captures", |port| {
        port["captures"]["active"] == 2
    })?;
    let mut interrupted = captures.pop().context("two")?;
    interrupted.signal("INT")?;
    let (_, status, said) = interrupted.end()?;
    assert!(status.success(), "{status}");
    assert!(said.ends_with("1 frames captured, 0 lost\n"), "{said}");
    // Its port ends.
    let last = captures.pop().context("one")?;
    a.send_plain(&numbered(A, B, 4));
    b.recv();
    rig.daemon.cli(&["port", "remove", "a"])?;
    let (reading, status, _) = last.end()?;
    assert!(status.success(), "{status}");
    is(&reading.frames[0], "from_vm", &numbered(A, B, 4), "");
    assert_eq!(reading.statistics.map(|s| s.received), Some(2));
    drop((a, b));
    rig.back_to(&before)?;
    Ok(())
}

/// A capture that nobody reads costs captured frames, which are counted, and nothing else.
#[test]
fn a_slow_reader_costs_only_captured_frames() -> Result<()> {
    const FRAMES: u64 = 12_000;
    let rig = Rig::new(&PORTS)?;
    let (mut a, mut b) = pair(&rig)?;
    let mut stream = UnixStream::connect(rig.daemon.run_dir().join("api.sock"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET /api/v1/ports/a/capture?direction=from_vm HTTP/1.0\r\nHost: t\r\n\r\n"
    )?;
    rig.wait_port("a", "should be captured", |port| {
        port["captures"]["active"] == 1
    })?;
    let bytes = payload(1, 1400);
    for i in 0..FRAMES {
        a.send_plain(&raw(A, B, &bytes));
        b.recv();
        if i % 1000 == 999 {
            a.flush();
        }
    }
    let port = rig.wait_port("a", "should have lost captured frames", |port| {
        port["captures"]["dropped_frames"].as_u64() > Some(0)
    })?;
    let lost = port["captures"]["dropped_frames"]
        .as_u64()
        .context("a count")?;
    assert_eq!(port["counters"]["from_vm"]["frames"], FRAMES);
    assert_eq!(port["counters"]["from_vm"]["drops"], serde_json::json!({}));
    assert_eq!(rig.settled()?.ports["b"].to_vm, FRAMES);
    // Now somebody reads: what was kept is whole, and what is missing is said.
    let mut reading = Reading::default();
    let mut buffer = vec![0; 1 << 20];
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        let n = stream.read(&mut buffer[..1])?;
        head.extend_from_slice(&buffer[..n]);
    }
    let kept = FRAMES - lost;
    while (reading.frames.len() as u64) < kept {
        let n = stream.read(&mut buffer)?;
        ensure!(n != 0, "it ended");
        reading.add(&buffer[..n]);
    }
    assert!(reading.frames.iter().all(|f| f.bytes == raw(A, B, &bytes)));
    // The next one says how many are missing before it.
    a.send_plain(&numbered(A, B, 1));
    while reading.frames.len() as u64 == kept {
        let n = stream.read(&mut buffer)?;
        ensure!(n != 0, "it ended");
        reading.add(&buffer[..n]);
    }
    let told: u64 = reading.frames.iter().map(|f| f.lost).sum();
    assert_eq!(told, lost, "epb_dropcount");
    Ok(())
}

/// Asks for a capture; status, and the problem if it is one.
fn ask(rig: &Rig, query: &str) -> Result<(UnixStream, u16, serde_json::Value)> {
    let mut stream = UnixStream::connect(rig.daemon.run_dir().join("api.sock"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET /api/v1/ports/{query} HTTP/1.0\r\nHost: t\r\n\r\n"
    )?;
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    let (status, problem) = loop {
        let n = stream.read(&mut buffer)?;
        text.extend_from_slice(&buffer[..n]);
        let said = String::from_utf8_lossy(&text).into_owned();
        let Some((head, body)) = said.split_once("\r\n\r\n") else {
            ensure!(n != 0, "{said}");
            continue;
        };
        let status: u16 = head.split(' ').nth(1).context("status")?.parse()?;
        if status == 200 {
            assert!(head.contains("application/x-pcapng"), "{head}");
            break (status, serde_json::Value::Null);
        }
        if n == 0 {
            break (status, serde_json::from_str(body)?);
        }
    };
    Ok((stream, status, problem))
}

/// What cannot be captured is refused, with the parameter and what to do.
#[test]
fn what_is_refused() -> Result<()> {
    let rig = Rig::new(&["a"])?;
    for (query, status, field) in [
        ("none/capture", 404, ""),
        ("a/capture?snaplen=0", 400, "snaplen"),
        ("a/capture?snaplen=262145", 400, "snaplen"),
        ("a/capture?count=-1", 400, "count"),
        ("a/capture?direction=up", 400, "direction"),
        ("a/capture?drops=some", 400, "drops"),
        ("a/capture?colour=red", 400, "colour"),
        ("a/capture?filter=", 400, "filter"),
        ("a/capture?filter=1,6+0+0", 400, "filter"),
        ("a/capture?filter=2,6+0+0+1", 400, "filter"),
        // No return at the end; a jump out; no such code; memory; division; an extension.
        ("a/capture?filter=1,0+0+0+1", 400, "filter"),
        ("a/capture?filter=2,21+1+0+0,6+0+0+1", 400, "filter"),
        ("a/capture?filter=2,5+0+0+4294967295,6+0+0+1", 400, "filter"),
        ("a/capture?filter=2,255+0+0+0,6+0+0+1", 400, "filter"),
        ("a/capture?filter=2,2+0+0+16,6+0+0+1", 400, "filter"),
        ("a/capture?filter=2,52+0+0+0,6+0+0+1", 400, "filter"),
        (
            "a/capture?filter=2,48+0+0+4294963200,6+0+0+1",
            400,
            "filter",
        ),
    ] {
        let (_, got, problem) = ask(&rig, query)?;
        assert_eq!(got, status, "{query}: {problem}");
        assert_eq!(
            problem["field"].as_str().unwrap_or_default(),
            field,
            "{problem}"
        );
        assert_ne!(problem["remedy"], "", "{problem}");
    }
    // As many as may be, and one more; then one ends.
    let mut open = Vec::new();
    for _ in 0..8 {
        let (stream, status, problem) = ask(&rig, "a/capture?filter=1,6+0+0+0")?;
        assert_eq!(status, 200, "{problem}");
        open.push(stream);
    }
    let (_, status, problem) = ask(&rig, "a/capture")?;
    assert_eq!(status, 409, "{problem}");
    open.pop();
    rig.wait_port("a", "should have seven", |port| {
        port["captures"]["active"] == 7
    })?;
    wait_until("room for another", PATIENCE, || {
        Ok(ask(&rig, "a/capture")?.1 == 200)
    })?;
    Ok(())
}

/// What the program says when it cannot.
#[test]
fn the_program_says_what_is_wrong() -> Result<()> {
    let rig = Rig::new(&["a"])?;
    let kept = rig.dir().join("kept");
    std::fs::write(&kept, "kept")?;
    let kept_name = kept.to_str().context("path")?;
    let mut cases = vec![
        (
            vec!["capture", "none", "-w", kept_name],
            1,
            "there is no port none",
        ),
        (
            vec!["capture", "a", "-w", "/nowhere/at/all"],
            1,
            "choose another file",
        ),
        (vec!["capture", "a/b"], 2, "a name cannot have"),
        (vec!["capture", "a", "--snaplen", "0"], 2, "snaplen"),
        (vec!["capture", "a", "--drops", "some"], 2, "drops"),
    ];
    match find_program("tcpdump") {
        Some(_) => cases.push((vec!["capture", "a", "udp port port"], 2, "pcap-filter(7)")),
        None => skip_part(
            "the_program_says_what_is_wrong",
            "tcpdump is not installed (package tcpdump)",
        ),
    }
    for (words, code, reason) in cases {
        let output = rig.daemon.cli_output(&words)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
        assert!(said.contains(reason), "{words:?}: {said}");
    }
    assert_eq!(std::fs::read_to_string(&kept)?, "kept");
    // Without -w: a line for each frame.
    let mut a = rig.nic("a", &Config::default())?;
    let words = ["capture", "a", "--count", "1"];
    std::thread::scope(|s| {
        let lines = s.spawn(|| rig.daemon.cli_output(&words));
        rig.wait_port("a", "should be captured", |port| {
            port["captures"]["active"] == 1
        })?;
        a.send_plain(&tagged(&numbered(A, BROADCAST, 1), 30));
        let output = lines.join().expect("the capture")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = " from_vm 52:54:00:00:00:01 > ff:ff:ff:ff:ff:ff, vlan 30, type 0x88b5, length 64, \
                    drop_reason=vlan_not_allowed\n";
        assert!(said.ends_with(line), "{said}");
        Ok(())
    })
}

/// What a document shows works as it stands there, but for the socket's place.
#[test]
fn the_documents_lines_work() -> Result<()> {
    const NAME: &str = "the_documents_lines_work";
    let text = include_str!("../../docs/capture.md");
    let blocks = text.split("```sh\n").skip(1);
    let blocks: Vec<_> = blocks
        .filter_map(|block| block.split("```").next())
        .collect();
    let lines = blocks.concat().replace("\\\n", "");
    let rig = Rig::new(&["web1", "b"])?;
    let socket = rig.daemon.run_dir().join("api.sock");
    let socket = socket.to_str().context("path")?;
    let mut nic = rig.nic("web1", &Config::default())?;
    let tandem = built_program("tandem")?;
    let mut count = 0;
    for line in lines.lines() {
        let needed = ["curl", "tshark", "tcpdump"].into_iter().find(|program| {
            let used = line.contains(program) || (*program == "tcpdump" && line.contains(" udp "));
            used && find_program(program).is_none()
        });
        if let Some(program) = needed {
            skip_part(
                NAME,
                &format!("{program} is not installed (package {program})"),
            );
            continue;
        }
        // Ctrl-C after a while; curl ends by itself.
        let ended = format!(
            "tandem() {{ timeout -s INT 0.5 {} \"$@\"; }}; ",
            tandem.display()
        );
        let mut shell = Command::new("sh");
        shell
            .arg("-c")
            .arg(ended + &line.replace("/run/tandem/api.sock", socket));
        shell
            .env("TANDEM_API_SOCKET", socket)
            .current_dir(rig.dir());
        let (sender, outcome) = channel();
        std::thread::spawn(move || sender.send(shell.output()));
        let end = Instant::now() + PATIENCE;
        let output = loop {
            match outcome.recv_timeout(Duration::from_millis(20)) {
                Ok(output) => break output?,
                Err(_) => ensure!(Instant::now() < end, "it does not end: {line}"),
            }
            nic.send_plain(&numbered([0; 6], BROADCAST, 1));
        };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // 124: timeout has sent the signal.
        ensure!(
            matches!(output.status.code(), Some(0 | 124)),
            "{line}: {said}"
        );
        let lines = String::from_utf8_lossy(&output.stdout).lines().count();
        let wanted = usize::from(!line.contains("-w web1.pcapng"));
        ensure!(lines >= wanted, "{line}: {said}");
        count += 1;
    }
    ensure!(count >= 2, "{lines}");
    Ok(())
}
