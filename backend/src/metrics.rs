//! `/metrics`: what the API reports, for Prometheus (text format 0.0.4).
//!
//! Names follow Prometheus' conventions: base units, `_total` for what only grows. The labels are the
//! nouns of the API, so that a panel and `tandem port show` speak of the same thing.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::prometheus_text::{self, CONTENT_TYPE};
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::status::{
    DirectionCounters, MemberState, MemberStatus, Port, PortState, QueueStatus, Status,
    SwitchStatus, TeamStatus, Vm,
};

/// The type of [`Page::text`].
pub const TYPE: &str = CONTENT_TYPE;

/// What is reported at one moment.
#[derive(Debug)]
pub struct Page {
    /// The whole.
    pub status: Status,
    /// The ports.
    pub ports: Vec<Port>,
    /// The VMs.
    pub vms: Vec<Vm>,
}

impl Page {
    /// The page as text.
    pub fn text(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = prometheus_text::encode(&mut text, &registry);
        text
    }
}

/// One family of metrics on its way out.
struct Family<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Family<'_> {
    fn write<L: EncodeLabelSet>(
        &mut self,
        (name, help, kind): (&str, &str, MetricType),
        rows: impl IntoIterator<Item = (L, u64)>,
    ) -> Result<(), Error> {
        let mut metric = (self.encoder).encode_descriptor(name, help, None, kind)?;
        for (labels, value) in rows {
            let mut row = metric.encode_family(&labels)?;
            match kind {
                MetricType::Counter => {
                    row.encode_counter::<[(&str, &str); 0], _, u64>(&value, None)?
                }
                _ => row.encode_gauge(&(value as i64))?,
            }
        }
        Ok(())
    }

    fn gauge<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (L, u64)>,
    ) -> Result<(), Error> {
        self.write((name, help, MetricType::Gauge), rows)
    }

    fn counter<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (L, u64)>,
    ) -> Result<(), Error> {
        self.write((name, help, MetricType::Counter), rows)
    }
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut out = Family { encoder };
        let version = [("version", self.status.version.as_str())];
        out.gauge("tandem_build_info", "Version of the daemon", [(version, 1)])?;
        let none = || [("", ""); 0];
        let uptime = [(none(), self.status.uptime_seconds)];
        out.gauge(
            "tandem_uptime_seconds",
            "Time since the daemon started",
            uptime,
        )?;
        self.switches(&mut out)?;
        self.uplinks(&mut out)?;
        self.vms(&mut out)?;
        self.ports(&mut out)?;
        self.queues(&mut out)
    }
}

