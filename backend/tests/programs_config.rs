//! Configurations that are wrong, as the user of `tandemd --check` sees them.

mod programs;

use programs::{config, done, tandemd};

fn check(text: &str) -> programs::Done {
    let (_dir, path) = config(text);
    done(&mut tandemd(&[
        "--check",
        "--run-dir",
        "/run/tandem",
        "--state-dir",
        "/nonexistent",
        "--config",
        &path,
    ]))
}

/// Each: a file, the line of the problem, and words that must be in its message: the key, the
/// reason, the remedy.
const FILES: &[(&str, usize, &[&str])] = &[
    // Not TOML.
    ("[port.a\n", 1, &["toml.io"]),
    ("[port.a]\nmtu = \n", 2, &["toml.io"]),
    ("[port.a]\nmtu = 1500\nmtu = 1400\n", 3, &["duplicate key"]),
    ("[port.a]\n[port.a]\n", 2, &["duplicate key"]),
    ("port a\n", 1, &["toml.io"]),
    ("[port.a]\nvm = \"x\n", 2, &["toml.io"]),
    ("[port.a]\nvm = 'x' 'y'\n", 2, &["toml.io"]),
    // Tables.
    (
        "[ports.a]\n",
        1,
        &["no table [ports]", "did you mean port?"],
    ),
    (
        "[swich.a]\n",
        1,
        &["no table [swich]", "did you mean switch?"],
    ),
    (
        "[uplinks]\n",
        1,
        &["no table [uplinks]", "known: port, profile, switch, team"],
    ),
    ("mtu = 1500\n", 1, &["no table [mtu]", "known"]),
    ("port = 3\n", 1, &["port is not a table", "[port.NAME]"]),
    ("[[port]]\n", 1, &["port is not a table", "[port.NAME]"]),
    (
        "[port]\nmtu = 1500\n",
        2,
        &["without a name", "[port.NAME]"],
    ),
    (
        "[switch]\nmac_limit = 64\n",
        2,
        &["without a name", "[switch.NAME]"],
    ),
    ("[[port.web1]]\n", 1, &["without a name"]),
    // Names.
    ("[port.\"a b\"]\n", 1, &["name: ", "' '", "letters, digits"]),
    ("[port.\"a/b\"]\n", 1, &["name: ", "'/'"]),
    ("[port.\"\"]\n", 1, &["name: ", "empty"]),
    ("[port.\"é\"]\n", 1, &["name: ", "'é'"]),
    ("[port.\".hidden\"]\n", 1, &["name: ", "begins with a sign"]),
    ("[port.-x]\n", 1, &["name: ", "begins with a sign"]),
    (
        "[port.a12345678901234567890123456789012345678901234567890123456789012345]\n",
        1,
        &["name: ", "66 characters", "at most 64"],
    ),
    ("[switch.\"a b\"]\n", 1, &["name: ", "' '"]),
    // Keys.
    (
        "[port.a]\nmut = 1500\n",
        2,
        &["[port.a]", "mut: ", "no such key", "did you mean mtu?"],
    ),
    (
        "[port.a]\nqueue-pairs = 2\n",
        2,
        &["queue-pairs: ", "did you mean queue_pairs?"],
    ),
    (
        "[port.a]\nmax_bandwidth = 2\n",
        2,
        &["max_bandwidth: ", "known: vm, switch, profile, socket"],
    ),
    (
        "[port.a]\n\n[[port.a.acl]]\naction = 'deny'\n",
        3,
        &["acl: ", "no such key"],
    ),
    (
        "[switch.b]\nageing = 10\n",
        2,
        &["ageing: ", "no such key", "known: ageing_seconds"],
    ),
    // Values by themselves.
    (
        "[port.a]\nvm = 7\n",
        2,
        &["vm: ", "7 is not text", "in quotes"],
    ),
    (
        "[port.a]\nvm = \"\"\n",
        2,
        &["vm: ", "empty", "leave the key out"],
    ),
    ("[port.a]\nvm = \"a b\"\n", 2, &["vm: ", "' '"]),
    (
        "[port.a]\nswitch = true\n",
        2,
        &["switch: ", "true is not text"],
    ),
    ("[port.a]\nsocket = \"\"\n", 2, &["socket: ", "empty"]),
    (
        "[port.a]\nsocket = \"/run/x/\"\n",
        2,
        &["socket: ", "is a directory", "name the socket"],
    ),
    (
        "[port.a]\nsocket = \"a\\u0000b\"\n",
        2,
        &["socket: ", "NUL"],
    ),
    (
        "[port.a]\nsocket = [\"a\"]\n",
        2,
        &["socket: ", "a list is not text"],
    ),
    (
        "[port.a]\nsocket_role = \"client\"\n",
        2,
        &["socket_role: ", "client", "listen", "connect"],
    ),
    (
        "[port.a]\nsocket_group = \"k:v\"\n",
        2,
        &["socket_group: ", "no group name", "this host"],
    ),
    (
        "[port.a]\nsocket_permissions = 660\n",
        2,
        &["socket_permissions: ", "not text", "\"0660\""],
    ),
    (
        "[port.a]\nsocket_permissions = \"rw\"\n",
        2,
        &["socket_permissions: ", "\"rw\"", "octal"],
    ),
    (
        "[port.a]\nsocket_permissions = \"1777\"\n",
        2,
        &["socket_permissions: ", "octal"],
    ),
    (
        "[port.a]\nsocket_permissions = \"0668\"\n",
        2,
        &["socket_permissions: ", "octal"],
    ),
    (
        "[port.a]\ntap = \"longer-than-linux-takes\"\n",
        2,
        &["tap: ", "23 bytes", "at most 15"],
    ),
    (
        "[port.a]\ntap = \"a/b\"\n",
        2,
        &["tap: ", "cannot be a device", "tandem0"],
    ),
    (
        "[port.a]\ntap = \"tap%d\"\n",
        2,
        &["tap: ", "cannot be a device"],
    ),
    (
        "[port.a]\ntap = \"..\"\n",
        2,
        &["tap: ", "cannot be a device"],
    ),
    (
        "[port.a]\nmac = \"52:54:00:12:34\"\n",
        2,
        &["mac: ", "not a MAC", "52:54:00:12:34:56"],
    ),
    (
        "[port.a]\nmac = \"52:54:00:12:34:5g\"\n",
        2,
        &["mac: ", "not a MAC"],
    ),
    (
        "[port.a]\nmac = \"01:00:5e:00:00:01\"\n",
        2,
        &["mac: ", "group address", "one station's"],
    ),
    (
        "[port.a]\nmac = \"ff:ff:ff:ff:ff:ff\"\n",
        2,
        &["mac: ", "group address"],
    ),
    (
        "[port.a]\nmac = \"00:00:00:00:00:00\"\n",
        2,
        &["mac: ", "no station's"],
    ),
    (
        "[port.a]\nqueue_pairs = 0\n",
        2,
        &["queue_pairs: ", "0 is too small", "from 1 to 32"],
    ),
    (
        "[port.a]\nqueue_pairs = 33\n",
        2,
        &["queue_pairs: ", "33 is too large", "from 1 to 32"],
    ),
    (
        "[port.a]\nqueue_pairs = \"4\"\n",
        2,
        &["queue_pairs: ", "\"4\" is not a number"],
    ),
    (
        "[port.a]\nqueue_pairs = 1.5\n",
        2,
        &["queue_pairs: ", "1.5 is not a whole number"],
    ),
    (
        "[port.a]\nqueue_pairs = -1\n",
        2,
        &["queue_pairs: ", "-1 is not a whole number"],
    ),
    (
        "[port.a]\nmtu = 67\n",
        2,
        &["mtu: ", "67 is too small", "from 68 to 65535"],
    ),
    (
        "[port.a]\nmtu = 65536\n",
        2,
        &["mtu: ", "65536 is too large", "from 68 to 65535"],
    ),
    (
        "[port.a]\nmtu = 99999999999999999999\n",
        2,
        &["mtu: ", "from 68 to 65535"],
    ),
    (
        "[port.a]\nmtu = 2001-01-01\n",
        2,
        &["mtu: ", "not a number"],
    ),
    (
        "[port.a]\nfeature_level = 2\n",
        2,
        &["feature_level: ", "there is no 2;", "the only value is 1"],
    ),
    (
        "[port.a]\nfailover = \"yes\"\n",
        2,
        &["failover: ", "\"yes\"", "true or false"],
    ),
    (
        "[port.a]\nfailover = 1\n",
        2,
        &["failover: ", "true or false"],
    ),
    (
        "[port.a]\nvlan = 0\n",
        2,
        &["vlan: ", "0 is no VLAN", "leave the key out"],
    ),
    (
        "[port.a]\nvlan = 4095\n",
        2,
        &["vlan: ", "4095 is too large", "from 1 to 4094"],
    ),
    (
        "[port.a]\ntrunk_vlans = 10\n",
        2,
        &["trunk_vlans: ", "not text", "10,20-29"],
    ),
    (
        "[port.a]\ntrunk_vlans = [10]\n",
        2,
        &["trunk_vlans: ", "not text", "10,20-29"],
    ),
    (
        "[port.a]\ntrunk_vlans = \"\"\n",
        2,
        &["trunk_vlans: ", "is empty", "10,20-29"],
    ),
    (
        "[port.a]\ntrunk_vlans = \"10,4095\"\n",
        2,
        &["trunk_vlans: ", "4095", "1 to 4094"],
    ),
    (
        "[port.a]\ntrunk_vlans = \"9-3\"\n",
        2,
        &["trunk_vlans: ", "9-3 ends before it begins"],
    ),
    (
        "[port.a]\nstorm_limit = -5\n",
        2,
        &["storm_limit: ", "-5", "from 0 to 4294967295"],
    ),
    (
        "[switch.b]\nageing_seconds = 0\n",
        2,
        &["ageing_seconds: ", "too small", "from 1 to 32000"],
    ),
    (
        "[switch.b]\nmac_limit = 3\n",
        2,
        &["mac_limit: ", "3 is too small", "from 64"],
    ),
    (
        "[switch.b]\nuplink = \"a/b\"\n",
        2,
        &["uplink: ", "cannot be a device", "eth0"],
    ),
    (
        "[switch.b]\nuplink = \"eth0:dpdk\"\n",
        2,
        &[
            "uplink: ",
            "\"dpdk\" is no driver",
            "af_packet, af_xdp or tap",
        ],
    ),
    (
        "[switch.b]\nuplink = [\"eth0\"]\n",
        2,
        &["uplink: ", "a list is not text"],
    ),
    (
        "[switch.b]\nuplink = \"eth0\"\nuplink_vlans = \"0\"\n",
        3,
        &["uplink_vlans: ", "1 to 4094"],
    ),
    (
        "[port.a]\nuplink_member = \"eth0:tap\"\n",
        2,
        &["uplink_member: ", "cannot be a device", "eth0"],
    ),
    (
        "[team.t]\nmembers = \"eth0,,eth1\"\n",
        2,
        &["members: ", "empty"],
    ),
    (
        "[team.t]\nmembers = [\"eth0\", 1]\n",
        2,
        &["members: ", "1 is not text", "eth1:af_xdp"],
    ),
    (
        "[team.t]\nmembers = []\n",
        2,
        &["members: ", "at least one", "list devices"],
    ),
    (
        "[team.t]\nmembers = 7\n",
        2,
        &["members: ", "7 is no list", "list devices"],
    ),
    (
        "[team.t]\nmembers = [\"eth0\", \"eth0:af_xdp\"]\n",
        2,
        &["members: ", "eth0 is there twice", "once"],
    ),
    (
        "[team.t]\nmembers = [\"a-name-of-16-byt\"]\n",
        2,
        &["members: ", "16 bytes", "at most 15"],
    ),
    (
        "[team.t]\nmembers = [\"eth0:\"]\n",
        2,
        &["members: ", "empty"],
    ),
    (
        "[team.t]\nmembers = \"eth0\"\nmode = \"lcap\"\n",
        3,
        &["mode: ", "\"lcap\" is no mode", "static or lacp"],
    ),
    (
        "[team.t]\nmembers = \"eth0\"\ndistribution = \"hash\"\n",
        3,
        &["distribution: ", "no distribution", "transport_ports"],
    ),
    (
        "[team.t]\nmembers = \"eth0\"\nprobe = \"224.0.0.1\"\n",
        3,
        &["probe: ", "no station's address", "heartbeat"],
    ),
    (
        "[team.t]\nmembers = \"eth0\"\nprobe = \"ping\"\n",
        3,
        &["probe: ", "\"ping\" is no probe", "IP address"],
    ),
    (
        "[team.t]\nmembers = \"eth0\"\nlldp = \"transmit\"\n",
        3,
        &["lldp: ", "no way to use LLDP", "receive, both or off"],
    ),
    (
        "[team.t]\nmembers = \"eth0\"\nmember = \"eth1\"\n",
        3,
        &["member: ", "did you mean members?"],
    ),
    // Values against each other.
    (
        "[team.t]\nmode = \"static\"\n",
        1,
        &["[team.t]", "members: ", "at least one", "eth1"],
    ),
    (
        "[team.t]\nmembers = \"eth0,eth1\"\nstandby = \"eth2\"\n",
        3,
        &["standby: ", "eth2 is no member", "choose of: eth0, eth1"],
    ),
    (
        "[team.t]\nmembers = \"eth0\"\nstandby = \"eth0\"\n",
        3,
        &["standby: ", "only member", "add another"],
    ),
    (
        "[team.t]\nmembers = \"eth0,eth1\"\nstandby = \"eth1\"\nmode = \"static\"\n",
        3,
        &["standby: ", "all members alike", "switch_independent"],
    ),
    (
        "[team.t]\nmembers = \"eth0\"\nlacp_timer = \"fast\"\n",
        3,
        &["lacp_timer: ", "only LACP", "set mode to lacp"],
    ),
    (
        "[team.t]\nmembers = \"eth0,eth1\"\nmode = \"lacp\"\nprobe = \"192.0.2.1\"\n",
        4,
        &["probe: ", "LACP finds", "another mode"],
    ),
    (
        "[team.t]\nmembers = \"eth0,eth1\"\nmode = \"static\"\nprobe = \"heartbeat\"\n",
        4,
        &["probe: ", "do not hear each other", "IP address"],
    ),
    (
        "[team.t]\nmembers = \"eth0\"\nprobe = \"heartbeat\"\n",
        3,
        &["probe: ", "nobody to hear", "add a member"],
    ),
    (
        "[team.t]\nmembers = \"eth0\"\nprobe_vlan = 5\n",
        3,
        &["probe_vlan: ", "no probes", "set probe"],
    ),
    (
        "[team.t]\nmembers = \"eth0\"\nprobe_interval_ms = 200\n",
        3,
        &["probe_interval_ms: ", "no probes", "set probe"],
    ),
    (
        "[switch.b]\nuplink_vlans = \"5\"\n",
        2,
        &["uplink_vlans: ", "no uplink", "add uplink"],
    ),
    (
        "[switch.b]\nuplink_native_vlan = 5\n",
        2,
        &["uplink_native_vlan: ", "no uplink", "add uplink"],
    ),
    (
        "[switch.b]\nuplink = \"eth0\"\nuplink_vlans = \"5\"\nuplink_native_vlan = 6\n",
        4,
        &["uplink_native_vlan: ", "6 is not in uplink_vlans 5"],
    ),
    (
        "[switch.b]\nuplink = \"a-team-that-is-not-there\"\n[team.t]\nmembers = \"eth0\"\n",
        2,
        &["uplink: ", "no team a-team", "choose of: t"],
    ),
    // Devices have one use.
    (
        "[team.t]\nmembers = \"eth0,eth1\"\n[team.u]\nmembers = \"eth1\"\n",
        4,
        &[
            "[team.u]",
            "members: ",
            "eth1 is a member of team t already",
        ],
    ),
    (
        "[team.t]\nmembers = \"eth0\"\n[switch.a]\nuplink = \"eth0:af_xdp\"\n",
        4,
        &["[switch.a]", "uplink: ", "eth0 is a member of team t"],
    ),
    (
        "[team.t]\nmembers = \"eth0\"\n[switch.a]\nuplink = \"t\"\n[switch.b]\nuplink = \"t\"\n",
        6,
        &["[switch.b]", "uplink: ", "t is the uplink of switch a"],
    ),
    (
        "[switch.a]\nuplink = \"eth0\"\n[switch.b]\nuplink = \"eth0:tap\"\n",
        4,
        &["[switch.b]", "uplink: ", "eth0 is the uplink of switch a"],
    ),
    (
        "[team.t]\nmembers = \"tap0:tap\"\n[port.a]\ntap = \"tap0\"\n",
        4,
        &["[port.a]", "tap: ", "tap0 is a member of team t"],
    ),
    (
        "[switch.default]\nuplink = \"tap0:tap\"\n[port.a]\ntap = \"tap0\"\n",
        4,
        &["[port.a]", "tap: ", "tap0 is the uplink of switch default"],
    ),
    (
        "[port.a]\nvlan = 1\ntrunk_vlans = \"2\"\n",
        2,
        &["vlan: ", "access and trunk", "keep vlan"],
    ),
    (
        "[port.a]\nnative_vlan = 3\n",
        2,
        &["native_vlan: ", "only a trunk", "add trunk_vlans"],
    ),
    (
        "[port.a]\ntrunk_vlans = \"10,20-29\"\nnative_vlan = 30\n",
        3,
        &[
            "native_vlan: ",
            "30 is not in trunk_vlans 10,20-29",
            "choose one",
        ],
    ),
    (
        "[port.a]\nswitch = \"blue\"\n",
        2,
        &["switch: ", "no switch blue", "add [switch.blue]"],
    ),
    (
        "[port.a]\ntap = \"t0\"\nsocket = \"s\"\n",
        3,
        &["socket: ", "TAP", "remove it"],
    ),
    (
        "[port.a]\ntap = \"t0\"\nsocket_role = \"listen\"\n",
        3,
        &["socket_role: ", "remove it"],
    ),
    (
        "[port.a]\ntap = \"t0\"\nqueue_pairs = 2\n",
        3,
        &["queue_pairs: ", "TAP", "remove it"],
    ),
    (
        "[port.a]\ntap = \"t0\"\nfailover = true\n",
        3,
        &["failover: ", "TAP", "remove it"],
    ),
    (
        "[port.a]\ntap = \"t0\"\nmtu = 65535\n",
        3,
        &["mtu: ", "65535 does not fit", "at most 65521"],
    ),
    (
        "[port.a]\nsocket_role = \"connect\"\nsocket_group = \"kvm\"\n",
        3,
        &["socket_group: ", "the VMM makes the socket", "remove it"],
    ),
    (
        "[port.api]\n",
        1,
        &[
            "socket: ",
            "/run/tandem/api.sock",
            "the API's",
            "choose another",
        ],
    ),
    (
        "[port.a]\nsocket = \"/run/tandem/api.sock\"\n",
        2,
        &["socket: ", "the API's"],
    ),
    // Ports against each other.
    (
        "[port.a]\nmac = \"52:54:00:00:00:01\"\n[port.b]\nmac = \"52:54:00:00:00:01\"\n",
        4,
        &["[port.b]", "mac: ", "port a's already", "its own"],
    ),
    (
        "[port.a]\n[port.b]\nsocket = \"a.sock\"\n",
        3,
        &[
            "[port.b]",
            "socket: ",
            "/run/tandem/a.sock is port a's already",
            "another path",
        ],
    ),
    (
        "[profile.a]\nmac = \"52:54:00:00:00:01\"\n",
        2,
        &["[profile.a]", "mac: ", "shared by ports", "in each port"],
    ),
    (
        "[profile.a]\nmtu = 7\n[port.b]\nprofile = \"a\"\n",
        2,
        &["[profile.a]", "mtu: ", "7 is too small", "68 to 65535"],
    ),
    (
        "[profile.a]\n[port.b]\nprofile = \"b\"\n",
        3,
        &[
            "[port.b]",
            "profile: ",
            "no profile b",
            "[profile.b]",
            "choose of: a",
        ],
    ),
    (
        "[profile.a]\nvlan = 7\n[port.b]\nprofile = \"a\"\nnative_vlan = 8\n",
        5,
        &["[port.b]", "native_vlan: ", "only a trunk"],
    ),
    (
        "[port.a]\ntap = \"t\"\n[port.b]\ntap = \"t\"\n",
        4,
        &["tap: ", "t is port a's already"],
    ),
];

