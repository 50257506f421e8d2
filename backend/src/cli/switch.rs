//! `tandem switch …` and `tandem profile …`.

use clap::{ArgMatches, Command};
use serde_json::Value;

use super::noun::{Noun, Verbs};
use super::text::{Table, count, paragraph, setting, setting_table};
use super::{Failure, Session, parse, team};
use crate::config::{SWITCH_KEYS, SwitchConfig};

pub(super) static SWITCH: Noun<SwitchConfig> = Noun {
    noun: "switch",
    about: "A switch: frames do not go from one to another",
    verbs: Verbs {
        list: "List all switches",
        show: "Show one switch",
        add: "Add a switch; it survives a restart of the daemon",
        set: "Change some settings of a switch; its ports stay",
        reset: "Drop what was changed over the API: back to the file",
        remove: "Remove a switch that has no ports",
    },
    path: "/api/v1/switches",
    keys: SWITCH_KEYS,
    base: "the file says",
    list,
    show,
    added: |_| String::new(),
};

pub(super) fn profile_command() -> Command {
    Command::new("profile")
        .about("Settings that ports share; they are set in the file")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("list")
                .visible_alias("ls")
                .about("List all profiles, what they set, and the ports that name them"),
        )
}

fn list(answer: &Value) -> String {
    let headings = [
        "SWITCH", "UPLINK", "PORTS", "MACS", "FRAMES", "UNICAST", "FLOODED",
    ];
    let mut table = Table::new(&headings)
        .right(&[2, 3, 4, 5, 6])
        .shrinking(&[0, 1]);
    for switch in answer["switches"].as_array().into_iter().flatten() {
        let frames = |key: &str| count(switch["counters"][key].as_u64());
        table.row(vec![
            switch["name"].as_str().unwrap_or("-").to_owned(),
            setting(&switch["uplink"]),
            switch["ports"].to_string(),
            switch["mac_table_entries"].to_string(),
            frames("frames"),
            frames("unicast"),
            frames("flooded"),
        ]);
    }
    table.to_string()
}

fn show(switch: &Value) -> String {
    let number = |key: &str| switch[key].to_string();
    let macs = format!(
        "{} of at most {}; a silent one is forgotten after {} s",
        number("mac_table_entries"),
        number("mac_limit"),
        number("ageing_seconds")
    );
    let mut text = paragraph("switch", switch["name"].as_str().unwrap_or("-"))
        + &paragraph("ports", &number("ports"))
        + &paragraph("MACs", &macs);
    let twice = switch["duplicate_macs"].as_array().into_iter().flatten();
    let twice: Vec<&str> = twice.filter_map(Value::as_str).collect();
    if !twice.is_empty() {
        let words = format!("on two ports: {}; give each VM its own", twice.join(" "));
        text += &paragraph("warning", &words);
    }
    let mut table = Table::new(&["COUNTER", "FRAMES"]).right(&[1]);
    for (name, frames) in switch["counters"].as_object().into_iter().flatten() {
        table.row(vec![name.clone(), frames.to_string()]);
    }
    text += &format!("\n{}\n{table}", setting_table(SWITCH_KEYS, switch));
    let uplink = &switch["uplink_status"];
    if uplink.is_null() {
        return text;
    }
    let name = uplink["name"].as_str().unwrap_or("-");
    text + "\n" + &paragraph("uplink", name) + &team::status(uplink)
}

pub(super) fn run_profile(matches: &ArgMatches) -> Result<String, Failure> {
    let Some(("list", matches)) = matches.subcommand() else {
        let words = "a verb is missing; see tandem profile --help";
        return Err(Failure::Usage(words.to_owned()));
    };
    let session = Session::new(matches)?;
    let text = session.get("/api/v1/profiles")?;
    if session.json {
        return Ok(text + "\n");
    }
    let answer = parse(&text)?;
    let profiles = answer["profiles"].as_array().map_or(&[][..], Vec::as_slice);
    if profiles.is_empty() {
        return Ok("no profiles; [profile.NAME] in the file makes one\n".to_owned());
    }
    let mut table = Table::new(&["PROFILE", "SETTING", "VALUE"]).shrinking(&[0, 2]);
    let mut text = String::new();
    for profile in profiles {
        let name = profile["name"].as_str().unwrap_or("-");
        for (key, value) in profile["settings"].as_object().into_iter().flatten() {
            table.row(vec![name.to_owned(), key.clone(), setting(value)]);
        }
        let ports = profile["ports"].as_array().into_iter().flatten();
        let ports: Vec<&str> = ports.filter_map(Value::as_str).collect();
        text += &paragraph("ports", &format!("of {name}: {}", ports.join(" ")));
    }
    Ok(format!("{table}\n{text}"))
}
