//! What an operator can do where the system refuses an operation on a host's file. Nothing is tried here.

use std::io;

use nix::errno::Errno;

/// What an operator does about `error`; `None` where only the error itself helps.
pub(crate) fn hint(error: &io::Error) -> Option<&'static str> {
    let help = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EROFS) => "see that its file system is mounted writable",
        Some(Errno::EPERM) => "see that neither it nor its folder is immutable (lsattr)",
        Some(Errno::EBUSY) => "it is a mount of its own: unmount it",
        Some(Errno::ENOSPC | Errno::EDQUOT) => "free some space on its file system",
        Some(Errno::EACCES) => "run as root",
        Some(Errno::ENOTDIR) => "see that its folder is no file",
        Some(_) | None => return None,
    };
    Some(help)
}
