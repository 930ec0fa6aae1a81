//! Opens a program of the host for root to run, and checks every component of its path; checks the directories of Farrier in the same way.
//! No program is run here.
//!
//! A user who can write to one of the directories in the path can replace the program, so only root may be able to do so. The checked
//! descriptor is the one that is executed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::Mode;
use nix::sys::stat::{SFlag, fstatat};
use nix::unistd::geteuid;

use super::owner::{
    Component, ProgramError, check_component, has_access_list, has_attribute, is_without_members,
};
use super::{HostRoot, MAX_SYMLINKS, Target, descriptor_path, failed};

/// `execve(2)` reads 256 bytes of a file to find the interpreter of a script.
const INTERPRETER_LINE: u64 = 256;

/// A program that no user other than root can replace.
#[derive(Debug)]
pub struct Program {
    /// Opened with `O_PATH`.
    file: OwnedFd,
    /// Whether the program is a script, which its interpreter opens once more.
    is_script: bool,
}

impl Program {
    /// The checked descriptor.
    #[must_use]
    pub fn into_file(self) -> OwnedFd {
        self.file
    }

    /// Whether the program is a script, which its interpreter opens once more.
    #[must_use]
    pub fn is_script(&self) -> bool {
        self.is_script
    }

    /// Whether the kernel gives the process of an ordinary user more privileges when it executes the file (`execve(2)`,
    /// `capabilities(7)`). True also on an error, unless the file system has no extended attributes.
    #[must_use]
    pub fn gives_privileges(&self) -> bool {
        let bits = Mode::S_ISUID | Mode::S_ISGID;
        let has_bits =
            nix::sys::stat::fstat(&self.file).map_or(true, |stat| stat.st_mode & bits.bits() != 0);
        has_bits || has_attribute(&self.file, "security.capability")
    }

    /// Device and inode of the program.
    ///
    /// # Errors
    /// The error of `fstat(2)`.
    pub fn identity(&self) -> std::io::Result<(u64, u64)> {
        let stat = nix::sys::stat::fstat(&self.file)?;
        Ok((stat.st_dev, stat.st_ino))
    }
}

/// The state of a walk along a path: the directories from the root to the current one.
struct Walk<'a> {
    host: &'a HostRoot,
    above: Vec<(OwnedFd, Component)>,
    names: Vec<String>,
    /// Users that are trusted like root.
    trusted: Vec<u32>,
}

/// The end of a walk.
enum End {
    /// A regular file.
    File(OwnedFd),
    /// A directory.
    Directory,
    /// Nothing exists at this path.
    Absent(String),
}

impl HostRoot {
    /// Opens the program at `path`, an absolute path on the host, for root to run.
    ///
    /// Every directory from the root on, every symlink and the program itself must belong to root or to the user of this process, and no
    /// other user may be able to write to it. A directory may be writable by its group if the group is group 0 or has no members, or if the
    /// directory is sticky, so that the members can't replace root's files. The interpreter of a script is checked in the same way.
    ///
    /// # Errors
    /// Names the first component that violates this, and in its help the command that corrects it.
    pub fn open_program(&self, path: &str) -> Result<Program, ProgramError> {
        let (file, interpreter) = self.open_checked(path)?;
        if let Some(interpreter) = &interpreter
            && let (_, Some(_)) = self.open_checked(interpreter)?
        {
            return Err(ProgramError::Interpreter {
                path: path.to_owned(),
                interpreter: interpreter.clone(),
            });
        }
        Ok(Program {
            file,
            is_script: interpreter.is_some(),
        })
    }

    /// Checks a regular file that root reads, such as a unit of systemd, as [`Self::open_program`] checks a program.
    ///
    /// # Errors
    /// As of [`Self::open_program`].
    pub fn check_owner(&self, path: &str) -> Result<(), ProgramError> {
        self.open_checked(path).map(drop)
    }

    /// Checks the directory or file at `path`, in which Farrier keeps what root uses later, as [`Self::open_program`] checks a program:
    /// another user who can write to it, or to a directory above it, could replace its contents. What does not exist yet is not checked,
    /// because Farrier creates it.
    ///
    /// In an image, the owner of the root directory is trusted, too: whoever has unpacked an image as an ordinary user can write to all of
    /// it. The owner of the files on a disk is set when the image is packed.
    ///
    /// # Errors
    /// Names the first component that violates this.
    pub fn check_only_root_writes(&self, path: &str, target: Target) -> Result<(), ProgramError> {
        self.walk_to(path, target).map(drop)
    }

