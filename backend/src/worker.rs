//! The threads of each VM.
//!
//! Threads belong to a VM; queue pairs are objects they serve, one burst in turn. A thread keeps
//! no state of a pair. With nothing to do it polls for a short, adaptive time, then asks the
//! guests to notify and sleeps on their kicks.
//!
//! ```text
//!           work                     no work for `window`            work came meanwhile
//!  ┌──► serve all pairs ──► poll ──────────────────────► ask for kicks ─────────┐
//!  │        ▲                │ work                            │ none           │
//!  │        └────────────────┘                               sleep              │
//!  └───────────────────────────── kick ────────────────────────┴────────────────┘
//! ```
//!
//! A frame for a VM whose thread sleeps wakes the thread too, if that VM is one that answers: it is
//! awake when the answer comes, and the guest need not kick.
//!
//! Kicks are registered edge-triggered: each notification wakes a sleeping thread once, and the
//! descriptor is never read, which saves a system call each time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use log::{debug, error, warn};
use tandem_uplink::Now;
use tandem_virtio_net::{Batch, Call, Scratch};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::cgroup::{Group, Groups};
use crate::port::{GuestPort, Pair, lock};
use crate::sys;

/// Longest time a thread polls before it sleeps. Long enough that a busy VM is not woken up for
/// each burst, short enough not to show in the CPU time of a quiet one.
const POLL: Duration = Duration::from_micros(50);

/// How long a thread may have the CPU while others wait for it, the least that the kernel grants.
/// The frame of a quiet VM must not wait for the thread of a busy one. Not by giving way of our own
/// accord: whoever else is on the CPU, a guest's thread for instance, would gain from that.
const SLICE: Duration = Duration::from_micros(100);

/// How long the next poll may take: shorter each time that polling was in vain, full again when
/// it would have paid.
#[derive(Clone, Copy, Debug)]
struct Window(Duration);

impl Window {
    fn in_vain(&mut self) {
        self.0 /= 2;
    }

    fn slept(&mut self, for_: Duration) {
        if for_ < POLL {
            self.0 = POLL;
        }
    }

    fn paid(&mut self) {
        self.0 = POLL;
    }
}

/// How long a thread polls for the answer to a frame that its VM got: the VM has to wake up first.
const ANSWER: Duration = Duration::from_micros(100);

/// Whether to wake a thread when its VM gets a frame, for the answer to come. Each time that it was in
/// vain more of them are let pass before the next attempt.
#[derive(Default)]
struct Answers {
    let_pass: AtomicU32,
    left: AtomicU32,
}

impl Answers {
    /// At most as many are let pass in a row, so that a VM that starts to answer is noticed.
    const MOST: u32 = 1023;

    fn expected(&self) -> bool {
        let left = self.left.load(Ordering::Relaxed);
        self.left.store(left.saturating_sub(1), Ordering::Relaxed);
        left == 0
    }

    fn came(&self) {
        self.let_pass.store(0, Ordering::Relaxed);
    }

    fn failed(&self) {
        let pass = (2 * self.let_pass.load(Ordering::Relaxed) + 1).min(Self::MOST);
        self.let_pass.store(pass, Ordering::Relaxed);
        self.left.store(pass, Ordering::Relaxed);
    }
}

/// Lets others have the CPU when a time slice is over.
struct Slice {
    since: Now,
}

impl Slice {
    /// Sets the calling thread's time slice.
    fn new() -> Self {
        if let Err(e) = sys::set_slice(SLICE) {
            debug!("the thread's time slice cannot be set: {e}");
        }
        Self {
            since: Now::monotonic(),
        }
    }

    /// The kernel looks at a thread's slice when its timer ticks, each 4 ms as a rule, and when it
    /// adds up the thread's time. It does that when it is asked for the time, and if others wait and
    /// the slice is over, it lets them run.
    #[inline]
    fn check(&mut self, now: Now) {
        if self.since + SLICE < now {
            self.since = now;
            sys::add_up_time();
        }
    }
}

/// A handle to a thread, by which queues tell it about work.
#[derive(Clone)]
pub(crate) struct Wake(Arc<Shared>);

struct Shared {
    epoll: OwnedFd,
    event: EventFd,
    epoch: AtomicU64,
    stop: AtomicBool,
    answers: Answers,
    pairs: Mutex<Vec<PairRef>>,
    /// The thread's number, once it runs.
    thread: OnceLock<i32>,
}

