//! What happened when in a migration: on both hosts, at QEMU and to who pinged the VM; in words and as a
//! picture. Times are milliseconds from QEMU's event STOP on the source.
//!
//! ```text
//!             stopped │░░░░░░░│ resumed
//!   alpha   ──────────●●─●────┼──────────●────
//!   beta    ──────────────●───●●──────────────
//!   pings   |||||||||||▌▌▌▌▌▌▌▌|||||||||||||||
//! ```

use std::fmt::Write;
use std::time::Duration;

use serde_json::Value;

use super::prober::{Log, Probe};
use super::report::{LATE, offset};
use super::vm::Moved;

/// A host, and when its daemon says that something happened, since 1970.
#[derive(Clone, Debug)]
pub struct Host {
    name: String,
    moments: Vec<(Duration, String)>,
}

impl Host {
    /// From what it tells of a migration (`tandem migration status --json`) that began there at `began`.
    pub fn new(name: &str, began: Duration, status: &Value) -> Self {
        let moment = |told: &Value| {
            let at = Duration::from_secs_f64(told["at_ms"].as_f64()?.max(0.0) / 1e3);
            Some((began + at, told["what"].as_str()?.to_owned()))
        };
        let told = status["timeline"].as_array().into_iter().flatten();
        Self {
            name: name.to_owned(),
            moments: told.filter_map(moment).collect(),
        }
    }
}

/// When a migration began, since 1970, from its age as it was told between a question and its answer.
///
/// Its age is told in whole milliseconds, rounded down: each look says in which span it began, all of
/// them together in which part of a millisecond.
pub fn began(looks: &[(Duration, [Duration; 2])]) -> Duration {
    let (mut earliest, mut latest) = (Duration::ZERO, Duration::MAX);
    for (age, [asked, answered]) in looks {
        let oldest = *age + Duration::from_millis(1);
        earliest = earliest.max(asked.saturating_sub(oldest));
        latest = latest.min(answered.saturating_sub(*age));
    }
    earliest + latest.saturating_sub(earliest) / 2
}

/// A migration that has gone through.
#[derive(Clone, Debug)]
pub struct Timeline {
    hosts: [Host; 2],
    moved: Moved,
    log: Log,
}

impl Timeline {
    /// Of a VM that has `moved` from the first host to the second, with what became of pings meanwhile.
    pub fn new(hosts: [Host; 2], moved: &Moved, log: &Log) -> Self {
        Self {
            hosts,
            moved: *moved,
            log: log.clone(),
        }
    }

    fn ms(&self, at: Duration) -> f64 {
        offset(at, self.moved.stopped)
    }

    /// A line for each moment, of both hosts and of all others, in order.
    pub fn text(&self) -> String {
        let [source, destination] = &self.hosts;
        let (gap, qemu) = (self.log.longest_gap(), |host: &Host| {
            format!("QEMU on {}", host.name)
        });
        let mut all = vec![
            (self.moved.stopped, qemu(source), "the VM stops"),
            (self.moved.resumed, qemu(destination), "the VM goes on"),
            (gap.from, "ping".into(), "the last answer before"),
            (gap.to, "ping".into(), "the first answer after"),
        ];
        for host in &self.hosts {
            let told = host.moments.iter();
            all.extend(told.map(|(at, what)| (*at, host.name.clone(), what.as_str())));
        }
        all.sort_by_key(|(at, ..)| *at);
        let width = all.iter().map(|(_, who, _)| who.chars().count()).max();
        let width = width.unwrap_or_default();
        let mut text = String::new();
        for (at, who, what) in all {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{:>9.1}  {who:<width$}  {what}", self.ms(at));
        }
        text
    }

