//! Nothing that a command leaves running outlives the run, however it was started and whatever is killed. Living
//! processes are found by the names of their threads, because a process whose first thread has ended still has other
//! threads.

use super::{ExecHost, compile, fresh};
use crate::world::eventually;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead, BufReader};
use std::sync::atomic::{AtomicU32, Ordering};

/// The ways, as `leftover_processes.c` knows them.
const WAYS: [&str; 4] = ["namespaces", "thread", "deaf", "daemon"];

/// A name for a thread that no other test has.
fn mark() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("l{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Threads of this name on the whole machine.
fn alive(mark: &str) -> usize {
    let below = |path: &str| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let processes = below("/proc").filter(|path| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
    });
    let threads = processes.flat_map(|process| below(&format!("{}/task", process.display())).collect::<Vec<_>>());
    // One that has ended, and was not reaped, runs nothing.
    let runs = |stat: String| {
        let (name, state) = stat.split_once(" (").and_then(|(_, rest)| rest.rsplit_once(") ")).unwrap_or_default();
        name == mark && !state.starts_with(['Z', 'X'])
    };
    threads.filter(|thread| fs::read_to_string(thread.join("stat")).is_ok_and(runs)).count()
}

#[test]
#[ignore = "requires root and network namespaces"]
fn nothing_outlives_a_command_that_ends() {
    let host = ExecHost::new();
    let (_folder, program) = compile("leftover_processes.c");
    for way in WAYS {
        for user in ["nobody", "root"] {
            let (name, mark) = (fresh(), mark());
            let ran = host.exec(&name, &["--user", user, "--", &program, way, &mark, "ends"]);
            assert_eq!((ran.out.as_str(), ran.code), ("ready\n", Some(0)), "{way}, {user}: {}", ran.err);
            assert_eq!(alive(&mark), 0, "{way}, {user}");
            host.assert_clean(&name);
        }
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn nothing_outlives_exec_however_it_is_killed() {
    let host = ExecHost::new();
    let (_folder, program) = compile("leftover_processes.c");
    for way in WAYS {
        for inner in [false, true] {
            let (name, mark) = (fresh(), mark());
            let mut child = host.start(&name, &["--user", "nobody", "--", &program, way, &mark, "stays"]);
            let mut line = String::new();
            BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "ready\n", "{way}");
            eventually("both are there", || alive(&mark) >= 2);
            // What is killed is the half outside, or the one inside, which is its child.
            let outer = child.id().cast_signed();
            let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap_or_default();
            let target = if inner { children.split(' ').next().unwrap().parse().unwrap() } else { outer };
            kill_process(Pid::from_raw(target).unwrap(), Signal::KILL).unwrap();
            let code = child.wait().unwrap().code();
            assert_eq!(code, inner.then_some(137), "{way}");
            eventually("nothing is left", || alive(&mark) == 0);
            if inner {
                host.assert_clean(&name);
            } else {
                // What the next run of that name does.
                assert_eq!(host.exec(&name, &["--", "true"]).code, Some(0));
                host.assert_clean(&name);
            }
        }
    }
}
