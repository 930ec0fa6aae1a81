//! Finds the cause of a failed start in containerd's log. Pure.

use crate::handoff::printable_up_to;

/// Bytes of a cause, at most: it becomes a part of a sentence.
const MAX_CAUSE: usize = 400;

/// The cause of a failed CRI plugin, or else the last line of the log; `None` for an empty log.
pub(super) fn cause_in_log(log: &str) -> Option<String> {
    let mut lines = log.lines();
    let failed = lines.find_map(|line| {
        // 1.x has the plugin in the message, 2.x in the field `id`. The first plugin that fails is the cause of the others.
        let is_of_cri = line.contains("failed to load plugin") && line.contains(".cri");
        error_of_line(line).filter(|_| is_of_cri)
    });
    let last = || {
        let mut lines = log.lines().map(str::trim);
        lines.rfind(|line| !line.is_empty()).map(str::to_owned)
    };
    let cause = failed.or_else(last)?;
    Some(printable_up_to(cause.trim(), MAX_CAUSE))
}

/// The field `error` of a line in logrus' text format or as JSON.
fn error_of_line(line: &str) -> Option<String> {
    if line.starts_with('{') {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        return line.get("error")?.as_str().map(str::to_owned);
    }
    let (_, rest) = line.split_once(" error=")?;
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
    #[case::empty("\n", None)]
    fn the_cause_is_the_error_of_the_cri_or_the_last_line(
        #[case] log: &str,
        #[case] expected: Option<&str>,
    ) {
        assert_eq!(cause_in_log(log).as_deref(), expected);
    }
}
