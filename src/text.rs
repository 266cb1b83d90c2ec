//! Text for people: numbers with separators, sizes, durations, and the guarantee that no text from a guest or a file
//! can control the terminal or change how other text reads.

/// Returns `text` without anything that could move the cursor, change colours or reorder what is read: control
/// characters and invisible ones of Unicode are shown as escapes.
pub fn printable(text: &str) -> String {
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
pub fn grouped(number: u64) -> String {
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
pub fn counted(number: u64, word: &str) -> String {
    format!("{} {word}{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// Formats bytes in the unit that leaves one to four digits.
pub fn bytes(number: u64) -> String {
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
pub fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, ..) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
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
}