#[test]
fn wrong_files_are_refused_with_line_key_reason_and_remedy() {
    assert!(FILES.len() >= 60);
    for (text, line, words) in FILES {
        let done = check(text);
        assert_eq!(done.code, Some(1), "{text}: {}", done.err);
        assert_eq!(done.err.lines().count(), 1, "{text}: {}", done.err);
        let place = format!("t.toml:{line}: ");
        for word in words.iter().copied().chain([place.as_str(), "; "]) {
            assert!(
                done.err.contains(word),
                "{text}: no {word:?} in: {}",
                done.err
            );
        }
    }
}

/// Each: what follows `--port`, and words that must be in the message.
const LINES: &[(&str, &[&str])] = &[
    ("", &["name: ", "empty"]),
    ("a b", &["name: ", "letters, digits"]),
    ("=", &["name: "]),
    ("web1,", &[": no such key", "known: "]),
    ("web1,mut=3", &["--port web1: mut: ", "did you mean mtu?"]),
    ("web1,mtu", &["--port web1: mtu: ", "no value", "=VALUE"]),
    ("web1,mtu=", &["mtu: ", "not a number", "from 68 to 65535"]),
    ("web1,mtu=0x100", &["mtu: ", "not a number"]),
    ("web1,mtu=9000,mtu=9000", &["mtu: ", "given twice", "+"]),
    ("web1,failover=maybe", &["failover: ", "true or false"]),
    (
        "web1,trunk_vlans=10+x",
        &["trunk_vlans: ", "\"x\" is not a VLAN"],
    ),
    ("web1,trunk_vlans=10,20", &["20: ", "no such key"]),
    (
        "web1,vlan=7,native_vlan=7",
        &["native_vlan: ", "add trunk_vlans"],
    ),
];

