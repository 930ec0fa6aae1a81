//! The figures of one run beside the targets, as `cargo xtask bench cluster` reads and prints them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::Change;

/// The figures of a run with that many nodes: `peak` in bytes, `bare` the time that as many bare Jobs took where all of them ended.
pub fn tables(
    nodes: usize,
    provisioning: &Change,
    removal: Option<&Change>,
    peak: u64,
    bare: Option<Duration>,
) -> Value {
    let each = |count: usize| precise(count) / precise(nodes);
    let cpu = |change: &Change| change.spent.cpu.as_secs_f64() * 1e3 / precise(nodes);
    let line = |what: &str, measured: String, target: &str, met: bool| {
        json!({
            "what": format!("{nodes} nodes: {what}"),
            "measured": measured,
            "target": target,
            // What was cut short tells nothing of the whole.
            "met": met && provisioning.done,
        })
    };
    let spent = &provisioning.spent;
    let (beside, fast) = compare(provisioning, bare);
    let mut lines = vec![
        line(
            "three Shims served and all Jobs gone, beside as many bare Jobs",
            beside,
            "at most 1.2 times",
            fast,
        ),
        line(
            "writes per node",
            format!("{:.2}", each(spent.writes())),
            "at most 6",
            each(spent.writes()) <= 6.0,
        ),
        line(
            "lists and watches of all nodes begun meanwhile",
            spent.lists_of_nodes().to_string(),
            "one a minute at most",
            // A watch ends after some minutes and is taken up again.
            spent.lists_of_nodes() <= minutes(provisioning.wall),
        ),
        line(
            "CPU time, and per node",
            format!(
                "{:.2} s, {:.2} ms",
                spent.cpu.as_secs_f64(),
                cpu(provisioning)
            ),
            "see the last line",
            true,
        ),
        line(
            "peak memory",
            format!("{} MB", peak.div_ceil(1_000_000)),
            "under 100 MB",
            peak < 100_000_000,
        ),
        line(
            "log lines per node",
            format!("{:.2}", each(spent.lines)),
            "at most 5",
            each(spent.lines) <= 5.0,
        ),
    ];
    let mut requests: Vec<(String, f64)> = spent
        .requests
        .iter()
        .map(|(request, count)| (request.clone(), each(*count)))
        .collect();
    if let Some(removal) = removal {
        lines.push(line(
            "the Shims deleted and every node clean",
            format!(
                "{:.1} s, {:.2} writes and {:.2} ms of CPU time per node",
                removal.wall.as_secs_f64(),
                each(removal.spent.writes()),
                cpu(removal)
            ),
            "it ends",
            removal.done,
        ));
        let removed = removal.spent.requests.iter();
        requests
            .extend(removed.map(|(request, count)| (format!("removal: {request}"), each(*count))));
    }
    json!({"lines": lines, "requests": requests, "cpuMillisecondsPerNode": cpu(provisioning)})
}

/// How long it took beside the bare Jobs, and whether that is short enough.
fn compare(provisioning: &Change, bare: Option<Duration>) -> (String, bool) {
    let seconds = provisioning.wall.as_secs_f64();
    let Some(bare) = bare.map(|bare| bare.as_secs_f64()) else {
        let text = format!("{seconds:.1} s beside bare Jobs that did not end in time");
        return (text, false);
    };
    let ratio = seconds / bare;
    let text = if provisioning.done {
        format!("{seconds:.1} s beside {bare:.1} s, {ratio:.2} times")
    } else {
        let reached = provisioning.reached;
        format!("{reached} nodes in {seconds:.1} s beside all of them in {bare:.1} s")
    };
    (text, ratio <= 1.2)
}

fn minutes(time: Duration) -> usize {
    usize::try_from(time.as_secs() / 60).unwrap_or(usize::MAX)
}

/// Counts here are far below 2^52.
#[allow(clippy::cast_precision_loss, reason = "see above")]
fn precise(count: usize) -> f64 {
    count as f64
}