    /// The picture: a row for each host and one for the pings, the stop of the VM shaded. What was long
    /// before or after stands at the edges.
    pub fn svg(&self) -> String {
        let axis = Axis::around(self);
        let rows: Vec<Row> = self
            .hosts
            .iter()
            .map(|host| Row::new(host, &axis, self.moved.stopped))
            .collect();
        let mut body = String::new();
        let mut y = TOP;
        for row in &rows {
            y += row.height();
            row.draw(&mut body, y);
        }
        let pings = y + 2.0 * LANE + TICK;
        self.draw_pings(&mut body, &axis, pings);
        let bottom = pings + 2.0 * LANE;
        axis.draw(&mut body, bottom);
        let height = bottom + 40.0;
        let [source, destination] = [&self.hosts[0].name, &self.hosts[1].name].map(|n| escape(n));
        let head = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
             <text x=\"10\" y=\"20\" font-size=\"14\">A running VM moves from {source} to {destination}\
             </text>\n"
        );
        head + &legend() + &self.shade(&axis, bottom) + &body + "</svg>\n"
    }

    fn shade(&self, axis: &Axis, bottom: f64) -> String {
        let [from, to] = [self.moved.stopped, self.moved.resumed].map(|at| axis.x(self.ms(at)));
        format!(
            "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#e4e9ee\"/>\n\
             <text x=\"{from:.1}\" y=\"{:.1}\" font-size=\"10\">the VM stands still: {:.1} ms</text>\n",
            TOP - LANE,
            to - from,
            bottom - TOP + LANE,
            TOP - LANE - 4.0,
            self.ms(self.moved.resumed),
        )
    }

    fn draw_pings(&self, svg: &mut String, axis: &Axis, base: f64) {
        let _ = writeln!(svg, "<text x=\"10\" y=\"{:.1}\">pings</text>", base - 3.0);
        for probe in &self.log.probes {
            let at = self.ms(probe.sent);
            if (axis.from..=axis.to).contains(&at) {
                let (colour, part, _) = FATES[fate(probe)];
                let (x, top) = (axis.x(at), base - part * TICK);
                let _ = writeln!(
                    svg,
                    "<path d=\"M{x:.1} {base:.1}V{top:.1}\" stroke=\"{colour}\" stroke-width=\"2\"/>"
                );
            }
        }
        let gap = self.log.longest_gap();
        let [from, to] = [gap.from, gap.to].map(|at| axis.x(self.ms(at)));
        let (line, length) = (base + 7.0, gap.length().as_secs_f64() * 1e3);
        let _ = writeln!(
            svg,
            "<path d=\"M{from:.1} {:.1}v6M{to:.1} {:.1}v6M{from:.1} {line:.1}H{to:.1}\" \
             stroke=\"#222222\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"10\">no answer for {length:.1} ms</text>",
            line - 3.0,
            line - 3.0,
            to + 5.0,
            line + 4.0,
        );
    }
}

const WIDTH: f64 = 860.0;
const LEFT: f64 = 70.0;
/// Where the axis ends; labels may go on.
const RIGHT: f64 = WIDTH - 130.0;
const TOP: f64 = 88.0;
/// Height of a line of labels.
const LANE: f64 = 13.0;
/// Width of a letter of theirs, a little more than most have.
const LETTER: f64 = 5.6;
/// Height of the tallest tick.
const TICK: f64 = 24.0;

/// Colour, part of [`TICK`], and name of what became of a request.
const FATES: [(&str, f64, &str); 3] = [
    ("#3a9150", 0.5, "answered in time"),
    ("#d98324", 0.75, "answered late"),
    ("#c22f2f", 1.0, "lost"),
];

fn fate(probe: &Probe) -> usize {
    match probe.answered().map(|at| at.saturating_sub(probe.sent)) {
        Some(took) if took <= LATE => 0,
        Some(_) => 1,
        None => 2,
    }
}

fn legend() -> String {
    let (mut svg, mut x) = (String::new(), 10.0);
    let late = format!(" (over {} ms)", LATE.as_millis());
    for (n, (colour, _, name)) in FATES.iter().enumerate() {
        let more = if n == 1 { &late } else { "" };
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"32\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"42\">ping {name}{more}</text>",
            x + 17.0
        );
        x += 80.0 + 6.0 * (name.len() + more.len()) as f64;
    }
    svg
}

/// Milliseconds from left to right.
#[derive(Clone, Copy, Debug)]
struct Axis {
    from: f64,
    to: f64,
}

