//! The reference of the configuration, made from the table of keys: outgate.toml(5) here, and in `files` what is in
//! the repository, the example file and the page of the documentation.

#[cfg(test)]
mod tests;

use super::keys::TABLES;
use super::table::{NO_DEFAULT, TakesEffect, bracketed};
use std::fmt::Write;

const ABOUT: &str = "\
outgate reads its configuration from a TOML file: the one that `--config` names, or else the one that the environment \
variable `OUTGATE_CONFIG` names, or else /etc/outgate/outgate.toml if it exists, or else none. Every key is optional. An unknown key, a wrong type and a value out of range are errors with \
line and column, and `outgate check` reports all of them at once. Relative paths start from the folder of the file.";

const MORE: &str = "\
After it, the files `*.toml` of the folder `conf.d` beside it are read, in the order of their names; hidden files and \
those with another ending are skipped. Tables of several files are joined, and each `[[guest]]` is one more. Any other \
key may be set by one file only. Folder and files must be root's (or of the user who reads them), and nobody else may \
write to them. Relative paths start from the folder of the configuration file there too.";

const EFFECTS: &str = "\
Each key says when a change takes effect. A reload is SIGHUP to the daemon, `systemctl reload outgate` or `outgate \
whitelist reload`; it reports the keys that changed and require a restart. `outgate firewall apply` puts the firewall \
in force, also after a change of [listen] and [[guest]].";

const MANUAL_TAIL: &str = r#".SH FILES
.TP
\fI/etc/outgate/outgate.toml\fR
The configuration. The one that the package installs has every key with its default.
.TP
\fI/etc/outgate/conf.d/*.toml\fR
Further files, read after it.
.SH ENVIRONMENT
.TP
OUTGATE_CONFIG
The configuration file, unless
.B \-\-config
names one.
.SH EXAMPLES
The guard of a bridge of guests:
.PP
.nf
.RS
[listen]
transparent = ["0.0.0.0:3129", "[::]:3129"]
dns = ["10.42.42.1:53"]

[firewall]
guest_interfaces = ["br0"]

[[guest]]
name = "vm\-7"
addresses = ["10.42.42.7"]
.RE
.fi
.SH SEE ALSO
.BR outgate (1)
"#;

/// Returns outgate.toml(5), in the language of man(7).
pub fn manual() -> String {
    let mut page = format!(
        ".TH outgate.toml 5 \"\" \"outgate {}\"\n.SH NAME\noutgate.toml \\- configuration of outgate\n.SH DESCRIPTION\n",
        env!("CARGO_PKG_VERSION")
    );
    let _ = writeln!(page, "{}\n.PP\n{}\n.PP\n{}", roff(ABOUT), roff(MORE), roff(EFFECTS));
    for table in TABLES {
        let title = if table.name.is_empty() { "TOP OF THE FILE".to_owned() } else { bracketed(table) };
        let _ = writeln!(page, ".SH \"{}\"\n{}", roff(&title), roff(&sentences(table.help)));
        for row in table.rows {
            let default = if row.default == NO_DEFAULT { String::new() } else { format!(" = {}", row.default) };
            let _ = writeln!(page, ".TP\n.B {}{}", row.key, roff(&default));
            let _ = writeln!(page, "{}", roff(&sentences(row.help)));
            let form = row.form.describe();
            for (word, meaning) in form.words {
                let _ = writeln!(page, ".br\n\\fB\\(dq{}\\(dq\\fR: {}", roff(word), roff(meaning));
            }
            let range = form.range.map(|range| format!("; {range}")).unwrap_or_default();
            let facts = format!("Type: {}{range}. Takes effect {}.", form.kind, when(&row.effect));
            let _ = writeln!(page, ".br\n{}", roff(&facts));
            if !row.example.is_empty() {
                let _ = writeln!(page, ".br\nExample: {}", roff(&format!("{} = {}", row.key, row.example)));
            }
        }
    }
    page.push_str(MANUAL_TAIL);
    page
}

/// Returns when a change takes effect.
fn when(effect: &TakesEffect) -> &'static str {
    match effect {
        TakesEffect::Reload => "at a reload",
        TakesEffect::Apply => "with `outgate firewall apply`",
        TakesEffect::Restart(_) => "at a restart",
        TakesEffect::Later(_) => "in a later version; setting it is an error",
    }
}

/// Joins the lines of a help.
fn sentences(help: &[&str]) -> String {
    let lines: Vec<&str> = help.iter().map(|line| line.trim()).collect();
    lines.join(" ")
}

/// Escapes text for man(7); what is in backquotes becomes bold.
fn roff(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let mut is_bold = false;
    for character in text.chars() {
        match character {
            '\\' => escaped.push_str("\\e"),
            '-' => escaped.push_str("\\-"),
            '"' => escaped.push_str("\\(dq"),
            '`' => {
                escaped.push_str(if is_bold { "\\fR" } else { "\\fB" });
                is_bold = !is_bold;
            }
            other => escaped.push(other),
        }
    }
    if escaped.starts_with(['.', '\'']) { format!("\\&{escaped}") } else { escaped }
}
