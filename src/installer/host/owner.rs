//! Checks by owner, mode, group and access control list that no user other than root can change a component of a path. The walks along a
//! path are in `program`: to a program, and to a directory of Farrier.

use std::borrow::Cow;
use std::fmt;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag};

use super::{HostRoot, descriptor_path};

/// Size limit in bytes for `/etc/group` and `/etc/passwd`, enough for thousands of users.
const DATABASE_LIMIT: u64 = 1 << 22;

/// The extended attribute of a POSIX access control list (acl(5)).
pub(super) const ACCESS_LIST: &str = "system.posix_acl_access";

/// Why Farrier, as root, refuses to run a program, or to use a directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// A component of the path belongs to another user.
    #[error("{path} belongs to UID {owner} instead of root")]
    Owner {
        /// Path of the component on the host.
        path: String,
        /// UID of the owner.
        owner: u32,
        /// Whether the component is a symlink, which `chown` follows by default.
        is_symlink: bool,
    },
    /// A component of the path is writable by other users.
    #[error("{path} is writable by {writers}")]
    Writable {
        /// Path of the component on the host.
        path: String,
        /// The users with write access.
        writers: Writers,
        /// The mode argument for `chmod`, such as `go-w`.
        chmod_mode: &'static str,
    },
    /// A component of the path has an access control list, which may name any user.
    #[error("{path} has an access control list, which may let other users write")]
    AccessList {
        /// Path of the component on the host.
        path: String,
    },
    /// The path is not a regular file.
    #[error("{path} is not a regular file")]
    NoFile {
        /// Path on the host.
        path: String,
    },
    /// The program is a script whose interpreter is a script.
    #[error("{path} is a script whose interpreter {interpreter} is also a script")]
    Interpreter {
        /// Path on the host.
        path: String,
        /// The interpreter in the first line.
        interpreter: String,
    },
    /// A component of the path can't be opened or examined.
    #[error("failed to open {path}: {errno}")]
    Open {
        /// Path of the component on the host.
        path: String,
        /// The error of the system call.
        errno: Errno,
    },
}

impl ProgramError {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Owner {
                path, is_symlink, ..
            } => {
                let option = if *is_symlink { "-h " } else { "" };
                Cow::Owned(format!("run `chown {option}root:root {path}` on the host"))
            }
            Self::Writable {
                chmod_mode, path, ..
            } => Cow::Owned(format!(
                "move the program elsewhere, or run `chmod {chmod_mode} {path}` on the host"
            )),
            Self::AccessList { path, .. } => Cow::Owned(format!(
                "run `setfacl -b {path}` and `chmod g-w {path}` on the host"
            )),
            Self::NoFile { .. } | Self::Interpreter { .. } | Self::Open { .. } => return None,
        })
    }
}

/// The users other than root who can write to a component of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// Every user.
    EveryUser,
    /// A group that has members, or whose members are unknown.
    Group(u32),
}

impl fmt::Display for Writers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EveryUser => formatter.write_str("every user"),
            Self::Group(group) => write!(formatter, "the members of group {group}"),
        }
    }
}

/// Owner, group and mode of one component of a path.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Component {
    owner: u32,
    pub(crate) group: u32,
    mode: u32,
}

impl Component {
    pub(crate) fn of(stat: &FileStat) -> Self {
        Self {
            owner: stat.st_uid,
            group: stat.st_gid,
            mode: stat.st_mode,
        }
    }

    pub(crate) fn is(self, kind: SFlag) -> bool {
        self.mode & SFlag::S_IFMT.bits() == kind.bits()
    }
}

/// Checks that only root, or one of the users `trusted`, can change `component`. The mode of a symlink has no effect (inode(7)).
pub(crate) fn check_component(
    component: Component,
    trusted: &[u32],
    without_members: impl Fn() -> bool,
    has_access_list: impl Fn() -> bool,
    path: &str,
) -> Result<(), ProgramError> {
    if component.owner != 0 && !trusted.contains(&component.owner) {
        return Err(ProgramError::Owner {
            path: path.to_owned(),
            owner: component.owner,
            is_symlink: component.is(SFlag::S_IFLNK),
        });
    }
    if component.is(SFlag::S_IFLNK) {
        return Ok(());
    }
    let writable = |writers, chmod_mode| ProgramError::Writable {
        path: path.to_owned(),
        writers,
        chmod_mode,
    };
    let by_group = component.mode & 0o020 != 0;
    if component.mode & 0o002 != 0 {
        return Err(writable(
            Writers::EveryUser,
            if by_group { "go-w" } else { "o-w" },
        ));
    }
    if !by_group {
        return Ok(());
    }
    // With an access control list, the group bits are the maximum of the rights in the list (acl(5)).
    if has_access_list() {
        return Err(ProgramError::AccessList {
            path: path.to_owned(),
        });
    }
    // In a sticky directory only root and the owner of an entry can replace the entry. The walk checks that owner next.
    let is_sticky = component.is(SFlag::S_IFDIR) && component.mode & 0o1000 != 0;
    if is_sticky || component.group == 0 || without_members() {
        return Ok(());
    }
    Err(writable(Writers::Group(component.group), "g-w"))
}

/// Whether the group has no member other than root. A group that is missing from `/etc/group` may have members in another database, so the
/// answer is `false`.
pub(crate) fn is_without_members(host: &HostRoot, group: u32) -> bool {
    let read = |path| host.read_text(path, DATABASE_LIMIT).ok().flatten();
    match (read("/etc/group"), read("/etc/passwd")) {
        (Some(groups), Some(users)) => without_members(group, &groups, &users),
        _ => false,
    }
}

