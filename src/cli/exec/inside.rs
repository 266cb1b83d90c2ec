//! Between the namespace and the command: this program once more, run by ip-netns(8), which gives it the network and
//! mounts of its own. It hides /run, whose sockets are ways around the network, gives the command its resolv.conf,
//! and becomes the command by setpriv(1), with no privileges. Not on the command line, for it takes the
//! surroundings that only its caller makes.

use crate::cli::Failure;
use crate::cli::bridge::tool;
use crate::system::User;
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountFlags, mount, mount_bind};
use serde::{Deserialize, Serialize};
use std::ffi::{CStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What the first argument is, when this program is to be that.
const WORD: &str = "exec-inside";
/// What is hidden: the folder of the sockets by which system services can be asked for what the network refuses,
/// names (systemd-resolved, nscd) and whole processes (a user's systemd, Docker) among it.
const RUN: &str = "/run";
/// What may lie in the folder in its place.
const RUN_OPTIONS: &CStr = c"mode=755,size=1m";
/// Where every program looks for its name server.
const RESOLV: &str = "/etc/resolv.conf";
/// What lies over it.
const OWN_RESOLV: &str = "/run/.outgate-resolv.conf";
/// Variables that name a proxy, in lower case; outgate needs none.
const PROXIES: [&str; 3] = ["http_proxy", "https_proxy", "all_proxy"];
/// Links that are followed at most, as many as the kernel follows.
const MAX_LINKS: usize = 40;

/// How a command starts.
#[derive(Clone, Debug, Default)]
pub(in crate::cli) struct Start {
    /// The server in its resolv.conf; `None`: it has none.
    pub(in crate::cli) nameserver: Option<Ipv4Addr>,
    /// What it sees of /run.
    pub(in crate::cli) show: Vec<PathBuf>,
    /// As whom; `None`: root.
    pub(in crate::cli) user: Option<User>,
    /// A program that it finds as [`Start::PROGRAM`], whoever may not search the folders above it.
    pub(in crate::cli) program: Option<PathBuf>,
}

/// What the second argument says.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    /// Whose mounts stay as they are.
    caller: u32,
    nameserver: Option<Ipv4Addr>,
    show: Vec<PathBuf>,
    program: Option<PathBuf>,
}

impl Start {
    /// Where [`Start::program`] lies.
    pub(in crate::cli) const PROGRAM: &str = "/run/outgate";

    /// The command that runs `program` so in a namespace; its process becomes the program.
    pub(in crate::cli) fn command(&self, namespace: &str, program: &[OsString]) -> Result<Command, Failure> {
        let mut command = Command::new(tool::find("ip")?);
        let order = Order {
            caller: std::process::id(),
            nameserver: self.nameserver,
            show: self.show.clone(),
            program: self.program.clone(),
        };
        let order = serde_json::to_string(&order).map_err(io::Error::from)?;
        // By this path it is found even if an update has just replaced it.
        let this = format!("/proc/{}/exe", std::process::id());
        command.args(["netns", "exec", namespace, &this, WORD, &order]);
        command.arg(tool::find("setpriv")?);
        command.args(["--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"]);
        // With its guard the command ends too, however that ends.
        command.args(["--pdeathsig", "KILL"]);
        if let Some(User { uid, gid, groups, .. }) = &self.user {
            let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
            command.args(["--reuid", &uid.to_string(), "--regid", &gid.to_string(), "--groups", &groups.join(",")]);
        }
        command.arg("--").args(program);
        for name in std::env::vars_os().map(|(name, _)| name) {
            if name.to_str().is_some_and(|name| PROXIES.iter().any(|proxy| proxy.eq_ignore_ascii_case(name))) {
                command.env_remove(name);
            }
        }
        Ok(command)
    }
}

/// Becomes the command, where this process was started for that; else `None`. Comes back only with a failure.
pub(in crate::cli) fn take_over() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|word| word != WORD) {
        return None;
    }
    let order = arguments.next().and_then(|order| serde_json::from_slice(order.as_encoded_bytes()).ok());
    let failure = match (order, arguments.next()) {
        (Some(order), Some(program)) => match prepare(&order) {
            Ok(()) => {
                let error = Command::new(&program).args(arguments).exec();
                Failure::Failed(format!("{}: {error}", program.display()))
            }
            Err(error) => Failure::Failed(error.to_string()),
        },
        _ => Failure::Usage(format!("{WORD} is for `outgate exec` alone")),
    };
    failure.report();
    Some(failure.exit().into())
}