/// Wakes the thread up before its VM kicks.
impl Call for Shared {
    fn call(&self) {
        let _ = self.event.write(1);
    }
}

/// One pair of a port.
#[derive(Clone)]
struct PairRef {
    port: Arc<GuestPort>,
    index: usize,
}

impl PairRef {
    fn pair(&self) -> &Pair {
        &self.port.pairs()[self.index]
    }
}

impl Wake {
    /// Wakes the thread up: something changed.
    pub(crate) fn wake(&self) {
        // A full counter is a wake-up on its way.
        let _ = self.0.event.write(1);
    }

    /// Whom to call when the VM got a frame that it may answer, if that was of use before.
    pub(crate) fn for_an_answer(&self) -> Option<Arc<dyn Call>> {
        let expected = self.0.answers.expected();
        expected.then(|| Arc::clone(&self.0) as Arc<dyn Call>)
    }

    /// Listens to another kick descriptor in place of the old one.
    pub(crate) fn replace_kick(&self, pair: u64, old: Option<&File>, new: Option<&File>) {
        let epoll = self.0.epoll.as_raw_fd();
        let ctl = |op, fd: RawFd| {
            let events = epoll::Events::EPOLLIN | epoll::Events::EPOLLET;
            epoll::ctl(epoll, op, fd, epoll::Event::new(events, pair))
        };
        if let Some(old) = old
            && let Err(e) = ctl(epoll::ControlOptions::EPOLL_CTL_DEL, old.as_raw_fd())
        {
            warn!("a kick descriptor could not be let go of: {e}");
        }
        if let Some(new) = new
            && let Err(e) = ctl(epoll::ControlOptions::EPOLL_CTL_ADD, new.as_raw_fd())
        {
            error!("a kick descriptor cannot be waited for: {e}; its queue may stall");
        }
        self.wake();
    }
}

/// A thread and the pairs it serves.
struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(name: String, cpus: Vec<usize>, group: Option<Arc<Group>>) -> io::Result<Self> {
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC)?;
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let events = epoll::Events::EPOLLIN | epoll::Events::EPOLLET;
        epoll::ctl(
            epoll.as_raw_fd(),
            epoll::ControlOptions::EPOLL_CTL_ADD,
            event.as_raw_fd(),
            epoll::Event::new(events, 0),
        )?;
        let shared = Arc::new(Shared {
            epoll,
            event,
            epoch: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            answers: Answers::default(),
            pairs: Mutex::default(),
            thread: OnceLock::new(),
        });
        let mine = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            if let Some(Err(e)) = group.map(|group| group.join()) {
                warn!("the thread cannot be put into its VM's control group: {e}");
            }
            if let Err(e) = crate::cpus::pin(&cpus) {
                warn!("the thread's CPUs cannot be set: {e}");
            }
            let _ = (mine.thread).set(rustix::thread::gettid().as_raw_nonzero().get());
            crate::sandbox::enter_data_path();
            run(&mine);
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// The CPU time that the thread has had.
    fn cpu_time(&self) -> Duration {
        let thread = self.shared.thread.get();
        thread.map_or(Duration::ZERO, |thread| sys::cpu_time(*thread))
    }

    fn assign(&self, pairs: Vec<PairRef>) {
        *lock(&self.shared.pairs) = pairs;
        self.shared.epoch.fetch_add(1, Ordering::Release);
        Wake(Arc::clone(&self.shared)).wake();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        Wake(Arc::clone(&self.shared)).wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("a worker thread ended by a panic; its VM's queues were not served since");
        }
    }
}

