//! Draws the result of a `latency` as SVG: how many writes were not yet visible after how long.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde::Deserialize;

use crate::figures::{Histogram, float};
use crate::plot::{INK, WIDTH};

/// Of the chart; below it stands a row for each curve.
const HEIGHT: u32 = 480;
const ROW: i32 = 22;
/// The smallest share that is drawn, in percent: what the slowest in a thousand do is chance.
const PERCENT_MIN: f64 = 0.1;
/// Of the curves, one after the other.
const COLORS: [RGBColor; 7] = [
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0xd6, 0x27, 0x28),
    RGBColor(0x2c, 0xa0, 0x2c),
    RGBColor(0xff, 0x7f, 0x0e),
    RGBColor(0x94, 0x67, 0xbd),
    RGBColor(0x8c, 0x56, 0x4b),
    RGBColor(0x17, 0xbe, 0xcf),
];

/// What of a result is drawn.
#[derive(Debug, Deserialize)]
pub(crate) struct Result {
    summaries: Vec<Summary>,
}

#[derive(Debug, Deserialize)]
struct Summary {
    contestant: String,
    connector: String,
    rate: u32,
    histogram: Histogram,
}

impl Summary {
    fn title(&self) -> String {
        let Self { contestant, connector, rate, .. } = self;
        match connector.as_str() {
            "defaults" => format!("{contestant}, connector's defaults, {rate}/s"),
            _ => format!("{contestant}, {rate}/s"),
        }
    }
}

/// Milliseconds, and the percentage of the writes that took longer, down to [`PERCENT_MIN`].
fn curve(histogram: &Histogram) -> Vec<(f64, f64)> {
    let all: u64 = histogram.counts.iter().sum();
    let mut points = vec![(histogram.bound(histogram.first), 100.0)];
    let mut left = all;
    for (number, count) in (histogram.first + 1..).zip(&histogram.counts) {
        left -= count;
        let percent = float(left) / float(all) * 100.0;
        points.push((histogram.bound(number), percent.max(PERCENT_MIN)));
        if percent <= PERCENT_MIN {
            break;
        }
    }
    points
}

pub(crate) fn draw(
    result: &Result,
    path: &Path,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let summaries = result.summaries.iter();
    let curves: Vec<_> = summaries.map(|summary| (summary, curve(&summary.histogram))).collect();
    let millis = || curves.iter().flat_map(|(_, points)| points).map(|(millis, _)| *millis);
    let (from, to) = (millis().fold(f64::MAX, f64::min), millis().fold(0.0, f64::max));
    // A little more than what is drawn, so that rounding does not lose the axis's last label.
    let percent = PERCENT_MIN * 0.99..100.0;
    let legend = u32::try_from(i32::try_from(curves.len())? * ROW + ROW / 2)?;
    let root = SVGBackend::new(path, (WIDTH, HEIGHT + legend)).into_drawing_area();
    root.fill(&WHITE)?;
    let text = |size: u32| ("sans-serif", size).into_font().color(&INK);
    let mut chart = ChartBuilder::on(&root.split_vertically(HEIGHT).0)
        .caption("Writes not yet visible to a reader", text(18))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d((from..to).log_scale(), percent.log_scale())?;
    chart
        .configure_mesh()
        // Up to three decades, that is enough for each of their multiples.
        .x_labels(30)
        .x_desc("milliseconds after the commit")
        .x_label_formatter(&|millis| sparse(*millis))
        .y_label_formatter(&|percent| format!("{} %", number(*percent)))
        .label_style(text(16))
        .axis_style(INK)
        .light_line_style(WHITE)
        .draw()?;
    for (row, ((summary, points), color)) in
        (0..).zip(curves.into_iter().zip(COLORS.into_iter().cycle()))
    {
        let style = color.stroke_width(2);
        chart.draw_series(LineSeries::new(points, style))?;
        let middle = i32::try_from(HEIGHT)? + row * ROW + ROW / 2;
        root.draw(&PathElement::new(vec![(80, middle), (104, middle)], style))?;
        let label = text(16).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(summary.title(), (112, middle), label))?;
    }
    root.present()?;
    Ok(())
}

/// Every multiple of a power of ten has a line; names of all of them would not fit.
fn sparse(value: f64) -> String {
    let text = number(value);
    let named = text.trim_start_matches(['0', '.']).starts_with(['1', '2', '5']);
    if named { text } else { String::new() }
}

fn number(value: f64) -> String {
    if value < 1.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_falls_from_all_writes_to_the_slowest_in_a_thousand() {
        let check = |counts: &[u64], expected: &[f64]| {
            let histogram = Histogram { first: 0, per_decade: 1, counts: counts.to_vec() };
            let found: Vec<f64> =
                curve(&histogram).into_iter().map(|(_, percent)| percent).collect();
            assert_eq!(found, expected);
        };
        check(&[3, 1], &[100.0, 25.0, PERCENT_MIN]);
        check(&[9999, 0, 1], &[100.0, PERCENT_MIN]);
        check(&[], &[100.0]);
    }

    #[test]
    fn every_summary_of_a_result_is_in_the_picture() {
        let text = r#"{"summaries": [
            {"contestant": "cdc-consumer", "connector": "shipped", "rate": 500,
             "histogram": {"first": 10, "per_decade": 20, "counts": [5, 80, 14, 1]}},
            {"contestant": "cdc-consumer", "connector": "defaults", "rate": 500,
             "histogram": {"first": 50, "per_decade": 20, "counts": [50, 50]}},
            {"contestant": "logical replication", "connector": "none", "rate": 500,
             "histogram": {"first": -5, "per_decade": 20, "counts": [100]}}]}"#;
        let file = std::env::temp_dir().join(format!("{:x}.svg", rand::random::<u64>()));
        draw(&serde_json::from_str(text).unwrap(), &file).unwrap();
        let picture = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        let titles = ["cdc-consumer, 500/s", "defaults, 500/s", "logical replication, 500/s"];
        for part in titles.into_iter().chain(["milliseconds", "10 %", "0.1 %", "100"]) {
            assert!(picture.contains(part), "{part} is not in {picture}");
        }
    }
}
