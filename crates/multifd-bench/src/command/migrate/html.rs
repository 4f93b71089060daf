//! The HTML report: one self-contained file.

use std::fmt::Write;

use super::table::{Report, Row};

/// The complete page.
pub(super) fn page(report: &Report) -> String {
    let mut body = String::new();
    let longest = report.rows.iter().filter_map(|row| row.means.as_ref());
    let longest = longest.map(|means| means.total_time_ms).fold(1.0, f64::max);
    let mut workload = None;
    for row in &report.rows {
        if workload != Some(&row.workload) {
            let end = if workload.is_some() { "</table>" } else { "" };
            workload = Some(&row.workload);
            let name = escaped(&row.workload.to_string());
            // Writing to a string does not fail.
            let _ = write!(body, "{end}<h2>{name}</h2><table>{HEADER}");
        }
        body.push_str(&line(row, longest));
    }
    let conditions = escaped(&report.conditions());
    format!("{HEAD}<h1>multifd-bench migrate</h1><p>{conditions}</p>{body}</table></html>\n")
}

fn line(row: &Row, longest: f64) -> String {
    let start = format!(
        "<tr><td>{}<td>{}",
        row.channels,
        escaped(&row.mode.to_string())
    );
    let failures = row.failures();
    let mut line = match (&row.means, &row.unavailable) {
        (Some(means), _) => format!(
            "{start}<td>{:.0}<td class=b><i style=\"width:{:.1}%\"></i><td>{:.0}<td>{:.0}<td>{:.0}<td>{failures}<td>{:.1}<td>{:.2}<td>{:.0}<td>{}",
            means.total_time_ms,
            means.total_time_ms / longest * 100.0,
            means.downtime_ms,
            means.mbps,
            means.pages_per_second,
            means.cpu_seconds,
            means.ratio,
            means.guest_rate,
            escaped(&means.compressed_by())
        ),
        (None, Some(why)) => format!("{start}<td colspan=10>not here: {}", escaped(why)),
        (None, None) => format!("{start}<td colspan=5>not moved<td>{failures}<td colspan=4>"),
    };
    for error in &row.errors {
        let _ = write!(line, "<tr><td colspan=12>{}", escaped(error));
    }
    line
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

const HEAD: &str = "<!doctype html><html lang=en><meta charset=utf-8><title>multifd-bench migrate</title><style>\
body{font:15px system-ui,sans-serif;margin:2em;color:#222}table{border-collapse:collapse}\
td,th{padding:.2em .7em;text-align:right;border-bottom:1px solid #ddd}th{font-weight:600}\
td:last-child,th:last-child,td:nth-child(2),th:nth-child(2){text-align:left}\
.b{width:12em}.b i{display:block;height:.8em;background:#4a7ab5}</style>";

const HEADER: &str = "<tr><th>channels<th>mode<th>total time (ms)<th><th>downtime (ms)<th>network bandwidth (mbps)\
<th>pages per second<th>failed<th>CPU (s)<th>ratio<th>guest's ops/s<th>compressed by, pages";