/// The thread's loop.
fn run(shared: &Shared) {
    let mut batch = Batch::new();
    let mut scratch = Scratch::default();
    let mut pairs = Vec::new();
    let mut epoch = u64::MAX;
    let mut window = Window(POLL);
    let mut quiet_since = None;
    let mut woken = Woken::ByKick;
    let mut slice = Slice::new();
    loop {
        let now = shared.epoch.load(Ordering::Acquire);
        if now != epoch {
            epoch = now;
            pairs.clone_from(&lock(&shared.pairs));
        }
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        if serve_all(&pairs, &mut batch, &mut scratch, &mut slice) {
            if quiet_since.take().is_some() {
                window.paid();
            }
            if woken == Woken::Early {
                shared.answers.came();
                woken = Woken::ByKick;
            }
            continue;
        }
        let now = Instant::now();
        let since: Instant = *quiet_since.get_or_insert(now);
        let early = woken == Woken::Early;
        if now - since < if early { ANSWER } else { window.0 } {
            std::thread::yield_now();
            continue;
        }
        if early {
            shared.answers.failed();
            woken = Woken::ByKick;
        } else {
            window.in_vain();
        }
        quiet_since = None;
        if ask_for_kicks(&pairs) {
            continue;
        }
        let slept = Instant::now();
        set_asleep(&pairs, true);
        woken = sleep(shared, &pairs);
        set_asleep(&pairs, false);
        if woken == Woken::ByKick {
            window.slept(slept.elapsed());
        }
        stop_kicks(&pairs);
        look_for_buffers(&pairs);
    }
}

/// One burst of each pair. True if any had frames.
fn serve_all(
    pairs: &[PairRef],
    batch: &mut Batch,
    scratch: &mut Scratch,
    slice: &mut Slice,
) -> bool {
    let now = Now::monotonic();
    slice.check(now);
    let mut busy = false;
    for p in pairs {
        busy |= p.pair().serve(batch, scratch, now) != 0;
    }
    busy
}

/// True if there is work already: the thread must not sleep.
fn ask_for_kicks(pairs: &[PairRef]) -> bool {
    let mut work = false;
    for p in pairs {
        work |= p.pair().set_kicks(true);
    }
    if work {
        stop_kicks(pairs);
    }
    work
}

fn stop_kicks(pairs: &[PairRef]) {
    for p in pairs {
        p.pair().set_kicks(false);
    }
}

fn look_for_buffers(pairs: &[PairRef]) {
    for p in pairs.iter().filter(|p| p.index == 0) {
        p.port.look_for_buffers();
    }
}

fn set_asleep(pairs: &[PairRef], asleep: bool) {
    for p in pairs {
        p.pair().asleep.store(asleep, Ordering::Relaxed);
    }
}

/// What woke a thread up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    /// The VM has sent frames.
    ByKick,
    /// It got some and may answer, or something about its pairs has changed.
    Early,
}

fn sleep(shared: &Shared, pairs: &[PairRef]) -> Woken {
    let mut events = [epoll::Event::new(epoll::Events::empty(), 0); 32];
    match epoll::wait(shared.epoll.as_raw_fd(), -1, &mut events) {
        Err(e) if e.kind() != io::ErrorKind::Interrupted => {
            error!("waiting for kicks failed: {e}");
            // Not a busy loop on an error that stays.
            std::thread::sleep(Duration::from_millis(10));
            Woken::ByKick
        }
        Err(_) => Woken::ByKick,
        Ok(n) => {
            let events = &events[..n];
            for event in events {
                pairs.iter().for_each(|p| p.pair().count_kick(event.data));
            }
            match events.iter().all(|event| event.data == 0) {
                true => Woken::Early,
                false => Woken::ByKick,
            }
        }
    }
}

/// The threads of all VMs.
pub(crate) struct Workers {
    cpus: Vec<usize>,
    groups: Arc<Groups>,
    vms: Mutex<BTreeMap<String, Vm>>,
}

#[derive(Default)]
struct Vm {
    ports: Vec<Arc<GuestPort>>,
    workers: Vec<Worker>,
    /// Removed after its threads have ended: fields drop in order.
    group: Option<Arc<Group>>,
}

impl Workers {
    /// Threads run on `cpus`, those of a VM in a group of `groups`.
    pub(crate) fn new(cpus: Vec<usize>, groups: Arc<Groups>) -> Self {
        Self {
            cpus,
            groups,
            vms: Mutex::default(),
        }
    }

    /// Serves a port's pairs from now on.
    pub(crate) fn add_port(&self, vm: &str, port: Arc<GuestPort>) -> io::Result<()> {
        let mut vms = lock(&self.vms);
        let entry = vms.entry(vm.to_owned()).or_insert_with(|| Vm {
            group: self.groups.make(vm),
            ..Vm::default()
        });
        entry.ports.push(Arc::clone(&port));
        let result = entry.spread(vm, &self.cpus);
        if result.is_err() {
            entry.ports.retain(|p| !Arc::ptr_eq(p, &port));
            entry.deal();
            if entry.ports.is_empty() {
                vms.remove(vm);
            }
        }
        result
    }

