//! How Farrier spells a handler in TOML, and the comments that say whose the lines below them are.
//!
//! TOML 1.0 alone, as every release reads it; and nothing that a cluster says can leave its string.

use super::{Handler, Value};

/// Every comment of ours begins with this; it says whose the line below is.
pub(super) const MARK: &str = "# farrier:";

/// Comment above each handler.
pub(super) const HANDLER_MARK: &str = "# farrier: managed handler; change its Shim instead";

/// Comment above the first handler where the text before it had no line end of its own.
pub(super) const JOINED_MARK: &str =
    "# farrier: managed handler; change its Shim instead (the line above had no line end)";

/// Comment above the `runc` that containerd 1.x needs beside other handlers.
pub(super) const RUNC_MARK: &str =
    "# farrier: containerd's default runtime, which other handlers would hide";

/// Comment on a line of its own at the begin of a file whose runtimes stand between braces, where the same `runc` can't have one.
pub(super) const BRACES_MARK: &str = "# farrier: containerd's default runtime, which other handlers would hide, stands between the braces";

/// Comment above a `version` that a file had to be given.
pub(super) const VERSION_MARK: &str = "# farrier: the schema of the managed handlers";

/// Comment above the `version` of a file that was not there before.
pub(super) const CREATED_MARK: &str =
    "# farrier: this file is managed and leaves with its last handler";

/// The line end of a text, by its first line.
pub(super) fn newline_of(text: &str) -> &'static str {
    match text.split_once('\n') {
        Some((line, _)) if line.ends_with('\r') => "\r\n",
        _ => "\n",
    }
}

/// A handler under a header of its own.
pub(super) fn block(mark: &str, newline: &str, path: &[&str], handler: &Handler) -> String {
    let mut keys: Vec<String> = path.iter().map(|part| key(part)).collect();
    keys.push(key(&handler.name));
    let header = keys.join(".");
    let mut lines = vec![
        mark.to_owned(),
        format!("[{header}]"),
        format!("runtime_type = {}", quoted(&handler.runtime_type)),
    ];
    if !handler.options.is_empty() {
        lines.push(format!("[{header}.options]"));
        lines.extend(options(handler));
    }
    lines
        .iter()
        .flat_map(|line| [line.as_str(), newline])
        .collect()
}

/// The options as `key = value`.
fn options(handler: &Handler) -> Vec<String> {
    let option = |(name, value): (&String, &Value)| {
        let value = match value {
            Value::Boolean(value) => value.to_string(),
            Value::Integer(value) => value.to_string(),
            Value::String(value) => quoted(value),
        };
        format!("{} = {value}", key(name))
    };
    handler.options.iter().map(option).collect()
}

/// A handler between braces, where a comment can't stand.
pub(super) fn inline(path: &[&str], handler: &Handler) -> String {
    let mut keys: Vec<String> = path.iter().map(|part| key(part)).collect();
    keys.push(key(&handler.name));
    let mut entries = vec![format!("runtime_type = {}", quoted(&handler.runtime_type))];
    if !handler.options.is_empty() {
        entries.push(format!("options = {{ {} }}", options(handler).join(", ")));
    }
    format!("{} = {{ {} }}", keys.join("."), entries.join(", "))
}

/// A key as TOML 1.0 wants it: bare where it can be.
fn key(name: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !name.is_empty() && name.bytes().all(bare) {
        name.to_owned()
    } else {
        quoted(name)
    }
}

/// A basic string on one line, whatever it holds: a value can't end the line and begin a table of its own, nor begin an action
/// where the file is a template.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    let mut previous = None;
    for char in text.chars() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            char if char.is_control() || (char == '{' && previous == Some('{')) => {
                quoted.extend(format!("\\u{:04X}", u32::from(char)).chars());
            }
            char => quoted.push(char),
        }
        previous = Some(char);
    }
    quoted.push('"');
    quoted
}
