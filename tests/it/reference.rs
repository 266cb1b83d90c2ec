//! The reference pages of docs/ hold what the code has: reasons, metrics, fields of the access log and commands.
//!
//! Each page has a part between `<!-- generated: NAME -->` and `<!-- end -->`. `UPDATE_DOCS=1 cargo test --test it
//! reference` rewrites these parts; the tests compare them otherwise. No root, no network.

use outgate::reason::Reason;
use outgate::trouble::TroubleCause;
use outgate::{account, dns};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Compares the part `name` of a page with `wanted`, or rewrites it.
#[track_caller]
fn hold(page: &str, name: &str, wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    let text = fs::read_to_string(&path).unwrap();
    let begin = format!("<!-- generated: {name} -->\n");
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{page} has no {begin}"));
    let (found, after) = rest.split_once("<!-- end -->").unwrap_or_else(|| panic!("{page} has no <!-- end -->"));
    if found == wanted {
        return;
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(path, format!("{before}{begin}{wanted}<!-- end -->{after}")).unwrap();
        return;
    }
    let differs = |(one, other): &(&str, &str)| one != other;
    let first = found.lines().zip(wanted.lines()).find(differs);
    panic!(
        "{page} is not what the code says: run `UPDATE_DOCS=1 cargo test --test it reference` and commit the page.\n\
         First difference (page, code): {first:#?}; lines: {} and {}",
        found.lines().count(),
        wanted.lines().count(),
    );
}

/// A table of Markdown; `|` in a cell is escaped.
fn table(heads: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    let mut text = line(&heads) + &"|---".repeat(heads.len()) + "|\n";
    for row in rows {
        assert_eq!(row.len(), heads.len());
        text += &line(&row.iter().map(|cell| cell.replace('|', "\\|")).collect::<Vec<_>>());
    }
    text
}

fn code(word: &str) -> String {
    format!("`{word}`")
}

#[test]
fn the_page_of_reasons_has_every_reason_as_the_code_answers_it() {
    let row = |reason: Reason| {
        let word = reason.as_str();
        let linked = if reason == Reason::None { code(word) } else { format!("[`{word}`](#{word})") };
        let dns = Some(dns::refusals(reason)).filter(|answers| !answers.is_empty()).unwrap_or_else(|| "–".to_owned());
        vec![
            linked,
            code(reason.verdict().as_str()),
            reason.http_status().to_string(),
            if reason == Reason::None { "–".to_owned() } else { code(reason.proxy_error()) },
            reason.socks_reply().to_string(),
            dns,
            reason.message().to_owned(),
        ]
    };
    let heads = ["reason", "verdict", "HTTP", "Proxy-Status error", "SOCKS5", "DNS", "message"];
    let page = "docs/reference/reasons.md";
    hold(page, "reasons", &table(&heads, Reason::ALL.map(row)));
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
    for reason in Reason::ALL.iter().filter(|reason| **reason != Reason::None) {
        assert!(text.contains(&format!("\n### {reason}\n\n")), "{page} has no section that explains {reason}");
    }
}

#[test]
fn every_cause_of_trouble_has_its_remedy_in_the_operations_page() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md")).unwrap();
    for cause in TroubleCause::ALL {
        let row = format!("\n| <a id=\"{cause}\"></a>`{cause}` | ");
        assert!(text.contains(&row), "docs/operations.md has no row that explains {cause}");
    }
}

#[test]
fn the_page_of_metrics_has_every_metric_that_the_daemon_registers() {
    let metrics = account::describe_metrics().unwrap();
    let rows = metrics.iter().map(|metric| {
        let labels: Vec<String> = metric.labels.iter().map(|label| code(label)).collect();
        vec![code(&metric.name), metric.kind.to_owned(), labels.join(" "), metric.help.clone()]
    });
    let text = table(&["metric", "type", "labels", "help"], rows);
    hold("docs/reference/metrics.md", "metrics", &text);
}

#[test]
fn the_page_of_the_access_log_has_every_field() {
    let rows = account::FIELDS.map(|field| vec![code(field.name), field.shape.to_owned(), field.meaning.to_owned()]);
    hold("docs/reference/access-log.md", "access-log", &table(&["field", "type", "what"], rows));
}

#[test]
fn the_page_of_commands_has_the_help_of_every_command() {
    let printed = Command::new(env!("CARGO_BIN_EXE_outgate")).args(["man", "help"]).output().unwrap();
    assert!(printed.status.success());
    let text = String::from_utf8(printed.stdout).unwrap() + "\n";
    hold("docs/reference/commands.md", "commands", &text);
}
