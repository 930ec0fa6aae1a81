//! Reads what `containerd config dump` prints, and judges a candidate by the dumps before and after: values, never text.
//!
//! A dump holds registry passwords: errors name keys and never values.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

use super::document::{Document, declared, difference, string_at};
use super::error::Error;
use super::schema::PluginId;
use super::types::{DeclaredHandler, Handler, RUNC, is_zero};

/// The default runtime's name and all handlers that a dump shows.
///
/// # Errors
/// When the dump is no TOML or not shaped as a configuration.
pub fn runtimes_of_dump(dump: &str) -> Result<(String, BTreeMap<String, DeclaredHandler>), Error> {
    let document = Document::parse_dump(dump)?;
    let values = document.values();
    // A dump uses the newest id that its release knows, whatever the files use.
    for plugin in PluginId::ALL.into_iter().rev() {
        let mut handlers = document.handlers(plugin)?;
        let [plugins, key, containerd, _] = plugin.runtimes();
        let mut default = string_at(&values, &[plugins, key, containerd, "default_runtime_name"])
            .map(str::to_owned);
        // Tables of 1.x from before `runtimes`: the daemon makes them handlers of these names, which its dump doesn't show.
        for (table, name) in [
            ("default_runtime", "default"),
            ("untrusted_workload_runtime", "untrusted"),
        ] {
            let item = document.item(&[plugins, key, containerd, table]);
            let handler = item.and_then(|item| item.as_table_like()).map(declared);
            if let Some(handler) = handler.filter(|handler| !handler.runtime_type.is_empty()) {
                handlers.entry(name.to_owned()).or_insert(handler);
                if name == "default" {
                    default = Some(name.to_owned());
                }
            }
        }
        if !handlers.is_empty() || default.is_some() {
            return Ok((default.unwrap_or_default(), handlers));
        }
    }
    Ok((String::new(), BTreeMap::new()))
}

/// The path of the socket that a dump says containerd listens on, absolute.
///
/// 1.6 to 2.2 print it in `grpc` (`services/server/config`), 2.3 and later as a plugin's (`plugins/server/grpc`).
#[must_use]
pub fn address_of_dump(dump: &str) -> Option<String> {
    let values = Document::parse_dump(dump).ok()?.values();
    let places: [&[&str]; 2] = [
        &["plugins", "io.containerd.server.v1.grpc", "address"],
        &["grpc", "address"],
    ];
    let mut found = places.iter().filter_map(|place| string_at(&values, place));
    found
        .find(|address| address.starts_with('/'))
        .map(str::to_owned)
}

/// Whether the candidate changes only what is ours.
///
/// `before` and `after` are dumps of the same daemon; `ours` names the handlers that may appear, change or go. `runc` may lose
/// or gain zero values, which is what spelling it out does on 1.x. `imports` isn't compared: it names the files.
///
/// # Errors
/// Names the first key that differs, or says that the default runtime would be missing.
pub fn compare_dumps(before: &str, after: &str, ours: &BTreeSet<String>) -> Result<(), Error> {
    let values = |dump: &str| -> Result<Value, Error> {
        let mut values = Document::parse_dump(dump)?.values();
        if let Value::Table(root) = &mut values {
            root.remove("imports");
        }
        for plugin in PluginId::ALL {
            if let Some(runtimes) = runtimes_of(&mut values, plugin) {
                runtimes.retain(|name, _| !ours.contains(name));
                if let Some(runc) = runtimes.get_mut(RUNC) {
                    remove_defaults(runc);
                }
            }
        }
        Ok(values)
    };
    if let Some(key) = difference(&values(before)?, &values(after)?) {
        return Err(Error::Changed { key });
    }
    let (name, handlers) = runtimes_of_dump(after)?;
    if name.is_empty() || !handlers.contains_key(&name) {
        return Err(Error::NoDefault { name });
    }
    Ok(())
}

/// Whether the daemon sees every handler of `want` as it is declared.
///
/// # Errors
/// Names the first handler that the dump lacks or shows differently; or the dump can't be read.
pub fn contains_handlers(dump: &str, want: &[Handler]) -> Result<(), Error> {
    let (_, handlers) = runtimes_of_dump(dump)?;
    let seen = |handler: &&Handler| {
        handlers.get(&handler.name).is_some_and(|found| {
            found.runtime_type == handler.runtime_type && found.options == handler.options
        })
    };
    match want.iter().find(|handler| !seen(handler)) {
        Some(handler) => Err(Error::HandlerNotVisible {
            handler: handler.name.clone(),
        }),
        None => Ok(()),
    }
}

/// The table of the plugin's runtimes.
fn runtimes_of(values: &mut Value, plugin: PluginId) -> Option<&mut Table> {
    let mut path = plugin.runtimes().into_iter();
    path.try_fold(values, |value, key| value.get_mut(key))?
        .as_table_mut()
}

