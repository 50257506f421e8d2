//! The comparison as a picture.

use std::fmt::Write;

use super::measure::Outcome;
use super::switch::Kind;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 150.0;
const BAR: f64 = 13.0;
const GROUP: f64 = 3.0 * BAR + 11.0;
const TOP: f64 = 58.0;

fn colour(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Tandem => ("#1a6fb5", "Tandem"),
        Kind::Ovs => ("#d98324", "Open vSwitch with DPDK"),
        Kind::Io => ("#9aa3ab", "testpmd io (no switching)"),
        Kind::Other => ("#7fb3de", "another build of Tandem"),
    }
}

/// Bars for each cell: median frames a second, with a line from the smallest to the largest.
pub fn draw(outcomes: &[Outcome], kinds: &[Kind]) -> String {
    let all = outcomes.iter().flat_map(|outcome| &outcome.results);
    let most = all.fold(0.0_f64, |most, (_, measured)| {
        most.max(measured.delivered.quantile(1.0))
    });
    let scale = (WIDTH - LEFT - 60.0) / most.max(f64::MIN_POSITIVE);
    let height = TOP + GROUP * outcomes.len() as f64 + 10.0;
    // Writing to a string cannot fail.
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"14\">Frames delivered on one CPU, millions a second: \
         median of the rounds, and their range</text>\n"
    );
    let mut x = LEFT;
    for kind in kinds {
        let (fill, name) = colour(*kind);
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"32\" width=\"12\" height=\"12\" fill=\"{fill}\"/>\
             <text x=\"{}\" y=\"42\">{name}</text>",
            x + 17.0
        );
        x += 40.0 + 7.0 * name.len() as f64;
    }
    for (n, outcome) in outcomes.iter().enumerate() {
        group(&mut svg, outcome, TOP + GROUP * n as f64, scale);
    }
    svg + "</svg>\n"
}

fn group(svg: &mut String, outcome: &Outcome, top: f64, scale: f64) {
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
        LEFT - 8.0,
        top + 1.9 * BAR,
        outcome.cell.name
    );
    for (n, (kind, measured)) in outcome.results.iter().enumerate() {
        let y = top + BAR * n as f64;
        let at = |part| LEFT + scale * measured.delivered.quantile(part);
        let (middle, median) = (y + BAR / 2.0 - 0.5, measured.delivered.median());
        let _ = writeln!(
            svg,
            "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"/>\
             <path d=\"M{:.1} {middle:.1}H{:.1}\" stroke=\"#222222\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"10\">{median:.2}</text>",
            at(0.5) - LEFT,
            BAR - 1.0,
            colour(*kind).0,
            at(0.0),
            at(1.0),
            at(1.0) + 5.0,
            y + BAR - 3.0
        );
    }
}
