//! The lists of system calls: of the daemon, of its threads that carry frames, and of the broker.
//!
//! By what needs them. A call of which only some uses are left has rules for its arguments; where
//! there are several, one is enough. `docs/security.md` has the same lists, and a test compares.

use std::collections::BTreeMap;

use libc::{
    SYS_clone, SYS_clone3, SYS_fcntl, SYS_getpriority, SYS_ioctl, SYS_mmap, SYS_mprotect,
    SYS_openat, SYS_prctl, SYS_seccomp, SYS_sendto, SYS_setpriority, SYS_socket, SYS_socketpair,
    SYS_tgkill, c_int, c_long,
};
use seccompiler::{SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompRule};

/// Calls, and what their arguments may be; no rule is any.
pub(super) type List = BTreeMap<i64, Vec<SeccompRule>>;

/// Calls with their names.
type Named = &'static [(&'static str, c_long)];

macro_rules! calls {
    ($($call:ident)*) => { &[$((stringify!($call), libc::$call)),*] };
}

/// To live: memory, locks, time, signals, and to end.
const LIFE: Named = calls! {
    SYS_brk SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep SYS_close SYS_exit
    SYS_exit_group SYS_futex SYS_getpid SYS_getrandom SYS_gettid SYS_gettimeofday SYS_madvise
    SYS_mremap SYS_munmap SYS_nanosleep SYS_read SYS_readv SYS_restart_syscall SYS_rseq
    SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_sched_getaffinity SYS_sched_yield
    SYS_set_robust_list SYS_sigaltstack SYS_write SYS_writev
};

/// To wait, to carry frames in bursts, and to set one's CPUs and time slice.
const WORK: Named = calls! {
    SYS_epoll_pwait SYS_ppoll SYS_recvmmsg SYS_sched_getattr SYS_sched_setaffinity
    SYS_sched_setattr SYS_sendmmsg SYS_timerfd_create SYS_timerfd_settime
};

/// Older names of such calls, which newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const WORK_OLD: Named = calls! {
    SYS_epoll_wait SYS_poll
};
#[cfg(not(target_arch = "x86_64"))]
const WORK_OLD: Named = calls! {};

/// To serve VMMs and the API.
const SOCKETS: Named = calls! {
    SYS_accept4 SYS_bind SYS_connect SYS_epoll_create1 SYS_epoll_ctl SYS_eventfd2 SYS_fchmod
    SYS_getpeername SYS_getsockname SYS_getsockopt SYS_listen SYS_recvfrom SYS_recvmsg SYS_sendmsg
    SYS_sendto SYS_setsockopt SYS_shutdown
};

/// To keep files, and to look at those of VMMs.
const FILES: Named = calls! {
    SYS_faccessat SYS_faccessat2 SYS_fallocate SYS_fdatasync SYS_flock SYS_fstat SYS_fstatfs
    SYS_fsync SYS_ftruncate SYS_getcwd SYS_getdents64 SYS_lseek SYS_mkdirat SYS_newfstatat SYS_openat
    SYS_pread64 SYS_pwrite64 SYS_readlinkat SYS_renameat SYS_renameat2 SYS_statx SYS_unlinkat
};

/// Older names of such calls, which newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const FILES_OLD: Named = calls! {
    SYS_access SYS_lstat SYS_mkdir SYS_open SYS_readlink SYS_rename SYS_rmdir SYS_stat SYS_unlink
};
#[cfg(not(target_arch = "x86_64"))]
const FILES_OLD: Named = calls! {};

/// To say in a captured file on what system it was made.
const CAPTURE: Named = calls! {
    SYS_uname
};

/// To learn that the broker has ended.
const CHILD: Named = calls! {
    SYS_wait4 SYS_waitid
};

/// What the broker does, besides files and sockets; groups may be in any name service, whose
/// libraries ask who they are.
const BROKER: Named = calls! {
    SYS_bpf SYS_fchmodat SYS_fchownat SYS_getegid SYS_geteuid SYS_getgid SYS_getuid SYS_memfd_create
    SYS_mmap SYS_mprotect SYS_prlimit64 SYS_uname
};

