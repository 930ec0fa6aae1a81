//! Finds the cause of a failed start in containerd's log. Pure.

use crate::handoff::printable_up_to;

/// Bytes of a cause, at most: it becomes a part of a sentence.
const MAX_CAUSE: usize = 400;

/// The cause of a failed CRI plugin, or else the last error or the last line that is none of the logger's; `None` for a log without any.
pub(super) fn cause_in_log(log: &str) -> Option<String> {
    let failed = log.lines().find_map(|line| {
        // 1.x has the plugin in the message, 2.x in the field `id`. The first plugin that fails is the cause of the others.
        let is_of_cri = line.contains("failed to load plugin") && line.contains(".cri");
        error_of_line(line).filter(|_| is_of_cri)
    });
    let last = || log.lines().rev().find_map(fault_of_line);
    let cause = failed.or_else(last)?;
    Some(printable_up_to(cause.trim(), MAX_CAUSE))
}

/// The fault in a line: the error or the message of a line of the logger with the level `error` or above, or a line of another program. Other
/// lines of the logger have a time and no fault.
fn fault_of_line(line: &str) -> Option<String> {
    let line = line.trim();
    let level = field_of_line(line, "level");
    match level.as_deref() {
        None => Some(line.to_owned()).filter(|line| !line.is_empty()),
        // Every start without a CNI configuration has this error.
        Some(_) if line.contains("failed to load cni during init") => None,
        Some("error" | "fatal" | "panic") => {
            error_of_line(line).or_else(|| field_of_line(line, "msg"))
        }
        Some(_) => None,
    }
}

/// The field `error` of a line in logrus' text format or as JSON.
fn error_of_line(line: &str) -> Option<String> {
    field_of_line(line, "error")
}

/// A field of such a line.
fn field_of_line(line: &str, field: &str) -> Option<String> {
    if line.starts_with('{') {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        return line.get(field)?.as_str().map(str::to_owned);
    }
    let (_, rest) = line.split_once(&format!(" {field}="))?;
    let Some(quoted) = rest.strip_prefix('"') else {
        return rest.split(' ').next().map(str::to_owned);
    };
    let mut text = String::new();
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => return Some(text),
            '\\' => match characters.next()? {
                'n' | 't' => text.push(' '),
                escaped => text.push(escaped),
            },
            character => text.push(character),
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::of_1(
        r#"time="t" level=info msg="loading plugin"
time="t" level=warning msg="failed to load plugin io.containerd.snapshotter.v1.devmapper" error="devmapper not configured"
time="t" level=warning msg="failed to load plugin io.containerd.grpc.v1.cri" error="failed to find snapshotter \"gone\""
time="t" level=info msg=serving"#,
        Some("failed to find snapshotter \"gone\"")
    )]
    #[case::of_2(
        r#"time="t" level=warning msg="failed to load plugin" error="snapshotter \"gone\" not found" id=io.containerd.cri.v1.images type=io.containerd.cri.v1
time="t" level=warning msg="failed to load plugin" error="no plugins registered" id=io.containerd.grpc.v1.cri type=io.containerd.grpc.v1"#,
        Some("snapshotter \"gone\" not found")
    )]
    #[case::json(
        r#"{"error":"snapshotter \"gone\" not found","id":"io.containerd.cri.v1.images","level":"warning","msg":"failed to load plugin"}"#,
        Some("snapshotter \"gone\" not found")
    )]
    #[case::one_word(
        "msg=\"failed to load plugin io.containerd.grpc.v1.cri\" error=oops id=x",
        Some("oops")
    )]
    #[case::end(
        "one\n\ncontainerd: invalid \u{1b}[31mconfig\n",
        Some("containerd: invalid [31mconfig")
    )]
    #[case::error_before_other_lines(
        "time=\"t\" level=error msg=\"failed to load cni during init, see\" error=\"no network\"\ntime=\"t\" level=error msg=\"Failed to start streaming server\" error=\"invalid port\"\ntime=\"t\" level=info msg=\"Start event monitor\"",
        Some("invalid port")
    )]
    #[case::no_fault("time=\"t\" level=info msg=\"Start event monitor\"\n", None)]
    #[case::empty("\n", None)]
    fn the_cause_is_the_error_of_the_cri_or_the_last_fault(
        #[case] log: &str,
        #[case] expected: Option<&str>,
    ) {
        assert_eq!(cause_in_log(log).as_deref(), expected);
    }
}
