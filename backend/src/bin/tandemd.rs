//! `tandemd`: the daemon.

use std::process::ExitCode;

use tandem::broker;
use tandem::cli::usage;
use tandem::daemon::{self, Args, CAPABILITIES};

fn main() -> ExitCode {
    // By convention this wins over all other arguments, right or wrong.
    if std::env::args_os().any(|word| word == "--print-capabilities") {
        println!("{CAPABILITIES}");
        return ExitCode::SUCCESS;
    }
    if std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == broker::ARGUMENT)
    {
        return broker::run();
    }
    let args = match Args::read(std::env::args_os()) {
        Ok(args) => args,
        Err(error) => return usage("tandemd", &error),
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        .format_target(false)
        .init();
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        log::error!(
            "thread {}: {panic}",
            thread.name().unwrap_or("without a name")
        );
    }));
    match daemon::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problems) => {
            for problem in problems {
                eprintln!("tandemd: {problem}");
            }
            ExitCode::FAILURE
        }
    }
}
