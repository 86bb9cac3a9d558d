//! Every value that was measured, and what is printed of it.
//!
//! In: values, one by one, as the runs give them. Out: tables of medians, the verdict on the targets,
//! JSON of everything. Must hold: a figure that was not taken is shown as missing, never as zero.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::targets::Target;

/// What a value is: its name with the unit, and how many decimals are worth showing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Metric {
    pub name: &'static str,
    pub decimals: usize,
}

pub const RATE: Metric = Metric::new("events/s", 0);
pub const AGAINST_RECVLOGICAL: Metric = Metric::new("x pg_recvlogical", 2);
pub const AGAINST_PIPELINE: Metric = Metric::new("% of floor pipeline", 0);
pub const OWN_CPU: Metric = Metric::new("own us/event", 2);
pub const WALSENDER_CPU: Metric = Metric::new("walsender us/event", 2);
pub const NATS_CPU: Metric = Metric::new("nats us/event", 2);
pub const PEAK_RSS: Metric = Metric::new("peak RSS MB", 1);
pub const READ_BYTES: Metric = Metric::new("read B/event", 0);
pub const SENT_BYTES: Metric = Metric::new("sent B/event", 0);
pub const STORED_BYTES: Metric = Metric::new("stored B/event", 0);

impl Metric {
    pub const fn new(name: &'static str, decimals: usize) -> Self {
        Self { name, decimals }
    }
}

/// One line of a table.
#[derive(Debug, Serialize)]
pub struct Line {
    pub scenario: String,
    /// Who was measured: the bridge, a floor, the peer.
    pub who: String,
    pub values: BTreeMap<&'static str, Vec<f64>>,
}

#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Versions, machine, arguments.
    pub setting: BTreeMap<&'static str, String>,
    pub lines: Vec<Line>,
    /// In the order they were first measured.
    #[serde(skip)]
    metrics: Vec<Metric>,
}

impl Report {
    pub fn add(&mut self, scenario: &str, who: &str, metric: Metric, value: f64) {
        if !self.metrics.contains(&metric) {
            self.metrics.push(metric);
        }
        let index = self
            .lines
            .iter()
            .position(|line| line.scenario == scenario && line.who == who);
        let index = index.unwrap_or_else(|| {
            self.lines.push(Line {
                scenario: scenario.to_owned(),
                who: who.to_owned(),
                values: BTreeMap::new(),
            });
            self.lines.len() - 1
        });
        self.lines[index]
            .values
            .entry(metric.name)
            .or_default()
            .push(value);
    }

    /// None when it was not measured.
    pub fn median(&self, scenario: &str, who: &str, metric: Metric) -> Option<f64> {
        self.lines
            .iter()
            .find(|line| line.scenario == scenario && line.who == who)
            .and_then(|line| line.values.get(metric.name))
            .map(|values| median(values))
    }

    pub fn scenarios(&self) -> Vec<&str> {
        let mut scenarios: Vec<&str> = Vec::new();
        for line in &self.lines {
            if !scenarios.contains(&line.scenario.as_str()) {
                scenarios.push(&line.scenario);
            }
        }
        scenarios
    }

    /// One scenario: a line for each who, a column for each metric.
    pub fn table(&self, scenario: &str) -> String {
        let lines: Vec<&Line> = self
            .lines
            .iter()
            .filter(|line| line.scenario == scenario)
            .collect();
        let metrics: Vec<&Metric> = self
            .metrics
            .iter()
            .filter(|metric| {
                lines
                    .iter()
                    .any(|line| line.values.contains_key(metric.name))
            })
            .collect();
        let mut rows = vec![vec![scenario.to_owned()]];
        rows[0].extend(metrics.iter().map(|metric| metric.name.to_owned()));
        for line in lines {
            let mut row = vec![line.who.clone()];
            row.extend(metrics.iter().map(|metric| cell(line, metric)));
            rows.push(row);
        }
        aligned(&rows)
    }

    /// Each target beside what was measured.
    pub fn verdict(&self, targets: impl Iterator<Item = &'static Target>) -> String {
        let mut rows = vec![
            ["target", "wanted", "measured", ""]
                .map(str::to_owned)
                .to_vec(),
        ];
        for target in targets {
            let Some(measured) = self.median(target.scenario, target.who, target.metric) else {
                continue;
            };
            let verdict = if target.is_met(measured) {
                "met".to_owned()
            } else {
                format!("missed by {:.0} %", target.missed_by(measured) * 100.0)
            };
            rows.push(vec![
                format!("{}: {}", target.scenario, target.metric.name),
                target.wanted(),
                number(measured, target.metric.decimals),
                verdict,
            ]);
        }
        if rows.len() == 1 {
            return String::new();
        }
        aligned(&rows)
    }
}

/// The median; with several values also how far apart they are.
fn cell(line: &Line, metric: &Metric) -> String {
    let Some(values) = line.values.get(metric.name) else {
        return "-".to_owned();
    };
    let middle = median(values);
    let mut text = number(middle, metric.decimals);
    if metric == &RATE && values.len() > 1 && middle > 0.0 {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(0.0, f64::max);
        let _ = write!(text, " (±{:.0}%)", (high - low) / middle * 50.0);
    }
    text
}

/// With thin groups of three: 1234567.0 is 1,234,567.
fn number(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if fraction.is_empty() {
        grouped
    } else {
        format!("{grouped}.{fraction}")
    }
}

/// The lower one of two middle values, so that it is a value that was measured.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
        .get(sorted.len().saturating_sub(1) / 2)
        .copied()
        .unwrap_or(f64::NAN)
}

/// First column to the left, the others to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = if column == 0 {
                write!(text, "{cell:<width$}")
            } else {
                write!(text, "  {cell:>width$}")
            };
        }
        text.push('\n');
    }
    text
}
