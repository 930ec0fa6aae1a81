//! A program of the host together with the processes that it starts.

use std::os::fd::AsFd as _;
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::io::retry_on_intr;
use rustix::process::{self, WaitId, WaitIdOptions};
use tokio::process::{Child, Command};

/// A program and the processes that it started, which end with this value or with the program: one that is cut off must leave nothing
/// at work on the host.
pub(crate) struct Group {
    pub(crate) child: Child,
    /// The leader of the group, as long as its PID can't be that of another: until it is reaped.
    pub(crate) leader: Option<Pid>,
}

impl Group {
    /// Starts the program as the leader of a group of its own.
    pub(crate) fn spawn(command: &mut Command) -> std::io::Result<Self> {
        let child = command.process_group(0).spawn()?;
        let leader = child.id().and_then(|pid| i32::try_from(pid).ok());
        Ok(Self {
            child,
            leader: leader.map(Pid::from_raw),
        })
    }

    /// Waits until the program has ended, and leaves it to be reaped.
    pub(crate) async fn ended(&self) -> std::io::Result<()> {
        let leader = self
            .leader
            .and_then(|leader| process::Pid::from_raw(leader.as_raw()));
        let leader = leader.ok_or(Errno::ESRCH)?;
        let handle = process::pidfd_open(leader, process::PidfdFlags::empty())?;
        // It waits in a thread of its own, which ends with the program: whoever cuts that off kills it.
        let wait = move || {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            retry_on_intr(|| process::waitid(WaitId::PidFd(handle.as_fd()), options))
        };
        tokio::task::spawn_blocking(wait).await??;
        Ok(())
    }

    /// Waits until the program has ended, and ends what it left behind.
    pub(crate) async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        if self.leader.is_some() {
            self.ended().await?;
            self.kill();
        }
        self.child.wait().await
    }

    /// Ends all processes of the group. Its number is that of the leader, and another group's once the leader has been reaped.
    fn kill(&mut self) {
        if let Some(leader) = self.leader.take() {
            // Mostly there is nobody left.
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}