/// Older names of such calls, which newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const BROKER_OLD: Named = calls! {
    SYS_chmod
};
#[cfg(not(target_arch = "x86_64"))]
const BROKER_OLD: Named = calls! {};

/// The list of the daemon, for all of its threads; with TCP if it `connects` to other hosts.
pub(super) fn daemon(connects: bool) -> List {
    let mut list = any(&[
        LIFE, WORK, WORK_OLD, SOCKETS, FILES, FILES_OLD, CAPTURE, CHILD,
    ]);
    list.extend([
        masked(SYS_mmap, 2, libc::PROT_EXEC, 0),
        masked(SYS_mprotect, 2, libc::PROT_EXEC, 0),
        // A thread, and not a process.
        masked(SYS_clone, 0, libc::CLONE_THREAD, libc::CLONE_THREAD),
        only(SYS_tgkill, 0, [u64::from(std::process::id())]),
        // Beside those of VMMs, the kernel's link events (NETLINK_ROUTE).
        (
            SYS_socket,
            vec![
                rule(vec![argument(0, Len::Dword, Op::Eq, libc::AF_UNIX as u64)]),
                rule(vec![
                    argument(0, Len::Dword, Op::Eq, libc::AF_NETLINK as u64),
                    argument(2, Len::Dword, Op::Eq, libc::NETLINK_ROUTE as u64),
                ]),
            ],
        ),
        only(SYS_socketpair, 0, [libc::AF_UNIX as u64]),
        // Not to block, and to see whether a TAP's link is up.
        only(SYS_ioctl, 1, [libc::FIONBIO, libc::SIOCGIFFLAGS]),
        only(SYS_fcntl, 1, FCNTL.map(|command| command as u64)),
        // A thread names itself, and says how exact its naps are to be.
        only(
            SYS_prctl,
            0,
            [libc::PR_SET_NAME, libc::PR_SET_TIMERSLACK].map(|what| what as u64),
        ),
        // What makes a captured file steps back: of the thread itself.
        only(SYS_getpriority, 1, [0]),
        only(SYS_setpriority, 1, [0]),
        // Threads narrow their lists.
        only(SYS_seccomp, 0, [NEW_FILTER]),
    ]);
    if connects {
        let stream = |family: i32| {
            rule(vec![
                argument(0, Len::Dword, Op::Eq, family as u64),
                // Its flags aside.
                argument(1, Len::Dword, Op::MaskedEq(0xf), libc::SOCK_STREAM as u64),
            ])
        };
        let rules = [libc::AF_INET, libc::AF_INET6].map(stream);
        list.entry(SYS_socket).or_default().extend(rules);
    }
    list
}

/// What the C library tries for every thread. Its arguments are where no filter can see them; it is
/// refused, and clone, which can be filtered, does as well.
pub(super) const NEW_THREAD: c_long = SYS_clone3;

/// How the C library looks up, once, whether memory may be overcommitted; it does without.
pub(super) const SETTINGS: c_long = SYS_openat;

/// What is left to threads that carry frames: nothing that opens, connects or starts anything.
pub(super) fn data_path() -> List {
    let mut list = any(&[LIFE, WORK, WORK_OLD]);
    list.extend([
        masked(SYS_mmap, 2, libc::PROT_EXEC, 0),
        masked(SYS_mprotect, 2, libc::PROT_EXEC, 0),
        only(SYS_tgkill, 0, [u64::from(std::process::id())]),
        // A signal to the process may come to any thread, and is passed on through a socket: one that
        // is connected, so without an address.
        (SYS_sendto, vec![when(4, Len::Qword, Op::Eq, 0)]),
        // Without optimisation, closing a descriptor looks whether it is open.
        only(SYS_fcntl, 1, [libc::F_GETFD as u64]),
        // To install the second of its filters.
        only(SYS_seccomp, 0, [NEW_FILTER]),
    ]);
    list
}

/// What is left of seccomp: to be restricted further.
const NEW_FILTER: u64 = libc::SECCOMP_SET_MODE_FILTER as u64;

