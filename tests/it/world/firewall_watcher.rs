//! `outgate firewall watch`, with the test as its service manager.

use super::namespace::Namespace;
use super::vmnet::Vmnet;
use rustix::process::{Pid, Signal, kill_process};
use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

/// `outgate firewall watch` in the gateway.
pub struct Watcher {
    pub child: Child,
    /// Its messages to the service manager, in order.
    pub said: Receiver<String>,
    /// Its output after its first inspection.
    pub first: String,
}

impl Watcher {
    /// Starts it in the gateway, with the configuration written last, and waits for its first inspection.
    #[track_caller]
    pub fn start(net: &Vmnet) -> Watcher {
        Watcher::start_in(net, &net.gateway)
    }

    /// The same in another namespace.
    #[track_caller]
    pub fn start_in(net: &Vmnet, namespace: &Namespace) -> Watcher {
        let path = net.path("notify");
        let _ = std::fs::remove_file(&path);
        let ear = UnixDatagram::bind(&path).unwrap();
        let (tell, said) = mpsc::channel();
        // As a service manager does: read at once, or the watcher waits when ten are unread.
        std::thread::spawn(move || {
            let mut message = [0; 4096];
            while let Ok(length) = ear.recv(&mut message) {
                if length == 0 || tell.send(String::from_utf8_lossy(&message[..length]).into_owned()).is_err() {
                    return;
                }
            }
        });
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        command.args(["firewall", "watch", "--config"]).arg(net.path("outgate.toml")).env("NOTIFY_SOCKET", &path);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = namespace.run(|| command.spawn()).expect("outgate runs");
        let mut watcher = Watcher { child, said, first: String::new() };
        watcher.first = watcher.hears("READY=1");
        watcher
    }

    /// Waits for this message.
    #[track_caller]
    pub fn hears(&self, what: &str) -> String {
        let give_up = Instant::now() + Duration::from_secs(60);
        let mut last = String::new();
        loop {
            let left = give_up.saturating_duration_since(Instant::now());
            let Ok(said) = self.said.recv_timeout(left) else { panic!("it does not say {what:?} but {last:?}") };
            if said.contains(what) {
                return said;
            }
            last = said;
        }
    }

    /// Kills it; returns its output.
    pub fn kill(mut self) -> String {
        kill_process(Pid::from_child(&self.child), Signal::KILL).unwrap();
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        self.child.wait().unwrap();
        said
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
