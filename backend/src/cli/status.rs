//! `tandem status`.

use clap::{ArgMatches, Command};

use super::text::{Table, paragraph};
use super::{Failure, Session, read, watch};
use crate::status::Status;

pub(super) fn command() -> Command {
    Command::new("status")
        .about("Show the daemon, its switches and its ports in numbers")
        .arg(watch())
}

pub(super) fn run(matches: &ArgMatches) -> Result<String, Failure> {
    let session = Session::new(matches)?;
    let text = session.get("/api/v1/status")?;
    if session.json {
        return Ok(text + "\n");
    }
    Ok(words(&read(&text)?))
}

fn words(status: &Status) -> String {
    let cpus: Vec<String> = status.switches.cpus.iter().map(usize::to_string).collect();
    let ports = format!(
        "{}, of them {} up; {} VMs",
        status.ports.total, status.ports.up, status.vms
    );
    let mut text = paragraph(
        "tandemd",
        &format!("{}, up {}", status.version, age(status.uptime_seconds)),
    ) + &paragraph("sockets", &status.run_dir)
        + &paragraph("CPUs", &cpus.join(" "))
        + &paragraph("ports", &ports)
        + "\n";
    let headings = [
        "SWITCH", "PORTS", "MACS", "FRAMES", "UNICAST", "FLOODED", "COPIES",
    ];
    let mut table = Table::new(&headings)
        .right(&[1, 2, 3, 4, 5, 6])
        .shrinking(&[0]);
    for switch in &status.switches.switches {
        let counters = &switch.counters;
        let numbers = [
            u64::from(switch.ports),
            u64::from(switch.mac_table_entries),
            counters.frames,
            counters.unicast,
            counters.flooded,
            counters.copies,
        ];
        let row = [switch.name.clone()]
            .into_iter()
            .chain(numbers.map(|n| n.to_string()));
        table.row(row.collect());
    }
    text += &table.to_string();
    for switch in &status.switches.switches {
        if !switch.duplicate_macs.is_empty() {
            let macs = switch.duplicate_macs.join(" ");
            let words = format!(
                "switch {}: on two ports: {macs}; give each VM its own",
                switch.name
            );
            text += &paragraph("warning", &words);
        }
    }
    text
}

fn age(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        for (seconds, text) in [
            (0, "0 s"),
            (61, "1 min"),
            (7_260, "2 h 1 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }
}
