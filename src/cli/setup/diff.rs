//! The difference between two contents of one file, as diff(1) prints it with `-u`. What setup changes in a file is in
//! one place, so there is one hunk.

use std::fmt::Write;
use std::path::Path;

/// Lines that are shown before and after what differs.
const CONTEXT: usize = 3;
/// How the missing line end at the end of a file is shown.
const NO_END: &str = "\n\\ No newline at end of file\n";

/// Returns the difference; empty if there is none. `None` is a file that does not exist.
pub(super) fn unified(path: &Path, before: Option<&str>, after: Option<&str>) -> String {
    if before == after {
        return String::new();
    }
    let (old, new) = (lines(before), lines(after));
    let same = old.iter().zip(&new).take_while(|(one, other)| one == other).count();
    let left = old.len().min(new.len()) - same;
    let same_end = old.iter().rev().zip(new.iter().rev()).take(left).take_while(|(one, other)| one == other).count();
    let first = same.saturating_sub(CONTEXT);
    let more = same_end.min(CONTEXT);
    let range = |all: usize| {
        let count = all - same_end + more - first;
        let start = if count == 0 { first } else { first + 1 };
        format!("{start},{count}")
    };
    let name = |text: Option<&str>| if text.is_some() { path.display().to_string() } else { "/dev/null".to_owned() };
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(out, "--- {}\n+++ {}", name(before), name(after));
    let _ = writeln!(out, "@@ -{} +{} @@", range(old.len()), range(new.len()));
    let mut write = |sign: char, lines: &[&str], from: usize, count: usize| {
        for line in lines.iter().skip(from).take(count) {
            let end = if line.ends_with('\n') { "" } else { NO_END };
            let _ = write!(out, "{sign}{line}{end}");
        }
    };
    write(' ', &old, first, same - first);
    write('-', &old, same, old.len() - same_end - same);
    write('+', &new, same, new.len() - same_end - same);
    write(' ', &old, old.len() - same_end, more);
    out
}

fn lines(text: Option<&str>) -> Vec<&str> {
    text.unwrap_or_default().split_inclusive('\n').collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::Command;

    /// patch(1) is in no minimal system, diff(1) is in each.
    #[test]
    fn it_is_what_diff_prints() {
        let folder = tempfile::tempdir().unwrap();
        let long: String = (0..20).map(|n| format!("{n}\n")).collect();
        for (before, after) in [
            ("a\n", "a\nb\n"),
            ("", "a\nb\n"),
            ("{\n  \"a\": 1\n}\n", "{\n  \"a\": 1,\n  \"dns\": [\"172.17.0.1\"]\n}\n"),
            ("{}", "{\n  \"dns\": []\n}"),
            (&*long, &*long.replace("10\n", "ten\n")),
            (&*long, &*long.replace("19\n", "")),
            (&*long, &*format!("first\n{long}")),
            ("a\n", ""),
            ("x", "x\n"),
        ] {
            fs::write(folder.path().join("a"), before).unwrap();
            fs::write(folder.path().join("b"), after).unwrap();
            let mut command = Command::new("diff");
            command.args(["-U3", "--label", "f", "--label", "f", "a", "b"]).current_dir(folder.path());
            let wanted = String::from_utf8(command.output().unwrap().stdout).unwrap();
            // diff(1) leaves out a count of one.
            let found = unified(Path::new("f"), Some(before), Some(after)).replace(",1 ", " ");
            assert_eq!(found, wanted, "{before:?} {after:?}");
        }
    }

    #[test]
    fn a_file_that_does_not_exist_is_dev_null() {
        let shown = unified(Path::new("/f"), None, Some("a\n"));
        assert_eq!(shown, "--- /dev/null\n+++ /f\n@@ -0,0 +1,1 @@\n+a\n");
        assert_eq!(unified(Path::new("/f"), Some("a\n"), None), "--- /f\n+++ /dev/null\n@@ -1,1 +0,0 @@\n-a\n");
        assert_eq!(unified(Path::new("/f"), Some("a\n"), Some("a\n")), "");
    }
}
