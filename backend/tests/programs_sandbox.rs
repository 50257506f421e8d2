//! What the daemon gives up when it runs, and what works all the same.

mod programs;

use std::fs::{self, File, Permissions};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use programs::{Daemon, bound_as, config, done, tandemd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags,
    SocketType, recvmsg, socketpair,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use serde_json::{Value, json};

/// A user and a group that own nothing: `nobody` and `nogroup`.
const NOBODY: u32 = 65534;

/// A hang becomes a failure after this; nothing waits for it otherwise.
const LIMIT: Duration = Duration::from_secs(30);

fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIPPED programs_sandbox::{test}: it needs root");
    }
    root
}

/// The fields of a process or thread (proc_pid_status(5)).
fn status(task: &Path) -> impl Fn(&str) -> String + use<> {
    let text = fs::read_to_string(task.join("status")).unwrap();
    move |field: &str| {
        let mut lines = text.lines();
        let line = lines.find_map(|line| line.strip_prefix(&format!("{field}:")));
        line.unwrap_or_else(|| panic!("no {field}"))
            .trim()
            .to_owned()
    }
}

fn threads(daemon: &Daemon) -> Vec<PathBuf> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    tasks.map(|task| task.unwrap().path()).collect()
}

/// The privileged process of a daemon.
fn broker(daemon: &Daemon) -> Option<u32> {
    let pid = daemon.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children
        .split_whitespace()
        .next()
        .map(|pid| pid.parse().unwrap())
}

fn pidfd(pid: u32) -> OwnedFd {
    pidfd_open(Pid::from_raw(pid as i32).unwrap(), PidfdFlags::empty()).unwrap()
}

/// Waits for the end of a process.
fn ended(process: &OwnedFd) {
    let limit = Timespec {
        tv_sec: 30,
        tv_nsec: 0,
    };
    let mut events = [PollFd::new(process, PollFlags::IN)];
    poll(&mut events, Some(&limit)).unwrap();
    assert!(!events[0].revents().is_empty(), "it goes on");
}

#[test]
fn no_thread_has_privileges() {
    let daemon = Daemon::start(&["--port", "web1"]);
    // Then all threads are there and have their names.
    assert_eq!(daemon.http("GET", "/api/v1/ports", "").status, 200);
    let none = "0000000000000000";
    for task in threads(&daemon) {
        let field = status(&task);
        let name = field("Name");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field(set), none, "{set} of {name}");
        }
        assert_eq!(field("NoNewPrivs"), "1", "{name}");
        assert_eq!(field("Seccomp"), "2", "{name}");
    }
    let start = Instant::now();
    // A thread has its name once it runs.
    let filters = |name: &str| -> u32 {
        loop {
            let mut all = threads(&daemon).into_iter().map(|task| status(&task));
            if let Some(thread) = all.find(|field| field("Name") == name) {
                return thread("Seccomp_filters").parse().unwrap();
            }
            assert!(start.elapsed() < LIMIT, "there is no {name}");
        }
    };
    // Those that carry frames give up more, first thing when they run.
    while filters("web1/0") != filters("api") + 2 {
        assert!(start.elapsed() < LIMIT, "{} filters", filters("web1/0"));
    }
    assert_eq!(filters("web1 door"), filters("api"));
    let log = daemon.log();
    assert!(log.contains("sandbox: no capabilities"), "{log}");
}

#[test]
fn the_privileged_process_keeps_little_and_ends_with_the_daemon() {
    for signal in [Signal::TERM, Signal::KILL] {
        let mut daemon = Daemon::start(&["--port", "web1"]);
        let broker = broker(&daemon).unwrap();
        let process = pidfd(broker);
        let field = status(Path::new(&format!("/proc/{broker}")));
        assert_eq!(field("Name"), "tandemd broker");
        assert_eq!(
            (field("NoNewPrivs"), field("Seccomp")),
            ("1".into(), "2".into())
        );
        // CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_NET_ADMIN, CAP_NET_RAW, CAP_IPC_LOCK, CAP_SYS_PTRACE
        // and CAP_BPF at most.
        let kept = u64::from_str_radix(&field("CapPrm"), 16).unwrap();
        assert_eq!(
            kept & !(1 | 1 << 1 | 7 << 12 | 1 << 19 | 1 << 39),
            0,
            "{kept:#x}"
        );
        // A signal to all processes of a unit or a terminal is not the broker's to follow.
        rustix::process::kill_process(Pid::from_raw(broker as i32).unwrap(), Signal::TERM).unwrap();
        assert_eq!(daemon.http("PUT", "/api/v1/ports/web2", "{}").status, 201);
        daemon.end(signal);
        ended(&process);
    }
}

