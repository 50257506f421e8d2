//! `tandem capture PORT`: the frames of a port, into a file, a pipe or as lines.

mod blocks;
mod line;

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::process::{Command as Process, Stdio};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use tokio::signal::unix::{SignalKind, signal};

use self::blocks::Blocks;
use super::{Failure, Session};
use crate::capture::MAX_SNAPLEN;
use crate::client::{ClientError, Stream};
use crate::config::valid_name;

/// Bytes of a request's path that the daemon takes.
const PATH_BYTES: usize = 60_000;

pub(super) fn command() -> Command {
    let option =
        |name: &'static str, value: &'static str| Arg::new(name).long(name).value_name(value);
    Command::new("capture")
        .about("Show the frames of a port, and what became of them")
        .after_help(
            "Frames from the VM are inbound in the file, frames to it outbound; why one was dropped \
             is in its comment.\nLive in Wireshark's terminal program: tandem capture PORT -w - | tshark -r -",
        )
        .arg(
            Arg::new("name")
                .value_name("PORT")
                .required(true)
                .help("The port's name"),
        )
        .arg(
            Arg::new("filter")
                .value_name("FILTER")
                .num_args(0..)
                .help("A filter as for tcpdump, which must be installed, see pcap-filter(7)"),
        )
        .arg(
            Arg::new("write")
                .short('w')
                .long("write")
                .value_name("FILE")
                .help("Write pcapng to this file, - for a pipe; without, print a line for each frame"),
        )
        .arg(
            option("count", "N")
                .value_parser(value_parser!(u64).range(1..))
                .help("End after so many frames"),
        )
        .arg(
            option("snaplen", "BYTES")
                .value_parser(value_parser!(u32).range(1..=i64::from(MAX_SNAPLEN)))
                .help("Capture no more of each frame [default: all of it]"),
        )
        .arg(
            option("direction", "DIRECTION")
                .value_parser(["from_vm", "to_vm", "both"])
                .action(ArgAction::Set)
                .help("What the VM sends, what it is sent, or both [default: both]"),
        )
        .arg(
            option("drops", "WHICH")
                .value_parser(["with", "only", "without"])
                .help("Dropped frames too, only those, or none of them [default: with]"),
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<String, Failure> {
    let word = |name: &str| matches.get_one::<String>(name).map(String::as_str);
    let name = word("name").unwrap_or_default();
    valid_name(name).map_err(|refused| Failure::Usage(refused.to_string()))?;
    let session = Session::new(matches)?;
    let path = path(name, matches)?;
    let write = word("write");
    if write == Some("-") && io::stdout().is_terminal() {
        let reason = "-w - would write binary to the terminal; pipe it into a program, as in \
                      tandem capture PORT -w - | tshark -r -, or leave -w out";
        return Err(Failure::Usage(reason.to_owned()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| ClientError::Broken(error.to_string()))?;
    // The VMs' frames go first. If it cannot be, nothing is lost but that.
    let _ = rustix::process::nice(19);
    let mut blocks = Blocks::default();
    let result = runtime.block_on(pump(&session, &path, write, &mut blocks));
    if blocks.begun() {
        eprintln!(
            "{} frames captured, {} lost",
            blocks.frames(),
            blocks.lost()
        );
    }
    result.map(|()| String::new())
}

/// Where to get it.
fn path(name: &str, matches: &ArgMatches) -> Result<String, Failure> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for key in ["direction", "drops"] {
        if let Some(value) = matches.get_one::<String>(key) {
            query.append_pair(key, value);
        }
    }
    if let Some(count) = matches.get_one::<u64>("count") {
        query.append_pair("count", &count.to_string());
    }
    if let Some(snaplen) = matches.get_one::<u32>("snaplen") {
        query.append_pair("snaplen", &snaplen.to_string());
    }
    let words: Vec<&str> = matches
        .get_many::<String>("filter")
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect();
    let expression = words.join(" ");
    if !expression.trim().is_empty() {
        query.append_pair("filter", &compile(&expression)?);
        query.append_pair("expression", &expression);
    }
    let path = format!("/api/v1/ports/{name}/capture?{}", query.finish());
    if path.len() > PATH_BYTES {
        let reason = "the filter is too long; capture more, and filter what was captured";
        return Err(Failure::Usage(reason.to_owned()));
    }
    Ok(path)
}

/// An empty capture of Ethernet frames (pcap-savefile(5)): what a filter is compiled for.
const EMPTY: [u8; 24] = [
    0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0,
];

/// The program of a filter expression. tcpdump compiles it, so that it means what it means there, and
/// neither this program nor the daemon depends on libpcap.
fn compile(expression: &str) -> Result<String, Failure> {
    let failed = |error: io::Error| {
        Failure::Failed(match error.kind() {
            io::ErrorKind::NotFound => "filters are compiled by tcpdump, which is not installed; \
                install the package tcpdump, or leave the filter out"
                .to_owned(),
            _ => {
                format!("tcpdump, which compiles filters, cannot be run: {error}; try it by itself")
            }
        })
    };
    // From an empty file: then it needs neither privileges nor a network device.
    let mut tcpdump = Process::new("tcpdump")
        .args(["-ddd", "-r", "-", "--", expression])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = tcpdump.stdin.take() {
        // If it ends without reading, it says why.
        let _ = stdin.write_all(&EMPTY);
    }
    let output = tcpdump.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let said = words.lines().last().unwrap_or("it said nothing");
        let said = said.trim_start_matches("tcpdump: ");
        let reason = format!(
            "tcpdump does not take the filter \"{expression}\": {said}; see pcap-filter(7)"
        );
        return Err(Failure::Usage(reason));
    }
    let program = String::from_utf8_lossy(&output.stdout);
    Ok(program.lines().collect::<Vec<_>>().join(","))
}

/// Where frames go.
enum Sink {
    File(File, String),
    Pipe(io::Stdout),
    Lines(io::Stdout),
}

impl Sink {
    fn open(write: Option<&str>) -> Result<Self, Failure> {
        match write {
            None => Ok(Self::Lines(io::stdout())),
            Some("-") => Ok(Self::Pipe(io::stdout())),
            Some(path) => match File::create(path) {
                Ok(file) => Ok(Self::File(file, path.to_owned())),
                Err(error) => {
                    let reason = format!("{path}: {error}; choose another file with -w");
                    Err(Failure::Failed(reason))
                }
            },
        }
    }

    /// Writes whole blocks. False: nobody reads them any more.
    fn write(&mut self, blocks: &[u8]) -> Result<bool, Failure> {
        let (result, what) = match self {
            Self::File(file, path) => (file.write_all(blocks), path.as_str()),
            Self::Pipe(out) => (
                out.write_all(blocks).and_then(|()| out.flush()),
                "standard output",
            ),
            Self::Lines(out) => {
                let text: String = blocks::each(blocks).filter_map(line::of).collect();
                (
                    out.write_all(text.as_bytes()).and_then(|()| out.flush()),
                    "standard output",
                )
            }
        };
        match result {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(Failure::Failed(format!(
                "{what} cannot be written: {error}; what is there is whole"
            ))),
        }
    }
}

/// Takes what comes until it ends, nobody reads it any more, or a signal.
async fn pump(
    session: &Session,
    path: &str,
    write: Option<&str>,
    blocks: &mut Blocks,
) -> Result<(), Failure> {
    let signals = |kind| signal(kind).map_err(|error| Failure::Failed(error.to_string()));
    let mut interrupted = signals(SignalKind::interrupt())?;
    let mut terminated = signals(SignalKind::terminate())?;
    let mut stream = Stream::get(&session.socket, path).await?;
    // Not before: what is refused overwrites nothing.
    let mut sink = Sink::open(write)?;
    loop {
        let bytes = tokio::select! {
            biased;
            _ = interrupted.recv() => return Ok(()),
            _ = terminated.recv() => return Ok(()),
            bytes = stream.next() => bytes?,
        };
        let Some(bytes) = bytes else { return Ok(()) };
        let whole = blocks.add(&bytes).ok_or_else(|| {
            Failure::Failed("tandemd's answer is no capture; see its log".to_owned())
        })?;
        if !sink.write(whole)? {
            return Ok(());
        }
    }
}