impl Axis {
    /// All of the stop and of the gap, what is told soon after, and some time around.
    fn around(timeline: &Timeline) -> Self {
        const SOON: f64 = 300.0;
        let gap = timeline.log.longest_gap();
        let end = timeline.ms(timeline.moved.resumed.max(gap.to));
        let told = timeline.hosts.iter().flat_map(|host| &host.moments);
        let told = told.map(|(at, _)| timeline.ms(*at));
        let last = told.filter(|at| *at < end + SOON).fold(end, f64::max);
        let first = timeline.ms(gap.from).min(0.0);
        let around = ((last - first) * 0.15).max(50.0);
        Self {
            from: first - around,
            to: last + around,
        }
    }

    fn x(&self, ms: f64) -> f64 {
        let ms = ms.clamp(self.from, self.to);
        LEFT + (ms - self.from) / (self.to - self.from) * (RIGHT - LEFT)
    }

    fn draw(&self, svg: &mut String, y: f64) {
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#222222\"/>"
        );
        let step = self.step();
        let mut at = (self.from / step).ceil() * step;
        while at <= self.to {
            let x = self.x(at);
            let _ = writeln!(
                svg,
                "<path d=\"M{x:.1} {y:.1}v5\" stroke=\"#222222\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" font-size=\"10\" text-anchor=\"middle\">{at:.0}</text>",
                y + 16.0
            );
            at += step;
        }
        let _ = writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{:.1}\" font-size=\"10\">milliseconds from when QEMU stopped the VM\
             </text>",
            y + 30.0
        );
    }

    /// Between two marks: 1, 2 or 5 of a power of ten, a dozen of them at most.
    fn step(&self) -> f64 {
        let least = (self.to - self.from) / 12.0;
        let power = 10_f64.powf(least.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|n| n * power);
        steps
            .into_iter()
            .find(|step| *step >= least)
            .unwrap_or(least)
    }
}

/// A host's row: labels above a line, each in a lane of its own where they would run into each other.
#[derive(Debug)]
struct Row {
    name: String,
    labels: Vec<Label>,
}

#[derive(Debug)]
struct Label {
    x: f64,
    /// Counted from the line up.
    lane: usize,
    text: String,
}

impl Row {
    fn new(host: &Host, axis: &Axis, zero: Duration) -> Self {
        let mut labels: Vec<Label> = Vec::new();
        let mut moments: Vec<_> = host.moments.iter().collect();
        moments.sort_by_key(|(at, _)| *at);
        // From the right: a label is above those that it would run into, and so is no line to
        // another in its way.
        for (at, what) in moments.into_iter().rev() {
            let ms = offset(*at, zero);
            let text = match ms {
                early if early < axis.from => format!("◂ {what} {ms:.0}"),
                late if late > axis.to => format!("▸ {what} {ms:.0}"),
                _ => format!("{what} {ms:.1}"),
            };
            let x = axis.x(ms);
            let end = x + LETTER * text.chars().count() as f64;
            let met = labels.iter().filter(|other| other.x < end);
            let lane = met.map(|other| other.lane + 1).max().unwrap_or(0);
            labels.push(Label { x, lane, text });
        }
        let name = host.name.clone();
        Self { name, labels }
    }

    /// From the row above to its line.
    fn height(&self) -> f64 {
        let lanes = self.labels.iter().map(|label| label.lane + 1).max();
        LANE * lanes.unwrap_or(0) as f64 + 2.0 * LANE
    }

    fn draw(&self, svg: &mut String, y: f64) {
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#9aa3ab\"/>\
             <text x=\"10\" y=\"{:.1}\">{}</text>",
            y + 4.0,
            escape(&self.name)
        );
        for Label { x, lane, text } in &self.labels {
            let top = y - LANE * (*lane as f64 + 1.0);
            let _ = writeln!(
                svg,
                "<path d=\"M{x:.1} {y:.1}V{top:.1}\" stroke=\"#7fb3de\"/>\
                 <circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"#1a6fb5\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"10\">{}</text>",
                x + 3.0,
                top + 6.0,
                escape(text)
            );
        }
    }
}

