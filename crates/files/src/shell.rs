//! Quotes the words of printed commands, so that a shell reads each word literally.

use std::borrow::Cow;

/// Returns the word, quoted if a shell would otherwise change it.
pub fn quoted(word: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./:@%+=,-".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return Cow::Borrowed(word);
    }
    Cow::Owned(in_quotes(word))
}

/// Returns the word in quotes in any case.
pub fn in_quotes(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_takes_each_word_for_itself() {
        for word in
            ["br0", "/var/lib/outgate", "og-*", "a b", "it's", "$(id)`id`;\\\"", "", "~", "#", "a\nb", "[::]:3129"]
        {
            let output = Command::new("sh").arg("-c").arg(format!("printf %s {}", quoted(word))).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
        assert_eq!(quoted("eth0.100"), "eth0.100");
    }
}
