//! Draws the result of a `load` as SVG: users answered and rows in the view over time, beside the
//! original's average rate of users. When it had how many rows in its view is not known.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde::Deserialize;

use crate::figures::float;
use crate::load::{ORIGINAL_SECONDS, ORIGINAL_USERS};
use crate::plot::{INK, WIDTH};

/// Of the chart; below it stands a row for each curve.
const HEIGHT: u32 = 420;
const ROW: i32 = 22;

/// What of a result is drawn.
#[derive(Debug, Deserialize)]
pub(crate) struct Result {
    users: u64,
    seconds: f64,
    /// Seconds, users answered, rows in the view.
    progress: Vec<(f64, u64, u64)>,
    view_complete_after_seconds: f64,
}

struct Curve {
    title: &'static str,
    color: RGBColor,
    points: Vec<(f64, f64)>,
}

impl Result {
    fn curves(&self) -> [Curve; 3] {
        let end = (self.seconds, float(self.users));
        let complete = (self.seconds + self.view_complete_after_seconds, float(self.users));
        let users = self.progress.iter().map(|(at, users, _)| (*at, float(*users)));
        let rows = self.progress.iter().map(|(at, _, rows)| (*at, float(*rows)));
        [
            Curve {
                title: "users answered",
                color: RGBColor(0xff, 0x7f, 0x0e),
                points: users.chain([end]).collect(),
            },
            Curve {
                title: "rows in the view",
                color: RGBColor(0x1f, 0x77, 0xb4),
                points: rows.chain([complete]).collect(),
            },
            Curve {
                title: "the original: users answered, on average",
                color: RGBColor(0xa8, 0xb2, 0xbd),
                points: vec![(0.0, 0.0), (ORIGINAL_SECONDS, float(ORIGINAL_USERS))],
            },
        ]
    }
}

pub(crate) fn draw(
    result: &Result,
    path: &Path,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let curves = result.curves();
    let ends = curves.iter().filter_map(|curve| curve.points.last());
    let most = ends.fold(1.0, |most, (_, count)| count.max(most));
    // Twice the run: how far the original was by then is enough of it.
    let seconds = (result.seconds * 2.0).max(1.0);
    let legend = u32::try_from(i32::try_from(curves.len())? * ROW + ROW / 2)?;
    let root = SVGBackend::new(path, (WIDTH, HEIGHT + legend)).into_drawing_area();
    root.fill(&WHITE)?;
    let text = |size: u32| ("sans-serif", size).into_font().color(&INK);
    let mut chart = ChartBuilder::on(&root.split_vertically(HEIGHT).0)
        .caption(format!("{} users through REST, and their view", result.users), text(18))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(76)
        .build_cartesian_2d(0.0..seconds, 0.0..most)?;
    chart
        .configure_mesh()
        .x_desc("seconds")
        .x_label_formatter(&|seconds| format!("{seconds:.0}"))
        .y_label_formatter(&|count| format!("{count:.0}"))
        .label_style(text(16))
        .axis_style(INK)
        .light_line_style(WHITE)
        .draw()?;
    for (row, Curve { title, color, points }) in (0..).zip(curves) {
        let style = color.stroke_width(2);
        let shown = points.iter().map(|&(at, count)| {
            // A line that leaves the picture ends at its edge.
            let share = if at > seconds { seconds / at } else { 1.0 };
            (at * share, count * share)
        });
        chart.draw_series(LineSeries::new(shown, style))?;
        let middle = i32::try_from(HEIGHT)? + row * ROW + ROW / 2;
        root.draw(&PathElement::new(vec![(80, middle), (104, middle)], style))?;
        let label = text(16).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(title, (112, middle), label))?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_and_the_original_are_in_the_picture() {
        let text = r#"{"users": 1000, "seconds": 2.5, "view_complete_after_seconds": 0.1,
            "progress": [[0.0, 0, 0], [1.0, 400, 390], [2.0, 800, 795]]}"#;
        let file = std::env::temp_dir().join(format!("{:x}.svg", rand::random::<u64>()));
        draw(&serde_json::from_str(text).unwrap(), &file).unwrap();
        let picture = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        for part in ["1000 users", "rows in the view", "the original: users answered"] {
            assert!(picture.contains(part), "{part} is not in {picture}");
        }
    }
}
