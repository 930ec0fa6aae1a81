//! Paths on the host as text: absolute, with `/` between the parts. Pure.

/// The directory that a path on the host is in; `/` for a path without one.
#[must_use]
pub fn parent_directory(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((directory, _)) => directory,
    }
}

/// The last part of a path on the host.
#[must_use]
pub fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}