fn without_members(group: u32, groups: &str, users: &str) -> bool {
    let id = |field: Option<&str>| field.and_then(|id| id.parse::<u32>().ok());
    let mut named = groups
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .filter(|fields| id(fields.get(2).copied()) == Some(group))
        .peekable();
    let is_root = |name: &str| name.is_empty() || name == "root";
    named.peek().is_some()
        && named.all(|fields| {
            let members = fields.get(3).copied().unwrap_or_default();
            members.split(',').all(|name| is_root(name.trim()))
        })
        && users.lines().all(|line| {
            let mut fields = line.split(':').skip(2);
            let (user, primary) = (id(fields.next()), id(fields.next()));
            primary != Some(group) || user == Some(0)
        })
}

/// Whether a file has an access control list. True also on an error, unless the file system has no access control lists.
pub(crate) fn has_access_list(file: &OwnedFd) -> bool {
    has_attribute(file, ACCESS_LIST)
}

/// Whether a file has an extended attribute. True also on an error, unless the file system has no extended attributes.
pub(crate) fn has_attribute(file: &OwnedFd, name: &str) -> bool {
    // The path of the descriptor is a symlink.
    match xattr::get_deref(descriptor_path(file), name) {
        Ok(value) => value.is_some(),
        Err(error) => error.raw_os_error() != Some(Errno::EOPNOTSUPP as i32),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn an_attribute_of_an_open_file_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let file = OwnedFd::from(std::fs::File::open(directory.path()).unwrap());
        let name = "trusted.farrier";
        assert!(!has_attribute(&file, name));
        // Only root may set it, and not every file system has such attributes.
        if xattr::set(directory.path(), name, b"1").is_ok() {
            assert!(has_attribute(&file, name));
        }
    }

    const DIRECTORY: u32 = 0o040_000;
    const FILE: u32 = 0o100_000;
    const SYMLINK: u32 = 0o120_000;

    #[rstest]
    #[case::directory_of_root((0, 0, DIRECTORY | 0o755), None)]
    #[case::of_a_user((1000, 0, DIRECTORY | 0o755), Some("`chown root:root /a`"))]
    #[case::symlink_of_a_user((1000, 0, SYMLINK | 0o777), Some("`chown -h root:root /a`"))]
    #[case::symlink_of_root((0, 0, SYMLINK | 0o777), None)]
    #[case::writable_by_all((0, 0, DIRECTORY | 0o777), Some("`chmod go-w /a`"))]
    #[case::writable_by_others((0, 0, FILE | 0o757), Some("`chmod o-w /a`"))]
    #[case::sticky_and_writable_by_all((0, 0, DIRECTORY | 0o1777), Some("`chmod go-w /a`"))]
    #[case::of_the_group_of_root((0, 0, DIRECTORY | 0o775), None)]
    #[case::of_a_group_without_members((0, 50, DIRECTORY | 0o2775), None)]
    #[case::of_a_group_with_members((0, 60, DIRECTORY | 0o775), Some("`chmod g-w /a`"))]
    #[case::sticky_of_a_group_with_members((0, 60, DIRECTORY | 0o1775), None)]
    #[case::a_file_of_a_group_with_members((0, 60, FILE | 0o1775), Some("`chmod g-w /a`"))]
    #[case::readable_by_a_group_with_members((0, 60, FILE | 0o755), None)]
    fn a_path_component_that_others_can_write_is_refused(
        #[case] (owner, group, mode): (u32, u32, u32),
        #[case] chmod_mode: Option<&str>,
    ) {
        let component = Component { owner, group, mode };
        let checked = check_component(component, &[0], || group == 50, || false, "/a");
        assert_eq!(checked.is_err(), chmod_mode.is_some(), "{checked:?}");
        if let (Err(error), Some(chmod_mode)) = (checked, chmod_mode) {
            assert!(error.help().unwrap().contains(chmod_mode), "{error}");
        }
    }

    #[test]
    fn the_owner_of_the_process_is_trusted_and_an_access_control_list_is_not() {
        let component = |owner, mode| Component {
            owner,
            group: 0,
            mode: FILE | mode,
        };
        let checked =
            |component, has_list| check_component(component, &[1000], || true, || has_list, "/a");
        assert_eq!(checked(component(1000, 0o755), true), Ok(()));
        let path = "/a".to_owned();
        let refused = checked(component(0, 0o775), true);
        assert_eq!(refused, Err(ProgramError::AccessList { path }));
    }

    #[rstest]
    #[case::of_nobody("a:x:50:\n", "", true)]
    #[case::of_root("a:x:50:root\n", "root:x:0:50::/:\n", true)]
    #[case::of_a_user("a:x:50:u\n", "", false)]
    #[case::of_several("a:x:50:root,u\n", "", false)]
    #[case::that_is_a_user_s_own("a:x:50:\n", "u:x:1000:50::/:\n", false)]
    #[case::by_a_second_name("a:x:50:\nb:x:50:u\n", "", false)]
    #[case::that_the_files_do_not_name("a:x:5:\n", "", false)]
    fn a_group_is_trusted_if_it_has_no_member_but_root(
        #[case] groups: &str,
        #[case] users: &str,
        #[case] expected: bool,
    ) {
        assert_eq!(without_members(50, groups, users), expected);
    }
}
