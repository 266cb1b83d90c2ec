//! Processes of this machine, as /proc (proc(5)) shows them without the right to trace them: in which network
//! namespace and in which container each runs.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// How much of an id is shown, in characters.
const SHORT: usize = 12;

/// Returns the numbers of all processes, as text.
pub(super) fn all() -> impl Iterator<Item = String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(|c: char| c.is_ascii_digit()))
}

/// Returns what identifies a process's network namespace; `process` is a number or `self`.
pub(super) fn network_namespace(process: &str) -> Option<u64> {
    // Each namespace has its own file there, and its inode tells them apart without privileges.
    Some(fs::metadata(format!("/proc/{process}/net/dev")).ok()?.ino())
}

/// Returns the container that a process belongs to, by the beginning of its id.
pub(super) fn container_of(process: &str) -> Option<String> {
    let groups = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
    groups.lines().find_map(container)
}

/// Returns whether a process is in a container of an application image, as Docker, Podman, containerd and CRI-O make
/// them, and not in one with an init of its own.
pub(super) fn is_in_application(process: &str) -> bool {
    // LXC and nspawn name theirs; those names are not hexadecimal, or not of this length.
    container_of(process).is_some_and(|id| id.len() == SHORT && id.bytes().all(|c| c.is_ascii_hexdigit()))
}

/// Returns the container that a line of /proc/PID/cgroup (cgroups(7)) belongs to. A container's supervisor does
/// not count.
fn container(line: &str) -> Option<String> {
    let path = line.splitn(3, ':').nth(2)?;
    let parts: Vec<&str> = path.split('/').collect();
    let is_id = |text: &str| text.len() == 64 && text.bytes().all(|c| c.is_ascii_hexdigit());
    let short = |id: &str| id.get(..SHORT).map(str::to_owned);
    parts.iter().enumerate().find_map(|(n, part)| {
        let before = n.checked_sub(1).and_then(|n| parts.get(n)).copied().unwrap_or_default();
        // Docker, Podman, containerd and CRI-O under systemd: `docker-ID.scope`.
        if let Some((_, id)) = part.strip_suffix(".scope").and_then(|unit| unit.rsplit_once('-'))
            && is_id(id)
            && !part.contains("conmon")
        {
            return short(id);
        }
        // Without systemd: `docker/ID`, and pods' containers.
        if is_id(part) && (before == "docker" || before == "libpod" || before.starts_with("pod")) {
            return short(part);
        }
        if let Some(name) = part.strip_prefix("lxc.payload.") {
            return Some(name.to_owned());
        }
        let nspawn = before.strip_prefix("systemd-nspawn@").and_then(|unit| unit.strip_suffix(".service"));
        nspawn.filter(|_| *part == "payload").map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_told_from_their_supervisors_and_from_virtual_machines() {
        let id = "0123456789abcdef".repeat(4);
        for (line, wanted) in [
            (format!("0::/system.slice/docker-{id}.scope"), Some("0123456789ab")),
            (format!("0::/docker/{id}"), Some("0123456789ab")),
            (format!("4:memory:/docker/{id}/inner"), Some("0123456789ab")),
            (format!("0::/machine.slice/libpod-{id}.scope/container"), Some("0123456789ab")),
            (format!("0::/machine.slice/libpod-conmon-{id}.scope"), None),
            (format!("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope"), Some("0123456789ab")),
            (format!("0::/kubepods/burstable/pod7/{id}"), Some("0123456789ab")),
            ("0::/lxc.payload.web/init.scope".to_owned(), Some("web")),
            ("0::/lxc.monitor.web".to_owned(), None),
            ("0::/machine.slice/systemd-nspawn@job.service/payload".to_owned(), Some("job")),
            ("0::/machine.slice/systemd-nspawn@job.service/supervisor".to_owned(), None),
            ("0::/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt/emulator".to_owned(), None),
            ("0::/system.slice/docker.service".to_owned(), None),
            (format!("0::/user.slice/{id}"), None),
            ("0::/".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(container(&line).as_deref(), wanted, "{line}");
        }
    }
}