#[test]
fn wrong_ports_on_the_command_line_are_refused() {
    for (line, words) in LINES {
        let done = done(&mut tandemd(&[
            "--check",
            "--port",
            line,
            "--config",
            "/dev/null",
        ]));
        assert_eq!(done.code, Some(1), "{line}");
        for word in words.iter().chain(&["--port", "; "]) {
            let word = word.trim_start_matches(": ");
            assert!(
                done.err.contains(word),
                "{line}: no {word:?} in: {}",
                done.err
            );
        }
    }
}

#[test]
fn a_port_given_twice_is_refused() {
    let (one, two) = ("web1,queue_pairs=4", "web1,queue_pairs=2");
    let done = done(&mut tandemd(&["--check", "--port", one, "--port", two]));
    assert_eq!(
        (done.code, done.err.lines().count()),
        (Some(1), 1),
        "{done:?}"
    );
    for word in ["--port web1: ", "given twice", "in one --port"] {
        assert!(done.err.contains(word), "no {word:?} in: {}", done.err);
    }
}

#[test]
fn all_problems_are_reported_at_once() {
    let done = check("[port.a]\nmut = 1\nmtu = 1\nvlan = 0\n[port.b]\nswitch = 'x'\n[porst.c]\n");
    assert_eq!(done.code, Some(1));
    for word in ["mut: ", "mtu: ", "vlan: ", "switch: ", "[porst]"] {
        assert!(done.err.contains(word), "no {word:?} in: {}", done.err);
    }
    let lines: Vec<&str> = done
        .err
        .lines()
        .map(|l| l.split(':').nth(2).unwrap())
        .collect();
    assert_eq!(lines, ["2", "3", "4", "6", "7"], "{}", done.err);
}

