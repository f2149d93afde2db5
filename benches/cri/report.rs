//! The figures as text, and as an HTML page that needs nothing else.

use std::fmt::Write;

use crate::measure::Run;

/// (name, unit, value) in the order of the report.
fn rows(run: &Run) -> Vec<(String, &'static str, f64)> {
    let mut rows = Vec::new();
    for (call, times) in &run.calls {
        rows.push((format!("{call} p50"), "ms", times.p50));
        rows.push((format!("{call} p90"), "ms", times.p90));
        rows.push((format!("{call} p99"), "ms", times.p99));
    }
    rows.push((format!("lifecycles/s, {} in parallel", run.parallel), "/s", run.lifecycles_per_second));
    rows.push((format!("{} pods with a container up", run.held), "ms", run.hold_ms));
    rows.push((format!("ListContainerStats at {}", run.held), "ms", run.stats_ms));
    rows.push((format!("RunPodSandbox at {} held against 0", run.held), "×", run.run_ratio));
    let (empty, held) = (run.pss_empty.values().sum::<u64>(), run.pss_held.values().sum::<u64>());
    let further = held.saturating_sub(empty) as f64 / run.held.max(1) as f64;
    rows.push(("memory per further pod (PSS)".into(), "KiB", further));
    for (name, size) in &run.pss_held {
        rows.push((format!("PSS of {name}, {} pods", run.held), "KiB", *size as f64));
    }
    if run.log_lines > 0 {
        rows.push((format!("{} log lines of 100 bytes", run.log_lines), "ms", run.log_ms));
        rows.push(("log lines split".into(), "", run.log_split as f64));
    }
    rows
}

pub fn text(runs: &[Run]) -> String {
    let mut text = String::new();
    for run in runs {
        let _ = writeln!(text, "{}", run.name);
        for (name, unit, value) in rows(run) {
            let _ = writeln!(text, "  {name:<44} {value:>12.2} {unit}");
        }
    }
    text
}

pub fn html(runs: &[Run]) -> String {
    let mut page = String::from(
        "<!doctype html><meta charset=utf-8><title>CRI benchmark</title><style>body{font:14px sans-serif;\
         max-width:60em;margin:2em auto}h3{margin:1.2em 0 .2em}rect{fill:#47a}text{font:12px sans-serif}</style>\
         <h1>CRI benchmark</h1>",
    );
    let all: Vec<_> = runs.iter().map(|run| (run.name.as_str(), rows(run))).collect();
    let Some((_, first)) = all.first() else { return page };
    for (name, unit, _) in first {
        let bars: Vec<(&str, f64)> = all
            .iter()
            .filter_map(|(run, rows)| Some((*run, rows.iter().find(|row| row.0 == *name)?.2)))
            .collect();
        let _ = write!(page, "<h3>{name}</h3>{}", plot(&bars, unit));
    }
    page
}

/// A bar for each run, to the scale of the longest.
fn plot(bars: &[(&str, f64)], unit: &str) -> String {
    let longest = bars.iter().map(|bar| bar.1).fold(f64::MIN_POSITIVE, f64::max);
    let mut svg = format!("<svg width=760 height={}>", bars.len() * 22);
    for (i, (run, value)) in bars.iter().enumerate() {
        let (y, width) = (i * 22, value / longest * 440.0);
        let _ = write!(
            svg,
            "<text x=0 y={}>{run}</text><rect x=140 y={y} width={width:.1} height=16></rect>\
             <text x={:.1} y={}>{value:.2} {unit}</text>",
            y + 13,
            width + 146.0,
            y + 13
        );
    }
    svg + "</svg>"
}
