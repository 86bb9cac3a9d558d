//! The rates as a picture: a bar for each who, a group for each scenario.

use std::path::Path;

use anyhow::anyhow;
use plotters::prelude::*;

use crate::report::{RATE, Report};

const WIDTH: u32 = 1000;
const BAR: u32 = 22;
const GAP: u32 = 18;
const LABELS: i32 = 330;

pub fn write(report: &Report, path: &Path) -> anyhow::Result<()> {
    let scenarios = report.scenarios();
    let bars: Vec<(&str, &str, f64)> = report
        .lines
        .iter()
        .filter_map(|line| {
            let rate = report.median(&line.scenario, &line.who, RATE)?;
            Some((line.scenario.as_str(), line.who.as_str(), rate))
        })
        .collect();
    let highest = bars.iter().map(|bar| bar.2).fold(1.0, f64::max);
    let height = bars.len() as u32 * BAR + (scenarios.len() as u32 + 1) * (GAP + BAR);
    let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    draw(&root, &scenarios, &bars, highest)
        .map_err(|error| anyhow!("cannot write {}: {error}", path.display()))
}

fn draw(
    root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    scenarios: &[&str],
    bars: &[(&str, &str, f64)],
    highest: f64,
) -> Result<(), Box<dyn std::error::Error>> {
    let title = ("sans-serif", 16).into_font().color(&BLACK);
    let label = ("sans-serif", 13).into_font().color(&BLACK);
    let longest = f64::from(WIDTH as i32 - LABELS - 90);
    root.fill(&WHITE)?;
    let mut top = GAP as i32;
    for scenario in scenarios {
        let group: Vec<_> = bars.iter().filter(|bar| bar.0 == *scenario).collect();
        if group.is_empty() {
            continue;
        }
        root.draw(&Text::new(
            format!("{scenario}: events/s"),
            (8, top),
            title.clone(),
        ))?;
        top += BAR as i32;
        for (_, who, rate) in group {
            let color = if who.starts_with("floor") {
                RGBColor(160, 170, 180)
            } else {
                RGBColor(30, 110, 190)
            };
            let end = LABELS + (rate / highest * longest) as i32;
            let bar = [(LABELS, top), (end, top + BAR as i32 - 5)];
            root.draw(&Text::new((*who).to_owned(), (20, top), label.clone()))?;
            root.draw(&Rectangle::new(bar, color.filled()))?;
            root.draw(&Text::new(
                format!("{rate:.0}"),
                (end + 6, top),
                label.clone(),
            ))?;
            top += BAR as i32;
        }
        top += GAP as i32;
    }
    root.present()?;
    Ok(())
}