    fn walk_to(&self, path: &str, target: Target) -> Result<End, ProgramError> {
        let trusts_owner_of_root = match target {
            Target::Live => false,
            Target::Image => true,
        };
        Walk::start(self, trusts_owner_of_root)?.end_at(path)
    }

    /// Whether `path` holds a regular file, and no symlink, that only root can write, as [`Self::check_only_root_writes`] checks it.
    /// `false` also if nothing exists at `path`.
    ///
    /// # Errors
    /// When the file can't be examined.
    pub fn is_file_of_root(&self, path: &str, target: Target) -> super::Result<bool> {
        let is_symlink = match self.symlink_target(path) {
            Ok(linked) => linked.is_some(),
            Err(super::Error::NotText { .. }) => true,
            Err(error) => return Err(error),
        };
        match self.walk_to(path, target) {
            Ok(End::File(_)) => Ok(!is_symlink),
            Err(ProgramError::Open { path, errno }) if !is_symlink => {
                Err(failed("open", &path)(errno))
            }
            Ok(End::Directory | End::Absent(_)) | Err(_) => Ok(false),
        }
    }

    /// Device and inode of the program of the process `pid` in this host's `/proc`; `None` if there is no such process.
    #[must_use]
    pub fn identity_of_program(&self, pid: u32) -> Option<(u64, u64)> {
        // `openat2` with RESOLVE_IN_ROOT does not follow `/proc/PID/exe`.
        let program = std::fs::metadata(self.path.join(format!("proc/{pid}/exe"))).ok()?;
        Some((program.dev(), program.ino()))
    }

    /// Opens the file at `path` after the checks; returns the interpreter of its first line, too.
    fn open_checked(&self, path: &str) -> Result<(OwnedFd, Option<String>), ProgramError> {
        let file = match Walk::start(self, false)?.end_at(path)? {
            End::File(file) => file,
            End::Directory => {
                return Err(ProgramError::NoFile {
                    path: path.to_owned(),
                });
            }
            End::Absent(path) => {
                let errno = Errno::ENOENT;
                return Err(ProgramError::Open { path, errno });
            }
        };
        let start = read_start(&file).map_err(|errno| ProgramError::Open {
            path: path.to_owned(),
            errno,
        })?;
        Ok((file, interpreter(&start)))
    }
}

impl<'a> Walk<'a> {
    fn start(host: &'a HostRoot, trusts_owner_of_root: bool) -> Result<Self, ProgramError> {
        let failed = |error: std::io::Error| ProgramError::Open {
            path: "/".to_owned(),
            errno: Errno::from_raw(error.raw_os_error().unwrap_or_default()),
        };
        let mut trusted = vec![geteuid().as_raw()];
        if trusts_owner_of_root {
            trusted.push(host.root.metadata().map_err(failed)?.uid());
        }
        let mut walk = Self {
            host,
            above: Vec::new(),
            names: Vec::new(),
            trusted,
        };
        let root = host.root.try_clone().map_err(failed)?;
        walk.enter(OwnedFd::from(root), None)?;
        Ok(walk)
    }

    /// The path of `name` in the current directory of the walk.
    fn path_of(&self, name: &str) -> String {
        let mut names = self.names.clone();
        names.push(name.to_owned());
        format!("/{}", names.join("/"))
    }

    fn enter(&mut self, directory: OwnedFd, name: Option<&str>) -> Result<(), ProgramError> {
        let path = name.map_or_else(|| "/".to_owned(), |name| self.path_of(name));
        let stat = nix::sys::stat::fstat(&directory).map_err(|errno| ProgramError::Open {
            path: path.clone(),
            errno,
        })?;
        let component = Component::of(&stat);
        self.check(&directory, component, &path)?;
        self.above.push((directory, component));
        self.names.extend(name.map(str::to_owned));
        Ok(())
    }

