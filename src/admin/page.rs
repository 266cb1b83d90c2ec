//! The status page: one self-contained HTML document without scripts. Everything in it is escaped, whoever wrote it.

use crate::account::{RefusalView, Totals};
use crate::text::{duration, printable};
use std::fmt::Write as _;

const HEAD: &str = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>outgate</title>\n\
    <meta name=\"viewport\" content=\"width=device-width\"><style>\n\
    body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222;background:#fff}\n\
    table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em 1em .2em 0;text-align:left;vertical-align:top}\n\
    th{font-weight:600;border-bottom:1px solid #ccc}td.n{text-align:right;font-variant-numeric:tabular-nums}\n\
    .bad{color:#b00020}.good{color:#0a7a33}td{overflow-wrap:anywhere}\n\
    @media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}.bad{color:#ff6b6b}.good{color:#5fd38d}}\n\
    </style></head><body>\n";

pub(super) fn render(totals: &Totals, refusals: &[RefusalView], not_ready: &[String]) -> String {
    let mut html = String::with_capacity(8 * 1024);
    html.push_str(HEAD);
    // Writing to a String can't fail.
    let _ = write_body(&mut html, totals, refusals, not_ready);
    html.push_str("</body></html>\n");
    html
}

fn write_body(html: &mut String, totals: &Totals, refusals: &[RefusalView], not_ready: &[String]) -> std::fmt::Result {
    writeln!(html, "<h1>outgate {}</h1>", escape(totals.version))?;
    match not_ready {
        [] => writeln!(html, "<p class=\"good\">Ready.</p>")?,
        reasons => {
            for reason in reasons {
                writeln!(html, "<p class=\"bad\">Not ready: {}</p>", escape(reason))?;
            }
        }
    }
    html.push_str("<table>\n");
    let mut row =
        |what: &str, value: String| writeln!(html, "<tr><td>{what}</td><td class=\"n\">{}</td></tr>", escape(&value));
    row("Up for", duration(totals.uptime_seconds))?;
    row("Whitelist generation", totals.whitelist_generation.to_string())?;
    row("Rules", totals.whitelist_rules.to_string())?;
    row("Last reload", if totals.whitelist_ok { "succeeded" } else { "failed" }.to_owned())?;
    row("Open connections", totals.active.to_string())?;
    for (verdict, count) in &totals.connections {
        row(&format!("Connections {verdict}"), count.to_string())?;
    }
    row("Bytes from guests", totals.bytes_up.to_string())?;
    row("Bytes to guests", totals.bytes_down.to_string())?;
    row("Panics", totals.panics.to_string())?;
    row("Log lines dropped", totals.log_dropped.to_string())?;
    html.push_str("</table>\n<h2>Top refusals</h2>\n");
    if refusals.is_empty() {
        html.push_str("<p>None.</p>\n");
        return Ok(());
    }
    html.push_str(
        "<table><tr><th>Count</th><th>Guest</th><th>Destination</th><th>Reason</th><th>Last</th><th>Advice</th></tr>\n",
    );
    for refusal in refusals {
        let reason = if refusal.verdict == "observed" { "observed" } else { refusal.reason };
        writeln!(
            html,
            "<tr><td class=\"n\">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            refusal.count,
            escape(&refusal.guest),
            escape(refusal.destination.as_deref().unwrap_or("")),
            escape(reason),
            escape(&refusal.last),
            escape(refusal.advice.as_deref().unwrap_or("")),
        )?;
    }
    html.push_str("</table>\n");
    Ok(())
}

/// Escapes text for HTML and quoted attributes. Control characters and direction overrides are shown as their code.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}
