//! `tandem completions` and `tandem man`: what a package installs beside the programs.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use super::Failure;
use crate::daemon::Args;

pub(super) fn completions_command() -> Command {
    Command::new("completions")
        .about("Print what makes a shell complete commands")
        .arg(
            Arg::new("shell")
                .value_name("SHELL")
                .required(true)
                .value_parser([
                    Shell::Bash.to_string(),
                    Shell::Zsh.to_string(),
                    Shell::Fish.to_string(),
                ])
                .help("The shell"),
        )
        .arg(
            Arg::new("program")
                .value_name("PROGRAM")
                .value_parser(["tandem", "tandemd"])
                .default_value("tandem")
                .help("The program whose arguments are completed"),
        )
}

pub(super) fn man_command() -> Command {
    Command::new("man")
        .about("Write the manual pages of tandem and tandemd into a directory")
        .hide(true)
        .arg(
            Arg::new("directory")
                .value_name("DIR")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("A directory that exists"),
        )
}

pub(super) fn completions(matches: &ArgMatches) -> Result<String, Failure> {
    let shell = matches.get_one::<String>("shell").map(String::as_str);
    let shell = match shell {
        Some("zsh") => Shell::Zsh,
        Some("fish") => Shell::Fish,
        _ => Shell::Bash,
    };
    let mut text = Vec::new();
    let (name, mut command) = match matches.get_one::<String>("program").map(String::as_str) {
        Some("tandemd") => ("tandemd", Args::full_command()),
        _ => ("tandem", super::command()),
    };
    clap_complete::generate(shell, &mut command, name, &mut text);
    Ok(String::from_utf8_lossy(&text).into_owned())
}

pub(super) fn man(matches: &ArgMatches) -> Result<String, Failure> {
    let dir = matches.get_one::<PathBuf>("directory");
    let dir = dir.map_or(Path::new("."), PathBuf::as_path);
    let failed = |error: std::io::Error| {
        let words = format!("{}: {error}; name a directory to write to", dir.display());
        Failure::Failed(words)
    };
    clap_mangen::generate_to(super::command(), dir).map_err(failed)?;
    let mut page = Vec::new();
    clap_mangen::Man::new(Args::full_command())
        .section("8")
        .render(&mut page)
        .and_then(|()| std::fs::write(dir.join("tandemd.8"), page))
        .map_err(failed)?;
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_daemons_command_line_is_the_one_described() {
        let names = |command: &Command| -> Vec<String> {
            let arguments = command.get_arguments();
            arguments.map(|arg| arg.get_id().to_string()).collect()
        };
        assert_eq!(names(&Args::full_command()), names(&Args::command()));
    }
}