    /// Walks to `path`.
    fn end_at(mut self, path: &str) -> Result<End, ProgramError> {
        let mut remaining: VecDeque<String> = components(path);
        let mut symlinks = 0;
        while let Some(name) = remaining.pop_front() {
            if name == ".." {
                // The root is its own parent.
                if self.above.len() > 1 {
                    self.above.pop();
                    self.names.pop();
                }
                continue;
            }
            let here = self.path_of(&name);
            let failed = |errno| ProgramError::Open {
                path: here.clone(),
                errno,
            };
            let Some((directory, _)) = self.above.last() else {
                return Err(failed(Errno::ENOENT));
            };
            // Only this walk follows symlinks, so that their targets are checked. The symlinks of a process, such as `/proc/PID/root`, lead
            // out of the host.
            let how = OpenHow::new()
                .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
                .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_BENEATH);
            let file = match openat2(directory.as_fd(), name.as_str(), how) {
                Err(Errno::ENOENT) => return Ok(End::Absent(here)),
                opened => opened.map_err(failed)?,
            };
            let flags = AtFlags::AT_EMPTY_PATH;
            let stat = fstatat(file.as_fd(), "", flags).map_err(failed)?;
            let component = Component::of(&stat);
            if component.is(SFlag::S_IFLNK) {
                self.check(&file, component, &here)?;
                symlinks += 1;
                if symlinks > MAX_SYMLINKS {
                    return Err(failed(Errno::ELOOP));
                }
                let target = readlinkat(file.as_fd(), "").map_err(failed)?;
                let target = target.into_string().map_err(|_| failed(Errno::EILSEQ))?;
                if target.starts_with('/') {
                    self.above.truncate(1);
                    self.names.clear();
                }
                for name in components(&target).into_iter().rev() {
                    remaining.push_front(name);
                }
            } else if component.is(SFlag::S_IFDIR) {
                self.enter(file, Some(&name))?;
            } else if component.is(SFlag::S_IFREG) && remaining.is_empty() {
                self.check(&file, component, &here)?;
                return Ok(End::File(file));
            } else {
                return Err(ProgramError::NoFile { path: here });
            }
        }
        Ok(End::Directory)
    }

    fn check(&self, file: &OwnedFd, component: Component, path: &str) -> Result<(), ProgramError> {
        check_component(
            component,
            &self.trusted,
            || is_without_members(self.host, component.group),
            || has_access_list(file),
            path,
        )
    }
}

/// The first bytes of a regular file; empty if this process may only execute the file.
fn read_start(file: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let mut start = Vec::new();
    let read = File::open(descriptor_path(file))
        .and_then(|opened| opened.take(INTERPRETER_LINE).read_to_end(&mut start));
    match read.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default())) {
        // A script that can't be read can't be run either, and other programs need not be read.
        Ok(_) | Err(Errno::EACCES) => Ok(start),
        Err(errno) => Err(errno),
    }
}

/// The interpreter that the first line of a script names (execve(2)).
fn interpreter(start: &[u8]) -> Option<String> {
    let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n');
    let line = String::from_utf8_lossy(line.into_iter().next()?).into_owned();
    let path = line.trim_matches([' ', '\t']);
    path.split([' ', '\t', '\0']).next().map(str::to_owned)
}

