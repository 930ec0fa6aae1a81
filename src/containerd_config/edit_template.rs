//! Edits the handlers of a Go template, from which k3s and RKE2 render containerd's configuration.
//!
//! Handlers are appended at the end, where every action is closed. This module does not know the rendered text, so a caller should make the
//! same edit to the rendered file and check the result.

use std::collections::BTreeSet;

use super::error::Error;
use super::legacy::widen;
use super::render::{
    CREATED_MARK, HANDLER_MARK, JOINED_MARK, block, check_names, guarded_block, newline_of,
    without_ranges,
};
use super::schema::PluginId;
use super::template::{Template, declares_found_runtimes};
use super::types::Handler;

/// The action by which a created template includes the text that the distribution writes without a template.
const BASE: &str = "{{ template \"base\" . }}";

/// The new text of the template `path`, which declares exactly the handlers `desired` among the managed ones.
///
/// `plugin` is the plugin in whose table the rendered file declares runtimes. `text` is `None` where there is no template; the new template
/// then includes the distribution's own. The result is `None` where the template should not exist: it is absent and nothing is wanted, or
/// an earlier edit created it and nothing else is left in it. In a template that also declares the runtimes which the distribution finds by
/// itself, each handler gives way to such a runtime of the same name. As with [`edit`](super::edit()), removing all handlers restores the first
/// bytes.
///
/// ```
/// use std::collections::{BTreeMap, BTreeSet};
///
/// use farrier::containerd_config::{Handler, PluginId, edit_template};
///
/// let path = "/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.tmpl";
/// let spin = Handler {
///     name: "spin".to_owned(),
///     runtime_type: "/opt/farrier/bin/containerd-shim-spin-v2".to_owned(),
///     options: BTreeMap::new(),
/// };
/// let text = edit_template(path, None, PluginId::CriV1Runtime, &BTreeSet::new(), &[spin])?.unwrap();
/// assert!(text.contains("{{ template \"base\" . }}"));
/// assert!(text.contains("{{ if not (index .ExtraRuntimes \"spin\").BinaryName }}"));
///
/// let managed = BTreeSet::from(["spin".to_owned()]);
/// assert_eq!(edit_template(path, Some(&text), PluginId::CriV1Runtime, &managed, &[])?, None);
/// # Ok::<(), farrier::containerd_config::Error>(())
/// ```
///
/// # Errors
/// When the text is too long or has an action without an end, a wanted handler has an unusable name or is declared by others, or an
/// action among the lines of a managed handler also has an effect on other lines.
pub fn edit_template(
    path: &str,
    text: Option<&str>,
    plugin: PluginId,
    managed: &BTreeSet<String>,
    desired: &[Handler],
) -> Result<Option<String>, Error> {
    if text.is_none() && desired.is_empty() {
        return Ok(None);
    }
    let desired_by_name = check_names(desired)?;
    let source = text.map_or_else(created_template, str::to_owned);
    let template = Template::scan(path, &source)?;
    let guarded = declares_found_runtimes(&source);
    if let Some(foreign) = template.stanzas.iter().find(|stanza| {
        desired_by_name.contains_key(stanza.handler.as_str())
            && !template.is_managed(stanza, managed)
    }) {
        return Err(Error::Foreign {
            handler: foreign.handler.clone(),
            path: path.to_owned(),
        });
    }
    if text.is_some()
        && !desired.is_empty()
        && template.declares_exactly(plugin, managed, &desired_by_name, guarded)
    {
        return Ok(Some(source));
    }
    let mut removed = Vec::new();
    for stanza in &template.stanzas {
        let is_as_desired = template.is_as_desired(stanza, plugin, &desired_by_name, guarded);
        let stays = !stanza.marked && is_as_desired;
        if template.is_managed(stanza, managed) && !stays {
            let lines = template.removable_lines(stanza);
            removed.push(lines.ok_or_else(|| Error::ActionInHandler {
                path: path.to_owned(),
                handler: stanza.handler.clone(),
            })?);
        }
    }
    let base = without_ranges(&source, &widen(&source, removed));
    if desired.is_empty() && is_created_alone(&base) {
        return Ok(None);
    }
    let kept = Template::scan(path, &base)?;
    let newline = newline_of(&base);
    let mut edited = base.clone();
    let mut mark = HANDLER_MARK;
    for (name, handler) in &desired_by_name {
        if kept.stanzas.iter().any(|stanza| stanza.handler == *name) {
            continue;
        }
        if !edited.is_empty() && !edited.ends_with('\n') {
            edited.push_str(newline);
            mark = JOINED_MARK;
        }
        let block = if guarded { guarded_block } else { block };
        edited.push_str(&block(mark, newline, &plugin.runtimes(), handler));
        mark = HANDLER_MARK;
    }
    let result = Template::scan(path, &edited)?;
    let theirs = template.stanzas.iter();
    let theirs = theirs.filter(|stanza| !template.is_managed(stanza, managed));
    let theirs: BTreeSet<String> = theirs.map(|stanza| stanza.handler.clone()).collect();
    let managed = &(managed - &theirs);
    if !result.declares_exactly(plugin, managed, &desired_by_name, guarded) {
        return Err(Error::NotEditable {
            path: path.to_owned(),
            reason: "the result does not declare the requested handlers",
        });
    }
    Ok(Some(edited))
}

