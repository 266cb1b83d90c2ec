//! seccomp: permits only the system calls that a running daemon still needs (seccomp(2)). A call that is not on
//! the list fails with EPERM, in all threads and in everything they start. To find what a change needs, let the
//! list end in `SeccompAction::KillProcess` and run the tests: the kernel's log then names each missing call
//! (`dmesg | grep type=1326`).
//!
//! The kernel caches which calls pass regardless of their arguments, so the filter costs them nothing (since Linux
//! 5.11); only those in [`conditional`] are evaluated each time.

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter_all_threads,
};
use std::collections::BTreeMap;

/// Applies the filter to all threads of this process. Returns whether it is in force; otherwise logs why not.
pub fn fence_calls() -> bool {
    let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else {
        tracing::warn!(arch = std::env::consts::ARCH, "there is no system call filter for this kind of machine");
        return false;
    };
    match install(arch) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "the system call filter cannot be used: all system calls stay open");
            false
        }
    }
}

fn install(arch: TargetArch) -> Result<(), Error> {
    let (first, second) = (no_clone3(arch)?, allow_list(arch)?);
    // In this order, because the second forbids seccomp(2).
    apply_filter_all_threads(&first)?;
    apply_filter_all_threads(&second)
}

/// clone3 has its flags behind a pointer, where no filter can read them. The C library treats "no such call" as an
/// old kernel and uses clone; it would not do so for EPERM.
fn no_clone3(arch: TargetArch) -> Result<BpfProgram, BackendError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    SeccompFilter::new(rules, SeccompAction::Allow, errno(libc::ENOSYS), arch)?.try_into()
}

fn allow_list(arch: TargetArch) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = ALWAYS.iter().map(|call| (*call, Vec::new())).collect();
    // Decided by the previous filter.
    rules.insert(libc::SYS_clone3, Vec::new());
    for (call, all_of) in conditional()? {
        rules.entry(call).or_default().push(SeccompRule::new(all_of)?);
    }
    SeccompFilter::new(rules, errno(libc::EPERM), SeccompAction::Allow, arch)?.try_into()
}

fn errno(errno: i32) -> SeccompAction {
    SeccompAction::Errno(errno.unsigned_abs())
}

/// Calls that pass regardless of their arguments.
#[rustfmt::skip]
const ALWAYS: &[c_long] = &[
    // Flows.
    libc::SYS_accept4, libc::SYS_connect, libc::SYS_bind, libc::SYS_getsockname, libc::SYS_getpeername,
    libc::SYS_getsockopt, libc::SYS_setsockopt, libc::SYS_shutdown, libc::SYS_sendto, libc::SYS_recvfrom,
    libc::SYS_sendmsg, libc::SYS_recvmsg, libc::SYS_sendmmsg, libc::SYS_recvmmsg, libc::SYS_read, libc::SYS_write,
    libc::SYS_readv, libc::SYS_writev, libc::SYS_close,
    libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_ppoll,
    libc::SYS_eventfd2,
    // Time.
    libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_clock_nanosleep, libc::SYS_nanosleep,
    libc::SYS_gettimeofday, libc::SYS_restart_syscall,
    // Files: lists, configuration, state, log, /proc/self.
    libc::SYS_openat, libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_lseek, libc::SYS_pread64,
    libc::SYS_pwrite64, libc::SYS_getdents64, libc::SYS_readlinkat, libc::SYS_faccessat, libc::SYS_faccessat2,
    libc::SYS_getcwd, libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_unlinkat, libc::SYS_fsync,
    libc::SYS_fdatasync, libc::SYS_inotify_init1, libc::SYS_inotify_add_watch, libc::SYS_inotify_rm_watch,
    // Memory, except for the calls in `conditional`.
    libc::SYS_brk, libc::SYS_munmap, libc::SYS_madvise, libc::SYS_mremap,
    // Threads.
    libc::SYS_futex, libc::SYS_set_robust_list, libc::SYS_rseq, libc::SYS_set_tid_address, libc::SYS_gettid,
    libc::SYS_sched_getaffinity, libc::SYS_sched_yield, libc::SYS_getcpu, libc::SYS_exit, libc::SYS_exit_group,
    // Signals to oneself.
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_sigaltstack,
    // Queries.
    libc::SYS_getpid, libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid, libc::SYS_getrandom,
    libc::SYS_uname, libc::SYS_sysinfo,
    // What newer architectures no longer have.
    #[cfg(target_arch = "x86_64")] libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")] libc::SYS_poll,
    #[cfg(target_arch = "x86_64")] libc::SYS_open,
    #[cfg(target_arch = "x86_64")] libc::SYS_stat,
    #[cfg(target_arch = "x86_64")] libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")] libc::SYS_access,
    #[cfg(target_arch = "x86_64")] libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")] libc::SYS_rename,
    #[cfg(target_arch = "x86_64")] libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")] libc::SYS_time,
];