#[test]
fn a_daemon_without_its_broker_goes_on_and_says_what_it_cannot_do() {
    let daemon = Daemon::start(&["--port", "web1"]);
    let broker = broker(&daemon).unwrap();
    rustix::process::kill_process(Pid::from_raw(broker as i32).unwrap(), Signal::KILL).unwrap();
    let refused = daemon.http("PUT", "/api/v1/ports/web2", "{}");
    assert_eq!(refused.status, 500, "{refused:?}");
    let said = refused.json.to_string();
    assert!(said.contains("restart tandemd"), "{said}");
    assert_eq!(daemon.http("GET", "/api/v1/ports/web1", "").status, 200);
    daemon.stop();
}

#[test]
fn with_the_sandbox_off_there_is_one_process_that_keeps_all() {
    let daemon = Daemon::start(&["--port", "web1", "--sandbox", "off"]);
    assert_eq!(broker(&daemon), None);
    let own = fs::read_to_string("/proc/self/status").unwrap();
    for task in threads(&daemon) {
        let field = status(&task);
        assert!(own.contains(&format!("CapEff:\t{}", field("CapEff"))));
        assert_eq!(field("Seccomp_filters"), "0", "{}", field("Name"));
    }
    assert_eq!(daemon.http("PUT", "/api/v1/ports/web2", "{}").status, 201);
    assert!(daemon.path("run/web2.sock").exists());
    daemon.stop();
}

#[test]
fn files_that_are_not_the_daemons_are_out_of_reach() {
    let (dir, path) = config("[port.web1]\n");
    let daemon = Daemon::start(&["--config", &path]);
    if !daemon.log().contains("Landlock") || daemon.log().contains("no Landlock") {
        println!("SKIPPED programs_sandbox::files: this kernel has no Landlock");
        return;
    }
    // The file's directory is in reach, and where this link leads is not.
    let (_other, elsewhere) = config("[port.web1]\n[port.web2]\n");
    fs::remove_file(&path).unwrap();
    symlink(&elsewhere, &path).unwrap();
    daemon.reload();
    assert!(
        daemon.log().contains("Permission denied"),
        "{}",
        daemon.log()
    );
    assert!(!daemon.path("run/web2.sock").exists());
    // A file beside it that takes its place is read.
    let new = dir.path().join("new");
    fs::write(&new, "[port.web1]\n[port.web3]\n").unwrap();
    fs::rename(&new, &path).unwrap();
    daemon.reload();
    assert!(daemon.path("run/web3.sock").exists(), "{}", daemon.log());
    daemon.stop();
}

/// Where only the broker can make a socket, and remove it again.
#[test]
fn a_socket_may_be_anywhere() {
    let daemon = Daemon::start(&[]);
    let other = tempfile::tempdir().unwrap();
    let socket = other.path().join("x.sock");
    let put = json!({"socket": socket, "socket_permissions": "0640"}).to_string();
    let added = daemon.http("PUT", "/api/v1/ports/x", &put);
    assert_eq!(added.status, 201, "{added:?}");
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    assert_eq!(daemon.http("DELETE", "/api/v1/ports/x", "").status, 204);
    assert!(!socket.exists());
    // And one that a VMM makes, who comes later than the port.
    let theirs = other.path().join("vmm.sock");
    let put = json!({"socket": theirs, "socket_role": "connect"}).to_string();
    assert_eq!(daemon.http("PUT", "/api/v1/ports/y", &put).status, 201);
    let vmm = UnixListener::bind(&theirs).unwrap();
    drop(vmm.accept().unwrap());
    daemon.stop();
}

#[test]
fn a_directory_that_takes_privilege_is_refused() {
    if !is_root("a_directory_that_takes_privilege_is_refused") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    fs::create_dir(&run).unwrap();
    chown(&run, Some(NOBODY), None).unwrap();
    let mut daemon = Daemon::begin(dir, &["--port", "web1"], |_| {});
    assert_eq!(daemon.end_of_itself(), Some(1));
    let log = daemon.log();
    assert!(log.contains("make the daemon's user its owner"), "{log}");
    assert_eq!(fs::read_dir(run).unwrap().count(), 0);
    assert!(!daemon.path("state").exists());
}

