//! A problem in a file that the operator wrote, in a form that lets the operator repair it. The readers of the
//! configuration and of the lists decide what counts as a problem.

use std::fmt;
use std::path::{Path, PathBuf};

/// How severe a [`Diagnostic`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used, but probably does not express what was meant.
    Warning,
}

/// One problem and its place. Displays as `file:line:col: message; remedy`; a warning's message starts with
/// `warning: `.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// The file, as the operator named it, or the name of a list within the whitelist dir.
    pub file: PathBuf,
    /// Line, from 1; 0 if the problem is the file itself.
    pub line: u32,
    /// Column in characters, from 1; 0 if the problem is a whole line or the file itself.
    pub column: u32,
    /// What is wrong. One line, no control characters.
    pub message: String,
    /// What to do; empty if the message says it.
    pub remedy: String,
}

impl Diagnostic {
    /// Returns a problem with the file as a whole.
    pub fn whole_file(severity: Severity, file: &Path, message: impl Into<String>) -> Diagnostic {
        let (file, remedy) = (file.to_owned(), String::new());
        Diagnostic { severity, file, line: 0, column: 0, message: message.into(), remedy }
    }

    /// Returns whether it makes the file unusable.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// Returns what is wrong and what to do.
    pub fn text(&self) -> String {
        if self.remedy.is_empty() { self.message.clone() } else { format!("{}; {}", self.message, self.remedy) }
    }

    /// Returns the same problem with the file's path, which starts from `dir`.
    pub fn within(self, dir: &Path) -> Diagnostic {
        Diagnostic { file: dir.join(&self.file), ..self }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if self.line > 0 {
            write!(f, "{}:", self.line)?;
        }
        if self.column > 0 {
            write!(f, "{}:", self.column)?;
        }
        let kind = if self.is_error() { "" } else { "warning: " };
        write!(f, " {kind}{}", self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity) -> Diagnostic {
        let (file, message, remedy) = ("a.rules".into(), "bad".to_owned(), "mend it".to_owned());
        Diagnostic { file, line: 3, column: 7, severity, message, remedy }
    }

    #[test]
    fn a_finding_reads_as_file_line_column_message() {
        assert_eq!(finding(Severity::Error).to_string(), "a.rules:3:7: bad; mend it");
        assert_eq!(finding(Severity::Warning).to_string(), "a.rules:3:7: warning: bad; mend it");
        let within = |file: &str| Diagnostic { file: file.into(), ..finding(Severity::Error) }.within(Path::new("/w"));
        assert_eq!(within("a.rules").to_string(), "/w/a.rules:3:7: bad; mend it");
        assert_eq!(within("/p/rules.json").to_string(), "/p/rules.json:3:7: bad; mend it");
    }

    #[test]
    fn a_problem_of_the_whole_file_has_no_line() {
        let problem = Diagnostic::whole_file(Severity::Error, Path::new("x"), "is a directory");
        assert_eq!(problem.to_string(), "x: is a directory");
    }
}
