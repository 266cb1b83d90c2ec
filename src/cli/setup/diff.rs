//! The difference between two contents of one file, as diff(1) prints it with `-u`.

use similar::TextDiff;
use std::path::Path;

/// Returns the difference; empty if there is none. `None` is a file that does not exist.
pub(super) fn unified(path: &Path, before: Option<&str>, after: Option<&str>) -> String {
    let name = |text: Option<&str>| if text.is_some() { path.display().to_string() } else { "/dev/null".to_owned() };
    let difference = TextDiff::from_lines(before.unwrap_or_default(), after.unwrap_or_default());
    difference.unified_diff().header(&name(before), &name(after)).to_string()
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
            assert_eq!(unified(Path::new("f"), Some(before), Some(after)), wanted, "{before:?} {after:?}");
        }
    }

    #[test]
    fn a_file_that_does_not_exist_is_dev_null() {
        let shown = unified(Path::new("/f"), None, Some("a\n"));
        assert_eq!(shown, "--- /dev/null\n+++ /f\n@@ -0,0 +1 @@\n+a\n");
        assert_eq!(unified(Path::new("/f"), Some("a\n"), None), "--- /f\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n");
        assert_eq!(unified(Path::new("/f"), Some("a\n"), Some("a\n")), "");
    }
}
