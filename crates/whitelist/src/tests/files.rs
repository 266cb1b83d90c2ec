//! Files as a whole: their text, their set, and what is reported about them.

use super::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;

#[test]
fn the_text_of_a_file_is_checked_first() {
    for (text, words) in [
        (&b"a.test\nb.te"[..], "a.rules:2:5: the last line has no newline"),
        (b"a.test\nb\x00.test\n", "a.rules:2:2: control or invisible character U+0000"),
        (b"# \x1b[0m\n", "a.rules:1:3: control"),
        (b"a.test\rb.test\n", "a.rules:1:7: control"),
        ("# \u{202e}x\n".as_bytes(), "a.rules:1:3: control or invisible character U+202E"),
        ("a.test\n\u{feff}b.test\n".as_bytes(), "a.rules:2:1: control or invisible character U+FEFF"),
        (b"a.test\nb\xff.test\n", "a.rules:2:2: not UTF-8"),
    ] {
        let report = compiled("a.rules", text).unwrap_err().to_string();
        assert!(report.contains(words), "{report}");
    }
    let (recorder, _) = compiled("a.rules", "\u{feff}a.test\r\n\r\n\tb.test\towner=x\r\n# ü\r\n").unwrap();
    assert_eq!(recorder.rules.iter().map(|rule| rule.0.as_str()).collect::<Vec<_>>(), ["a.rules:1", "a.rules:3"]);
    refused(&"a".repeat(5000), 4097, "longer than 4096 bytes");
    assert_eq!(compiled("a.rules", "").unwrap().1.rules, 0);
}

#[test]
fn a_cut_file_never_widens_the_list() {
    let whole = "other.test.example\n";
    for cut in 1..whole.len() {
        assert!(compiled("a.rules", &whole[..cut]).is_err(), "{cut}");
        assert!(compiled("strict.lst", &whole[..cut]).is_err(), "{cut}");
    }
    let json = r#"{"patterns":[{"domain":"other.test.example","match":"strict"}]}"#;
    for cut in 0..json.len() {
        assert!(compiled("a.json", &json[..cut]).is_err(), "{cut}");
    }
}

#[test]
fn all_problems_of_all_files_are_reported_at_once() {
    let files = Files::from_memory([
        ("a.rules", "*.com\ngood.test\nx y\nunwanted.test\n"),
        ("b.lst", "bad entry\n"),
        ("c.json", "["),
        ("d.rules", "half"),
    ]);
    let mut recorder = Recorder::default();
    let report = compile(&files, TODAY, &mut recorder).map(|_| ()).unwrap_err();
    let places: Vec<String> =
        report.errors().map(|e| format!("{}:{}:{}", e.file.display(), e.line, e.column)).collect();
    assert_eq!(places, ["a.rules:1:1", "a.rules:3:3", "a.rules:4:1", "b.lst:1:1", "c.json:1:1", "d.rules:1:5"]);
    assert!(report.to_string().contains("a.rules:4:1: the sink takes no such rule"));
}

#[test]
fn an_expired_rule_is_taken_and_warned_of() {
    warned("a.rules", "good.test until=2026-11-22\n", "expired on 2026-11-22");
    assert_eq!(rule("good.test until=2026-11-23").1.until, Some(TODAY));
}

#[test]
fn files_of_a_dir_are_read_in_name_order_and_others_skipped_with_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["b.rules", "a.lst", "c.json", "README.md", ".hidden.rules", "b.rules~", "#x.rules#", "regex.lst"] {
        let text = if name == "c.json" { "{\"patterns\":[]}" } else { "a\\.test\n" };
        let text = if matches!(name, "b.rules" | "a.lst") { "a.test\n" } else { text };
        fs::write(dir.path().join(name), text).unwrap();
    }
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::create_dir(dir.path().join("..2026")).unwrap();
    let mut recorder = Recorder::default();
    let (_, loaded) = load(dir.path(), TODAY, &mut recorder).unwrap();
    assert_eq!(recorder.files, ["a.lst", "b.rules", "c.json", "regex.lst"]);
    assert_eq!(loaded.files, 4);
    let skipped: Vec<&str> =
        loaded.warnings.iter().map(|w| w.file.to_str().unwrap()).filter(|file| *file != "regex.lst").collect();
    assert_eq!(skipped, ["#x.rules#", ".hidden.rules", "README.md", "b.rules~", "sub"]);
}

#[test]
fn what_cannot_be_trusted_or_read_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.rules");
    let report = || load(dir.path(), TODAY, &mut Recorder::default()).map(|_| ()).unwrap_err().to_string();
    fs::write(&path, "a.test\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o646)).unwrap();
    assert!(report().contains("a.rules:1:1: is writable by other users"), "{}", report());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
    load(dir.path(), TODAY, &mut Recorder::default()).unwrap();
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(report().contains("not a regular file"));
    fs::remove_dir(&path).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(report().contains("not a regular file"));
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    assert!(report().contains("not a regular file"));
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("nowhere", &path).unwrap();
    assert!(report().contains("cannot be read"));
    fs::remove_file(&path).unwrap();
    fs::File::create(&path).unwrap().set_len(read::MAX_FILE + 1).unwrap();
    assert!(report().contains("is too big"));
    fs::remove_file(&path).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(report().contains("writable by other users"));
    let missing = load(&dir.path().join("missing"), TODAY, &mut Recorder::default()).map(|_| ()).unwrap_err();
    assert!(missing.to_string().contains("cannot be read"), "{missing}");
}

#[test]
fn a_file_that_is_no_whitelist_is_not_told_of_at_length() {
    let secret = format!("root:$6${}:19000:0\n", "s".repeat(400));
    let report = compiled("a.rules", secret).unwrap_err().to_string();
    assert!(report.chars().count() < 400, "{report}");
    let report =
        compiled("a.json", format!("{{\"patterns\":[{{\"domain\":\"x\",\"match\":\"{}\"}}]}}", "s".repeat(400)))
            .unwrap_err();
    assert!(report.to_string().chars().count() < 400, "{report}");
}

#[test]
fn the_fingerprint_tells_sets_apart() {
    let print = |files: &[(&str, &str)]| Files::from_memory(files.iter().copied()).fingerprint();
    let first = print(&[("a.rules", "a.test\n"), ("b.rules", "")]);
    assert_eq!(first, print(&[("b.rules", ""), ("a.rules", "a.test\n")]));
    assert_ne!(first, print(&[("a.rules", "a.test\n")]));
    assert_ne!(first, print(&[("a.rules", "b.test\n"), ("b.rules", "")]));
    assert_ne!(first, print(&[("a.rulesa.test\n.rules", ""), ("b.rules", "")]));
}

#[test]
fn the_shipped_lists_load_without_a_word() {
    let mut recorder = Recorder::default();
    let (_, loaded) = compile(&Files::shipped(), TODAY, &mut recorder).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(loaded.warnings, Vec::new());
    assert!(loaded.rules > 30);
    assert_eq!(recorder.files.len(), shipped::SHIPPED.len());
    let folder = format!("{}/../../whitelist", env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, shipped::SHIPPED.iter().map(|(name, _)| std::ffi::OsString::from(name)).collect::<Vec<_>>());
}
