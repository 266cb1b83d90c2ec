//! Network namespaces made by `ip netns`, entered by a thread, removed on drop.

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::{Mutex, Once};

/// What the names of all namespaces of these tests start with; the maker's pid follows.
pub const PREFIX: &str = "ogt";

/// `ip netns` mounts; two at once may fail.
static MOUNTS: Mutex<()> = Mutex::new(());

/// A network namespace.
pub struct Namespace {
    name: String,
    handle: File,
    /// It is removed when this is dropped.
    owned: bool,
}

impl Namespace {
    /// Makes namespaces with these names.
    pub fn create<const N: usize>(names: [String; N]) -> [Namespace; N] {
        let _one_at_a_time = MOUNTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let lines: String = names.iter().map(|name| format!("netns add {name}\n")).collect();
        batch(None, &lines);
        names.map(|name| {
            let handle = File::open(format!("/run/netns/{name}")).expect("the namespace was just made");
            Namespace { name, handle, owned: true }
        })
    }

    /// A namespace that another process made, if it exists.
    pub fn named(name: &str) -> Option<Namespace> {
        let handle = File::open(format!("/run/netns/{name}")).ok()?;
        Some(Namespace { name: name.to_owned(), handle, owned: false })
    }

    /// Another handle to the same namespace, which ends with the first handle.
    pub fn handle(&self) -> Namespace {
        let handle = self.handle.try_clone().expect("a file can be cloned");
        Namespace { name: self.name.clone(), handle, owned: false }
    }

    /// The name, as `ip netns list` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` in a thread inside the namespace: sockets it makes and processes it starts
    /// belong there. A panic of `work` goes on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            move_into_link_name_space(self.handle.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter a namespace");
            work()
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        let _one_at_a_time = MOUNTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let _ = Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
    }
}

/// Feeds `lines` to `ip -batch`, within a namespace if one is given.
pub fn batch(within: Option<&Namespace>, lines: &str) {
    let mut command = Command::new("ip");
    if let Some(namespace) = within {
        command.args(["-n", namespace.name()]);
    }
    let mut child = command.args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("iproute2 is installed");
    child.stdin.take().expect("it is piped").write_all(lines.as_bytes()).expect("ip reads its input");
    assert!(child.wait().expect("ip ends").success(), "ip -batch failed on:\n{lines}");
}

/// Removes the namespaces of earlier test processes that were killed.
pub fn sweep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // Those of `outgate exec` are named after its guests.
            let own = name.strip_prefix("outgate-").unwrap_or(&name);
            let pid = own.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
            let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok()) else { continue };
            if !std::path::Path::new(&format!("/proc/{pid}")).exists() {
                let _ = Command::new("ip").args(["netns", "del", &name]).stderr(Stdio::null()).status();
            }
        }
    });
}
