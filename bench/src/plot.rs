//! `./dev bench plot`: draws results as SVG. Here that of a `drain`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use clap::ValueEnum;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde::Deserialize;
use serde_json::Value as Json;

use crate::cli::{PlotOptions, print};
use crate::contest::Contestant;
use crate::figures::Spread;
use crate::{plot_latency, plot_load};

pub(crate) const WIDTH: u32 = 860;
const BAR: i32 = 26;
const GAP: i32 = 12;
const LEFT: i32 = 240;
const RIGHT: i32 = 150;
const TOP: i32 = 56;
const BOTTOM: i32 = 16;
const OURS: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
const OTHERS: RGBColor = RGBColor(0xa8, 0xb2, 0xbd);
pub(crate) const INK: RGBColor = RGBColor(0x30, 0x36, 0x3d);

/// What of a result is drawn.
#[derive(Debug, Deserialize)]
struct Result {
    mix: String,
    events: u64,
    summaries: Vec<Bar>,
}

#[derive(Debug, Deserialize)]
struct Bar {
    contestant: String,
    per_second: Spread,
}

/// Draws each file beside itself.
pub(crate) fn run(options: &PlotOptions) -> anyhow::Result<ExitCode> {
    for file in &options.files {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let picture = file.with_extension("svg");
        let drawn = match kind(&text).with_context(|| file.display().to_string())? {
            Kind::Drain(result) => draw(&result, &picture),
            Kind::Latency(result) => plot_latency::draw(&result, &picture),
            Kind::Load(result) => plot_load::draw(&result, &picture),
        };
        drawn.map_err(|error| anyhow!("{}: {error}", picture.display()))?;
        print(&display(&picture));
    }
    Ok(ExitCode::SUCCESS)
}

/// Whose result a file holds.
#[derive(Debug)]
enum Kind {
    Drain(Result),
    Latency(plot_latency::Result),
    Load(plot_load::Result),
}

fn kind(text: &str) -> anyhow::Result<Kind> {
    let json: Json = serde_json::from_str(text).context("it holds no JSON")?;
    if json.get("mix").is_some() {
        let result = serde_json::from_value(json);
        return result.map(Kind::Drain).context("it is no whole result of `drain`");
    }
    if json.get("progress").is_some() {
        let result = serde_json::from_value(json);
        return result.map(Kind::Load).context("it is no whole result of `load`");
    }
    if json.get("steps").is_none() {
        bail!("it is no result of `drain`, `latency` or `load`");
    }
    if json.get("summaries").is_none() {
        bail!("it is a result of an older `latency`, without rounds; measure again");
    }
    let result = serde_json::from_value(json);
    result.map(Kind::Latency).context("it is no whole result of `latency`")
}

fn display(path: &Path) -> String {
    PathBuf::from(path).display().to_string()
}

fn draw(result: &Result, path: &Path) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let rows = i32::try_from(result.summaries.len())?;
    let height = u32::try_from(TOP + BOTTOM + rows * (BAR + GAP))?;
    let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let text = |size: u32| ("sans-serif", size).into_font().color(&INK);
    let title = format!("Events applied per second ({} events, {})", result.events, result.mix);
    root.draw(&Text::new(title, (16, 14), text(18)))?;
    let most = result.summaries.iter().map(|bar| bar.per_second.max).fold(1.0, f64::max);
    let span = f64::from(i32::try_from(WIDTH)? - LEFT - RIGHT);
    let x = |value: f64| LEFT + rounded(value / most * span);
    for (row, bar) in (0..rows).zip(&result.summaries) {
        let contestant = Contestant::from_str(&bar.contestant, false)?;
        let top = TOP + row * (BAR + GAP);
        let middle = top + BAR / 2;
        let Spread { median, min, max } = bar.per_second;
        let label = text(14).pos(Pos::new(HPos::Right, VPos::Center));
        root.draw(&Text::new(contestant.title(), (LEFT - 10, middle), label))?;
        let ours = matches!(contestant, Contestant::Ours | Contestant::OursView);
        let color = if ours { OURS } else { OTHERS };
        root.draw(&Rectangle::new([(LEFT, top), (x(median), top + BAR)], color.filled()))?;
        // From the slowest run to the fastest.
        root.draw(&PathElement::new(vec![(x(min), middle), (x(max), middle)], INK))?;
        for end in [min, max] {
            let ends = vec![(x(end), middle - 5), (x(end), middle + 5)];
            root.draw(&PathElement::new(ends, INK))?;
        }
        let figure = text(14).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(format!("{median:.0}"), (x(max) + 8, middle), figure))?;
    }
    root.present()?;
    Ok(())
}

#[expect(clippy::cast_possible_truncation, reason = "a place within a picture")]
fn rounded(place: f64) -> i32 {
    place.round() as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contestant_of_a_result_is_in_the_picture() {
        let text = r#"{"mix": "mixed", "events": 5, "summaries": [
            {"contestant": "ours", "per_second": {"median": 80.0, "min": 60.0, "max": 90.0}},
            {"contestant": "sink-tuned", "per_second": {"median": 20.0, "min": 20.0, "max": 20.0}}]}"#;
        let file = std::env::temp_dir().join(format!("{:x}.svg", rand::random::<u64>()));
        draw(&serde_json::from_str(text).unwrap(), &file).unwrap();
        let picture = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        for part in ["5 events, mixed", "cdc-consumer", "JDBC sink, tuned", "80", "20"] {
            assert!(picture.contains(part), "{part} is not in {picture}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_drawn_says_what_it_is() {
        let check = |text: &str, expected: &str| {
            let error = kind(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("{", "no JSON");
        check("[]", "it is no result of");
        check(r#"{"runs": [], "users": 5}"#, "it is no result of");
        check(r#"{"progress": [], "users": 5}"#, "no whole result of `load`");
        check(r#"{"runs": [], "steps": null}"#, "older `latency`");
        check(r#"{"summaries": [{}], "steps": null}"#, "no whole result of `latency`");
        check(r#"{"summaries": [], "mix": "mixed"}"#, "no whole result of `drain`");
    }
}
