//! Which other files a file imports, and which of them could be Farrier's own.

use super::document::Document;
use super::error::Error;
use super::render::quoted;

/// The patterns under `imports` of the file `text`, as they are written.
///
/// # Errors
/// When the text is no TOML, or `imports` no array of strings.
pub fn imports(text: &str) -> Result<Vec<String>, Error> {
    Document::parse("the file", text)?.strings("imports")
}

/// The text of the file `path` with exactly these files, absolute paths, for its imports.
///
/// # Errors
/// When the text is no TOML, or `imports` no array of strings.
pub fn with_imports(path: &str, text: &str, imports: &[&str]) -> Result<String, Error> {
    let document = Document::parse(path, text)?;
    document.strings("imports")?;
    let paths: Vec<String> = imports.iter().map(|path| quoted(path)).collect();
    let array = format!("[{}]", paths.join(", "));
    Ok(match document.value_span("imports") {
        Some(span) => {
            let mut changed = document.text.to_owned();
            changed.replace_range(span, &array);
            changed
        }
        None => format!("imports = {array}\n{}", document.text),
    })
}

/// The path without `.`, `..` and doubled slashes, as Go's `filepath.Clean` leaves an absolute one.
#[must_use]
pub fn clean_path(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The file `farrier.toml` in the folder of the first pattern that takes every `*.toml` of one folder.
///
/// A relative pattern starts from the folder of the file that holds it.
pub(super) fn own_file(root: &str, patterns: &[String]) -> Option<String> {
    let folder = patterns
        .iter()
        .filter_map(|pattern| pattern.strip_suffix("/*.toml"))
        .find(|folder| !folder.contains(['*', '?', '[', ']', '\\']))?;
    let (parent, _) = root.rsplit_once('/')?;
    let folder = if folder.starts_with('/') {
        folder.to_owned()
    } else {
        format!("{parent}/{folder}")
    };
    // As the daemon's own list of files names it.
    Some(clean_path(&format!("{folder}/farrier.toml")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_file_stands_where_a_glob_takes_a_whole_folder() {
        let own = |pattern: &str| own_file("/etc/containerd/config.toml", &[pattern.to_owned()]);
        assert_eq!(own("/x/*.toml").as_deref(), Some("/x/farrier.toml"));
        assert_eq!(
            own("conf.d/*.toml").as_deref(),
            Some("/etc/containerd/conf.d/farrier.toml")
        );
        for pattern in ["/x//y/.././*.toml", "./../../x/*.toml"] {
            assert_eq!(
                own(pattern).as_deref(),
                Some("/x/farrier.toml"),
                "{pattern}"
            );
        }
        for pattern in [
            "/x/*.conf",
            "/x/a.toml",
            "/*/x/*.toml",
            "*.toml",
            "/x/**/*.toml",
        ] {
            assert_eq!(own(pattern), None, "{pattern}");
        }
    }

    #[test]
    fn a_file_is_given_other_imports_and_nothing_else() {
        let changed = |text| with_imports("/c", text, &["/a", "/b \"c"]).unwrap();
        let array = r#"["/a", "/b \"c"]"#;
        assert_eq!(
            changed("# x\nversion = 2 # y\nimports = [\n 'z', # z\n] # w\n[plugins]\n"),
            format!("# x\nversion = 2 # y\nimports = {array} # w\n[plugins]\n")
        );
        assert_eq!(
            changed("[plugins]"),
            format!("imports = {array}\n[plugins]")
        );
        assert!(with_imports("/c", "imports = 1", &[]).is_err());
    }

    #[test]
    fn imports_that_are_no_strings_are_refused() {
        assert_eq!(imports("imports = ['a']\n").unwrap(), ["a"]);
        assert!(imports("").unwrap().is_empty());
        assert!(imports("imports = 'a'").is_err());
        assert!(imports("imports = [1]").is_err());
    }
}