fn prepare(order: &Order) -> io::Result<()> {
    let mounts = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt"));
    if mounts("self")? == mounts(&order.caller.to_string())? {
        return Err(io::Error::other(format!("{WORD} takes mounts of its own")));
    }
    let home = std::env::current_dir().map_err(within("the working directory"))?;
    let shown: Vec<(&Path, OwnedFd, Metadata)> =
        order.show.iter().map(|path| seen(path, path)).collect::<io::Result<_>>()?;
    let program = order.program.as_deref().map(|path| seen(path, Path::new(Start::PROGRAM))).transpose()?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("outgate", RUN, "tmpfs", flags, RUN_OPTIONS).map_err(|error| within(RUN)(error.into()))?;
    if let Some(nameserver) = order.nameserver {
        let text =
            format!("# Of `outgate exec`: outgate answers, whatever server is asked.\nnameserver {nameserver}\n");
        readable(Path::new(OWN_RESOLV), &text).map_err(within(OWN_RESOLV))?;
    }
    for (path, handle, meta) in shown.iter().chain(&program) {
        show(path, handle, meta).map_err(within(&path.display().to_string()))?;
    }
    if order.nameserver.is_some() {
        resolve_by_own().map_err(within(RESOLV))?;
    }
    std::env::set_current_dir(&home).map_err(within(&format!("the working directory, {}", home.display())))
}

/// What lies at `path`, to be shown at `at`.
fn seen<'p>(path: &Path, at: &'p Path) -> io::Result<(&'p Path, OwnedFd, Metadata)> {
    let handle = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let handle = handle.map_err(|error| within(&path.display().to_string())(error.into()))?;
    let meta = fs::metadata(path)?;
    Ok((at, handle, meta))
}

fn show(path: &Path, handle: &OwnedFd, meta: &Metadata) -> io::Result<()> {
    if meta.is_dir() {
        make_folder(path)?;
    } else if !path.exists() {
        // Within a folder that is shown it is there, and the host's.
        make_file(path)?;
    }
    Ok(mount_bind(format!("/proc/self/fd/{}", handle.as_raw_fd()), path)?)
}

/// Lays the file with the name server over the one there is. That one may be the host's, so nothing writes to it.
fn resolve_by_own() -> io::Result<()> {
    let target = followed(Path::new(RESOLV))?;
    if !target.exists() {
        if !target.starts_with(RUN) {
            return Err(io::Error::new(io::ErrorKind::NotFound, "there is no such file; make it, be it empty"));
        }
        make_file(&target)?;
    }
    Ok(mount_bind(OWN_RESOLV, &target)?)
}

/// The path at the end of links, whether anything lies there or not.
fn followed(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(target) => {
                let folder = path.parent().map(fs::canonicalize).transpose()?.unwrap_or_default();
                path = plain(&folder.join(target));
            }
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::from(io::ErrorKind::InvalidInput))
}

/// Without `..` and `.`, which lead through no link in the paths that systems put here.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => drop(plain.pop()),
            std::path::Component::CurDir => {}
            part => plain.push(part),
        }
    }
    // Mostly a link, behind which nothing lies any more.
    plain.strip_prefix("/var/run").map(|rest| Path::new(RUN).join(rest)).unwrap_or(plain)
}

/// Whatever the umask, which is the command's.
fn make_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    path.parent().map_or(Ok(()), make_folder)?;
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

fn make_file(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), make_folder)?;
    File::create_new(path).map(drop)
}

fn readable(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

fn within(what: &str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_to_where_nothing_lies() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = fs::canonicalize(scratch.path()).unwrap();
        std::os::unix::fs::symlink("../x/./stub", folder.join("resolv")).unwrap();
        let expected = folder.parent().unwrap().join("x/stub");
        assert_eq!(followed(&folder.join("resolv")).unwrap(), expected);
        assert_eq!(followed(&folder.join("none")).unwrap(), folder.join("none"));
        std::os::unix::fs::symlink("loop", folder.join("loop")).unwrap();
        assert!(followed(&folder.join("loop")).is_err());
    }

    #[test]
    fn this_is_no_command_of_the_command_line() {
        let program = <super::super::super::Program as clap::CommandFactory>::command();
        assert!(program.get_subcommands().all(|command| command.get_name() != WORD));
    }
}
