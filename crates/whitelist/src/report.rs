//! What is wrong with a whitelist: [`Report`] has all of its findings. Quoted file content is escaped and cut, because a link may have led to a file that
//! is not a whitelist and that nobody should see.

use outgate_files::diagnostic::{Diagnostic, Severity};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How many errors, and how many warnings, a load keeps; the rest is only counted.
pub const MAX_KEPT: usize = 1000;
/// Characters of a file's content that a message quotes.
const MAX_QUOTED: usize = 80;

/// Why a set of files is not a valid list: all of its problems, errors first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The dir that contains the files, if one does; shown in front of their names.
    pub dir: Option<PathBuf>,
    /// At most [`MAX_KEPT`] errors and as many warnings.
    pub diagnostics: Vec<Diagnostic>,
    /// Findings beyond those.
    pub more: usize,
}

impl Report {
    /// One error that concerns the list as a whole.
    pub fn whole(dir: Option<&Path>, message: String) -> Report {
        let file = dir.map_or_else(|| "whitelist".into(), |dir| dir.display().to_string());
        let error = Diagnostic {
            file: PathBuf::from(file),
            line: 1,
            column: 1,
            severity: Severity::Error,
            message,
            remedy: String::new(),
        };
        Report { dir: dir.map(Path::to_path_buf), diagnostics: vec![error], more: 0 }
    }

    /// The errors alone.
    pub fn errors(&self) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics.iter().filter(|finding| finding.severity == Severity::Error)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.diagnostics.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            match &self.dir {
                Some(dir) if !finding.file.is_absolute() => write!(f, "{}/{finding}", dir.display())?,
                _ => finding.fmt(f)?,
            }
        }
        if self.more > 0 {
            write!(f, "\nand {} more", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

/// A finding within one line, before the place of that line is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Byte offset within the line.
    pub(super) at: usize,
    pub(super) message: String,
    pub(super) remedy: String,
}

impl Fault {
    pub(super) fn new(at: usize, message: impl Into<String>, remedy: impl Into<String>) -> Fault {
        Fault { at, message: message.into(), remedy: remedy.into() }
    }

    /// The same fault in a text that starts `by` bytes further right.
    pub(super) fn shifted(mut self, by: usize) -> Fault {
        self.at = self.at.saturating_add(by);
        self
    }
}

/// Collects findings, with a bound.
#[derive(Clone, Debug, Default)]
pub(super) struct Problems {
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
    more: usize,
}

impl Problems {
    /// Records a finding.
    pub(super) fn push(&mut self, finding: Diagnostic) {
        let kept = match finding.severity {
            Severity::Error => &mut self.errors,
            Severity::Warning => &mut self.warnings,
        };
        if kept.len() < MAX_KEPT {
            kept.push(finding);
        } else {
            self.more += 1;
        }
    }

    /// Records a fault of `line` (number and text) of `file`.
    pub(super) fn fault(&mut self, file: &Arc<str>, severity: Severity, line: (u32, &str), fault: Fault) {
        let before = line.1.get(..fault.at).unwrap_or(line.1);
        let column = u32::try_from(before.chars().count()).unwrap_or(u32::MAX).saturating_add(1);
        self.push(Diagnostic {
            file: PathBuf::from(&**file),
            line: line.0,
            column,
            severity,
            message: fault.message,
            remedy: fault.remedy,
        });
    }

    /// Records a problem of a file as a whole.
    pub(super) fn whole(&mut self, file: &Arc<str>, severity: Severity, message: String, remedy: &str) {
        self.fault(file, severity, (1, ""), Fault::new(0, message, remedy));
    }

    /// Returns whether no error was recorded yet.
    pub(super) fn sound(&self) -> bool {
        self.errors.is_empty()
    }

    /// Returns the warnings, if there is no error.
    pub(super) fn into_warnings(mut self) -> Result<Vec<Diagnostic>, Problems> {
        if !self.sound() {
            return Err(self);
        }
        if self.more > 0
            && let Some(last) = self.warnings.last_mut()
        {
            last.message = format!("{} (and {} more warnings)", last.message, self.more);
        }
        Ok(self.warnings)
    }

    /// Returns everything, for display.
    pub(super) fn report(self, dir: Option<&Path>) -> Report {
        let mut diagnostics = self.errors;
        diagnostics.extend(self.warnings);
        Report { dir: dir.map(Path::to_path_buf), diagnostics, more: self.more }
    }
}

/// Returns `text` between backquotes, escaped, and cut if it is long.
pub(super) fn quote(text: &str) -> String {
    let mut quoted = String::from("`");
    for (count, character) in text.chars().enumerate() {
        if count == MAX_QUOTED {
            quoted.push('…');
            break;
        }
        if character.is_control() || is_invisible(character) {
            quoted.extend(character.escape_unicode());
        } else {
            quoted.push(character);
        }
    }
    quoted.push('`');
    quoted
}

/// Returns whether this is a line or paragraph separator, or a character that reorders text: with these, the
/// displayed text differs from the text that is read.
pub(super) fn is_invisible(character: char) -> bool {
    matches!(character, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity) -> Diagnostic {
        let (file, message, remedy) = ("a.rules".into(), "bad".to_owned(), "mend it".to_owned());
        Diagnostic { file, line: 3, column: 7, severity, message, remedy }
    }

    #[test]
    fn findings_beyond_the_bound_are_counted() {
        let mut problems = Problems::default();
        for _ in 0..MAX_KEPT + 5 {
            problems.push(finding(Severity::Error));
        }
        let report = problems.into_warnings().unwrap_err().report(Some(Path::new("/etc/x")));
        assert_eq!(report.diagnostics.len(), MAX_KEPT);
        let shown = report.to_string();
        assert!(shown.starts_with("/etc/x/a.rules:3:7: bad"));
        assert!(shown.ends_with("and 5 more"));
    }

    #[test]
    fn columns_count_characters() {
        let mut problems = Problems::default();
        problems.fault(&Arc::from("a"), Severity::Error, (1, "bü x"), Fault::new(4, "x", ""));
        assert_eq!(problems.report(None).diagnostics[0].column, 4);
    }

    #[test]
    fn quoted_content_is_escaped_and_cut() {
        assert_eq!(quote("a\u{1b}[0m\u{202e}"), "`a\\u{1b}[0m\\u{202e}`");
        assert_eq!(quote(&"x".repeat(500)).chars().count(), MAX_QUOTED + 3);
    }
}
