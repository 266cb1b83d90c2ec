//! seccomp for a command that is a guest (`outgate exec`): refuses what a network namespace does not restrict.
//! These are sockets that ignore namespaces (AF_VSOCK leads to the hypervisor) or that load modules into the
//! kernel; io_uring, whose requests no filter can see; the kernel's keys, whose upcalls run outside; terminal
//! input by ioctl; and the other ways to call this kernel, i386 and x32, whose calls have other numbers.
//! Everything else passes at no cost: only calls whose arguments decide are evaluated each time.

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter, sock_filter,
};
use std::collections::BTreeMap;
use std::io;

/// Permitted socket families: those of this machine's processes, IP, and queries to the kernel about this
/// namespace's own interfaces, addresses and routes.
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
/// With this type, the kernel treats AF_INET as AF_PACKET.
const SOCK_PACKET: i32 = 10;
/// The bits of a socket's type that hold the type itself.
const KIND: u64 = 0xf;
/// TCP whose bytes may use hardware other than the interface.
const IPPROTO_SMC: i32 = 256;
/// Linux 4.1; in no header for programs.
const TIOCLINUX: u32 = 0x541C;
/// The first number of x32's calls.
const X32: u32 = 0x4000_0000;
/// Not a call: a tracer uses it to make a tracee skip one.
const NONE: u32 = u32::MAX;

/// Applies the filter to the calling thread and everything it becomes or starts, permanently.
///
/// # Errors
/// If there is no filter for this kind of machine, or the kernel refuses it. The command must then not run.
pub fn fence_command() -> io::Result<()> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    programs(arch)
        .map_err(io::Error::other)?
        .iter()
        .try_for_each(|program| apply_filter(program))
        .map_err(|error: Error| io::Error::other(format!("the system call filter cannot be used: {error}")))
}

/// Returns the filters. A filter has only one error for what it refuses, so there is one filter for each error.
/// Each also kills callers that use another architecture.
fn programs(arch: TargetArch) -> Result<Vec<BpfProgram>, BackendError> {
    // The answers of a kernel without these calls: programs then work without them.
    let mut all = vec![
        refuse(libc::ENOSYS, without_arguments(), arch)?,
        refuse(libc::EAFNOSUPPORT, sockets()?, arch)?,
        refuse(libc::EPERM, ioctls()?, arch)?,
    ];
    if arch == TargetArch::x86_64 {
        all.push(without_x32());
    }
    Ok(all)
}

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

fn refuse(errno: i32, rules: Rules, arch: TargetArch) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno.unsigned_abs()), arch)?.try_into()
}

fn without_arguments() -> Rules {
    let calls = [
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_keyctl,
    ];
    calls.into_iter().map(|call| (call, Vec::new())).collect()
}

/// Returns the rules for sockets; a call that matches one of them is refused.
fn sockets() -> Result<Rules, BackendError> {
    let is_not = |argument, value: i32| word(argument, Op::Ne, value.unsigned_abs().into());
    let is = |argument, value: i32| word(argument, Op::Eq, value.unsigned_abs().into());
    let unknown = FAMILIES.into_iter().map(|family| is_not(0, family)).collect::<Result<_, _>>()?;
    let packet = vec![is(0, libc::AF_INET)?, word(1, Op::MaskedEq(KIND), SOCK_PACKET.unsigned_abs().into())?];
    let mut refused = vec![unknown, vec![is(0, libc::AF_NETLINK)?, is_not(2, libc::NETLINK_ROUTE)?], packet];
    for family in [libc::AF_INET, libc::AF_INET6] {
        refused.push(vec![is(0, family)?, is(2, IPPROTO_SMC)?]);
    }
    let rules: Vec<SeccompRule> = refused.into_iter().map(SeccompRule::new).collect::<Result<_, _>>()?;
    Ok(BTreeMap::from([(libc::SYS_socket, rules.clone()), (libc::SYS_socketpair, rules)]))
}

/// Returns the rules for ioctls. A second line of defence: none of the command's descriptors is a terminal of the
/// caller's.
fn ioctls() -> Result<Rules, BackendError> {
    #[allow(clippy::unnecessary_cast, clippy::cast_possible_truncation, reason = "another type with other C libraries")]
    let requests = [libc::TIOCSTI as u32, TIOCLINUX];
    let rules = requests.into_iter().map(|request| SeccompRule::new(vec![word(1, Op::Eq, request.into())?]));
    Ok(BTreeMap::from([(libc::SYS_ioctl, rules.collect::<Result<_, _>>()?)]))
}

/// Returns a condition on the low 32 bits of an argument, which are all that the kernel reads of these.
fn word(argument: u8, op: Op, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, Len::Dword, op, value)
}

/// Returns the filter against x32, which makes calls as x86-64 does, with numbers of its own.
fn without_x32() -> BpfProgram {
    let (load, equal, at_least, answer) = (0x20, 0x15, 0x35, 0x06);
    let jump = |code, k, jt, jf| sock_filter { code, jt, jf, k };
    vec![
        jump(load, 0, 0, 0),
        jump(equal, NONE, 1, 0),
        jump(at_least, X32, 1, 0),
        jump(answer, libc::SECCOMP_RET_ALLOW, 0, 0),
        jump(answer, libc::SECCOMP_RET_KILL_PROCESS, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_filters_fit_into_the_kernel_on_every_architecture() {
        for arch in [TargetArch::x86_64, TargetArch::aarch64] {
            let programs = programs(arch).unwrap();
            // BPF_MAXINSNS.
            assert!(programs.iter().all(|program| program.len() < 4096));
            assert_eq!(programs.len(), if arch == TargetArch::x86_64 { 4 } else { 3 });
        }
    }

    /// Interprets the filter as the kernel does, as far as this filter requires.
    #[test]
    fn calls_by_numbers_of_x32_are_killed_and_no_others() {
        let program = without_x32();
        let answer = |number: u32| {
            let mut at = 1;
            loop {
                let step = &program[at];
                at += 1 + match step.code {
                    0x15 => usize::from(if number == step.k { step.jt } else { step.jf }),
                    0x35 => usize::from(if number >= step.k { step.jt } else { step.jf }),
                    _ => return step.k,
                };
            }
        };
        for passes in [0, 41, 500, X32 - 1, NONE] {
            assert_eq!(answer(passes), libc::SECCOMP_RET_ALLOW, "{passes:#x}");
        }
        for killed in [X32, X32 | 41, X32 | 545, u32::MAX - 1] {
            assert_eq!(answer(killed), libc::SECCOMP_RET_KILL_PROCESS, "{killed:#x}");
        }
    }
}
