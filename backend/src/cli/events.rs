//! `tandem events`.

use std::ops::ControlFlow;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::{Failure, Session, client, say};
use crate::events::Event;

pub(super) fn command() -> Command {
    Command::new("events")
        .about("Show what happens, as it happens, until interrupted")
        .arg(
            Arg::new("count")
                .long("count")
                .value_name("N")
                .value_parser(value_parser!(u64).range(1..))
                .help("End after so many events"),
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<String, Failure> {
    let session = Session::new(matches)?;
    let mut left = matches.get_one::<u64>("count").copied();
    let mut lines = Lines::default();
    let mut result = Ok(());
    client::stream(&session.socket, "/api/v1/events", |bytes| {
        for data in lines.take(bytes) {
            result = show(&data, session.json).and_then(|text| say(&text));
            left = left.map(|left| left - 1);
            if result.is_err() || left == Some(0) {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    result?;
    match left {
        Some(0) => Ok(String::new()),
        _ => Err(Failure::Failed("tandemd has stopped; see its log".into())),
    }
}

/// An event's data in a line.
fn show(data: &str, json: bool) -> Result<String, Failure> {
    if json {
        return Ok(format!("{data}\n"));
    }
    let event: Event = super::read(data)?;
    // To the second, and UTC: enough for people.
    let seconds = event.time.split(['.', 'Z']).next().unwrap_or_default();
    let time = format!("{seconds}Z");
    let kind = event.event.name();
    let mut words = vec![time, format!("{kind:<17}")];
    words.extend(event.port.or(event.team).or(event.switch));
    words.extend(event.member);
    words.extend(event.detail);
    Ok(words.join(" ").trim_end().to_owned() + "\n")
}

/// Takes a stream of server-sent events apart: the data of each.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn take(&mut self, bytes: &[u8]) -> Vec<String> {
        self.0.extend_from_slice(bytes);
        let mut data = Vec::new();
        while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.0.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            // Ours is in one line, and an identifier or a comment is not for people.
            data.extend(line.trim_end().strip_prefix("data: ").map(str::to_owned));
        }
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_put_together_from_any_pieces() {
        let text = ": events follow\n\nid: 1\nevent: port_up\ndata: {\"a\":1}\n\ndata: 2\n\n";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let pieces = text.as_bytes().chunks(size);
            let data: Vec<String> = pieces.flat_map(|piece| lines.take(piece)).collect();
            assert_eq!(data, ["{\"a\":1}", "2"]);
        }
    }
}