/// As a systemd unit starts it: an ordinary user with two capabilities.
#[test]
fn an_ordinary_user_with_two_capabilities_is_enough() {
    if !is_root("an_ordinary_user_with_two_capabilities_is_enough") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    // Where the program is may be out of this user's reach.
    let program = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(program.path(), Permissions::from_mode(0o755)).unwrap();
    let copy = program.path().join("tandemd");
    fs::copy(env!("CARGO_BIN_EXE_tandemd"), &copy).unwrap();
    let user = NOBODY.to_string();
    let as_user = [
        "--reuid",
        &user,
        "--regid",
        &user,
        "--clear-groups",
        "--inh-caps",
        "+net_admin,+chown",
        "--ambient-caps",
        "+net_admin,+chown",
    ];
    let home = dir.path().to_owned();
    let daemon = Daemon::begin(dir, &[], |command| {
        fs::set_permissions(home.join("notify"), Permissions::from_mode(0o777)).unwrap();
        let log = File::create(home.join("log")).unwrap();
        *command = bound_as(&as_user, copy.to_str().unwrap(), command);
        command.stderr(log);
    });
    assert_eq!(daemon.notified(), "READY=1", "{}", daemon.log());
    assert_eq!(
        status(&threads(&daemon)[0])("Uid").split('\t').next(),
        Some(&*user)
    );
    let put = |port: &str, body: Value| {
        let added = daemon.http("PUT", &format!("/api/v1/ports/{port}"), &body.to_string());
        assert_eq!(added.status, 201, "{added:?}");
    };
    put("web1", json!({"socket_group": "daemon"}));
    let socket = fs::metadata(daemon.path("run/web1.sock")).unwrap();
    assert_eq!((socket.uid(), socket.gid()), (NOBODY, 1));
    if Path::new("/dev/net/tun").exists() {
        let tap = format!("tdmsb{}", std::process::id());
        put(
            "host",
            json!({"tap": tap, "mac": "52:54:00:00:00:99", "mtu": 1400}),
        );
        let at = format!("/sys/class/net/{tap}");
        let read = |file: &str| fs::read_to_string(format!("{at}/{file}")).unwrap();
        assert_eq!(
            (read("address").trim(), read("mtu").trim()),
            ("52:54:00:00:00:99", "1400")
        );
        assert_eq!(
            daemon.http("GET", "/api/v1/ports/host", "").json["state"],
            "up"
        );
        daemon.stop();
        assert!(!Path::new(&at).exists());
    } else {
        println!("SKIPPED-PART programs_sandbox: there is no /dev/net/tun");
    }
}

/// A broker with our end of its socket.
struct Broker {
    child: Child,
    socket: OwnedFd,
}

impl Broker {
    fn start() -> Self {
        let kind = SocketType::SEQPACKET;
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        let mut command = tandemd(&["broker"]);
        let child = command.stdin(Stdio::from(theirs)).spawn().unwrap();
        Self { child, socket }
    }

    /// Sends a packet; the answer, and the descriptors that came with it.
    fn ask(&self, packet: &[u8]) -> (Value, Vec<OwnedFd>) {
        rustix::net::sendmsg(
            &self.socket,
            &[IoSlice::new(packet)],
            &mut Default::default(),
            SendFlags::NOSIGNAL,
        )
        .unwrap();
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut room = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg(
            &self.socket,
            &mut room,
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
        .unwrap();
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                fds.extend(some);
            }
        }
        assert!(got.bytes > 1 && bytes[0] == 1, "no answer to {packet:?}");
        (serde_json::from_slice(&bytes[1..got.bytes]).unwrap(), fds)
    }

    fn request(&self, request: &Value) -> (Value, Vec<OwnedFd>) {
        self.ask(&[&[1], request.to_string().as_bytes()].concat())
    }

    fn end(mut self) {
        drop(self.socket);
        assert!(self.child.wait().unwrap().success());
    }
}

fn path(path: &Path) -> Value {
    json!(path.as_os_str().as_encoded_bytes())
}

