//! OpenSSL's client and server, as a second implementation of TLS.

use super::client::Guest;
use super::{World, eventually, pki};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// `openssl s_server` on port 443 of `address`, for `name`, that sends back each line reversed.
pub struct Server {
    dir: TempDir,
    child: Child,
}

impl Server {
    /// Starts it with these options and waits until it listens.
    #[track_caller]
    pub fn start(world: &World, address: Ipv4Addr, name: &str, options: &[&str]) -> Server {
        let dir = tempfile::Builder::new().prefix("outgate-it-").tempdir().unwrap();
        let pems = pki::pems(name);
        fs::write(dir.path().join("authority.pem"), pems.authority).unwrap();
        fs::write(dir.path().join("server.pem"), pems.certificate + &pems.key).unwrap();
        let mut command = Command::new("openssl");
        command.args(["s_server", "-accept", &format!("{address}:443"), "-rev", "-cert", "server.pem"]);
        command.args(["-msg", "-msgfile", "messages"]).args(options).current_dir(dir.path());
        command.stdin(Stdio::null()).stdout(fs::File::create(dir.path().join("stdout")).unwrap());
        command.stderr(fs::File::create(dir.path().join("stderr")).unwrap());
        let child = world.internet.run(|| command.spawn()).expect("openssl is installed");
        let server = Server { dir, child };
        eventually("openssl s_server listens", || server.text("stdout").contains("ACCEPT"));
        server
    }

    /// How many ClientHellos it has read so far, on all connections.
    pub fn hellos(&self) -> usize {
        let read = |line: &&str| line.starts_with("<<<") && line.contains("ClientHello");
        self.text("messages").lines().filter(read).count()
    }

    /// What `openssl s_client` gets back when it sends `line` through the proxy, and what it said
    /// itself.
    pub fn ask(&self, guest: &Guest, name: &str, options: &[&str], line: &str) -> (String, String) {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-proxy", super::PROXY, "-connect", &format!("{name}:443"), "-servername", name]);
        command.args(["-CAfile", "authority.pem", "-verify_return_error", "-verify_hostname", name, "-quiet"]);
        command.args(options).current_dir(self.dir.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(fs::File::create(self.dir.path().join("client")).unwrap());
        let mut client = guest.namespace.run(|| command.spawn()).expect("openssl is installed");
        let mut input = client.stdin.take().expect("it is piped");
        let _ = writeln!(input, "{line}");
        let mut answer = String::new();
        let mut output = BufReader::new(client.stdout.take().expect("it is piped"));
        let _ = output.read_line(&mut answer);
        drop(input);
        let _ = client.kill();
        let _ = client.wait();
        (answer.trim_end().to_owned(), self.text("client"))
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