/// Whether a template has nothing but lines of a created one, which others may have removed in part or written with other line ends.
fn is_created_alone(text: &str) -> bool {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.next() == Some(CREATED_MARK) && lines.all(|line| line == BASE)
}

/// A created template without handlers.
pub(super) fn created_template() -> String {
    format!("{CREATED_MARK}\n{BASE}\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rstest::rstest;

    use super::super::render::{GUARD, GUARD_END};
    use super::super::{Value, foreign_lines, is_template, legacy_handlers, template_handlers};
    use super::*;

    const PATH: &str = "/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.tmpl";

    fn handler(name: &str) -> Handler {
        Handler {
            name: name.to_owned(),
            runtime_type: format!("/opt/{name}"),
            options: BTreeMap::from([
                ("Debug".to_owned(), Value::Boolean(true)),
                ("Path".to_owned(), Value::String("{{ .Secret }}".to_owned())),
            ]),
        }
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn edited(text: &str, managed: &[&str], desired: &[Handler]) -> Result<Option<String>, Error> {
        let plugin = PluginId::CriV1Runtime;
        edit_template(PATH, Some(text), plugin, &names(managed), desired)
    }

    #[rstest]
    #[case::base("{{ template \"base\" . }}\n")]
    #[case::base_without_line_end("{{ template \"base\" . }}")]
    #[case::base_later("# mine\nimports = [\"/x/*.toml\"]\n\n{{ template \"base\" . }}\n\n")]
    #[case::crlf("# mine\r\n{{ template \"base\" . }}\r\n")]
    #[case::crlf_without_line_end("# mine\r\n{{ template \"base\" . }}")]
    #[case::actions_inside(
        "version = 3\nroot = {{ printf \"%q}}\" .Root }}\n{{ with .X }}\n[plugins.'y']\n  z = \"{{ . }}\"\n{{ end -}}\n"
    )]
    #[case::comment(
        "{{/* it's }} a\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.a]\n*/}}\n{{- template `base}}` . -}}"
    )]
    #[case::other_handlers(
        "{{ template \"base\" . }}\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'custom']\n  runtime_type = \"x\"\n"
    )]
    #[case::not_ascii("# grün\n{{ /* grün */ }}\n{{ template \"base\" . }}\n")]
    #[case::empty("")]
    fn a_template_gets_its_first_bytes_back(#[case] text: &str) {
        let desired = [handler("b c.d"), handler("a")];
        let with = edited(text, &[], &desired).unwrap().unwrap();
        assert!(with.starts_with(text), "{with}");
        let reversed = [handler("a"), handler("b c.d")];
        assert_eq!(edited(text, &[], &reversed).unwrap().unwrap(), with);
        let again = edited(&with, &["a", "b c.d"], &desired).unwrap().unwrap();
        assert_eq!(again, with);
        let one = edited(&with, &["a", "b c.d"], &desired[..1])
            .unwrap()
            .unwrap();
        assert_eq!(one, edited(text, &[], &desired[..1]).unwrap().unwrap());
        let none = edited(&with, &["a", "b c.d"], &[]).unwrap().unwrap();
        assert_eq!(none, text);
    }

    #[rstest]
    #[case::the_base("{{ template \"base\" . }}\n", true)]
    #[case::the_base_in_another_notation("# mine\n{{- template `base` $ -}}", true)]
    #[case::a_copy_of_the_base(
        "{{range $k, $v := .ExtraRuntimes}}\n[plugins.x.'{{$k}}']\n{{end}}\n",
        true
    )]
    #[case::a_whole_template("version = 3\nroot = '{{ .NodeConfig.Containerd.Root }}'\n", false)]
    #[case::the_base_in_a_comment("{{/* template \"base\" . */}}\n", false)]
    #[case::another_template("{{ template \"other\" . }}\n", false)]
    fn a_handler_gives_way_where_the_template_declares_found_runtimes(
        #[case] text: &str,
        #[case] expected: bool,
        #[values("spin", "a}}b c")] name: &str,
    ) {
        let desired = [handler(name)];
        let with = edited(text, &[], &desired).unwrap().unwrap();
        let guard = format!("{GUARD}\"{name}\").BinaryName }}}}\n");
        assert_eq!(with.contains(&guard), expected, "{with}");
        assert_eq!(with.contains(GUARD_END), expected, "{with}");
        let again = edited(&with, &[name], &desired).unwrap().unwrap();
        assert_eq!(again, with);
        assert_eq!(edited(&with, &[name], &[]).unwrap().unwrap(), text);
    }

    /// The text without the actions by which handlers give way.
    fn unguarded(text: &str) -> String {
        let lines = text.lines();
        let lines = lines.filter(|line| !line.starts_with(GUARD) && *line != GUARD_END);
        lines.flat_map(|line| [line, "\n"]).collect()
    }

    #[test]
    fn a_declaration_that_does_not_give_way_is_written_anew() {
        let desired = [handler("spin"), handler("b")];
        let base = format!("{BASE}\n");
        let with = edited(&base, &[], &desired).unwrap().unwrap();
        let without = unguarded(&with);
        assert!(!without.contains(".ExtraRuntimes"));
        let managed = ["spin", "b"];
        let again = edited(&without, &managed, &desired).unwrap().unwrap();
        assert_eq!(again, with);
        assert_eq!(edited(&without, &managed, &[]).unwrap().unwrap(), base);
    }

    #[test]
    fn a_declaration_of_others_beside_that_of_farrier_stays() {
        let theirs = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.spin]\nruntime_type = 'theirs'\n";
        for base in [format!("{BASE}\n"), format!("{theirs}{BASE}\n")] {
            let with = edited(&format!("{BASE}\n"), &[], &[handler("spin")]).unwrap();
            let with = with.unwrap().replace(&format!("{BASE}\n"), &base);
            let (both, left) = if base.contains(theirs) {
                (with, base)
            } else {
                (format!("{with}{theirs}"), format!("{base}{theirs}"))
            };
            assert_eq!(edited(&both, &["spin"], &[]).unwrap().unwrap(), left);
            let refused = edited(&both, &["spin"], &[handler("spin")]);
            assert!(matches!(refused, Err(Error::Foreign { .. })), "{refused:?}");
        }
    }

    #[test]
    fn other_handlers_are_found_beside_one_that_gives_way() {
        let kata = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata]\nruntime_type = 'kata'\n";
        let text = format!("{BASE}\n{kata}");
        let with = edited(&text, &[], &[handler("spin")]).unwrap().unwrap();
        let found = template_handlers(&with, PluginId::CriV1Runtime);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["kata"]);
    }

    /// Fails unless an action among the lines of `handler` prevents their removal.
    fn assert_action_in(text: &str, handler: &str) {
        let error = edited(text, &[handler], &[]).unwrap_err();
        assert!(matches!(error, Error::ActionInHandler { .. }), "{error}");
        let help = error.help().unwrap();
        let expected = format!("remove the action from the lines of handler {handler} in {PATH}");
        assert_eq!(help, expected);
    }

    #[rstest]
    #[case::removed("")]
    #[case::behind_another_table("[metrics]\naddress = ''\n{{ end }}\n")]
    fn a_declaration_without_the_end_of_its_action_is_left_alone(#[case] end: &str) {
        let with = edited(&format!("{BASE}\n"), &[], &[handler("spin")]);
        let with = with.unwrap().unwrap().replace("{{ end }}\n", end);
        assert_action_in(&with, "spin");
    }

    #[test]
    fn a_value_can_not_begin_an_action() {
        let with = edited("", &[], &[handler("a")]).unwrap().unwrap();
        assert!(!is_template(&with), "{with}");
        assert!(edited("", &[], &[handler("{{a}}")]).is_err());
    }

    #[test]
    fn a_created_template_includes_the_base_and_is_removed_with_its_last_handler() {
        let plugin = PluginId::GrpcV1Cri;
        let with = edit_template(PATH, None, plugin, &names(&[]), &[handler("a")])
            .unwrap()
            .unwrap();
        assert!(with.contains("\n{{ template \"base\" . }}\n"), "{with}");
        let left = edit_template(PATH, Some(&with), plugin, &names(&["a"]), &[]).unwrap();
        assert_eq!(left, None);
        for changed in [
            with.replace('\n', "\r\n"),
            with.replace(&format!("{BASE}\n"), ""),
            format!("\n{with}\n"),
        ] {
            let left = edit_template(PATH, Some(&changed), plugin, &names(&["a"]), &[]).unwrap();
            assert_eq!(left, None, "{changed}");
        }
        let filled = format!("{with}[metrics]\n");
        let left = edit_template(PATH, Some(&filled), plugin, &names(&["a"]), &[]).unwrap();
        assert_eq!(left.unwrap(), format!("{}[metrics]\n", created_template()));
    }

    #[rstest]
    #[case(
        "{{ template \"base\" . }}\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'a']\n"
    )]
    #[case(
        "{{ if .X }}\n[ plugins . \"io.containerd.grpc.v1.cri\".containerd.runtimes.a.options ] # {{ .Y }}\n{{ end }}\n"
    )]
    fn a_handler_that_the_template_declares_already_is_refused(#[case] text: &str) {
        assert!(matches!(
            edited(text, &[], &[handler("a")]),
            Err(Error::Foreign { .. })
        ));
    }

    #[test]
    fn a_stanza_that_was_taken_over_is_removed_with_its_keys_and_nothing_else() {
        let stanza = "  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.a]\n\n    runtime_type = '/old' # x\n";
        let text =
            format!("{BASE}\n{stanza}\n# theirs\n{{{{ if .X }}}}\n[metrics]\n{{{{ end }}}}\n");
        let left = edited(&text, &["a"], &[]).unwrap().unwrap();
        assert_eq!(left, text.replace(stanza, ""));
    }

    /// What runtime-class-manager appends for `name`.
    fn rcm(name: &str, options: &str) -> String {
        let table = format!("[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.{name}");
        let options = if options.is_empty() {
            String::new()
        } else {
            format!("{table}.options]{options}")
        };
        format!(
            "\n# RCM runtime config for {name}\n{table}]\nruntime_type = \"/opt/rcm/bin/containerd-shim-{name}\"\n{options}"
        )
    }

    #[rstest]
    #[case::line_end("{{ template \"base\" . }}\n")]
    #[case::no_line_end("{{ template \"base\" . }}")]
    #[case::theirs_behind(
        "{{ template \"base\" . }}\n{{ with .X }}\n[metrics]\nx = {{ . }}\n{{ end }}\n"
    )]
    fn handlers_of_a_legacy_installer_are_removed_to_the_last_byte(#[case] base: &str) {
        let text = [
            base,
            &rcm("a", "\nx = 1\ny = true"),
            &rcm("b", ""),
            &rcm("c", "\nx = \"z\""),
        ]
        .concat();
        let found = legacy_handlers(PATH, &text).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(found["a"].options.len(), 2);
        for order in [["a", "b", "c"], ["c", "b", "a"], ["b", "a", "c"]] {
            let mut left = text.clone();
            for name in order {
                left = edited(&left, &[name], &[]).unwrap().unwrap();
            }
            assert_eq!(left, base, "{order:?}");
        }
        // Beside a managed handler that is added and removed.
        let with = edited(&text, &[], &[handler("mine")]).unwrap().unwrap();
        let rest = edited(&with, &["a", "b", "c"], &[]).unwrap().unwrap();
        assert_eq!(legacy_handlers(PATH, &rest).unwrap().len(), 0);
        let all = ["mine", "a", "b", "c"];
        assert_eq!(edited(&with, &all, &[]).unwrap().unwrap(), base);
        assert_eq!(edited(&with, &["mine"], &[]).unwrap().unwrap(), text);
    }

    #[test]
    fn a_stanza_with_an_action_in_it_belongs_to_no_legacy_installer() {
        let text = format!("{BASE}\n{}", rcm("a", "\nx = {{ .X }}"));
        assert!(legacy_handlers(PATH, &text).unwrap().is_empty());
        let text = format!("{BASE}\n{{{{ if .X }}}}{}\n{{{{ end }}}}\n", rcm("a", ""));
        assert_eq!(legacy_handlers(PATH, &text).unwrap().len(), 1);
    }

    #[test]
    fn a_stanza_that_was_taken_over_and_is_as_wanted_stays_where_it_is() {
        let mut desired = handler("a");
        desired.options.clear();
        let stanza = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.a]\nruntime_type = '/opt/a'\n";
        let text = format!("{stanza}{BASE}\n");
        let both = edited(&text, &["a"], &[desired, handler("b")])
            .unwrap()
            .unwrap();
        assert!(both.starts_with(&text), "{both}");
    }

    #[rstest]
    #[case::in_a_value("runtime_type = '{{ .Shim }}'\n")]
    #[case::between("runtime_type = '/x'\n{{ if .X }}\nsnapshotter = 'y'\n{{ end }}\n")]
    fn a_stanza_with_actions_in_it_is_left_alone(#[case] keys: &str) {
        let header = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.a]\n";
        assert_action_in(&format!("{header}{keys}"), "a");
    }

    #[rstest]
    #[case::in_a_value("snapshotter = \"{{ .X }}\"\n", &["snapshotter = \"{ { .X }}\""])]
    #[case::three_braces("x = {{{ .X }}}\n", &["x = { { { .X }}}"])]
    #[case::a_block(
        "{{ if .X }}\nsnapshotter = 'y'\n{{ end }}\n",
        &["{ { if .X }}", "snapshotter = 'y'"]
    )]
    #[case::a_comment("{{/* mine\n*/}}\nx = 1\n", &["{ {/* mine", "*/}}", "x = 1"])]
    fn actions_among_the_lines_of_farrier_s_handler_are_removed_and_kept_as_comments(
        #[case] added: &str,
        #[case] kept: &[&str],
        #[values(true, false)] guarded: bool,
    ) {
        let base = if guarded { BASE } else { "# {{ .Mine }}" };
        let base = format!("{base}\n");
        let with = edited(&base, &[], &[handler("a")]).unwrap().unwrap();
        let with = match with.strip_suffix(&format!("{GUARD_END}\n")) {
            Some(open) => format!("{open}{added}{GUARD_END}\n"),
            None => format!("{with}{added}"),
        };
        let behind = "[metrics]\naddress = '{{ .Y }}'\n";
        let with = format!("{with}{behind}");
        let left = edited(&with, &["a"], &[]).unwrap().unwrap();
        assert_eq!(left, format!("{base}{behind}"));
        let comments = foreign_lines(PATH, &with, &[handler("a")]).unwrap();
        for line in kept {
            assert!(comments.contains(&format!("\n# {line}\n")), "{comments}");
        }
        assert!(!is_template(&comments), "{comments}");
        let again = edited(&with, &["a"], &[handler("a")]).unwrap().unwrap();
        assert!(again.starts_with(&left), "{again}");
    }

    #[rstest]
    #[case::a_block_that_ends_behind_other_lines(
        "{{ with .X }}\nx = 1\n[metrics]\naddress = ''\n{{ end }}\n"
    )]
    #[case::a_variable("x = {{ $x := .X }}\n[metrics]\naddress = '{{ $x }}'\n")]
    #[case::another_branch("x = 1\n{{ else }}\ny = 1\n")]
    fn an_action_with_an_effect_on_other_lines_is_named(#[case] added: &str) {
        let with = edited("# {{ .Mine }}\n", &[], &[handler("a")]);
        let with = with.unwrap().unwrap();
        assert_action_in(&format!("{with}{added}"), "a");
    }

    #[test]
    fn a_carriage_return_alone_at_the_end_is_refused() {
        assert!(matches!(
            edited("{{ template \"base\" . }}\r", &[], &[handler("a")]),
            Err(Error::Syntax { .. })
        ));
    }

    #[rstest]
    #[case("{{ template \"base\" . }")]
    #[case("{{ printf \"}} \\\" }}")]
    #[case("{{/* }}")]
    fn an_action_without_an_end_is_refused(#[case] text: &str) {
        assert!(matches!(
            edited(text, &[], &[handler("a")]),
            Err(Error::Syntax { .. })
        ));
    }
}
