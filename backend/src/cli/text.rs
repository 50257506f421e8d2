//! Text for people: tables and paragraphs that fit a terminal.

use std::fmt;

use serde_json::Value;

use crate::config::Key;

/// Columns of the smallest terminal that is common.
pub(super) const WIDTH: usize = 80;

/// Rows under headings, columns two spaces apart.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
    shrinking: Vec<usize>,
}

impl Table {
    pub(super) fn new(headings: &[&str]) -> Self {
        let headings = headings.iter().map(|word| (*word).to_owned()).collect();
        Self {
            rows: vec![headings],
            right: Vec::new(),
            shrinking: Vec::new(),
        }
    }

    /// Columns with numbers, set to the right.
    pub(super) fn right(mut self, columns: &[usize]) -> Self {
        self.right = columns.to_vec();
        self
    }

    /// Columns that may be cut, the longest first, when the table is too wide.
    pub(super) fn shrinking(mut self, columns: &[usize]) -> Self {
        self.shrinking = columns.to_vec();
        self
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let longest = |column| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell: &String| cell.chars().count())
                .max()
        };
        let mut widths: Vec<usize> = (0..columns).map(|c| longest(c).unwrap_or(0)).collect();
        while widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1) > WIDTH {
            let widest = self
                .shrinking
                .iter()
                .copied()
                .max_by_key(|column| widths[*column]);
            match widest {
                Some(column) if widths[column] > 6 => widths[column] -= 1,
                _ => break,
            }
        }
        widths
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let gap = if column == 0 { "" } else { "  " };
                let cell = cut(cell, *width);
                let width = *width;
                line += &match self.right.contains(&column) {
                    true => format!("{gap}{cell:>width$}"),
                    false => format!("{gap}{cell:<width$}"),
                };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars()
        .take(width.saturating_sub(1))
        .chain(['…'])
        .collect()
}

/// A value of a setting.
pub(super) fn setting(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(_) => list_of(value),
        other => other.to_string(),
    }
}

/// A list as a flag has it.
pub(super) fn list_of(values: &Value) -> String {
    let words = values.as_array().into_iter().flatten();
    words.map(setting).collect::<Vec<_>>().join(",")
}

/// The settings of an object of the API, and where each came from.
pub(super) fn setting_table<T: 'static>(
    keys: impl IntoIterator<Item = &'static Key<T>>,
    object: &Value,
) -> String {
    let mut table = Table::new(&["SETTING", "VALUE", "FROM"]).shrinking(&[1]);
    for key in keys {
        let origin = object["origin"][key.name].as_str().unwrap_or("-");
        let origin = origin.replace('_', " ");
        table.row(vec![
            key.name.to_owned(),
            setting(&object[key.name]),
            origin,
        ]);
    }
    table.to_string()
}

/// A count in at most six characters: `999999`, `12.3M`.
pub(super) fn count(number: Option<u64>) -> String {
    let Some(number) = number else {
        return "-".to_owned();
    };
    if number < 1_000_000 {
        return number.to_string();
    }
    let mut value = number as f64 / 1e6;
    let mut unit = "MGTPE".chars();
    let mut letter = unit.next().unwrap_or('M');
    while value >= 999.95 {
        value /= 1e3;
        letter = unit.next().unwrap_or(letter);
    }
    format!("{value:.1}{letter}")
}

/// A label and a paragraph beside it, wrapped.
pub(super) fn paragraph(label: &str, text: &str) -> String {
    const LABEL: usize = 11;
    let mut out = String::new();
    let mut line = format!("{label:<LABEL$}");
    if !line.ends_with(' ') && !line.is_empty() {
        line.push(' ');
    }
    let mut empty = true;
    for word in text.split_whitespace() {
        if !empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            out += line.trim_end();
            out.push('\n');
            line = " ".repeat(LABEL);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line += word;
        empty = false;
    }
    out + line.trim_end() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_table_is_cut_to_the_terminal() {
        let mut table = Table::new(&["NAME", "VM", "COUNT"])
            .right(&[2])
            .shrinking(&[0, 1]);
        table.row(vec!["n".repeat(64), "v".repeat(64), "7".into()]);
        table.row(vec!["é".into(), "-".into(), "123456".into()]);
        for line in table.to_string().lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        assert!(table.to_string().lines().nth(1).unwrap().ends_with("7"));
        assert!(table.to_string().contains('…'));
    }

    #[test]
    fn counts_stay_short() {
        for (number, text) in [
            (0, "0"),
            (999_999, "999999"),
            (1_000_000, "1.0M"),
            (12_345_678, "12.3M"),
            (999_949_999, "999.9M"),
            (999_999_999, "1.0G"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(count(Some(number)), text);
        }
        assert_eq!(count(None), "-");
    }

    #[test]
    fn paragraphs_wrap_beside_their_label() {
        let text = paragraph("state", &"word ".repeat(40));
        assert!(text.lines().count() > 1);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
        assert!(
            text.lines()
                .skip(1)
                .all(|line| line.starts_with("           word"))
        );
        assert_eq!(paragraph("x", "one two"), "x          one two\n");
    }
}
