//! The broker as a process: how the daemon starts and asks it, and what it does in its life.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};

use super::handler::Handler;
use super::protocol::{Done, Failure, Request, receive, send};
use crate::{sandbox, sys};

/// The only argument of a broker. It is nobody's to give but the daemon's.
pub const ARGUMENT: &str = "broker";

/// Its name in the list of processes, where it would be `exe`.
const NAME: &std::ffi::CStr = c"tandemd broker";

/// How long the end of the broker is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// The daemon's end.
#[derive(Debug)]
pub(super) struct Child {
    /// None once nothing more can be asked.
    socket: Option<OwnedFd>,
    process: std::process::Child,
}

impl Child {
    /// Starts this program once more, with the other end as its standard input.
    pub(super) fn start() -> io::Result<Self> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // This very file, also when another one was installed in its place.
        let process = Command::new("/proc/self/exe")
            .arg(ARGUMENT)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self {
            socket: Some(ours),
            process,
        })
    }

    /// Asks, and waits for the answer.
    pub(super) fn ask(&mut self, request: &Request) -> Result<(Done, Vec<OwnedFd>), Failure> {
        let socket = self.socket.as_ref().ok_or(Failure::Gone)?;
        let packet = match send(socket, request, &[]).and_then(|()| receive(socket)) {
            Ok(Some(packet)) => packet,
            // It was not sent, and the next one may be shorter.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(Failure::Refused("the request is too long".to_owned()));
            }
            Ok(None) | Err(_) => {
                log::error!("{}", Failure::Gone);
                self.socket = None;
                return Err(Failure::Gone);
            }
        };
        let done: Result<Done, Failure> = packet.parse()?;
        Ok((done?, packet.fds))
    }
}

impl Drop for Child {
    /// It ends when it finds the other end closed.
    fn drop(&mut self) {
        self.socket = None;
        let start = Instant::now();
        while let Ok(None) = self.process.try_wait()
            && start.elapsed() < PATIENCE
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The life of a broker.
pub fn run() -> ExitCode {
    let stdin = io::stdin();
    if sockopt::socket_type(&stdin) != Ok(SocketType::SEQPACKET) {
        eprintln!("tandemd: {ARGUMENT} is what tandemd starts itself: start tandemd without it");
        return ExitCode::from(2);
    }
    match prepare().and_then(|()| serve(stdin.as_fd())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tandemd: the privileged process cannot go on: {error}");
            ExitCode::FAILURE
        }
    }
}

fn prepare() -> io::Result<()> {
    // What the daemon was given by whoever started it is not for us: a VMM's connection that is
    // open here too would never end.
    sys::close_inherited()?;
    // The end of the daemon is the end of this, and no signal to all of its group or unit is.
    sys::ignore_signals()?;
    rustix::thread::set_name(NAME)?;
    sandbox::enter_broker()
}

/// Answers until the other end is closed.
fn serve(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut handler = Handler::default();
    while let Some(packet) = receive(socket)? {
        let done = packet.parse().and_then(|request| handler.handle(request));
        let (answer, fds) = match done {
            Ok((done, fds)) => (Ok(done), fds),
            Err(failure) => (Err(failure), Vec::new()),
        };
        send(socket, &answer, &fds)?;
    }
    Ok(())
}