#[test]
fn a_path_that_is_too_long_says_how_long_it_is() {
    let name = "n".repeat(64);
    let run_dir = format!("/{}", "d".repeat(40));
    let long = format!("{run_dir}/{name}.sock").len();
    let done = done(&mut tandemd(&[
        "--check",
        "--run-dir",
        &run_dir,
        "--port",
        &name,
    ]));
    assert_eq!(done.code, Some(1));
    for word in [
        format!("has {long} bytes"),
        "at most 107".into(),
        "--run-dir".into(),
    ] {
        assert!(done.err.contains(&word), "no {word:?} in: {}", done.err);
    }
}

#[test]
fn files_that_cannot_be_read_are_named() {
    for (path, word) in [("/nonexistent/t.toml", "No such file"), ("/", "directory")] {
        let done = done(&mut tandemd(&["--check", "--config", path]));
        assert_eq!(done.code, Some(1));
        assert!(
            done.err.contains(path) && done.err.contains(word),
            "{}",
            done.err
        );
    }
}

#[test]
fn a_good_file_with_every_key_is_accepted() {
    let done = check(
        r#"
        [switch.default]
        ageing_seconds = 60
        uplink = "team0"
        uplink_vlans = "10,20-29"
        uplink_native_vlan = 10
        [switch.blue]
        mac_limit = 1000
        uplink = "eth4:af_packet"

        [team.team0]
        members = ["eth0", "eth1:af_xdp", "tap9:tap"]
        mode = "switch_independent"
        distribution = "dynamic"
        standby = "eth1"
        probe = "2001:db8::1"
        probe_vlan = 7
        probe_interval_ms = 100
        lldp = "both"
        [team.spare]
        members = "eth2,eth3:auto"
        mode = "lacp"
        lacp_timer = "slow"

        [port.web1]
        vm = "web"
        switch = "blue"
        socket = "other.sock"
        socket_role = "listen"
        socket_group = "root"
        socket_permissions = "0666"
        mac = "52:54:00:12:34:56"
        queue_pairs = 0x4
        mtu = 9_000
        feature_level = 1
        failover = true
        trunk_vlans = "10,20-29"
        native_vlan = 10
        storm_limit = 0
        uplink_member = "eth7"

        [port.host]
        tap = "tandem0"
        vlan = 4094
        mac = "52:54:00:12:34:56"    # on another switch
        [port.db1]
        socket_role = "connect"
        "#,
    );
    assert_eq!((done.code, done.err.as_str()), (Some(0), ""));
    assert_eq!(done.out, "no problems: 2 switches, 2 teams, 3 ports\n");
}