/// A call and the conditions on its arguments, all of which must hold; several entries for one call are
/// alternatives.
type Condition = (c_long, Vec<SeccompCondition>);

/// Linux 6.4; prctl(2).
const PR_GET_AUXV: u64 = 0x4155_5856;

/// Returns the calls whose arguments decide.
fn conditional() -> Result<Vec<Condition>, BackendError> {
    let mut all = Vec::new();
    sockets(&mut all)?;
    // New threads are permitted, new processes and namespaces are not.
    let thread = (libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD) as u64;
    let forbidden = (libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_PTRACE) as u64;
    all.push((libc::SYS_clone, vec![word(0, Op::MaskedEq(thread | forbidden), thread)?]));
    // Memory never becomes executable.
    let executable = libc::PROT_EXEC as u64;
    all.push((libc::SYS_mmap, vec![word(2, Op::MaskedEq(executable), 0)?]));
    all.push((libc::SYS_mprotect, vec![word(2, Op::MaskedEq(executable), 0)?]));
    // abort(3), and only this process.
    all.push((libc::SYS_tgkill, vec![word(0, Op::Eq, u64::from(std::process::id()))?]));
    // A thread's name; and the auxiliary vector, with the page size among other values.
    for option in [libc::PR_SET_NAME as u64, PR_GET_AUXV] {
        all.push((libc::SYS_prctl, vec![word(0, Op::Eq, option)?]));
    }
    // Limits may be read, not set.
    all.push((libc::SYS_prlimit64, vec![SeccompCondition::new(2, Len::Qword, Op::Eq, 0)?]));
    for command in [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC] {
        all.push((libc::SYS_fcntl, vec![word(1, Op::Eq, u64::from(command.cast_unsigned()))?]));
    }
    #[allow(clippy::unnecessary_cast, reason = "another type with other C libraries")]
    let non_blocking = libc::FIONBIO as u64;
    all.push((libc::SYS_ioctl, vec![word(1, Op::Eq, non_blocking)?]));
    Ok(all)
}

/// Permits TCP and UDP for flows and lookups, and datagrams to the journal and the service manager. No raw, packet
/// or netlink sockets, and no protocol for which a kernel might load a module.
fn sockets(all: &mut Vec<Condition>) -> Result<(), BackendError> {
    /// Low bits of the type; above them are SOCK_NONBLOCK and SOCK_CLOEXEC.
    const KIND: u64 = 0xf;
    let kinds = [
        (libc::AF_INET, libc::SOCK_STREAM, [0, libc::IPPROTO_TCP]),
        (libc::AF_INET, libc::SOCK_DGRAM, [0, libc::IPPROTO_UDP]),
        (libc::AF_INET6, libc::SOCK_STREAM, [0, libc::IPPROTO_TCP]),
        (libc::AF_INET6, libc::SOCK_DGRAM, [0, libc::IPPROTO_UDP]),
        (libc::AF_UNIX, libc::SOCK_DGRAM, [0, 0]),
    ];
    for (family, kind, protocols) in kinds {
        for protocol in protocols {
            let family = word(0, Op::Eq, u64::from(family.cast_unsigned()))?;
            let kind = word(1, Op::MaskedEq(KIND), u64::from(kind.cast_unsigned()))?;
            all.push((libc::SYS_socket, vec![family, kind, word(2, Op::Eq, u64::from(protocol.cast_unsigned()))?]));
        }
    }
    Ok(())
}

/// Returns a condition on the low 32 bits of an argument, which are all that the kernel reads of an `int`.
fn word(argument: u8, op: Op, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, Len::Dword, op, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_filters_fit_into_the_kernel_on_every_architecture() {
        for arch in [TargetArch::x86_64, TargetArch::aarch64] {
            // BPF_MAXINSNS.
            assert!(no_clone3(arch).unwrap().len() < 4096);
            assert!(allow_list(arch).unwrap().len() < 4096);
        }
    }

    #[test]
    fn nothing_that_reaches_beyond_this_process_is_on_the_list() {
        let conditional: Vec<c_long> = conditional().unwrap().into_iter().map(|(call, _)| call).collect();
        for call in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_listen,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_setuid,
            libc::SYS_setresuid,
            libc::SYS_setgroups,
            libc::SYS_capset,
            libc::SYS_fchmod,
            libc::SYS_fchmodat,
            libc::SYS_fchown,
            libc::SYS_fchownat,
            libc::SYS_memfd_create,
            libc::SYS_seccomp,
            libc::SYS_socketpair,
            libc::SYS_mknodat,
            libc::SYS_symlinkat,
            libc::SYS_linkat,
            libc::SYS_init_module,
            libc::SYS_pkey_mprotect,
        ] {
            assert!(!ALWAYS.contains(&call) && !conditional.contains(&call), "{call}");
        }
    }

    #[test]
    fn no_call_is_both_free_and_conditional() {
        for (call, _) in conditional().unwrap() {
            assert!(!ALWAYS.contains(&call), "{call}");
        }
    }
}
