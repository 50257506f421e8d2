//! Who is behind a port, kept beside its rings: a restart finds VMs that have not noticed it and
//! say nothing of themselves.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Weak;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use log::{debug, warn};
use serde::{Deserialize, Serialize};
use tandem_uplink::switch::Neighbour;
use tandem_uplink::{Now, PortId, Switch};

use crate::store::replace_file;

/// When the neighbours of a port are announced, from when its driver was back. Guests learn at their
/// own pace that their link is up again, and on that forget what they were told before.
const ANNOUNCED: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(1000),
];

/// The neighbours of one port in a file.
pub(super) struct NeighbourFile {
    path: PathBuf,
    saved: Vec<Neighbour>,
    failed: bool,
}

/// A neighbour as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    ip: IpAddr,
    mac: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vlan: Option<u16>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    router: bool,
}

impl NeighbourFile {
    /// Reads the file, if it is there. One that makes no sense is as good as none.
    pub(super) fn open(path: PathBuf) -> Self {
        let saved = match load(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                warn!("{}: {e}; its neighbours will be heard anew", path.display());
                Vec::new()
            }
            loaded => loaded.unwrap_or_default(),
        };
        Self {
            path,
            saved,
            failed: false,
        }
    }

    /// What was in it.
    pub(super) fn saved(&self) -> Vec<Neighbour> {
        self.saved.clone()
    }

    /// Keeps the neighbours there are now.
    pub(super) fn keep(&mut self, mut now: Vec<Neighbour>) {
        // In which order they were heard changes all the time and does not matter here.
        now.sort_unstable();
        if now == self.saved {
            return;
        }
        let result = self.save(&now);
        if let Err(e) = &result
            && !self.failed
        {
            let path = self.path.display();
            warn!("{path}: {e}; after a restart the VM will be out of reach for a second");
        }
        self.failed = result.is_err();
        if !self.failed {
            self.saved = now;
        }
    }

    fn save(&self, neighbours: &[Neighbour]) -> io::Result<()> {
        let lines: Vec<Line> = neighbours
            .iter()
            .map(|n| Line {
                ip: n.ip,
                mac: n.mac.to_string(),
                vlan: n.vlan,
                router: n.router,
            })
            .collect();
        replace_file(&self.path, &serde_json::to_vec(&lines)?)
    }

    /// Removes the file: no VM will come back.
    pub(super) fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn load(path: &std::path::Path) -> io::Result<Vec<Neighbour>> {
    let lines: Vec<Line> = serde_json::from_slice(&fs::read(path)?)?;
    let neighbour = |line: Line| {
        let mac = line.mac.parse().map_err(io::Error::other)?;
        Ok(Neighbour {
            ip: line.ip,
            mac,
            vlan: line.vlan,
            router: line.router,
        })
    };
    lines.into_iter().map(neighbour).collect()
}

/// A port whose driver is back.
#[derive(Clone)]
pub(super) struct Back {
    pub(super) switch: Weak<Switch>,
    pub(super) port: PortId,
    /// It has come from elsewhere.
    pub(super) arrives: bool,
}

impl Back {
    fn is_same(&self, other: &Self) -> bool {
        self.port == other.port && self.switch.ptr_eq(&other.switch)
    }
}

/// Tells the announcer.
#[derive(Clone)]
pub(super) struct Desk(mpsc::Sender<Option<Back>>);

impl Desk {
    pub(super) fn is_back(&self, back: Back) {
        // When it is gone, so are the ports.
        let _ = self.0.send(Some(back));
    }
}

/// The thread that announces.
pub(super) struct Announcer {
    desk: Desk,
    thread: Option<JoinHandle<()>>,
}

impl Announcer {
    pub(super) fn start() -> io::Result<Self> {
        let (sender, inbox) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("announcer".to_owned())
            .spawn(move || announce(&inbox))?;
        Ok(Self {
            desk: Desk(sender),
            thread: Some(thread),
        })
    }

    pub(super) fn desk(&self) -> Desk {
        self.desk.clone()
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        let _ = self.desk.0.send(None);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn announce(inbox: &mpsc::Receiver<Option<Back>>) {
    let mut due: Vec<(Instant, Back)> = Vec::new();
    loop {
        let next = due.iter().map(|(at, _)| *at).min();
        let news = match next {
            Some(at) => inbox.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let now = Instant::now();
        match news {
            Ok(Some(back)) => {
                // A VMM that comes and goes gains nothing by it.
                due.retain(|(_, old)| !old.is_same(&back));
                due.extend(ANNOUNCED.map(|after| (now + after, back.clone())));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Ok(None) | Err(RecvTimeoutError::Disconnected) => return,
        }
        due.retain(|(at, back)| {
            let later = *at > now;
            if !later && let Some(switch) = back.switch.upgrade() {
                let port = back.port;
                debug!("switch {}: announcing port {port:?}", switch.name());
                if back.arrives {
                    switch.announce_arrival(port, Now::monotonic());
                }
                switch.announce(port, Now::monotonic());
            }
            later
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neighbour(ip: &str, vlan: Option<u16>) -> Neighbour {
        Neighbour {
            ip: ip.parse().unwrap(),
            mac: "52:54:00:00:00:01".parse().unwrap(),
            vlan,
            router: vlan.is_some(),
        }
    }

    #[test]
    fn what_was_kept_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.neighbours");
        let all = [neighbour("10.0.0.1", None), neighbour("fd00::1", Some(7))];
        let mut file = NeighbourFile::open(path.clone());
        assert!(file.saved().is_empty());
        file.keep(all.to_vec());
        assert_eq!(NeighbourFile::open(path.clone()).saved(), all);
        // It is written when it changes, and only then.
        fs::remove_file(&path).unwrap();
        file.keep(vec![all[1], all[0]]);
        assert!(!path.exists());
        file.keep(vec![all[1]]);
        assert_eq!(NeighbourFile::open(path.clone()).saved(), [all[1]]);
        file.remove();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.neighbours");
        for text in [
            "",
            "{",
            "[{}]",
            r#"[{"ip":"10.0.0.1","mac":"x"}]"#,
            r#"[{"ip":"x","mac":"52:54:00:00:00:01"}]"#,
            r#"[{"ip":"10.0.0.1","mac":"52:54:00:00:00:01","more":1}]"#,
        ] {
            fs::write(&path, text).unwrap();
            assert!(
                NeighbourFile::open(path.clone()).saved().is_empty(),
                "{text}"
            );
        }
    }
}