#[test]
fn the_example_in_the_documentation_is_accepted() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    let text = std::fs::read_to_string(path).unwrap();
    let example = text.split("```toml\n").nth(1).unwrap();
    let done = check(example.split("```").next().unwrap());
    assert_eq!((done.code, done.err.as_str()), (Some(0), ""));
    assert_eq!(done.out, "no problems: 2 switches, 1 team, 4 ports\n");
}

#[test]
fn what_a_port_needs_of_the_host_is_looked_for() {
    for (text, words) in [
        (
            "socket_group = \"no-such-group\"",
            ["port a: socket_group: ", "no group no-such-group"],
        ),
        (
            "socket = \"/nonexistent/a.sock\"",
            ["port a: socket: ", "no directory /nonexistent"],
        ),
    ] {
        let done = check(&format!("[port.a]\n{text}\n"));
        assert_eq!(done.code, Some(1), "{done:?}");
        for word in words {
            assert!(done.err.contains(word), "no {word:?} in: {}", done.err);
        }
    }
}

#[test]
fn what_was_set_over_the_api_is_checked_too() {
    let (dir, path) = config("[port.a]\n");
    let state = dir.path().to_str().unwrap();
    let check = || {
        let args = [
            "--check",
            "--run-dir",
            "/r",
            "--state-dir",
            state,
            "--config",
            &path,
        ];
        done(&mut tandemd(&args))
    };
    let saved = dir.path().join("ports.json");
    let ports = r#"{"version":1,"ports":{"a":{"switch":"gone"},"b":{"socket_group":"no-such"}}}"#;
    std::fs::write(&saved, ports).unwrap();
    let done = check();
    assert_eq!(
        (done.code, done.out.as_str()),
        (Some(0), "no problems: 1 switch, 2 ports\n")
    );
    for word in [
        "warning: port a",
        "no switch gone",
        "warning: port b",
        "no group no-such",
    ] {
        assert!(done.err.contains(word), "no {word:?} in: {}", done.err);
    }
    std::fs::write(&saved, "{").unwrap();
    let done = check();
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.err.contains("ports.json: is damaged"), "{}", done.err);
}

#[test]
fn what_a_port_has_itself_leaves_out_what_its_profile_has_against_it() {
    for (profile, port) in [
        ("vlan = 10", "trunk_vlans = \"10,20\""),
        ("trunk_vlans = \"10,20\"\nnative_vlan = 10", "vlan = 7"),
        ("queue_pairs = 4\nfailover = true", "tap = \"tandem0\""),
        ("socket_group = \"root\"", "socket_role = \"connect\""),
    ] {
        let text = format!("[profile.p]\n{profile}\n[port.a]\nprofile = \"p\"\n{port}\n");
        let done = check(&text);
        assert_eq!(done.code, Some(0), "{text}: {}", done.err);
    }
    let done = check("[profile.p]\nvlan = 1\ntrunk_vlans = \"2\"\n");
    assert_eq!(done.code, Some(1));
    assert!(
        done.err.contains("t.toml:2: [profile.p]: vlan: "),
        "{}",
        done.err
    );
}
