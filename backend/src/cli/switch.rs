//! `tandem switch …` and `tandem profile …`.

use clap::{Arg, ArgMatches, Command};
use serde_json::Value;

use super::text::{Table, count, paragraph};
use super::{Failure, Session, parse, watch};
use crate::config::valid_name;

pub(super) fn command() -> Command {
    let name = Arg::new("name")
        .value_name("NAME")
        .required(true)
        .help("The switch's name");
    Command::new("switch")
        .about("A switch: what is set in the file, and what it does")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("list")
                .visible_alias("ls")
                .about("List all switches")
                .arg(watch()),
        )
        .subcommand(
            Command::new("show")
                .about("Show one switch")
                .arg(name)
                .arg(watch()),
        )
}

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

pub(super) fn run(matches: &ArgMatches) -> Result<String, Failure> {
    match matches.subcommand() {
        Some(("list", matches)) => {
            let session = Session::new(matches)?;
            let text = session.get("/api/v1/switches")?;
            if session.json {
                return Ok(text + "\n");
            }
            Ok(list(&parse(&text)?["switches"]))
        }
        Some(("show", matches)) => {
            let name = matches.get_one::<String>("name").map_or("", String::as_str);
            valid_name(name).map_err(|refused| Failure::Usage(refused.to_string()))?;
            let session = Session::new(matches)?;
            let text = session.get(&format!("/api/v1/switches/{name}"))?;
            if session.json {
                return Ok(text + "\n");
            }
            Ok(show(&parse(&text)?))
        }
        _ => Err(Failure::Usage(
            "a verb is missing; see tandem switch --help".to_owned(),
        )),
    }
}

fn list(switches: &Value) -> String {
    let mut table = Table::new(&["SWITCH", "PORTS", "MACS", "FRAMES", "UNICAST", "FLOODED"])
        .right(&[1, 2, 3, 4, 5])
        .shrinking(&[0]);
    for switch in switches.as_array().into_iter().flatten() {
        let frames = |key: &str| count(switch["counters"][key].as_u64());
        table.row(vec![
            switch["name"].as_str().unwrap_or("-").to_owned(),
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
    text + "\n" + &table.to_string()
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
    let mut text = String::new();
    for profile in profiles {
        text += &paragraph("profile", profile["name"].as_str().unwrap_or("-"));
        for (key, value) in profile["settings"].as_object().into_iter().flatten() {
            let value = value.as_str().map_or(value.to_string(), str::to_owned);
            text += &paragraph(&format!("  {key}"), &value);
        }
        let ports = profile["ports"].as_array().into_iter().flatten();
        let ports: Vec<&str> = ports.filter_map(Value::as_str).collect();
        text += &paragraph("  ports", &ports.join(" "));
    }
    Ok(text)
}
