//! Reads the output of `containerd config dump`, and compares the dumps before and after an edit by value.
//!
//! A dump of containerd 1.x has registry passwords. Errors name keys and no values.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

use super::document::{Document, declared, difference, string_at};
use super::error::Error;
use super::schema::PluginId;
use super::types::{DeclaredHandler, Handler, RUNC, is_zero};

/// The name of the default runtime, and all handlers of a dump. The name is empty where the dump has none.
///
/// ```
/// use farrier::containerd_config::runtimes_of_dump;
///
/// let dump = r#"
/// version = 3
/// [plugins."io.containerd.cri.v1.runtime".containerd]
/// default_runtime_name = "runc"
/// [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
/// runtime_type = "io.containerd.runc.v2"
/// "#;
/// let (default, handlers) = runtimes_of_dump(dump)?;
/// assert_eq!(default, "runc");
/// assert_eq!(handlers["runc"].runtime_type, "io.containerd.runc.v2");
/// # Ok::<(), farrier::containerd_config::Error>(())
/// ```
///
/// # Errors
/// When the dump is longer than [`DUMP_LIMIT`](super::DUMP_LIMIT), is not TOML, or has a value that is not a table where a handler should
/// be.
pub fn runtimes_of_dump(dump: &str) -> Result<(String, BTreeMap<String, DeclaredHandler>), Error> {
    let document = Document::parse_dump(dump)?;
    let values = document.values();
    // containerd prints the newest plugin id that its release has, whichever id the files use.
    for plugin in PluginId::ALL.into_iter().rev() {
        let mut handlers = document.handlers(plugin)?;
        let [plugins, key, containerd, _] = plugin.runtimes();
        let mut default = string_at(&values, &[plugins, key, containerd, "default_runtime_name"])
            .map(str::to_owned);
        // containerd 1.x still reads two tables that are older than `runtimes`. It makes handlers of these names from them, and does not
        // print the handlers.
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

/// The absolute path of the socket that containerd listens on, according to its dump.
///
/// containerd 1.6 to 2.2 print it in `grpc` (`services/server/config`), 2.3 and later in a plugin's table (`plugins/server/grpc`).
///
/// ```
/// use farrier::containerd_config::address_of_dump;
///
/// let dump = "version = 2\n[grpc]\naddress = '/run/containerd/containerd.sock'\n";
/// assert_eq!(address_of_dump(dump).as_deref(), Some("/run/containerd/containerd.sock"));
/// ```
#[must_use]
pub fn address_of_dump(dump: &str) -> Option<String> {
    let values = Document::parse_dump(dump).ok()?.values();
    let keys: [&[&str]; 2] = [
        &["plugins", "io.containerd.server.v1.grpc", "address"],
        &["grpc", "address"],
    ];
    let mut found = keys.iter().filter_map(|key| string_at(&values, key));
    found
        .find(|address| address.starts_with('/'))
        .map(str::to_owned)
}

/// The values of the keys `root` and `state` in a configuration: the directories of containerd's persistent and of its volatile data. `None`
/// for a key without a text.
///
/// ```
/// use farrier::containerd_config::data_directories;
///
/// let [root, state] = data_directories("root = '/data'\n[grpc]\nstate = '/run'\n");
/// assert_eq!((root.as_deref(), state), (Some("/data"), None));
/// ```
#[must_use]
pub fn data_directories(config: &str) -> [Option<String>; 2] {
    let Ok(document) = Document::parse_dump(config) else {
        return [None, None];
    };
    let values = document.values();
    [["root"], ["state"]].map(|key| string_at(&values, &key).map(str::to_owned))
}

/// Checks that an edit changes only the handlers `managed`.
///
/// `before` and `after` are dumps of the same containerd, before and after the edit. `managed` names the handlers that may appear, change or
/// disappear. `runc` may lose or gain zero values, because containerd 1.x prints other defaults for a `runc` that is declared. `imports` is
/// not compared.
///
/// ```
/// use std::collections::BTreeSet;
///
/// use farrier::containerd_config::compare_dumps;
///
/// let before = r#"
/// version = 2
/// [debug]
/// level = "info"
/// [plugins."io.containerd.grpc.v1.cri".containerd]
/// default_runtime_name = "runc"
/// [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
/// runtime_type = "io.containerd.runc.v2"
/// "#;
/// let managed = BTreeSet::from(["spin".to_owned()]);
/// let spin = "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.spin]\nruntime_type = '/spin'\n";
/// assert!(compare_dumps(before, &format!("{before}{spin}"), &managed).is_ok());
///
/// let error = compare_dumps(before, &before.replace("info", "debug"), &managed).unwrap_err();
/// assert!(error.to_string().contains("debug.level"));
/// ```
///
/// # Errors
/// When a dump can't be read, a value of others differs, or the default runtime is not declared.
pub fn compare_dumps(before: &str, after: &str, managed: &BTreeSet<String>) -> Result<(), Error> {
    let values = |dump: &str| -> Result<Value, Error> {
        let mut values = Document::parse_dump(dump)?.values();
        if let Value::Table(root) = &mut values {
            root.remove("imports");
        }
        for plugin in PluginId::ALL {
            if let Some(runtimes) = runtimes_of(&mut values, plugin) {
                runtimes.retain(|name, _| !managed.contains(name));
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

/// Checks that a dump has every handler of `desired` as it is declared.
///
/// ```
/// use farrier::containerd_config::{Handler, contains_handlers};
///
/// let dump = r#"
/// version = 2
/// [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
/// runtime_type = "io.containerd.runc.v2"
/// "#;
/// assert!(contains_handlers(dump, &[Handler::runc()]).is_ok());
/// assert!(contains_handlers("version = 2", &[Handler::runc()]).is_err());
/// ```
///
/// # Errors
/// When the dump can't be read, or lacks a handler or has it with other settings.
pub fn contains_handlers(dump: &str, desired: &[Handler]) -> Result<(), Error> {
    let (_, handlers) = runtimes_of_dump(dump)?;
    let seen = |handler: &&Handler| {
        handlers.get(&handler.name).is_some_and(|found| {
            found.runtime_type == handler.runtime_type && found.options == handler.options
        })
    };
    match desired.iter().find(|handler| !seen(handler)) {
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

    /// A handler that Farrier manages.
    const A: &str =
        "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.a]\nruntime_type = '/a'\n";

    fn managed() -> BTreeSet<String> {
        BTreeSet::from(["a".to_owned()])
    }

    #[test]
    fn managed_handlers_and_a_declared_default_runtime_may_differ() {
        let after = BEFORE
            .replace("SystemdCgroup = false\nBinaryName = \"\"\n", "")
            .replace("podsandbox", "")
            .replace("config.toml", "other.toml")
            + A;
        assert_eq!(compare_dumps(BEFORE, &after, &managed()), Ok(()));
        assert_eq!(compare_dumps(&after, BEFORE, &managed()), Ok(()));
    }

    #[rstest]
    #[case("\"pause\"", "\"secret\"", "sandbox_image")]
    #[case("Cgroup = false", "Cgroup = true", "containerd.runtimes.runc.options")]
    #[case("runtimes.runc", "runtimes.a", "containerd.runtimes.runc")]
    fn settings_of_others_may_not_differ(#[case] from: &str, #[case] to: &str, #[case] key: &str) {
        let key = format!("plugins.io.containerd.grpc.v1.cri.{key}");
        assert_eq!(
            compare_dumps(BEFORE, &BEFORE.replace(from, to), &managed()),
            Err(Error::Changed { key })
        );
    }

    #[test]
    fn a_configuration_without_its_default_runtime_is_refused() {
        let broken = BEFORE.replace("= \"runc\"", "= \"gone\"");
        let name = "gone".to_owned();
        assert_eq!(
            compare_dumps(&broken, &broken, &managed()),
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
    fn the_socket_address_is_read_from_a_dump_of_every_schema(
        #[case] dump: &str,
        #[case] expected: Option<&str>,
    ) {
        assert_eq!(address_of_dump(dump).as_deref(), expected);
    }

    #[test]
    fn a_dump_may_be_longer_than_a_file() {
        let comment = format!("# {}\n", "x".repeat(TEXT_LIMIT));
        let dump = format!("{BEFORE}{comment}");
        assert_eq!(compare_dumps(&dump, &dump, &managed()), Ok(()));
        let dump = format!("{dump}{}", comment.repeat(DUMP_LIMIT / TEXT_LIMIT));
        assert_eq!(
            compare_dumps(&dump, &dump, &managed()),
            Err(Error::LongDump)
        );
    }

    #[test]
    fn a_table_older_than_runtimes_is_read_as_the_handler_that_containerd_makes_of_it() {
        let dump = BEFORE.replace("runtime_type = \"\"", "runtime_type = \"old\"");
        let (default, handlers) = runtimes_of_dump(&dump).unwrap();
        assert_eq!(default, "default");
        assert_eq!(handlers["default"].runtime_type, "old");
    }

    #[test]
    fn a_handler_missing_from_the_dump_is_named() {
        let desired = [Handler {
            name: "a".to_owned(),
            runtime_type: "/a".to_owned(),
            options: BTreeMap::new(),
        }];
        assert_eq!(contains_handlers(&format!("{BEFORE}{A}"), &desired), Ok(()));
        let handler = "a".to_owned();
        assert_eq!(
            contains_handlers(BEFORE, &desired),
            Err(Error::HandlerNotVisible { handler })
        );
    }

    #[test]
    fn the_default_runtime_is_declared_without_its_zero_values() {
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
