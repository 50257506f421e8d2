//! The daemon from its arguments to its end.

mod args;
mod check;
mod confine;
mod dirs;
mod notify;
mod program;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tandem_migration::tls::Identity;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub use args::{Args, Sandbox};
pub use dirs::default_run_dir;
pub use program::CAPABILITIES;

use crate::api::{self, ApiSocket, Listeners};
use crate::cgroup::Groups;
use crate::config::check::{among, port as check_port};
use crate::config::{Config, File, Layer, Overlay, PortConfig, Problem, add_overlay, build};
use crate::control::{Base, Control, Refused, RefusedKind, Reloaded, Setup};
use crate::engine::{self, EngineOptions};
use crate::events::{Event, EventKind, Events};
use crate::migration::Migrations;
use crate::store::Store;
use crate::{cpus, daemon::dirs::OwnDir};

/// The file that is read when none is named and this one exists.
const CONFIG_FILE: &str = "/etc/tandem/tandem.toml";

/// Checks the configuration and returns, or runs until SIGTERM or SIGINT.
///
/// # Errors
/// All that is wrong with the configuration, or why the daemon could not start; then nothing it
/// made is left.
pub fn run(args: &Args) -> Result<(), Vec<Problem>> {
    if args.check {
        return check::run(args);
    }
    let runtime = api::runtime().map_err(|error| one(system("cannot start", &error)))?;
    // From here on a signal is kept until the daemon can stop in order.
    let signals = Signals::new(&runtime).map_err(|error| one(system("cannot start", &error)))?;
    let (run_dir, state_dir) = args.dirs().map_err(one)?;
    let sources = Sources::read(args)?;

    let run = OwnDir::take(&run_dir, 0o755, "--run-dir").map_err(one)?;
    let state = (state_dir != run_dir)
        .then(|| OwnDir::take(&state_dir, 0o700, "--state-dir"))
        .transpose()
        .map_err(one)?;
    let own: [&Path; 2] = [&run_dir, &state_dir];
    confine::check(args, &own).map_err(one)?;
    let store = Store::new(&state_dir);
    let overlay = store.load()?;
    let (config, base) = sources.build(&overlay, &run_dir)?;
    let cpus = data_cpus(args).map_err(one)?;
    let broker = confine::broker(args).map_err(one)?;
    let socket = ApiSocket::open(&run_dir).map_err(one)?;
    let metrics = args.metrics_listen.map(metrics_listener).transpose();
    let metrics = metrics.map_err(one)?;
    let identity = args.migration_keys.as_deref().map(identity).transpose();
    let identity = identity.map_err(one)?;
    let migration = args.migration_listen.map(migration_listener).transpose();
    let migration = migration.map_err(one)?;
    let events = Arc::<Events>::default();
    let groups = Arc::new(Groups::of_this_process());
    // Threads are started from here on, and none has more than what is left now.
    confine::confine(args, [Some(&run), state.as_ref()], &own, groups.main()).map_err(one)?;
    let options = EngineOptions {
        events: Arc::clone(&events),
        run_dir: run_dir.clone(),
        cpus,
        switches: config.switches.clone(),
        teams: config.teams.clone(),
        groups,
        broker,
    };
    let engine = engine::start(options).map_err(one)?;
    let again = run_dir.clone();
    let setup = Setup {
        engine,
        config,
        base,
        events,
        overlay,
        store,
        run_dir,
    };
    let control = Control::start(setup).map_err(|(port, refused)| {
        vec![Problem {
            place: format!("port {port}"),
            refused,
        }]
    })?;
    let control = Arc::new(control);
    let again = Reload {
        args: args.clone(),
        run_dir: again,
        control: Arc::clone(&control),
    };
    let migrations = Migrations::new(Arc::clone(&control), identity, runtime.handle().clone());
    let listeners = Listeners {
        api: socket,
        metrics,
        migration,
    };
    serve(runtime, signals, listeners, (control, migrations), again).map_err(one)
}