#[test]
fn the_broker_refuses_nonsense_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start();
    let refused = |packet: &[u8]| {
        let (answer, fds) = broker.ask(packet);
        assert!(
            answer["Err"]["refused"].is_string() && fds.is_empty(),
            "{packet:?}: {answer}"
        );
    };
    let long = "x".repeat(2000);
    for packet in [
        "",
        "\x02{}",
        "\x01",
        "\x01{",
        "\x01null",
        "\x01[]",
        "\x01\"exec\"",
        &long,
    ] {
        // An empty packet cannot be told from the end.
        if !packet.is_empty() {
            refused(packet.as_bytes());
        }
    }
    let socket = dir.path().join("a.sock");
    let good = json!({"listen": {"path": path(&socket), "permissions": 0o600, "group": null}});
    // Every cut of a good request, and every byte of it changed.
    let bytes = [&[1], good.to_string().as_bytes()].concat();
    (1..bytes.len()).for_each(|len| refused(&bytes[..len]));
    for at in 0..bytes.len() {
        let mut wrong = bytes.clone();
        wrong[at] ^= 0x80;
        refused(&wrong);
    }
    for wrong in [
        json!({"listen": {"path": path(Path::new("a.sock")), "permissions": 0, "group": null}}),
        json!({"listen": {"path": path(Path::new("/")), "permissions": 0, "group": null}}),
        json!({"listen": {"path": [47, 0, 97], "permissions": 0, "group": null}}),
        json!({"listen": {"path": vec![47; 108], "permissions": 0, "group": null}}),
        json!({"listen": {"path": [], "permissions": 0, "group": null, "more": 1}}),
        json!({"connect": {"path": []}}),
        json!({"remove": {"number": 0}}),
    ] {
        let (answer, _) = broker.request(&wrong);
        assert!(answer["Err"]["refused"].is_string(), "{wrong}: {answer}");
    }
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        0,
        "something was made"
    );
    let (answer, fds) = broker.request(&good);
    assert_eq!(
        (&answer["Ok"]["listening"]["number"], fds.len()),
        (&json!(0), 1),
        "{answer}"
    );
    // It removes what it has made, and once.
    let remove = json!({"remove": {"number": 0}});
    assert_eq!(broker.request(&remove).0["Ok"], "removed");
    assert!(!socket.exists());
    assert!(broker.request(&remove).0["Err"].is_object());
    broker.end();
}

#[test]
fn the_broker_touches_no_other_file() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start();
    let at = |name: &str| dir.path().join(name);
    let group = rustix::process::getgid().as_raw().to_string();
    let listen = |path_of: &Path| {
        let listen = json!({"path": path(path_of), "permissions": 0o777, "group": group});
        broker.request(&json!({ "listen": listen }))
    };
    fs::write(at("file"), "precious").unwrap();
    fs::set_permissions(at("file"), Permissions::from_mode(0o600)).unwrap();
    assert_eq!(listen(&at("file")).0["Err"], "not_a_socket");
    // A link in a socket's place is not followed.
    symlink(at("file"), at("link")).unwrap();
    assert_eq!(listen(&at("link")).0["Err"], "not_a_socket");
    symlink(at("nowhere"), at("dangling")).unwrap();
    assert_eq!(listen(&at("dangling")).0["Err"], "not_a_socket");
    let living = UnixListener::bind(at("living")).unwrap();
    assert_eq!(listen(&at("living")).0["Err"], "in_use");
    drop(living);
    assert_eq!(listen(&at("no/such")).0["Err"]["system"]["errno"], 2);
    // Another socket in the place of the one it made stays.
    let (made, _listening) = listen(&at("mine"));
    assert!(made["Ok"].is_object(), "{made}");
    fs::remove_file(at("mine")).unwrap();
    let _theirs = UnixListener::bind(at("mine")).unwrap();
    assert_eq!(
        broker.request(&json!({"remove": {"number": 0}})).0["Ok"],
        "removed"
    );
    assert!(at("mine").exists());
    let meta = fs::metadata(at("file")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read(at("file")).unwrap(), b"precious");
    broker.end();
}

#[test]
fn the_broker_is_nothing_to_start_by_hand() {
    let by_hand = done(&mut tandemd(&["broker"]));
    assert_eq!(by_hand.code, Some(2));
    assert_eq!(by_hand.err.lines().count(), 1, "{}", by_hand.err);
    assert!(by_hand.err.contains("without it"), "{}", by_hand.err);
}
