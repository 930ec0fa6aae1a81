//! Takes handlers of ours out of a file that is edited no longer: which file that is follows the files and the daemon's release, and so
//! it moves when containerd is upgraded. Where it has moved to is decided in `placement`.

use std::collections::{BTreeMap, BTreeSet};

use super::document::Document;
use super::runtimes::edit;
use super::template::{all_template_handlers, edit_template, is_template};
use super::{DeclaredHandler, Error, Placement, PluginId};

/// The text of the file `path`, TOML or a Go template, without the handlers of which `is_ours` holds, by name and declaration, whichever
/// table declares them. The answer is `None` where nothing else is left in a file that we made.
///
/// # Errors
/// As [`edit`] and [`edit_template`].
pub fn without_ours(
    path: &str,
    text: &str,
    is_ours: impl Fn(&str, &DeclaredHandler) -> bool,
) -> Result<Option<String>, Error> {
    let mut left = Some(text.to_owned());
    for plugin in PluginId::ALL {
        let Some(text) = left.as_deref() else {
            break;
        };
        let declared = if is_template(text) {
            all_template_handlers(path, text, plugin)?
        } else {
            Document::parse(path, text)?.handlers(plugin)?
        };
        let gone = names(&declared, &is_ours);
        if gone.is_empty() {
            continue;
        }
        left = if is_template(text) {
            edit_template(path, Some(text), plugin, &gone, &[])?
        } else {
            let placement = Placement {
                path: path.to_owned(),
                plugin,
                version: None,
                drop_in: false,
                spell_out_runc: false,
                elsewhere: BTreeSet::new(),
            };
            edit(Some(text), &placement, &gone, &[], None)?
        };
    }
    Ok(left)
}

fn names(
    declared: &BTreeMap<String, DeclaredHandler>,
    is_ours: impl Fn(&str, &DeclaredHandler) -> bool,
) -> BTreeSet<String> {
    declared
        .iter()
        .filter(|(name, handler)| is_ours(name, handler))
        .map(|(name, _)| name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::Handler;
    use super::*;

    const OTHERS: &str = "version = 2\n# theirs\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.b]\nruntime_type = '/opt/b'\n";
    const TEMPLATE: &str = "{{ template \"base\" . }}\n# theirs\n";

    fn a() -> Handler {
        Handler {
            name: "a".to_owned(),
            runtime_type: "/opt/a".to_owned(),
            options: BTreeMap::new(),
        }
    }

    #[rstest]
    #[case::in_a_file_of_others(Some(OTHERS), true)]
    #[case::in_a_file_of_ours(None, true)]
    #[case::at_the_end_of_one_without_line_end(Some(OTHERS.trim_end()), true)]
    #[case::in_a_template(Some(TEMPLATE), false)]
    #[case::in_a_template_of_ours(None, false)]
    fn what_moved_away_leaves_the_bytes_from_before(
        #[case] before: Option<&str>,
        #[case] toml: bool,
        #[values(PluginId::GrpcV1Cri, PluginId::CriV1Runtime)] plugin: PluginId,
        #[values(false, true)] spell_out_runc: bool,
    ) {
        let placement = Placement {
            path: "f".to_owned(),
            plugin,
            version: Some(2),
            drop_in: false,
            spell_out_runc,
            elsewhere: BTreeSet::new(),
        };
        let none = BTreeSet::new();
        let with = if toml {
            edit(before, &placement, &none, &[a()], Some(&Handler::runc()))
        } else {
            edit_template("f", before, plugin, &none, &[a()])
        };
        let with = with.unwrap().unwrap();
        let ours = |name: &str, handler: &DeclaredHandler| name == "a" && handler.marked;
        let left = without_ours("f", &with, ours).unwrap();
        assert_eq!(left.as_deref(), before);
        let left = without_ours("f", &with, |_, _| false).unwrap();
        assert_eq!(left, Some(with));
    }
}