/// The running daemon, between ready and stopped.
fn serve(
    runtime: Runtime,
    signals: Signals,
    listeners: Listeners,
    (control, migrations): (Arc<Control>, Arc<Migrations>),
    reload: Reload,
) -> Result<(), Refused> {
    let path = listeners.api.path().display().to_string();
    let (watched, reload) = (Arc::clone(&control), Arc::new(reload));
    let stop = async move {
        let events = Arc::clone(reload.control.events());
        tokio::select! {
            () = signals.stop(&reload) => {}
            () = notify::watchdog(|| watched.beats()) => {}
        }
        notify::send("STOPPING=1");
        events.close();
        watched.end_captures();
    };
    let api = match api::start(runtime, listeners, Arc::clone(&control), migrations, stop) {
        Ok(api) => api,
        Err(error) => {
            control.stop();
            return Err(system("cannot start the API", &error));
        }
    };
    log::info!(
        "tandemd {} is ready, API on {path}",
        env!("CARGO_PKG_VERSION")
    );
    notify::send("READY=1");
    let ended = api.join();
    control.stop();
    if ended.is_err() {
        let reason = "the API broke down";
        return Err(Refused::new(
            RefusedKind::System,
            reason,
            "see the log, and report it",
        ));
    }
    log::info!("tandemd has stopped");
    Ok(())
}

/// What the user wrote, wherever.
struct Sources {
    file: File,
    line: Vec<Layer>,
    program: Option<PortConfig>,
    problems: Vec<Problem>,
}

impl Sources {
    /// Reads the file and the command line. What is wrong in tables and keys is kept for
    /// [`Sources::build`], which finds the rest.
    fn read(args: &Args) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut line = Vec::new();
        for port in &args.port {
            match Layer::from_line(port) {
                Ok(layer) => line.push(layer),
                Err(wrong) => problems.extend(wrong),
            }
        }
        let program = program::port(args).map_err(one)?;
        let file = match &args.config {
            Some(path) => File::read(path, &mut problems)?,
            None if args.is_program() || !Path::new(CONFIG_FILE).exists() => File::default(),
            None => File::read(Path::new(CONFIG_FILE), &mut problems)?,
        };
        Ok(Self {
            file,
            line,
            program,
            problems,
        })
    }

    /// The configuration, and what it is without the overlay.
    fn build(mut self, overlay: &Overlay, run_dir: &Path) -> Result<(Config, Base), Vec<Problem>> {
        let config = match build(&self.file, overlay, &self.line, run_dir) {
            Ok(config) => config,
            Err(more) => {
                self.problems.extend(more);
                Config::default()
            }
        };
        if !self.problems.is_empty() {
            self.problems.sort_by_key(Problem::line);
            return Err(self.problems);
        }
        let named = |layer: Layer| (layer.name().to_owned(), layer);
        let base = Base {
            switches: self.file.switches,
            teams: self.file.teams,
            profiles: self.file.profiles,
            file: self.file.ports,
            line: self.line.into_iter().map(named).collect(),
            program: self.program.clone(),
        };
        let mut config = with_program(config, self.program, run_dir)?;
        add_overlay(&mut config, overlay, run_dir);
        Ok((config, base))
    }
}

/// Adds the port of a back-end program.
fn with_program(
    mut config: Config,
    program: Option<PortConfig>,
    run_dir: &Path,
) -> Result<Config, Vec<Problem>> {
    let Some(port) = program else {
        return Ok(config);
    };
    let mut wrong = check_port(&port, run_dir);
    wrong.extend(among(&port, config.known(run_dir)));
    if wrong.is_empty() {
        config.ports.insert(port.name.clone(), port);
        return Ok(config);
    }
    let place = "--socket-path".to_owned();
    Err(wrong
        .into_iter()
        .map(|refused| Problem {
            place: place.clone(),
            refused,
        })
        .collect())
}

/// Where the metrics are served beside the API's socket.
fn metrics_listener(address: SocketAddr) -> Result<TcpListener, Refused> {
    let (listener, address) = listen(address, "--metrics-listen")?;
    log::info!("metrics on http://{address}/metrics");
    Ok(listener)
}