    /// The threads of each VM, and the CPU time they have had.
    pub(crate) fn usage(&self) -> BTreeMap<String, (usize, Duration)> {
        let vms = lock(&self.vms);
        let usage = |vm: &Vm| {
            let time = vm.workers.iter().map(Worker::cpu_time).sum();
            (vm.workers.len(), time)
        };
        vms.iter()
            .map(|(name, vm)| (name.clone(), usage(vm)))
            .collect()
    }

    /// Stops serving a port's pairs; the VM's threads end with its last port.
    pub(crate) fn remove_port(&self, vm: &str, port: &Arc<GuestPort>) {
        let mut vms = lock(&self.vms);
        let Some(entry) = vms.get_mut(vm) else { return };
        entry.ports.retain(|p| !Arc::ptr_eq(p, port));
        for pair in port.pairs() {
            pair.set_wake(None);
        }
        entry.deal();
        if entry.ports.is_empty() {
            vms.remove(vm);
        }
    }
}

impl Vm {
    /// Starts the threads the VM's pairs are worth and deals the pairs to them.
    fn spread(&mut self, vm: &str, cpus: &[usize]) -> io::Result<()> {
        let pairs = self.ports.iter().map(|p| p.pairs().len()).sum();
        while self.workers.len() < crate::spread::threads(pairs, cpus.len()) {
            let name = thread_name(vm, self.workers.len());
            let group = self.group.clone();
            self.workers
                .push(Worker::start(name, cpus.to_vec(), group)?);
        }
        self.deal();
        Ok(())
    }

    fn deal(&self) {
        let mut hands = vec![Vec::new(); self.workers.len()];
        let pairs = self.ports.iter().flat_map(|port| {
            (0..port.pairs().len()).map(|i| PairRef {
                port: Arc::clone(port),
                index: i,
            })
        });
        for (n, pair) in pairs.enumerate() {
            let Some(to) = n.checked_rem(self.workers.len()) else {
                return;
            };
            hands[to].push(pair);
        }
        for (worker, hand) in self.workers.iter().zip(hands) {
            for p in &hand {
                p.pair().set_wake(Some(Wake(Arc::clone(&worker.shared))));
            }
            worker.assign(hand);
        }
    }
}

/// `VM/N`, cut to the 15 bytes the kernel shows.
fn thread_name(vm: &str, n: usize) -> String {
    let suffix = format!("/{n}");
    let keep = 15 - suffix.len();
    let head: String = vm.chars().filter(char::is_ascii).take(keep).collect();
    head + &suffix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_names_fit_the_kernels_limit() {
        assert_eq!(thread_name("web", 0), "web/0");
        assert_eq!(
            thread_name("a-very-long-name-of-a-vm", 12),
            "a-very-long-/12"
        );
    }

    #[test]
    fn polling_fades_when_it_is_in_vain_and_comes_back_when_it_would_have_paid() {
        let mut w = Window(POLL);
        (0..20).for_each(|_| w.in_vain());
        assert!(w.0 < Duration::from_nanos(100));
        w.slept(Duration::from_millis(10));
        assert!(w.0 < Duration::from_nanos(100));
        w.slept(Duration::from_micros(20));
        assert_eq!(w.0, POLL);
    }

    /// Of `frames` frames, how often the thread is woken for an answer that never comes.
    fn wakes(answers: &Answers, frames: u32) -> u32 {
        let mut wakes = 0;
        for _ in 0..frames {
            if answers.expected() {
                wakes += 1;
                answers.failed();
            }
        }
        wakes
    }

    #[test]
    fn a_vm_that_never_answers_costs_next_to_nothing_and_one_that_does_is_noticed() {
        let answers = Answers::default();
        assert_eq!(wakes(&answers, 1023), 10);
        assert_eq!(wakes(&answers, 102_400), 100);
        let passed = (0..).take_while(|_| !answers.expected()).count();
        assert!(passed < 1024);
        answers.came();
        assert!(answers.expected() && answers.expected());
        answers.failed();
        assert!(!answers.expected() && answers.expected());
    }
}
