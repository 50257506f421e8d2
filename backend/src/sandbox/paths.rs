//! What is left of the file system, and of TCP (Landlock, landlock(7)).

use std::io;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus,
    PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    Scope, make_bitflags,
};

/// The version whose rights are asked for. Kernels that know fewer withhold fewer.
const VERSION: ABI = ABI::V6;

/// In directories that are the daemon's.
const OWN: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
    ReadFile | WriteFile | Truncate | ReadDir | MakeReg | MakeSock | RemoveFile
});

/// In the daemon's control group.
const GROUP: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
    ReadFile | WriteFile | ReadDir | MakeDir | RemoveDir
});

/// Paths that the daemon goes on using. What is not there is passed over.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    /// Directories whose files it makes, changes and removes.
    pub(crate) own: Vec<PathBuf>,
    /// Directories and files that it reads.
    pub(crate) read: Vec<PathBuf>,
    /// Directories from which it will remove those that it has made, once they are empty.
    pub(crate) made_in: Vec<PathBuf>,
    /// The control group in which it makes and removes others.
    pub(crate) group: Option<PathBuf>,
    /// It talks to other hosts.
    pub(crate) connects: bool,
}

/// Leaves nothing but `paths`. Gives Landlock's version; none if the kernel does not have it.
pub(super) fn restrict(paths: &Paths) -> io::Result<Option<i32>> {
    // The kernel ties the rule to the directory that is there now, and /proc makes another one if
    // nobody holds this. So it is held for good.
    let this = PathFd::new("/proc/self").map_err(io::Error::other)?;
    let this = Box::leak(Box::new(this));
    let group: Vec<PathBuf> = paths.group.iter().cloned().collect();
    let rules = [
        (&paths.own, OWN),
        (&paths.read, AccessFs::ReadFile.into()),
        (&paths.made_in, AccessFs::RemoveDir.into()),
        (&group, GROUP),
    ];
    let rules = rules.into_iter().flat_map(|(paths, access)| {
        let opened = paths.iter().filter_map(|path| PathFd::new(path).ok());
        opened.map(move |fd| Ok::<_, RulesetError>(PathBeneath::new(fd, access)))
    });
    let scope = match std::env::var_os("NOTIFY_SOCKET") {
        // The service manager's socket is one of those that would be out of reach.
        Some(name) if name.as_encoded_bytes().starts_with(b"@") => Scope::Signal.into(),
        _ => Scope::from_all(VERSION),
    };
    // What listens does so already.
    let tcp = match paths.connects {
        true => AccessNet::BindTcp.into(),
        false => AccessNet::from_all(VERSION),
    };
    let restricted = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(VERSION))
        .and_then(|set| set.handle_access(tcp))
        .and_then(|set| set.scope(scope))
        .and_then(Ruleset::create)
        .and_then(|set| set.add_rule(PathBeneath::new(&*this, AccessFs::ReadFile)))
        .and_then(|set| set.add_rules(rules))
        .and_then(|set| set.restrict_self());
    let status = restricted.map_err(io::Error::other)?;
    Ok(match status.landlock {
        LandlockStatus::Available { effective_abi, .. }
            if status.ruleset != RulesetStatus::NotEnforced =>
        {
            Some(effective_abi as i32)
        }
        _ => None,
    })
}
