//! The text that the installers of `KWasm` and runtime-class-manager write. A helper of the suites, no tests.

/// The table that `KWasm` appends to the configuration for a handler.
pub fn kwasm_table(handler: &str, path: &str) -> String {
    format!(
        "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{handler}]\n    runtime_type = \"{path}\"\n"
    )
}

/// The table that runtime-class-manager appends to the configuration for a handler, with an option or without.
pub fn rcm_table(plugin: &str, handler: &str, path: &str, option: bool) -> String {
    let header = format!("[plugins.\"{plugin}\".containerd.runtimes.{handler}");
    let table =
        format!("\n# RCM runtime config for {handler}\n{header}]\nruntime_type = \"{path}\"\n");
    if option {
        table + &format!("{header}.options]\nSystemdCgroup = true")
    } else {
        table
    }
}

/// The lock file of runtime-class-manager: for each handler the digest and the path of its binary.
pub fn rcm_lock(binaries: &[(&str, String, String)]) -> String {
    let entry = |(handler, sha256, path): &(&str, String, String)| {
        format!("  \"{handler}\": {{\n   \"sha256\": \"{sha256}\",\n   \"path\": \"{path}\"\n  }}")
    };
    let entries: Vec<String> = binaries.iter().map(entry).collect();
    format!("{{\n \"shims\": {{\n{}\n }}\n}}", entries.join(",\n"))
}