/// As the text of an element.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const STOP: u64 = 5000;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn timeline() -> Timeline {
        let status = |moments: &[(&str, u64)]| {
            let told = moments
                .iter()
                .map(|(what, at)| json!({"at_ms": at, "what": what}));
            json!({ "timeline": told.collect::<Vec<_>>() })
        };
        let source = status(&[("prepared", 0), ("stopped", 4000), ("committed", 4150)]);
        let destination = status(&[("prepared", 2), ("running_there", 4042), ("a<b", 9000)]);
        let hosts = [
            Host::new("alpha & <co>", at(1000), &source),
            Host::new("beta", at(1000), &destination),
        ];
        let moved = Moved {
            stopped: at(STOP),
            resumed: at(STOP + 40),
            downtime: at(42),
            total: at(4000),
        };
        let answers = [
            (4990, Some(4991)),
            (5000, None),
            (5010, Some(5045)),
            (5050, Some(5051)),
        ];
        let probes = answers
            .iter()
            .enumerate()
            .map(|(number, (sent, answer))| Probe {
                number: number as u32,
                sent: at(*sent),
                answers: answer.map(at).into_iter().collect(),
            });
        let log = Log {
            id: 1,
            probes: probes.collect(),
        };
        Timeline::new(hosts, &moved, &log)
    }

    /// The names of elements that are open at the end, and text outside of tags.
    fn read(svg: &str) -> (Vec<String>, String) {
        let (mut open, mut text, mut rest) = (Vec::new(), String::new(), svg);
        while let Some((before, tag)) = rest.split_once('<') {
            let (tag, after) = tag.split_once('>').expect("a tag that ends");
            assert!(!tag.contains('<'), "{tag}");
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            assert!(!before.contains('>'), "{before}");
            text += before;
            rest = after;
            let name = tag.split([' ', '/']).next().expect("a name");
            match tag.strip_prefix('/') {
                Some(closed) => assert_eq!(open.pop().as_deref(), Some(closed)),
                None if tag.ends_with('/') => {}
                None => open.push(name.to_owned()),
            }
        }
        (open, text + rest)
    }

    #[test]
    fn the_picture_is_well_formed_and_has_all_moments() {
        let svg = timeline().svg();
        let (open, text) = read(&svg);
        assert!(open.is_empty(), "{open:?}");
        let labels = [
            "◂ prepared -4000",
            "stopped 0.0",
            "committed 150.0",
            "◂ prepared -3998",
            "running_there 42.0",
            "▸ a&lt;b 5000",
            "alpha &amp; &lt;co&gt;",
            "the VM stands still: 40.0 ms",
            "no answer for 54.0 ms",
        ];
        for label in labels {
            assert!(text.contains(label), "{label} is not in {text}");
        }
        for (fate, count) in FATES.iter().zip([2, 1, 1]) {
            let ticks = svg.matches(&format!("stroke=\"{}\"", fate.0)).count();
            assert_eq!(ticks, count, "{}", fate.2);
        }
    }

    #[test]
    fn labels_do_not_run_into_each_other() {
        let timeline = timeline();
        let axis = Axis::around(&timeline);
        for host in &timeline.hosts {
            let row = Row::new(host, &axis, timeline.moved.stopped);
            let ends = |label: &Label| label.x + LETTER * label.text.chars().count() as f64;
            for one in &row.labels {
                let same = |other: &&Label| other.lane == one.lane && other.x > one.x;
                let next = row.labels.iter().find(same);
                assert!(next.is_none_or(|next| next.x >= ends(one)), "{row:?}");
            }
        }
    }

    #[test]
    fn the_words_are_in_order() {
        let text = timeline().text();
        let words: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split("  ").last())
            .collect();
        let order = [
            "prepared",
            "prepared",
            "the last answer before",
            "the VM stops",
            "stopped",
            "the VM goes on",
            "running_there",
            "the first answer after",
            "committed",
            "a<b",
        ];
        assert_eq!(words, order, "{text}");
        assert!(
            text.contains("      0.0  QEMU on alpha & <co>  the VM stops\n"),
            "{text}"
        );
    }

    #[test]
    fn a_beginning_is_told_from_ages() {
        let micros = Duration::from_micros;
        // It began at 10.3 ms: at 15.2 its age is 4 whole ms, at 20.4 it is 10, at 30.29 it is 19.
        let looks = [
            (4, 15_100, 15_300),
            (10, 20_350, 20_450),
            (19, 30_250, 30_350),
        ];
        let looks =
            looks.map(|(age, asked, answered)| (at(age), [micros(asked), micros(answered)]));
        let told = began(&looks);
        assert!(told.abs_diff(micros(10_300)) <= micros(100), "{told:?}");
    }
}