fn components(path: &str) -> VecDeque<String> {
    let names = path.split('/').filter(|name| !matches!(*name, "" | "."));
    names.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rstest::rstest;

    use super::*;
    use crate::handoff::Problem;

    /// A host with directories and symlinks; every user can write to the directory `open`.
    fn host() -> (tempfile::TempDir, HostRoot) {
        let directory = tempfile::tempdir().unwrap();
        let path = |path: &str| directory.path().join(path);
        for directory in ["a", "a/b", "open", "open/below"] {
            fs::create_dir(path(directory)).unwrap();
            fs::set_permissions(path(directory), PermissionsExt::from_mode(0o755)).unwrap();
        }
        fs::set_permissions(path("open"), PermissionsExt::from_mode(0o777)).unwrap();
        for (file, text) in [
            ("a/b/program", "\x7fELF"),
            ("open/below/program", "\x7fELF"),
            ("a/script", "#! /a/b/program -x\n"),
            ("a/nested", "#!/a/script\n"),
            ("a/loose", "#!/open/below/program\n"),
        ] {
            fs::write(path(file), text).unwrap();
            fs::set_permissions(path(file), PermissionsExt::from_mode(0o755)).unwrap();
        }
        for (name, target) in [
            ("a/absolute", "/a/b"),
            ("a/relative", "../a/./b"),
            ("a/out", "../../../a/b"),
            ("a/through", "/open/../a/b"),
            ("a/into", "/open/below/program"),
            ("a/loop", "loop"),
            ("a/gone", "/nowhere"),
        ] {
            symlink(target, path(name)).unwrap();
        }
        let host = HostRoot::open(directory.path()).unwrap();
        (directory, host)
    }

    #[rstest]
    #[case("/a/b/program", Ok(false))]
    #[case("/a/absolute/program", Ok(false))]
    #[case("/a/relative/program", Ok(false))]
    #[case("/a/out/program", Ok(false))]
    #[case("/a/through/program", Err("`chmod go-w /open`"))]
    #[case("/a/into", Err("`chmod go-w /open`"))]
    #[case("/open/below/program", Err("`chmod go-w /open`"))]
    #[case("/a/loop", Err("/a/loop"))]
    #[case("/a/gone", Err("/nowhere"))]
    #[case("/a/b", Err("not a regular file"))]
    #[case("/a/b/program/", Ok(false))]
    #[case("/a/b/program/x", Err("not a regular file"))]
    #[case("/a/script", Ok(true))]
    #[case("/a/nested", Err("is also a script"))]
    #[case("/a/loose", Err("`chmod go-w /open`"))]
    fn every_component_of_the_path_of_a_program_is_checked(
        #[case] path: &str,
        #[case] expected: Result<bool, &str>,
    ) {
        let (_directory, host) = host();
        match (host.open_program(path), expected) {
            (Ok(program), Ok(is_script)) => assert_eq!(program.is_script(), is_script),
            (Err(error), Err(expected)) => {
                let sentence = Problem::new(&error, error.help()).sentence();
                assert!(sentence.contains(expected), "{sentence}");
            }
            (found, expected) => panic!("{found:?} instead of {expected:?}"),
        }
    }

    #[rstest]
    #[case("/a/b", None)]
    #[case("/a/b/program", None)]
    #[case("/a/new/and/more", None)]
    // A link such as `/opt -> var/opt` of Flatcar and ostree, also to a directory that does not exist yet.
    #[case("/a/absolute", None)]
    #[case("/a/relative/new", None)]
    #[case("/a/gone/new", None)]
    #[case("/open", Some("`chmod go-w /open`"))]
    #[case("/open/below", Some("`chmod go-w /open`"))]
    #[case("/open/new", Some("`chmod go-w /open`"))]
    #[case("/a/through/new", Some("`chmod go-w /open`"))]
    #[case("/a/b/program/x", Some("not a regular file"))]
    fn every_component_of_a_directory_of_farrier_is_checked(
        #[case] path: &str,
        #[case] expected: Option<&str>,
        #[values(Target::Live, Target::Image)] target: Target,
    ) {
        let (_directory, host) = host();
        let error = host.check_only_root_writes(path, target).err();
        let sentence = error.map(|error| Problem::new(&error, error.help()).sentence());
        assert_eq!(sentence.is_some(), expected.is_some(), "{sentence:?}");
        if let (Some(sentence), Some(expected)) = (sentence, expected) {
            assert!(sentence.contains(expected), "{sentence}");
        }
    }

    #[test]
    fn a_component_of_another_user_is_refused_unless_all_of_the_image_is_that_user_s() {
        let (directory, host) = host();
        let give = |path: &str| {
            std::os::unix::fs::lchown(directory.path().join(path), Some(1000), None).is_ok()
        };
        // Only root can give files away.
        if !give("a/b") {
            return;
        }
        for target in [Target::Live, Target::Image] {
            let error = host.check_only_root_writes("/a/b", target).unwrap_err();
            let help = error.help().unwrap().into_owned();
            assert_eq!(help, "run `chown root:root /a/b` on the host");
        }
        assert!(give("a/absolute"));
        let error = host.check_only_root_writes("/a/absolute/x", Target::Live);
        let help = error.unwrap_err().help().unwrap().into_owned();
        assert_eq!(help, "run `chown -h root:root /a/absolute` on the host");
        assert!(give("") && give("a"));
        let live = host.check_only_root_writes("/a/b", Target::Live);
        assert!(live.is_err(), "{live:?}");
        assert_eq!(host.check_only_root_writes("/a/b", Target::Image), Ok(()));
        // The image of one user, with a directory of another.
        std::os::unix::fs::chown(directory.path().join("a/b"), Some(1001), None).unwrap();
        assert!(host.check_only_root_writes("/a/b", Target::Image).is_err());
        assert_eq!(host.check_only_root_writes("/a", Target::Image), Ok(()));
    }
}