/// Where other hosts are answered.
fn migration_listener(address: SocketAddr) -> Result<TcpListener, Refused> {
    let (listener, address) = listen(address, "--migration-listen")?;
    log::info!("other hosts are answered on {address}");
    Ok(listener)
}

fn listen(address: SocketAddr, option: &str) -> Result<(TcpListener, SocketAddr), Refused> {
    let refused = |error: std::io::Error| {
        let reason = format!("{address}: {error}");
        let remedy = "choose an address of this host and a port that is free";
        Refused::new(RefusedKind::System, reason, remedy).about(option)
    };
    let listener = TcpListener::bind(address).map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    Ok((listener, address))
}

/// Who this host is to others.
fn identity(dir: &Path) -> Result<Identity, Refused> {
    let identity = Identity::load(dir).map_err(|error| {
        let words = error.to_string();
        let remedy = "see `tandem migration keys --help`";
        let (reason, remedy) = words.rsplit_once([':', ';']).unwrap_or((&words, remedy));
        Refused::new(RefusedKind::Invalid, reason, remedy.trim()).about("--migration-keys")
    })?;
    for warning in identity.warnings() {
        log::warn!("--migration-keys: {warning}");
    }
    log::info!("other hosts know this one as {}", identity.name());
    Ok(identity)
}

/// The CPUs of the data path: those asked for, or all that the process may use.
fn data_cpus(args: &Args) -> Result<Vec<usize>, Refused> {
    let allowed = cpus::allowed().map_err(|error| system("cannot read the CPU set", &error))?;
    let Some(asked) = &args.cpus else {
        return Ok(allowed);
    };
    if let Some(other) = asked.0.iter().find(|cpu| !allowed.contains(cpu)) {
        let reason = format!("CPU {other} is not one this process may use");
        let remedy = format!("choose of {}", args::CpuList(allowed.into_iter().collect()));
        return Err(Refused::new(RefusedKind::Invalid, reason, remedy).about("--cpus"));
    }
    Ok(asked.0.iter().copied().collect())
}

/// The signals that a daemon answers.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new(runtime: &Runtime) -> std::io::Result<Self> {
        let _context = runtime.enter();
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Returns when the daemon is to stop; reloads meanwhile.
    async fn stop(mut self, reload: &Arc<Reload>) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return log::info!("SIGTERM: stopping"),
                _ = self.interrupt.recv() => return log::info!("SIGINT: stopping"),
                _ = self.hang_up.recv() => {
                    let reload = Arc::clone(reload);
                    // Ports are made and ended, which may take a while.
                    let done = tokio::task::spawn_blocking(move || reload.run()).await;
                    if done.is_err() {
                        log::error!("SIGHUP: the reload broke down");
                    }
                }
            }
        }
    }
}

/// What SIGHUP does.
struct Reload {
    args: Args,
    run_dir: PathBuf,
    control: Arc<Control>,
}

impl Reload {
    fn publish(&self, kind: EventKind, words: Option<String>) {
        let event = Event::new(kind).saying(words);
        self.control.events().publish(event);
    }

    /// Reads file and command line again, and applies what differs or says what is wrong.
    fn run(&self) {
        notify::reloading();
        let read = |overlay: &Overlay| Sources::read(&self.args)?.build(overlay, &self.run_dir);
        match self.control.reload(read) {
            Ok(Reloaded {
                added,
                changed,
                removed,
            }) => {
                let words = format!("ports: {added} added, {changed} changed, {removed} removed");
                log::info!("SIGHUP: reloaded; {words}");
                self.publish(EventKind::Reloaded, Some(words));
            }
            Err(problems) => {
                let first = problems.first().map(ToString::to_string);
                self.publish(EventKind::ReloadRefused, first);
                for problem in problems {
                    log::error!("{problem}");
                }
                log::error!("SIGHUP: nothing was changed");
            }
        }
        notify::send("READY=1");
    }
}

fn system(what: &str, error: &std::io::Error) -> Refused {
    let remedy = "check the limits of this process";
    Refused::new(RefusedKind::System, format!("{what}: {error}"), remedy)
}

fn one(refused: Refused) -> Vec<Problem> {
    vec![Problem {
        place: String::new(),
        refused,
    }]
}
