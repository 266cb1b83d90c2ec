//! A configuration of several files, as an operator sees it.

use super::super::{Copies, Copy, Settings};
use super::*;
use crate::diagnostic::Diagnostic;
use crate::policy::{Mode, Unknown};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;
use tempfile::TempDir;

/// A folder with a configuration file, `main.toml`, and `conf.d` beside it.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new(main: &str) -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(place.path("conf.d")).unwrap();
        place.write("main.toml", main);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file that its owner alone may write to, whatever the umask is.
    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(self.path("conf.d"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn load(&self) -> Result<Settings, Vec<String>> {
        let loaded = Settings::load(Some(&self.path("main.toml")));
        loaded.map(|(settings, _)| settings).map_err(|error| self.lines(&error.into_diagnostics()))
    }

    /// Returns the problems, with the folder left out.
    fn lines(&self, problems: &[Diagnostic]) -> Vec<String> {
        let folder = format!("{}/", self.dir.path().display());
        problems.iter().map(|problem| problem.to_string().replace(&folder, "")).collect()
    }

    fn problems(&self) -> Vec<String> {
        self.load().err().unwrap_or_default()
    }
}

fn guest(name: &str, address: &str) -> String {
    format!("[[guest]]\nname = \"{name}\"\naddresses = [\"{address}\"]\n")
}

#[test]
fn tables_are_joined_and_guests_appended_in_the_order_of_the_names() {
    let place = Place::new(&format!("mode = \"none\"\n[limits]\nconnections = 7\n{}", guest("main", "10.0.0.1")));
    place.write("conf.d/20-b.toml", &format!("{}{}", guest("b", "10.0.0.3"), guest("c", "10.0.0.4")));
    place.write(
        "conf.d/10-a.toml",
        &format!("ech = \"allow\"\n[limits]\nidle_timeout_s = 9\n{}", guest("a", "10.0.0.2")),
    );
    place.write("conf.d/30-d.toml", "[guests]\nunknown = \"shared\"\n[state]\ndir = \"kept\"\n");
    let settings = place.load().unwrap();
    assert_eq!((settings.policy.mode, settings.policy.ech_allowed), (Mode::None, true));
    assert_eq!(settings.limits.connections, Some(7));
    assert_eq!(settings.limits.idle_timeout, Some(std::time::Duration::from_secs(9)));
    assert_eq!(settings.policy.unknown, Unknown::Shared);
    let names: Vec<&str> = settings.policy.guests.iter().map(|guest| guest.name.as_str()).collect();
    assert_eq!(names, ["main", "a", "b", "c"]);
    assert_eq!(settings.state_dir, place.path("kept"), "a path starts from the folder of the named file");
    let files = ["main.toml", "conf.d/10-a.toml", "conf.d/20-b.toml", "conf.d/30-d.toml"];
    assert_eq!(settings.files().collect::<Vec<_>>(), files.map(|name| place.path(name)));
}

#[test]
fn a_key_that_two_files_set_is_an_error_that_names_both() {
    let place = Place::new("mode = \"none\"\n[limits]\nconnections = 7\n[listen]\ndns = []\n");
    place.write("conf.d/10-a.toml", "\nmode = \"none\"\n[log]\ndenied_only = true\n");
    place.write("conf.d/20-b.toml", "[listen]\ndns = []\n[log]\n\ndenied_only = true\n");
    let main = place.path("main.toml").display().to_string();
    assert!(
        Settings::load(Some(Path::new(&main)))
            .unwrap_err()
            .to_string()
            .contains(&format!("is set in line 1 of {main}"))
    );
    assert_eq!(
        place.problems(),
        [
            "conf.d/10-a.toml:2:1: `mode` is set in line 1 of main.toml as well; leave one of them out",
            "conf.d/20-b.toml:2:1: `dns` in [listen] is set in line 5 of main.toml as well; leave one of them out",
            "conf.d/20-b.toml:5:1: `denied_only` in [log] is set in line 4 of conf.d/10-a.toml as well; leave one of them out",
        ]
    );
    // A list of guests is no table, and the other way round.
    let place = Place::new("[[guests]]\nname = \"a\"\n");
    place.write("conf.d/a.toml", "[guests]\nunknown = \"none\"\n");
    assert!(
        place.problems()[1].starts_with("conf.d/a.toml:1:2: `guests` is set in line 1 of main.toml"),
        "{:?}",
        place.problems()
    );
}

#[test]
fn a_problem_has_the_line_of_its_own_file() {
    let place = Place::new(&format!("# a long one\n\n\n\n{}", guest("a", "10.0.0.1")));
    place.write("conf.d/a.toml", "# short\nmode = \"al\"\n");
    place.write("conf.d/b.toml", &format!("{}[limits]\nconnection = 1\n", guest("a", "10.0.0.1")));
    assert_eq!(
        place.problems(),
        [
            "conf.d/a.toml:2:8: `mode` is \"al\"; did you mean \"all\"? It is one of \"whitelist\", \"observe\", \"all\", \"none\"",
            "conf.d/b.toml:2:8: a guest \"a\" is already declared in line 6 of main.toml; choose another name",
            "conf.d/b.toml:3:14: 10.0.0.1/32 is already an address of a (line 7 of main.toml); an address belongs to one guest alone",
            "conf.d/b.toml:5:1: unknown key `connection` in [limits]; did you mean `connections`?",
        ]
    );
    place.write("conf.d/a.toml", "mode = \n");
    assert!(place.problems()[0].starts_with("conf.d/a.toml:1:8: not TOML: "), "{:?}", place.problems());
    // What shows later is found in whichever file has it.
    place.write("conf.d/a.toml", "\n[firewall]\n  guest_interfaces = []");
    place.write("conf.d/b.toml", "");
    let found = place.load().unwrap().problem_at_key("guest_interfaces", Severity::Warning, "x".to_owned());
    assert_eq!(place.lines(&[found]), ["conf.d/a.toml:3:1: warning: x"]);
    assert_eq!(place.load().unwrap().file_of_key("guest_interfaces"), place.path("conf.d/a.toml"));
    assert_eq!(place.load().unwrap().file_of_key("transparent"), place.path("main.toml"));
    let found = place.load().unwrap().problem_at_word("nowhere", Severity::Warning, "x".to_owned());
    assert_eq!(place.lines(&[found]), ["main.toml:1:1: warning: x"]);
}

#[test]
fn hidden_files_backups_and_other_names_are_skipped() {
    let place = Place::new("");
    for name in [".hidden.toml", "a.toml~", "a.toml.dpkg-old", "#a.toml#", ".#a.toml", "README", "a.conf"] {
        place.write(&format!("conf.d/{name}"), "nonsense = [");
    }
    assert_eq!(place.load().unwrap().files().count(), 1);
    fs::remove_dir_all(place.path("conf.d")).unwrap();
    assert_eq!(place.load().unwrap().files().count(), 1, "the folder may be missing");
    fs::write(place.path("conf.d"), "").unwrap();
    assert_eq!(place.problems(), ["conf.d: not a folder; remove it, or make it a folder with *.toml files"]);
}

/// Runs the command between the last backquotes of a message.
fn obey(message: &str) {
    let command = message.rsplit('`').nth(1).unwrap();
    let status = Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(status.success(), "{command}");
}

#[test]
fn what_others_may_write_to_is_refused_with_the_command_that_mends_it() {
    let place = Place::new("");
    place.write("conf.d/it's.toml", "mode = \"none\"\n");
    let raw = |place: &Place| Settings::load(Some(&place.path("main.toml"))).unwrap_err().to_string();
    for (name, bad) in [("conf.d/it's.toml", 0o664), ("conf.d/it's.toml", 0o646), ("conf.d", 0o775), ("conf.d", 0o757)]
    {
        fs::set_permissions(place.path(name), fs::Permissions::from_mode(bad)).unwrap();
        let found = place.problems();
        assert!(
            found.len() == 1 && found[0].starts_with(&format!("{name}: others than its owner may write")),
            "{found:?}"
        );
        // Nothing of it is used by those who only look.
        let (settings, _) = Settings::load_leniently(Some(&place.path("main.toml"))).unwrap();
        assert_eq!((settings.policy.mode, settings.files().count()), (Mode::Whitelist, 1));
        obey(&raw(&place));
        assert_eq!(place.load().unwrap().policy.mode, Mode::None);
    }
}

#[test]
#[ignore = "requires root"]
fn what_another_user_owns_is_refused_with_the_command_that_mends_it() {
    crate::rights::require();
    let place = Place::new("");
    place.write("conf.d/a.toml", "mode = \"none\"\n");
    let raw = |place: &Place| Settings::load(Some(&place.path("main.toml"))).unwrap_err().to_string();
    for name in ["conf.d/a.toml", "conf.d"] {
        std::os::unix::fs::chown(place.path(name), Some(65534), None).unwrap();
        let found = place.problems();
        assert!(found.len() == 1 && found[0].starts_with(&format!("{name}: it belongs to another user")), "{found:?}");
        obey(&raw(&place));
        assert_eq!(place.load().unwrap().policy.mode, Mode::None);
    }
    place.write("elsewhere", "ech = \"allow\"\n");
    symlink(place.path("elsewhere"), place.path("conf.d/b.toml")).unwrap();
    assert!(place.load().unwrap().policy.ech_allowed, "a link of root's is followed");
    std::os::unix::fs::lchown(place.path("conf.d/b.toml"), Some(65534), None).unwrap();
    assert!(
        place.problems()[0].starts_with("conf.d/b.toml: the link belongs to another user"),
        "{:?}",
        place.problems()
    );
    obey(&raw(&place));
    assert!(place.load().unwrap().policy.ech_allowed);
    fs::remove_file(place.path("elsewhere")).unwrap();
    assert!(place.problems()[0].ends_with("; remove the link"), "{:?}", place.problems());
}

#[test]
fn a_folder_without_the_file_that_it_stands_beside_is_an_error() {
    let place = Place::new("");
    assert!(orphans(&place.path("main.toml")).is_none());
    place.write("conf.d/a.toml", "");
    let error = orphans(&place.path("main.toml")).unwrap().to_string();
    assert!(
        error.starts_with(&place.path("conf.d").display().to_string()) && error.contains("main.toml only"),
        "{error}"
    );
}

#[test]
fn number_and_size_of_the_files_are_bounded() {
    let place = Place::new("");
    let comment = format!("#{}\n", "x".repeat((MAX_FILE / 2) as usize));
    for name in ["a", "b"] {
        place.write(&format!("conf.d/{name}.toml"), &comment);
    }
    assert_eq!(
        place.problems(),
        ["conf.d/b.toml: with this file those of the folder are larger than 4 MiB; shorten them"]
    );
    for number in 0..MAX_FILES {
        place.write(&format!("conf.d/{number}.toml"), "");
    }
    assert_eq!(place.problems(), ["conf.d: 1002 files, and at most 1000 are read; join them"]);
}

#[test]
fn every_change_of_the_files_changes_the_stamps() {
    let place = Place::new("");
    let main = place.path("main.toml");
    let mut before = stamps(Some(&main));
    let mut changed = |what: &str| {
        let now = stamps(Some(&main));
        assert_ne!(now, before, "{what}");
        before = now;
    };
    place.write("conf.d/a.toml", "");
    changed("a new file");
    place.write("conf.d/a.toml", "mode = \"none\"");
    changed("an edit");
    fs::remove_file(place.path("conf.d/a.toml")).unwrap();
    changed("a file less");
    place.write("main.toml", "mode = \"none\"");
    changed("an edit of the named file");
}

#[test]
#[ignore = "requires root"]
fn the_copy_of_several_files_is_one_with_the_same_settings() {
    crate::rights::require();
    let place = Place::new("# kept as it is\nmode = \"none\"\n");
    let folder = place.path("copies");
    let copies = Copies::of(Some(&place.path("main.toml")), Some(&folder)).unwrap();
    copies.keep(Copy::Worked, &place.load().unwrap()).unwrap();
    let copy = |place: &Place| fs::read_to_string(place.path("copies/worked.toml")).unwrap();
    let version = "# A copy that outgate keeps, version 1\n";
    assert_eq!(copy(&place), format!("# kept as it is\nmode = \"none\"\n{version}"));
    // Before version 1 it had none; a later one is not read.
    let put = |text: &str| fs::write(place.path("copies/worked.toml"), text).unwrap();
    put("mode = \"none\"");
    assert!(copies.load(Copy::Worked).unwrap().is_some());
    put(&format!("mode = \"another form\"\n{}", version.replace('1', "2")));
    let why = copies.load(Copy::Worked).unwrap_err().to_string();
    assert!(why.contains("worked.toml: a later outgate wrote it (version 2"), "{why}");
    copies.keep(Copy::Worked, &place.load().unwrap()).unwrap();
    assert!(copies.load(Copy::Worked).unwrap().is_some());

    let names = || fs::read_to_string(place.path("copies/interfaces")).unwrap();
    copies.note_interfaces(&["tap7".to_owned()]).unwrap();
    let first = "# outgate, guests' interfaces, version 1\n";
    assert_eq!(names(), format!("{first}tap7\n"));
    fs::write(place.path("copies/interfaces"), "tap7\n").unwrap();
    copies.note_interfaces(&["br-*".to_owned()]).unwrap();
    assert_eq!(names(), format!("{first}br-*\ntap7\n"));
    let later = format!("{}tap7\ntap8 of-a-new-kind\n", first.replace('1', "2"));
    fs::write(place.path("copies/interfaces"), &later).unwrap();
    let why = copies.note_interfaces(&["br0".to_owned()]).unwrap_err().to_string();
    assert!(
        why.contains("interfaces: a later outgate wrote it (version 2") && why.contains("remove it, then"),
        "{why}"
    );
    assert_eq!((names(), copies.interfaces().len()), (later, 1), "nothing is lost, and what is a name is closed");

    let two =
        format!("[limits]\nconnections = 0x10\n[dial]\nblocked_ports = [25, 26]\n{}", guest("a\\u002db", "10.0.0.1"));
    place.write("conf.d/10-a.toml", &two);
    place.write("conf.d/20-b.toml", &format!("[state]\ndir = \"it's \\\"kept\\\"\"\n{}", guest("c", "fd00::/64")));
    let settings = place.load().unwrap();
    copies.keep(Copy::Worked, &settings).unwrap();
    assert!(copy(&place).contains("10-a.toml"), "{}", copy(&place));
    // Whatever becomes of the files.
    place.write("conf.d/10-a.toml", "nonsense = [");
    let kept = copies.load(Copy::Worked).unwrap().unwrap().settings;
    assert_eq!(kept, Settings { more: Vec::new(), sha256: None, ..settings.clone() });
    assert!(copies.keep(Copy::Worked, &settings).unwrap_err().to_string().contains("changed meanwhile"));

    // A copy is for those who may read all of the files.
    place.write("conf.d/10-a.toml", "");
    let mode = |name: &str, mode, group| {
        fs::set_permissions(place.path(name), fs::Permissions::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(place.path(name), None, Some(group)).unwrap();
    };
    mode("conf.d/10-a.toml", 0o640, 1234);
    copies.keep(Copy::Worked, &place.load().unwrap()).unwrap();
    let meta = fs::metadata(folder.join("worked.toml")).unwrap();
    assert_eq!((meta.mode() & 0o777, meta.gid()), (0o640, 1234));
    mode("conf.d/20-b.toml", 0o640, 1235);
    let error = copies.keep(Copy::Worked, &place.load().unwrap()).unwrap_err().to_string();
    assert!(error.contains("different groups"), "{error}");
    mode("conf.d/20-b.toml", 0o600, 0);
    copies.keep(Copy::Worked, &place.load().unwrap()).unwrap();
    assert_eq!(fs::metadata(folder.join("worked.toml")).unwrap().mode() & 0o777, 0o600);
}
