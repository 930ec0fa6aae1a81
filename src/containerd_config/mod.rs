//! Reads and edits containerd's configuration: text in, text out.
//!
//! [`config_target`] chooses the file and the table for handlers, and [`edit()`] writes the new text. [`compare_dumps`] and
//! [`contains_handlers`] check the dumps that the host's containerd prints for it. The module reads no file and starts no process.
//!
//! The rules are those of containerd 1.6.20 to 2.4.2, tried on real daemons. Releases and builds differ, so a caller should run the host's
//! own containerd on the new text before a restart. The text is parsed to decide and to check, and spliced to change: `toml_edit` does not
//! print every file back byte for byte.

mod document;
mod dump;
mod edit;
mod edit_template;
mod error;
mod foreign_lines;
mod glob;
mod imports;
mod inline_table;
mod legacy;
mod placement;
mod render;
mod schema;
mod secrets;
mod start_needs;
mod startup_checks;
mod template;
mod types;

pub use dump::{
    address_of_dump, compare_dumps, contains_handlers, data_directories, runtimes_of_dump,
};
pub use edit::{created_base, edit, handlers, remove_managed_handlers};
pub use edit_template::edit_template;
pub use error::Error;
pub use foreign_lines::{foreign_lines, without_marks};
pub use glob::Glob;
pub use imports::{check_snippet, clean_path, imports, with_imports};
pub use legacy::{LegacyHandler, LegacyInstaller, legacy_handlers};
pub use placement::{config_target, config_target_of_any_release};
pub use render::is_usable_name;
pub use schema::{InvalidVersion, PluginId, Version};
pub use secrets::without_secrets;
pub use start_needs::{CniSettings, StartNeeds, cni_settings, outside_dependency, start_needs};
pub use startup_checks::{HostPrerequisite, host_prerequisites, startup_checks};
pub use template::{handlers_declared_twice, is_template, template_fault, template_handlers};
pub use toml::Value;
pub use types::{
    ConfigFiles, ConfigTarget, DUMP_LIMIT, DeclaredHandler, Handler, SourceFile, TEXT_LIMIT,
};