fn members(uplinks: &[(&str, &TeamStatus)], out: &mut Family<'_>) -> Result<(), Error> {
    let all: Vec<([(&'static str, &str); 3], &MemberStatus)> = (uplinks.iter())
        .flat_map(|(switch, team)| {
            team.members.iter().map(move |member| {
                let name = ("member", member.device.as_str());
                (
                    [("switch", *switch), ("team", team.name.as_str()), name],
                    member,
                )
            })
        })
        .collect();
    let gauge = |of: fn(&MemberStatus) -> bool| {
        all.iter()
            .map(move |(labels, member)| (*labels, of(member).into()))
    };
    let help = "Whether frames can leave by the member";
    let up = gauge(|member| member.state != MemberState::Down);
    out.gauge("tandem_member_up", help, up)?;
    let link = gauge(|member| member.link_up);
    out.gauge(
        "tandem_member_carrier",
        "Whether its device has a carrier",
        link,
    )?;
    let failovers = all
        .iter()
        .map(|(labels, member)| (*labels, member.failovers));
    let help = "How often its frames had to leave by another";
    out.counter("tandem_member_failovers", help, failovers)?;
    type Of = fn(&DirectionCounters) -> u64;
    let both: [(&str, &str, Of); 2] = [
        ("frames", "Ethernet frames that went through", |d| d.frames),
        ("bytes", "Bytes of those, without check sequence", |d| {
            d.bytes
        }),
    ];
    for (name, help, of) in both {
        let rows = all.iter().flat_map(|&([a, b, c], member)| {
            let ways = [
                ("from_wire", &member.from_wire),
                ("to_wire", &member.to_wire),
            ];
            ways.map(|(direction, counters)| ([a, b, c, ("direction", direction)], of(counters)))
        });
        out.counter(&format!("tandem_member_{name}"), help, rows)?;
    }
    Ok(())
}

/// Labels of a port's metric.
fn labels(port: &Port) -> [(&'static str, &str); 3] {
    [
        ("port", &port.config.name),
        ("vm", &port.config.vm),
        ("switch", &port.config.switch),
    ]
}

fn directions(port: &Port) -> [(&'static str, &DirectionCounters); 2] {
    let counters = &port.running.counters;
    [("from_vm", &counters.from_vm), ("to_vm", &counters.to_vm)]
}

impl Page {
    fn switches(&self, out: &mut Family<'_>) -> Result<(), Error> {
        type Of = fn(&SwitchStatus) -> u64;
        let rows = |of: Of| {
            let switches = self.status.switches.switches.iter();
            switches.map(move |s| ([("switch", s.name.as_str())], of(s)))
        };
        let gauges: [(&str, &str, Of); 3] = [
            ("ports", "Ports on the switch", |s| s.ports.into()),
            ("mac_table_entries", "Addresses it knows", |s| {
                s.mac_table_entries.into()
            }),
            ("duplicate_macs", "Addresses on two ports at once", |s| {
                s.duplicate_macs.len() as u64
            }),
        ];
        for (name, help, of) in gauges {
            out.gauge(&format!("tandem_switch_{name}"), help, rows(of))?;
        }
        let counters: [(&str, &str, Of); 7] = [
            ("frames", "Frames it took or made", |s| s.counters.frames),
            ("unicast_frames", "Frames that went to one port", |s| {
                s.counters.unicast
            }),
            ("flooded_frames", "Frames that were flooded", |s| {
                s.counters.flooded
            }),
            ("flooded_copies", "Copies made of flooded frames", |s| {
                s.counters.copies
            }),
            (
                "announced_frames",
                "Frames it made to announce the addresses of VMs",
                |s| s.counters.announced,
            ),
            (
                "segmented_frames",
                "Frames cut up for receivers without that offload",
                |s| s.counters.segmented_frames,
            ),
            ("segments", "The segments they became", |s| {
                s.counters.segments
            }),
        ];
        for (name, help, of) in counters {
            out.counter(&format!("tandem_switch_{name}"), help, rows(of))?;
        }
        Ok(())
    }

    fn uplinks(&self, out: &mut Family<'_>) -> Result<(), Error> {
        let switches = self.status.switches.switches.iter();
        let uplinks: Vec<(&str, &TeamStatus)> = switches
            .filter_map(|s| Some((s.name.as_str(), s.uplink_status.as_ref()?)))
            .collect();
        let of_uplink = |of: fn(&TeamStatus) -> u64| {
            let labels = |switch, team| [("switch", switch), ("team", team)];
            let rows = uplinks.iter();
            let rows = rows.map(move |(s, team)| (labels(*s, team.name.as_str()), of(team)));
            rows.collect::<Vec<_>>()
        };
        let help = "How often frames had to leave by another member";
        let failovers = of_uplink(|team| team.failovers);
        out.counter("tandem_uplink_failovers", help, failovers)?;
        let help = "Frames from the wire for the team itself";
        let control = of_uplink(|team| team.control_frames);
        out.counter("tandem_uplink_control_frames", help, control)?;
        let help = "How often conversations moved to a member with less to do";
        out.counter("tandem_uplink_moved", help, of_uplink(|team| team.moved))?;
        let mut drops = Vec::new();
        for (switch, team) in &uplinks {
            let both = [("from_wire", &team.from_wire), ("to_wire", &team.to_wire)];
            for (direction, counters) in both {
                let reasons = counters.drops.iter().map(|(reason, n)| {
                    let [a, b] = [("switch", *switch), ("team", team.name.as_str())];
                    (
                        [a, b, ("direction", direction), ("reason", reason.as_str())],
                        *n,
                    )
                });
                drops.extend(reasons);
            }
        }
        let help = "Frames that were dropped, by the switch as well; only reasons that occurred";
        out.counter("tandem_uplink_dropped_frames", help, drops)?;
        members(&uplinks, out)
    }

    fn vms(&self, out: &mut Family<'_>) -> Result<(), Error> {
        let name = |vm: &'_ Vm| [("vm", vm.usage.name.clone())];
        let threads = self
            .vms
            .iter()
            .map(|vm| (name(vm), vm.usage.threads.into()));
        out.gauge("tandem_vm_threads", "Threads that serve the VM", threads)?;
        let help = "CPU time that they have had";
        let kind = MetricType::Counter;
        let mut metric =
            (out.encoder).encode_descriptor("tandem_vm_cpu_seconds", help, None, kind)?;
        for vm in &self.vms {
            let labels = name(vm);
            let mut row = metric.encode_family(&labels)?;
            row.encode_counter::<[(&str, &str); 0], _, u64>(&vm.usage.cpu_seconds, None)?;
        }
        Ok(())
    }

    fn ports(&self, out: &mut Family<'_>) -> Result<(), Error> {
        let each = |of: fn(&Port) -> u64| self.ports.iter().map(move |p| (labels(p), of(p)));
        let up = each(|p| (p.running.state == PortState::Up).into());
        out.gauge("tandem_port_up", "Whether the port carries frames", up)?;
        type Of = fn(&DirectionCounters) -> u64;
        let both: [(&str, &str, Of); 2] = [
            ("frames", "Ethernet frames that went through", |d| d.frames),
            ("bytes", "Bytes of those, without check sequence", |d| {
                d.bytes
            }),
        ];
        for (name, help, of) in both {
            let rows = self.ports.iter().flat_map(|port| {
                let [a, b, c] = labels(port);
                let row = move |(direction, counters)| {
                    ([a, b, c, ("direction", direction)], of(counters))
                };
                directions(port).map(row)
            });
            out.counter(&format!("tandem_port_{name}"), help, rows)?;
        }
        let mut drops = Vec::new();
        for port in &self.ports {
            let [a, b, c] = labels(port);
            for (direction, counters) in directions(port) {
                let reasons = counters.drops.iter().map(|(reason, n)| {
                    let way = ("direction", direction);
                    ([a, b, c, way, ("reason", reason.as_str())], *n)
                });
                drops.extend(reasons);
            }
        }
        let help = "Frames that were dropped; only reasons that occurred";
        out.counter("tandem_port_dropped_frames", help, drops)?;
        let active = each(|p| p.running.captures.active.into());
        out.gauge("tandem_port_captures", "Captures of it that run", active)?;
        let help = "Frames that captures lost, the port did not";
        let lost = each(|p| p.running.captures.dropped_frames);
        out.counter("tandem_port_capture_dropped_frames", help, lost)?;
        let session = |of: fn(&crate::status::SessionStatus) -> u64| {
            let ports = self.ports.iter();
            ports.filter_map(move |p| Some((labels(p), of(p.running.session.as_ref()?))))
        };
        let help = "Connections of VMMs";
        out.counter("tandem_port_connects", help, session(|s| s.connects))?;
        let help = "Connections refused because there was one already";
        let refused = session(|s| s.refused_connections);
        out.counter("tandem_port_refused_connections", help, refused)
    }

    fn queues(&self, out: &mut Family<'_>) -> Result<(), Error> {
        type Of = fn(&QueueStatus) -> u64;
        let counters: [(&str, &str, Of); 6] = [
            ("from_vm_frames", "Frames the VM sent on it", |q| {
                q.from_vm.frames
            }),
            ("from_vm_bytes", "Bytes the VM sent on it", |q| {
                q.from_vm.bytes
            }),
            ("to_vm_frames", "Frames the VM was sent on it", |q| {
                q.to_vm.frames
            }),
            ("to_vm_bytes", "Bytes the VM was sent on it", |q| {
                q.to_vm.bytes
            }),
            ("kicks", "Notifications from the VM", |q| q.kicks),
            ("calls", "Notifications to the VM", |q| q.calls),
        ];
        for (name, help, of) in counters {
            let rows = self.ports.iter().flat_map(|port| {
                let [a, b, c] = labels(port).map(|(name, value)| (name, value.to_owned()));
                port.running.queues.iter().map(move |queue| {
                    let pair = ("pair", queue.pair.to_string());
                    ([a.clone(), b.clone(), c.clone(), pair], of(queue))
                })
            });
            out.counter(&format!("tandem_queue_{name}"), help, rows)?;
        }
        Ok(())
    }
}
