//! Splits absolute paths of the host as text. Pure.

/// The parent directory of a path on the host; `/` for a path without a parent.
#[must_use]
pub fn parent_directory(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((directory, _)) => directory,
    }
}

/// The last component of a path on the host.
#[must_use]
pub fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}
