//! The admin port: a plain status page, the same as JSON, metrics and health.

use std::fmt::Write;

use axum::extract::State;
use axum::response::Html;
use axum::routing::get;
use axum::{Json, Router};

use crate::board::{Board, Status};

/// `/`, `/status.json` and the health routes.
pub fn router(board: Board) -> Router {
    let health = service::health::router(board.readiness.clone());
    Router::new()
        .route("/", get(page))
        .route("/status.json", get(status))
        .with_state(board)
        .merge(health)
}

async fn status(State(board): State<Board>) -> Json<Status> {
    Json(board.status())
}

async fn page(State(board): State<Board>) -> Html<String> {
    Html(render(&board.status()))
}

fn render(status: &Status) -> String {
    let mut page = String::from(
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=2>\
         <title>cdc-consumer</title><style>body{font:15px system-ui;margin:2em;max-width:60em}\
         table{border-collapse:collapse;margin:1em 0}th,td{padding:.3em .9em;border-bottom:1px solid #ddd;\
         text-align:right}th:first-child,td:first-child{text-align:left}</style><h1>cdc-consumer</h1>",
    );
    let state = if status.ready { "ready".to_owned() } else { status.reasons.join("; ") };
    let generation = status.generation.map_or("unknown".to_owned(), |number| number.to_string());
    put(&mut page, format_args!("<p>{} &middot; generation {generation}</p>", escape(&state)));
    page.push_str("<table><tr><th>partition<th>next offset<th>lag<th>last applied</tr>");
    for partition in &status.partitions {
        let lag = partition.lag.map_or("unknown".to_owned(), |lag| lag.to_string());
        let applied = partition
            .applied_seconds_ago
            .map_or("not since assigned".to_owned(), |seconds| format!("{seconds:.1} s ago"));
        put(
            &mut page,
            format_args!(
                "<tr><td>{}-{}<td>{}<td>{lag}<td>{applied}</tr>",
                escape(&partition.topic),
                partition.partition,
                partition.next_offset
            ),
        );
    }
    page.push_str(
        "</table><table><tr><th>view<th>applied<th>folded<th>stale<th>ignored<th>quarantined</tr>",
    );
    for view in &status.views {
        let records = &view.records;
        put(
            &mut page,
            format_args!(
                "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}</tr>",
                escape(&view.view),
                records.applied,
                records.folded,
                records.stale,
                records.ignored,
                records.quarantined
            ),
        );
    }
    page.push_str(
        "</table><p>since this process started &middot; <a href=/status.json>JSON</a> &middot; \
         <a href=/metrics>metrics</a> &middot; <a href=/health/ready>health</a></p></html>",
    );
    page
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn put(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("writing to a string cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::PartitionStatus;

    #[test]
    fn the_page_shows_lag_and_reasons_and_escapes_them() {
        let page = render(&Status {
            ready: false,
            reasons: vec!["database: <away>".to_owned()],
            generation: Some(1),
            fetch_pauses: 0,
            held_records: 0,
            held_bytes: 0,
            partitions: vec![PartitionStatus {
                topic: "user-events".to_owned(),
                partition: 2,
                next_offset: 41,
                lag: Some(7),
                applied_seconds_ago: None,
            }],
            views: vec![],
        });
        assert!(page.contains("database: &lt;away&gt;"));
        assert!(page.contains("<tr><td>user-events-2<td>41<td>7<td>not since assigned</tr>"));
    }
}
