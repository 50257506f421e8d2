//! Idle is free.

use anyhow::{Result, ensure};
use std::time::{Duration, Instant};
use tandem_tests::lab::{Daemon, GuestConfig, Need, Nic, boot_all, say, scenario};

const GUESTS: usize = 4;
const CARDS: usize = 25;

/// A hundred ports with running drivers and nothing to say use less than 1 % of a CPU.
#[test]
fn a_hundred_idle_ports() -> Result<()> {
    scenario(
        "guests_idle::a_hundred_idle_ports",
        &[Need::Guests],
        |lab| {
            let port = |guest: usize, card: usize| format!("p{guest}-{card}");
            let ports: Vec<String> = (0..GUESTS * CARDS)
                .map(|n| format!("{},vm=g{}", port(n / CARDS, n % CARDS), n / CARDS))
                .collect();
            let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
            let mut daemon = Daemon::with_ports(lab.path(), &ports)?;
            let configs = (0..GUESTS).map(|guest| {
                let config = GuestConfig::new(&format!("g{guest}")).memory_mib(384);
                (0..CARDS).fold(config, |config, card| {
                    let mac = format!("52:54:00:00:{guest:02x}:{card:02x}");
                    config.nic(Nic::vhost_user(daemon.socket(&port(guest, card)), &mac))
                })
            });
            let mut guests = boot_all(lab.path(), configs.collect::<Vec<_>>())?;
            for guest in &mut guests {
                guest.exec("for i in $(seq 0 24); do ip link set eth$i up || exit 1; done")?;
            }
            // IPv6 looks for routers and neighbours as an interface comes up; not later.
            std::thread::sleep(Duration::from_secs(12));
            ensure!(
                daemon.ports()?.iter().all(|port| port.is_up()),
                "not all ports are up"
            );
            let start = Instant::now();
            let before = daemon.process().cpu_ticks()?;
            std::thread::sleep(Duration::from_secs(10));
            let ticks = daemon.process().cpu_ticks()? - before;
            let percent = ticks as f64 / start.elapsed().as_secs_f64();
            say(&format!(
                "      {} ports use {percent:.2} % of a CPU",
                GUESTS * CARDS
            ));
            ensure!(percent < 1.0, "{percent:.2} % of a CPU while idle");
            // They were idle, not dead.
            guests[0].configure("eth3", &["10.0.0.1/24"])?;
            guests[3].configure("eth24", &["10.0.0.2/24"])?;
            guests[0].ping("10.0.0.2", &[])
        },
    )
}
