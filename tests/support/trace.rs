//! Follows a program by its system calls (ptrace(2)), and kills or interrupts it before its n-th change of the host. A helper of the
//! suites, no tests.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// System calls that change a directory, or come between the creation of a file and its final name.
const CHANGES: [i64; 7] = [
    libc::SYS_mkdirat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_fchmod,
    libc::SYS_fsync,
];

/// Runs `command` and kills the program before its change number `nth`. Returns whether the program made that many changes.
pub fn is_killed_at(command: &Command, nth: usize) -> bool {
    let mut changes = 0;
    let status = follow(command, Stdio::null(), |program, call| {
        changes += usize::from(is_change(program, call));
        if changes == nth {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(None)
    });
    status.is_none()
}

/// Runs `command` to its end, and sends `signal` before its change number `nth`. Returns the exit status, or `None` if the program made
/// fewer changes. The program's output goes to `stdout`.
pub fn is_interrupted_at(
    command: &Command,
    signal: Signal,
    nth: usize,
    stdout: Stdio,
) -> Option<i32> {
    let mut changes = 0;
    let status = follow(command, stdout, |program, call| {
        let is_change = is_change(program, call);
        changes += usize::from(is_change);
        // To the thread itself, which has the signal when the call returns. Of a signal to the process, the kernel would wake another
        // thread, as this one is stopped, and the program could end before that thread runs.
        ControlFlow::Continue((changes == nth && is_change).then_some(signal))
    });
    // As in shells, the status is 128 and the number of the signal if the signal ended the program.
    (changes >= nth).then_some(status.unwrap())
}

/// Whether the system call is one of the changes that are counted.
pub fn is_change(program: Pid, call: &libc::user_regs_struct) -> bool {
    let number = call.orig_rax.cast_signed();
    // A regular file is synced just before it gets its final name, and the program leaves the same files if it is killed before either.
    let is_regular = || Path::new(&format!("/proc/{program}/fd/{}", call.rdi)).is_file();
    CHANGES.contains(&number) && !(number == libc::SYS_fsync && is_regular())
}

/// Runs `command`, and calls `seen` before each system call of the program's threads. The thread gets the signal that `seen` returns.
/// Returns the exit status, or `None` if `seen` returned `Break`: the program is then killed before that system call.
#[allow(
    clippy::zombie_processes,
    reason = "waitpid reaps the child, and also returns the events of ptrace"
)]
pub fn follow(
    command: &Command,
    stdout: Stdio,
    mut seen: impl FnMut(Pid, &libc::user_regs_struct) -> ControlFlow<(), Option<Signal>>,
) -> Option<i32> {
    // The shell stops itself before it executes the program, so that no system call is missed.
    let mut stopped = Command::new("/bin/sh");
    stopped
        .args(["-c", "kill -STOP $$; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => stopped.env(name, value),
            None => stopped.env_remove(name),
        };
    }
    let child = stopped
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let program = Pid::from_raw(i32::try_from(child.id()).unwrap());
    waitpid(program, Some(WaitPidFlag::WUNTRACED)).unwrap();
    ptrace::attach(program).unwrap();
    waitpid(program, None).unwrap();
    let options = ptrace::Options::PTRACE_O_TRACESYSGOOD
        | ptrace::Options::PTRACE_O_EXITKILL
        | ptrace::Options::PTRACE_O_TRACECLONE;
    ptrace::setoptions(program, options).unwrap();
    kill(program, Signal::SIGCONT).unwrap();
    ptrace::syscall(program, None).unwrap();
    // The threads inside a system call. Their next stop is the end of the call.
    let mut inside = BTreeSet::new();
    loop {
        // Threads of the program, and children of this thread alone (wait(2)).
        let any = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        let (thread, signal) = match waitpid(None, Some(any)).unwrap() {
            WaitStatus::PtraceSyscall(thread) => {
                let mut sent = None;
                if !inside.remove(&thread) {
                    inside.insert(thread);
                    let Ok(call) = ptrace::getregs(thread) else {
                        // The thread was killed meanwhile; waitpid reports that next.
                        continue;
                    };
                    match seen(program, &call) {
                        ControlFlow::Continue(signal) => sent = signal,
                        ControlFlow::Break(()) => {
                            kill(program, Signal::SIGKILL).unwrap();
                            // waitpid reports the first thread last, after all other threads.
                            while waitpid(None, Some(any)).unwrap()
                                != WaitStatus::Signaled(program, Signal::SIGKILL, false)
                            {
                            }
                            return None;
                        }
                    }
                }
                (thread, sent)
            }
            WaitStatus::Stopped(thread, Signal::SIGSTOP | Signal::SIGTRAP)
            | WaitStatus::PtraceEvent(thread, ..) => (thread, None),
            WaitStatus::Stopped(thread, other) => (thread, Some(other)),
            WaitStatus::Exited(thread, status) if thread == program => return Some(status),
            WaitStatus::Signaled(thread, signal, _) if thread == program => {
                return Some(128 + signal as i32);
            }
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => continue,
            other => panic!("{other:?}"),
        };
        // If the thread ended meanwhile, waitpid reports that next.
        let _ = ptrace::syscall(thread, signal);
    }
}