/// The list of the broker.
pub(super) fn broker() -> List {
    let mut list = any(&[
        LIFE, WORK, WORK_OLD, SOCKETS, FILES, FILES_OLD, BROKER, BROKER_OLD,
    ]);
    list.extend([
        only(SYS_tgkill, 0, [u64::from(std::process::id())]),
        only(
            SYS_socket,
            0,
            [libc::AF_UNIX, libc::AF_PACKET, libc::AF_XDP].map(|family| family as u64),
        ),
        only(SYS_fcntl, 1, FCNTL.map(|command| command as u64)),
        only(SYS_ioctl, 1, BROKER_IOCTLS),
        // What systemd's name service asks for.
        only(SYS_prctl, 0, [libc::PR_CAPBSET_READ as u64]),
    ]);
    list
}

/// The commands of fcntl that are left: none that sends signals.
const FCNTL: [c_int; 8] = [
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_ADD_SEALS,
    libc::F_GET_SEALS,
];

/// To set up a TAP device; to set a device's link up, and what AF_XDP needs of it, which is SIOCETHTOOL
/// of `linux/sockios.h`. The second and third are `TUNSETVNETHDRSZ` and `TUNSETOFFLOAD` of
/// `linux/if_tun.h`.
const BROKER_IOCTLS: [u64; 11] = [
    libc::TUNSETIFF,
    0x4004_54d8,
    0x4004_54d0,
    libc::SIOCGIFINDEX,
    libc::SIOCGIFFLAGS,
    libc::SIOCSIFFLAGS,
    libc::SIOCGIFMTU,
    0x8946,
    libc::SIOCSIFMTU,
    libc::SIOCSIFHWADDR,
    libc::FIONBIO,
];

fn any(lists: &[Named]) -> List {
    let calls = lists.iter().copied().flatten();
    calls.map(|(_, call)| (*call, Vec::new())).collect()
}

/// A call whose argument number `at`, of 32 bits, is one of `values`.
fn only<const N: usize>(call: c_long, at: u8, values: [u64; N]) -> (i64, Vec<SeccompRule>) {
    // What the kernel takes of an `int`, and all flags of mmap and clone that there are.
    let rule = |value| when(at, Len::Dword, Op::Eq, value);
    (call, values.map(rule).into())
}

/// A call whose argument number `at` has in the bits of `mask` what `value` has.
fn masked(call: c_long, at: u8, mask: c_int, value: c_int) -> (i64, Vec<SeccompRule>) {
    let rule = when(at, Len::Dword, Op::MaskedEq(mask as u64), value as u64);
    (call, vec![rule])
}

fn when(at: u8, len: Len, op: Op, value: u64) -> SeccompRule {
    rule(vec![argument(at, len, op, value)])
}

fn argument(at: u8, len: Len, op: Op, value: u64) -> SeccompCondition {
    SeccompCondition::new(at, len, op, value).expect("the number of an argument")
}

fn rule(conditions: Vec<SeccompCondition>) -> SeccompRule {
    SeccompRule::new(conditions).expect("a condition")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of the blocks in `docs/security.md`, in order.
    #[test]
    fn the_documentation_has_the_same_lists() {
        let text = include_str!("../../../docs/security.md");
        let blocks = text.split("```text\n").skip(1);
        let blocks = blocks.map(|rest| rest.split("```").next().unwrap_or_default());
        let blocks: Vec<Vec<&str>> = blocks.map(|b| b.split_whitespace().collect()).collect();
        let lists = [
            [LIFE, WORK].concat(),
            [SOCKETS, FILES, CAPTURE, CHILD].concat(),
            BROKER.to_vec(),
            [WORK_OLD, FILES_OLD, BROKER_OLD].concat(),
        ];
        let names = lists.map(|list| {
            let names = list
                .iter()
                .filter_map(|(name, _)| name.strip_prefix("SYS_"));
            let mut names: Vec<&str> = names.collect();
            names.sort_unstable();
            names
        });
        let shown = |names: &[&str]| names.join(" ");
        assert_eq!(blocks.len(), names.len());
        for (block, names) in blocks.iter().zip(&names) {
            assert_eq!(shown(block), shown(names));
        }
    }
}