/// Removes the settings that a declared `runc` may omit: zero values, and the one sandbox mode that 1.7 has by default.
fn remove_defaults(value: &mut Value) {
    if let Value::Table(table) = value {
        table
            .iter_mut()
            .for_each(|(_, value)| remove_defaults(value));
        table.retain(|key, value| {
            let is_default = key == "sandbox_mode" && value.as_str() == Some("podsandbox");
            !is_zero(value) && !is_default
        });
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::{DUMP_LIMIT, TEXT_LIMIT};
    use super::*;

    /// What containerd 1.7 prints of its defaults, shortened.
    const BEFORE: &str = r#"
imports = ["/etc/containerd/config.toml"]
version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "pause"
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.default_runtime]
runtime_type = ""
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
pod_annotations = []
sandbox_mode = "podsandbox"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
BinaryName = ""
"#;

    /// A handler of ours.
    const A: &str =
        "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.a]\nruntime_type = '/a'\n";

    fn ours() -> BTreeSet<String> {
        BTreeSet::from(["a".to_owned()])
    }

    #[test]
    fn our_handler_and_a_spelled_out_default_runtime_may_differ() {
        let after = BEFORE
            .replace("SystemdCgroup = false\nBinaryName = \"\"\n", "")
            .replace("podsandbox", "")
            .replace("config.toml", "other.toml")
            + A;
        assert_eq!(compare_dumps(BEFORE, &after, &ours()), Ok(()));
        assert_eq!(compare_dumps(&after, BEFORE, &ours()), Ok(()));
    }

    #[rstest]
    #[case("\"pause\"", "\"secret\"", "sandbox_image")]
    #[case("Cgroup = false", "Cgroup = true", "containerd.runtimes.runc.options")]
    #[case("runtimes.runc", "runtimes.a", "containerd.runtimes.runc")]
    fn what_is_not_ours_may_not_differ(#[case] from: &str, #[case] to: &str, #[case] key: &str) {
        let key = format!("plugins.io.containerd.grpc.v1.cri.{key}");
        assert_eq!(
            compare_dumps(BEFORE, &BEFORE.replace(from, to), &ours()),
            Err(Error::Changed { key })
        );
    }

    #[test]
    fn a_configuration_without_its_default_runtime_is_refused() {
        let broken = BEFORE.replace("= \"runc\"", "= \"gone\"");
        let name = "gone".to_owned();
        assert_eq!(
            compare_dumps(&broken, &broken, &ours()),
            Err(Error::NoDefault { name })
        );
    }

    #[rstest]
    #[case::of_1_and_2("version = 3\n[grpc]\naddress = '/run/c.sock'\n", Some("/run/c.sock"))]
    #[case::of_2_4(
        "version = 4\n[plugins.'io.containerd.server.v1.grpc']\naddress = '/run/c.sock'\n",
        Some("/run/c.sock")
    )]
    #[case::none("[grpc]\naddress = ''\n", None)]
    #[case::relative("[grpc]\naddress = 'c.sock'\n", None)]
    #[case::no_toml("[", None)]
    fn the_socket_is_where_the_configuration_has_it(
        #[case] dump: &str,
        #[case] expected: Option<&str>,
    ) {
        assert_eq!(address_of_dump(dump).as_deref(), expected);
    }

    #[test]
    fn a_dump_may_be_longer_than_a_file() {
        let comment = format!("# {}\n", "x".repeat(TEXT_LIMIT));
        let dump = format!("{BEFORE}{comment}");
        assert_eq!(compare_dumps(&dump, &dump, &ours()), Ok(()));
        let dump = format!("{dump}{}", comment.repeat(DUMP_LIMIT / TEXT_LIMIT));
        assert_eq!(compare_dumps(&dump, &dump, &ours()), Err(Error::LongDump));
    }

    #[test]
    fn a_table_from_before_runtimes_is_the_handler_that_the_daemon_makes_of_it() {
        let dump = BEFORE.replace("runtime_type = \"\"", "runtime_type = \"old\"");
        let (default, handlers) = runtimes_of_dump(&dump).unwrap();
        assert_eq!(default, "default");
        assert_eq!(handlers["default"].runtime_type, "old");
    }

    #[test]
    fn a_handler_that_the_daemon_does_not_see_is_named() {
        let want = [Handler {
            name: "a".to_owned(),
            runtime_type: "/a".to_owned(),
            options: BTreeMap::new(),
        }];
        assert_eq!(contains_handlers(&format!("{BEFORE}{A}"), &want), Ok(()));
        let handler = "a".to_owned();
        assert_eq!(
            contains_handlers(BEFORE, &want),
            Err(Error::HandlerNotVisible { handler })
        );
    }

    #[test]
    fn the_default_runtime_is_spelled_out_without_its_zero_values() {
        let dump = BEFORE.replace("BinaryName = \"\"", "BinaryName = \"/usr/bin/crun\"");
        let (_, handlers) = runtimes_of_dump(&dump).unwrap();
        let runc = handlers[RUNC].to_handler(RUNC);
        assert_eq!(runc.runtime_type, "io.containerd.runc.v2");
        let binary = Value::String("/usr/bin/crun".to_owned());
        assert_eq!(
            runc.options,
            BTreeMap::from([("BinaryName".to_owned(), binary)])
        );
    }
}
