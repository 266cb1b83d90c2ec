//! What the repository has of the reference. The test compares the files with what the table yields, and writes them
//! anew when it is told to.

use super::super::keys::TABLES;
use super::super::table::{NO_DEFAULT, Row, Table, TakesEffect, bracketed};
use super::{ABOUT, EFFECTS, MORE, sentences, when};
use std::fmt::Write;
use std::path::Path;

/// The width of the example file, in characters.
const WIDTH: usize = 100;

const APPLY: &str = "A change requires `outgate firewall apply`.";

const HEAD: &str = "\
# outgate's configuration, /etc/outgate/outgate.toml; outgate.toml(5) describes it.
#
# Every key is optional. What stands here behind a single # is the default; remove the # to change
# it. `outgate check` reads the file and says, with line and column, what is wrong with it.
# Relative paths start from the folder of this file. After it, conf.d/*.toml beside it are read.
#
# A change takes effect at the next reload (SIGHUP, `systemctl reload outgate`, `outgate whitelist
# reload`) unless the key says otherwise.
";

/// Returns `packaging/outgate.toml`.
fn example_file() -> String {
    let mut file = HEAD.to_owned();
    for table in TABLES {
        file.push('\n');
        comment(&sentences(table.help), &mut file);
        if table.is_list {
            list_table(table, &mut file);
            continue;
        }
        if !table.name.is_empty() {
            let _ = writeln!(file, "[{}]", table.name);
        }
        for (index, row) in table.rows.iter().enumerate() {
            if index > 0 || table.name.is_empty() {
                file.push('\n');
            }
            example_row(row, &mut file);
            let _ = writeln!(file, "#{} = {}", row.key, row.default);
        }
    }
    file
}

/// Writes what there is to say about a key.
fn example_row(row: &Row, file: &mut String) {
    let help = sentences(row.help);
    if let TakesEffect::Later(_) = row.effect {
        return comment(&format!("Later: {help} Setting it is an error in this version."), file);
    }
    comment(&help, file);
    let form = row.form.describe();
    let width = form.words.iter().map(|(word, _)| word.len() + 2).max().unwrap_or(0);
    for (word, meaning) in form.words {
        let word = format!("\"{word}\"");
        wrap(&format!("#   {word:width$}  "), &format!("#   {:width$}  ", ""), meaning, file);
    }
    let mut facts = Vec::new();
    // A range that ends with the type says nothing.
    if let Some(range) = form.range.filter(|range| !range.contains(&u32::MAX.to_string())) {
        facts.push(format!(
            "{}{}.",
            range.get(..1).unwrap_or_default().to_uppercase(),
            range.get(1..).unwrap_or_default()
        ));
    }
    match row.effect {
        TakesEffect::Reload | TakesEffect::Later(_) => {}
        TakesEffect::Apply => facts.push(APPLY.to_owned()),
        TakesEffect::Restart(_) => facts.push("A change requires a restart.".to_owned()),
    }
    if !row.example.is_empty() {
        facts.push(format!("Example: {}", row.example));
    }
    if !facts.is_empty() {
        comment(&facts.join(" "), file);
    }
}

/// Writes a table of which there may be several: its example, behind comment signs.
fn list_table(table: &Table, file: &mut String) {
    let _ = writeln!(file, "#\n#   {}", bracketed(table));
    for row in table.rows {
        let mut text = sentences(row.help);
        if matches!(row.effect, TakesEffect::Apply) {
            text = format!("{text} {APPLY}");
        }
        wrap("#   # ", "#   # ", &text, file);
        let _ = writeln!(file, "#   {} = {}", row.key, row.example);
    }
}

fn comment(text: &str, file: &mut String) {
    wrap("# ", "# ", text, file);
}

/// Writes text in lines of at most [`WIDTH`] characters.
fn wrap(first: &str, next: &str, text: &str, file: &mut String) {
    let mut line = first.to_owned();
    let mut is_empty = true;
    for word in text.split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(file, "{}", line.trim_end());
            line = next.to_owned();
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    let _ = writeln!(file, "{}", line.trim_end());
}

/// Returns `docs/reference/configuration.md`.
fn page() -> String {
    let mut page = format!(
        "<!-- Generated from src/config/keys.rs. Change it there, then run \
         `UPDATE_DOCS=1 cargo test --lib reference`. -->\n\n# The configuration file\n\n{ABOUT}\n\n{MORE}\n\n{EFFECTS}\n\n\
         [packaging/outgate.toml](../../packaging/outgate.toml) has the same keys, as a file to edit. The manual page \
         is outgate.toml(5).\n"
    );
    for table in TABLES {
        let title =
            if table.name.is_empty() { "Top of the file".to_owned() } else { format!("`{}`", bracketed(table)) };
        let _ = writeln!(page, "\n## {title}\n\n{}\n", sentences(table.help));
        let _ = writeln!(page, "| key | type | range | default | takes effect | meaning |\n|---|---|---|---|---|---|");
        for row in table.rows {
            let default = if row.default == NO_DEFAULT { "none".to_owned() } else { format!("`{}`", row.default) };
            let mut meaning = sentences(row.help);
            let form = row.form.describe();
            let words: Vec<String> =
                form.words.iter().map(|(word, meaning)| format!("`\"{word}\"`: {meaning}")).collect();
            if !words.is_empty() {
                let _ = write!(meaning, " {}.", words.join("; "));
            }
            if !row.example.is_empty() {
                let _ = write!(meaning, " Example: `{}`", row.example);
            }
            let cells = [
                format!("<a id=\"{}\"></a>`{}`", row.path.trim_start_matches('.'), row.key),
                cell(&form.kind),
                cell(&form.range.unwrap_or_default()),
                cell(&default),
                cell(when(&row.effect)),
                cell(&meaning),
            ];
            let _ = writeln!(page, "| {} |", cells.join(" | "));
        }
    }
    page
}

/// Escapes what would end a cell or be taken for markup.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[test]
fn the_files_of_the_repository_are_what_the_table_yields() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let update = std::env::var_os("UPDATE_DOCS").is_some_and(|value| value == "1");
    let mut stale = Vec::new();
    for (name, text) in [("packaging/outgate.toml", example_file()), ("docs/reference/configuration.md", page())] {
        let path = root.join(name);
        if update {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        if std::fs::read_to_string(&path).unwrap_or_default() != text {
            stale.push(name);
        }
    }
    assert_eq!(
        stale, [""; 0],
        "these files differ from the table in src/config/keys.rs; run `UPDATE_DOCS=1 cargo test --lib reference`"
    );
}

#[test]
fn the_manual_page_has_every_key_and_breaks_no_line() {
    let page = super::manual();
    for row in TABLES.iter().flat_map(|table| table.rows) {
        assert!(page.contains(&format!(".TP\n.B {}", row.key)), "{}", row.path);
    }
    let requests = [".TH ", ".SH ", ".TP", ".B ", ".BR ", ".br", ".PP", ".nf", ".fi", ".RS", ".RE"];
    for line in page.lines().filter(|line| line.starts_with(['.', '\''])) {
        assert!(requests.iter().any(|request| line.starts_with(request)), "{line}");
    }
}
