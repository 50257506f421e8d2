//! `tandem`: the command line of the daemon.

fn main() -> std::process::ExitCode {
    tandem::cli::run(std::env::args_os())
}
