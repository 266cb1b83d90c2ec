//! Text output: columns, numbers with separators, and the guarantee that no text from a guest or a file can
//! control the terminal.

use std::fmt::Write as _;
use std::io::{self, Write};

/// Returns `text` without anything that could move the cursor, change colours or reorder what is read: control
/// characters and invisible ones of Unicode are shown as escapes.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        let harmless = match character {
            ' '..='~' => true,
            _ => character.is_alphanumeric() || matches!(character, '…' | '„' | '“' | '”' | '‘' | '’' | '–' | '—'),
        };
        if harmless {
            shown.push(character);
        } else {
            shown.extend(character.escape_unicode());
        }
    }
    shown
}

/// Returns `number` with a comma every three digits.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Returns "1 rule", "2 rules".
pub(super) fn counted(number: u64, word: &str) -> String {
    format!("{} {word}{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// Formats bytes in the unit that leaves one to four digits.
pub(super) fn bytes(number: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    let mut scaled = number;
    while scaled >= 10_000 && unit + 1 < units.len() {
        scaled >>= 10;
        unit += 1;
    }
    format!("{scaled} {}", units.get(unit).copied().unwrap_or_default())
}

/// Formats a duration in its two largest units.
pub(super) fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, ..) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// Writes rows under their headings, columns two spaces apart; the last column is not padded.
pub(super) fn write(out: &mut dyn Write, headings: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let mut widths: Vec<usize> = headings.iter().map(|heading| heading.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, width) in cells.zip(&widths) {
            // Writing to a string does not fail.
            let _ = write!(line, "{cell:<width$}  ");
        }
        line.trim_end().to_owned()
    };
    writeln!(out, "{}", line(&mut headings.iter().copied()))?;
    rows.iter().try_for_each(|row| writeln!(out, "{}", line(&mut row.iter().map(String::as_str))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(printable("a\x1b[31m\r\n\u{202e}b\u{2028}"), "a\\u{1b}[31m\\u{d}\\u{a}\\u{202e}b\\u{2028}");
        assert_eq!(printable("Bücher.example: `x`"), "Bücher.example: `x`");
    }

    #[test]
    fn numbers_read_easily() {
        assert_eq!(
            ["0", "999", "1,204", "1,000,000"],
            [0, 999, 1204, 1_000_000].map(grouped).each_ref().map(String::as_str)
        );
        assert_eq!(counted(1, "file"), "1 file");
        assert_eq!(counted(2, "file"), "2 files");
        assert_eq!([bytes(0), bytes(9_999), bytes(10_240)], ["0 B", "9999 B", "10 KiB"]);
        assert_eq!(
            [duration(59), duration(61), duration(7_260), duration(200_000)],
            ["59s", "1m 1s", "2h 1m", "2d 7h"]
        );
    }

    #[test]
    fn columns_line_up() {
        let mut out = Vec::new();
        let rows = [vec!["a".to_owned(), "long".to_owned()], vec!["bcd".to_owned(), String::new()]];
        write(&mut out, &["X", "Y"], &rows).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "X    Y\na    long\nbcd\n");
    }
}
