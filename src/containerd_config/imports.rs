//! The files that a file imports, and the path of Farrier's own file among them.

use super::document::Document;
use super::error::Error;
use super::render::quoted;
use super::schema::PluginId;
use super::types::SourceFile;

/// The patterns under `imports` of the text, as they are written.
///
/// ```
/// use farrier::containerd_config::imports;
///
/// assert_eq!(imports("imports = ['conf.d/*.toml']")?, ["conf.d/*.toml"]);
/// assert!(imports("version = 3")?.is_empty());
/// # Ok::<(), farrier::containerd_config::Error>(())
/// ```
///
/// # Errors
/// When the text is not TOML, or `imports` is not an array of strings.
pub fn imports(text: &str) -> Result<Vec<String>, Error> {
    Document::parse("the file", text)?.strings("imports")
}

/// The text of the file `path` with exactly the absolute paths `imports` for its imports. Every other byte stays.
///
/// ```
/// use farrier::containerd_config::with_imports;
///
/// let text = with_imports("/tmp/new.toml", "imports = ['/a.toml'] # all", &["/b.toml"])?;
/// assert_eq!(text, "imports = [\"/b.toml\"] # all");
/// # Ok::<(), farrier::containerd_config::Error>(())
/// ```
///
/// # Errors
/// When the text is not TOML, or `imports` is not an array of strings.
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

/// The absolute path without `.`, `..` and doubled slashes, as Go's `filepath.Clean` returns it.
///
/// ```
/// use farrier::containerd_config::clean_path;
///
/// assert_eq!(clean_path("/etc//containerd/./conf.d/../x.toml"), "/etc/containerd/x.toml");
/// ```
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

/// Checks that the file can be parsed, and that it has the `version` that a distribution demands, if any. A distribution such as k0s reads
/// snippets that containerd itself does not load.
///
/// ```
/// use farrier::containerd_config::{SourceFile, check_snippet};
///
/// let file = |text: &str| SourceFile {
///     path: "/etc/k0s/containerd.d/20.toml".to_owned(),
///     text: Some(text.to_owned()),
/// };
/// assert!(check_snippet(&file("version = 2\n"), None).is_ok());
/// assert!(check_snippet(&file("version = 2\n"), Some(3)).is_err());
/// let error = check_snippet(&file("this is not toml = =\n"), None).unwrap_err();
/// assert!(error.to_string().starts_with("failed to parse /etc/k0s/containerd.d/20.toml: line 1"));
/// ```
///
/// # Errors
/// When the file is absent, too long or not TOML, has a value that is not a table where a table should be, or has another `version`.
pub fn check_snippet(file: &SourceFile, version: Option<i64>) -> Result<(), Error> {
    let Some(text) = &file.text else {
        return Err(Error::ImportAbsent {
            path: file.path.clone(),
        });
    };
    let document = Document::parse(&file.path, text)?;
    let found = document.version()?;
    if let Some(expected) = version.filter(|_| found != version) {
        return Err(Error::SnippetVersion {
            path: file.path.clone(),
            found: found.map_or("no version".to_owned(), |it| format!("version = {it}")),
            expected,
        });
    }
    for plugin in PluginId::ALL {
        document.handlers(plugin)?;
    }
    Ok(())
}

/// The path of `farrier.toml` in the directory of the first pattern that imports every `*.toml` of one directory.
///
/// A relative pattern starts from the directory of the importing file.
pub(super) fn own_file(root: &str, patterns: &[String]) -> Option<String> {
    let directory = patterns
        .iter()
        .filter_map(|pattern| pattern.strip_suffix("/*.toml"))
        .find(|directory| !directory.contains(['*', '?', '[', ']', '\\']))?;
    let (parent, _) = root.rsplit_once('/')?;
    let directory = if directory.starts_with('/') {
        directory.to_owned()
    } else {
        format!("{parent}/{directory}")
    };
    // containerd names its files by their cleaned paths.
    Some(clean_path(&format!("{directory}/farrier.toml")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn farrier_s_own_file_is_in_a_directory_that_is_imported_as_a_whole() {
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
    fn other_imports_change_nothing_else_in_the_file() {
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
    fn imports_that_are_not_strings_are_refused() {
        assert_eq!(imports("imports = ['a']\n").unwrap(), ["a"]);
        assert!(imports("").unwrap().is_empty());
        assert!(imports("imports = 'a'").is_err());
        assert!(imports("imports = [1]").is_err());
    }
}
