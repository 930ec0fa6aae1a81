//! Ends the program before the n-th system call by which it changes a host (ptrace(2)). A helper of the crash tests, no tests.

use std::process::{Command, Stdio};

use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What changes a folder, or stands between the making of a file and its place.
const CHANGES: [i64; 7] = [
    libc::SYS_mkdirat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_fchmod,
    libc::SYS_fsync,
];

/// Runs the program with the arguments of `command` and kills it before its change number `nth`; says whether it came that far.
#[allow(
    clippy::zombie_processes,
    reason = "waitpid reaps the child: what ptrace sees comes through it"
)]
pub fn is_killed_at(command: &Command, nth: usize) -> bool {
    // Stopped at first, so that no system call is missed.
    let child = Command::new("/bin/sh")
        .args(["-c", "kill -STOP $$; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
    ptrace::attach(pid).unwrap();
    waitpid(pid, None).unwrap();
    let options = ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(pid, options).unwrap();
    kill(pid, Signal::SIGCONT).unwrap();
    let (mut changes, mut entering) = (0, false);
    let mut signal = None;
    loop {
        ptrace::syscall(pid, signal).unwrap();
        signal = None;
        match waitpid(pid, None).unwrap() {
            WaitStatus::PtraceSyscall(_) => {
                entering = !entering;
                let call = ptrace::getregs(pid).unwrap().orig_rax;
                if entering && CHANGES.contains(&call.cast_signed()) {
                    changes += 1;
                    if changes == nth {
                        kill(pid, Signal::SIGKILL).unwrap();
                        waitpid(pid, None).unwrap();
                        return true;
                    }
                }
            }
            WaitStatus::Stopped(_, Signal::SIGSTOP | Signal::SIGTRAP) => {}
            WaitStatus::Stopped(_, other) => signal = Some(other),
            WaitStatus::Exited(..) => return false,
            other => panic!("{other:?}"),
        }
    }
}
