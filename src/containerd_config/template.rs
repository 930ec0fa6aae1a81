//! Changes the handlers of a Go template that k3s or RKE2 render their configuration from: a text that is no TOML until then.
//!
//! What stands between the actions is read line by line, tables by their headers; ours go to the end, where every action is closed. What
//! a template renders to isn't known here: the same edit of the rendered file says whether it may be done.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::document::Document;
use super::notation::{CREATED_MARK, HANDLER_MARK, JOINED_MARK, MARK, block, newline_of};
use super::predecessors::widen;
use super::runtimes::{check_names, without_ranges};
use super::{DeclaredHandler, Error, Handler, PluginId, TEXT_LIMIT};

/// What a template of ours begins with: all that the distribution would write without one.
const BASE: &str = "{{ template \"base\" . }}";

/// Whether the text has template actions. One that has none is edited as the TOML that it is.
#[must_use]
pub fn is_template(text: &str) -> bool {
    text.contains("{{")
}

/// The template `text` of the file `path` with exactly `want` among the handlers that are ours.
///
/// `plugin` is the table that the rendered file declares runtimes in. `text` is `None` where there is no template: one is made that
/// takes over the distribution's own. The answer is `None` where there should be none: it is absent and stays so, or we made it and
/// nothing else is left in it. As with [`edit`](super::edit), taking all handlers out gives the first bytes back.
///
/// # Errors
/// When the text is too long or has an action without an end, a wanted handler is somebody else's or has an unusable name, or an
/// action stands among the lines of a handler that is ours.
pub fn edit_template(
    path: &str,
    text: Option<&str>,
    plugin: PluginId,
    ours: &BTreeSet<String>,
    want: &[Handler],
) -> Result<Option<String>, Error> {
    if text.is_none() && want.is_empty() {
        return Ok(None);
    }
    let wanted = check_names(want)?;
    let source = text.map_or_else(created, str::to_owned);
    let template = Template::scan(path, &source)?;
    if let Some(foreign) = template
        .stanzas
        .iter()
        .map(|stanza| &stanza.handler)
        .find(|name| wanted.contains_key(name.as_str()) && !ours.contains(*name))
    {
        return Err(Error::Foreign {
            handler: foreign.clone(),
            path: path.to_owned(),
        });
    }
    if text.is_some() && !want.is_empty() && template.says(plugin, ours, &wanted) {
        return Ok(Some(source));
    }
    let mut gone = Vec::new();
    for stanza in &template.stanzas {
        let stays = !stanza.marked && template.settles(stanza, plugin, &wanted);
        if ours.contains(&stanza.handler) && !stays {
            if stanza.split {
                return Err(Error::Unfit {
                    path: path.to_owned(),
                    reason: "a template action stands among the lines of a handler",
                });
            }
            gone.push(stanza.lines.clone());
        }
    }
    let base = without_ranges(&source, &widen(&source, gone));
    if want.is_empty() && base == created() {
        return Ok(None);
    }
    let kept = Template::scan(path, &base)?;
    let newline = newline_of(&base);
    let mut edited = base.clone();
    let mut mark = HANDLER_MARK;
    for (name, handler) in &wanted {
        if kept.stanzas.iter().any(|stanza| stanza.handler == *name) {
            continue;
        }
        if !edited.is_empty() && !edited.ends_with('\n') {
            edited.push_str(newline);
            mark = JOINED_MARK;
        }
        edited.push_str(&block(mark, newline, &plugin.runtimes(), handler));
        mark = HANDLER_MARK;
    }
    let result = Template::scan(path, &edited)?;
    if !result.says(plugin, ours, &wanted) {
        return Err(Error::Unfit {
            path: path.to_owned(),
            reason: "its handlers would not be the wanted ones",
        });
    }
    Ok(Some(edited))
}

/// The lines of each handler in a template that no action stands among, and the line above them, where a predecessor's comment may be.
///
/// # Errors
/// When the text is too long or has an action without an end.
pub(super) fn stanzas<'a>(path: &str, text: &'a str) -> Result<Vec<&'a str>, Error> {
    let template = Template::scan(path, text)?;
    let whole = template.stanzas.iter().filter(|stanza| !stanza.split);
    let lines = whole.filter_map(|stanza| {
        let above = text.get(..stanza.lines.start)?.trim_end_matches('\n');
        let line = above.rfind('\n').map_or(0, |newline| newline + 1);
        let is_comment = above.len() + 1 == stanza.lines.start && above[line..].starts_with('#');
        let start = if is_comment { line } else { stanza.lines.start };
        text.get(start..stanza.lines.end)
    });
    Ok(lines.collect())
}

/// The handlers of others that the template `text` declares in `plugin` whatever it is rendered with; none where an action may leave
/// lines out.
#[must_use]
pub fn template_handlers(text: &str, plugin: PluginId) -> BTreeMap<String, DeclaredHandler> {
    // The words by which an action chooses (Go's text/template, *Actions*).
    let choose = ["block", "define", "if", "range", "with"];
    let mut actions = text.split("{{").skip(1);
    let chooses = actions.any(|action| {
        let words = action.strip_prefix('-').unwrap_or(action).trim_start();
        let word = words.split(|letter: char| !letter.is_ascii_alphabetic());
        word.take(1).any(|word| choose.contains(&word))
    });
    let Some(template) = Template::scan("", text).ok().filter(|_| !chooses) else {
        return BTreeMap::new();
    };
    let others = template.stanzas.iter().filter(|stanza| !stanza.marked);
    others
        .filter_map(|stanza| Some((stanza.handler.clone(), template.declared(stanza, plugin)?)))
        .collect()
}

/// The handlers that the template `text` of the file `path` declares in `plugin` with no action among their lines, ours included.
///
/// # Errors
/// When the text is too long or has an action without an end.
pub(super) fn all_template_handlers(
    path: &str,
    text: &str,
    plugin: PluginId,
) -> Result<BTreeMap<String, DeclaredHandler>, Error> {
    let template = Template::scan(path, text)?;
    let whole = template.stanzas.iter().filter(|stanza| !stanza.split);
    let declared = whole.filter_map(|stanza| {
        let mut declared = template.declared(stanza, plugin)?;
        declared.marked = stanza.marked;
        Some((stanza.handler.clone(), declared))
    });
    Ok(declared.collect())
}

/// A template as we make it, without handlers.
fn created() -> String {
    format!("{CREATED_MARK}\n{BASE}\n")
}

/// The lines of one handler, from its first header or our comment above that to its last key.
struct Stanza {
    handler: String,
    lines: Range<usize>,
    /// Where the first header stands.
    header: usize,
    /// Whether our comment stands above it.
    marked: bool,
    /// Whether its lines hold an action.
    split: bool,
}

/// A template and the handlers that it declares under headers of their own.
struct Template<'a> {
    text: &'a str,
    stanzas: Vec<Stanza>,
}

impl<'a> Template<'a> {
    fn scan(path: &str, text: &'a str) -> Result<Self, Error> {
        if text.len() > TEXT_LIMIT {
            return Err(Error::Long {
                path: path.to_owned(),
            });
        }
        // Completed to a line end by ours, it could not be told from one that was whole.
        if text.ends_with('\r') {
            return Err(Error::Syntax {
                path: path.to_owned(),
                reason: "its last line end is half of one".to_owned(),
            });
        }
        let plain = without_actions(text).ok_or_else(|| Error::Syntax {
            path: path.to_owned(),
            reason: "a template action has no end".to_owned(),
        })?;
        let mut stanzas: Vec<Stanza> = Vec::new();
        // Whether the lines that follow belong to the last stanza, and whether an action was seen since its last line.
        let (mut open, mut action) = (false, false);
        let mut above = None;
        let mut start = 0;
        for line in plain.split_inclusive('\n') {
            let lines = start..start + line.len();
            let acts = text[lines.clone()] != *line;
            let words = line.trim();
            start = lines.end;
            if words.is_empty() || words.starts_with('#') {
                action |= acts;
                above = (!acts && words.starts_with(MARK)).then_some(lines.start);
                continue;
            }
            let mark = above.take();
            if words.starts_with('[') {
                let handler = handler_of(words);
                let last = stanzas.last_mut().filter(|last| {
                    open && mark.is_none() && Some(&last.handler) == handler.as_ref()
                });
                open = handler.is_some();
                match (handler, last) {
                    (None, _) => {}
                    (Some(_), Some(last)) => {
                        last.lines.end = lines.end;
                        last.split |= action || acts;
                    }
                    (Some(handler), None) => stanzas.push(Stanza {
                        handler,
                        lines: mark.unwrap_or(lines.start)..lines.end,
                        header: lines.start,
                        marked: mark.is_some(),
                        split: acts,
                    }),
                }
            } else if open && let Some(last) = stanzas.last_mut() {
                last.lines.end = lines.end;
                last.split |= action || acts;
            }
            action = false;
        }
        Ok(Self { text, stanzas })
    }

    /// Whether exactly `wanted` are ours, each as it should be.
    fn says(
        &self,
        plugin: PluginId,
        ours: &BTreeSet<String>,
        wanted: &BTreeMap<&str, &Handler>,
    ) -> bool {
        let named = |name: &str| {
            self.stanzas
                .iter()
                .filter(move |stanza| stanza.handler == name)
                .count()
        };
        wanted.keys().all(|name| named(name) == 1)
            && self.stanzas.iter().all(|stanza| {
                if wanted.contains_key(stanza.handler.as_str()) {
                    self.settles(stanza, plugin, wanted)
                } else {
                    !ours.contains(&stanza.handler)
                }
            })
    }

    fn settles(
        &self,
        stanza: &Stanza,
        plugin: PluginId,
        wanted: &BTreeMap<&str, &Handler>,
    ) -> bool {
        !stanza.split
            && wanted.get(stanza.handler.as_str()).is_some_and(|wanted| {
                self.declared(stanza, plugin)
                    .is_some_and(|it| it.is(wanted))
            })
    }

    fn declared(&self, stanza: &Stanza, plugin: PluginId) -> Option<DeclaredHandler> {
        let text = self.text.get(stanza.header..stanza.lines.end)?;
        let mut handlers = Document::parse("", text).ok()?.handlers(plugin).ok()?;
        handlers.remove(&stanza.handler)
    }
}

/// The handler whose table, or a table below whose, the header opens.
fn handler_of(header: &str) -> Option<String> {
    let document = Document::parse("", header).ok()?;
    PluginId::ALL
        .into_iter()
        .filter_map(|plugin| document.handlers(plugin).ok())
        .find_map(|handlers| handlers.into_keys().next())
}

/// The text with a blank for each byte of an action; `None` where an action has no end.
///
/// Go's rules (`text/template`, *Actions*): a comment ends at `*/`, and quoted strings may hold what else would end the action.
fn without_actions(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("{{") {
        let (before, action) = rest.split_at(at);
        plain.push_str(before);
        let end = end_of_action(action)?;
        let blank = |byte| if byte == b'\n' { '\n' } else { ' ' };
        plain.extend(action.bytes().take(end).map(blank));
        rest = action.get(end..)?;
    }
    plain.push_str(rest);
    Some(plain)
}

/// The length of the action that the text begins with.
fn end_of_action(action: &str) -> Option<usize> {
    let inner = action.strip_prefix("{{")?;
    let trimmed = inner.strip_prefix("- ").unwrap_or(inner).trim_start();
    if let Some(comment) = trimmed.strip_prefix("/*") {
        let after = comment.find("*/").map(|at| &comment[at + 2..])?;
        return after
            .find("}}")
            .map(|at| action.len() - after.len() + at + 2);
    }
    let mut quote = None;
    let mut escaped = false;
    let bytes = action.as_bytes();
    for (index, &byte) in bytes.iter().enumerate().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(b'"' | b'\'') if byte == b'\\' => escaped = true,
            Some(open) if byte == open => quote = None,
            None if matches!(byte, b'"' | b'\'' | b'`') => quote = Some(byte),
            None if byte == b'}' && bytes.get(index + 1) == Some(&b'}') => {
                return Some(index + 2);
            }
            Some(_) | None => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::{Value, inherited};
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

    fn edited(text: &str, ours: &[&str], want: &[Handler]) -> Result<Option<String>, Error> {
        let plugin = PluginId::CriV1Runtime;
        edit_template(PATH, Some(text), plugin, &names(ours), want)
    }

    #[rstest]
    #[case::beside_the_base("{{ template \"base\" . }}\n", &["kata"])]
    #[case::beside_a_value("root = {{ .Root }}\n{{- /* if so */ -}}\n", &["kata"])]
    #[case::beside_a_choice("{{- if .X }}\n{{ end }}\n", &[])]
    #[case::in_a_loop("{{range .X}}\n{{ end }}\n", &[])]
    #[case::beside_half_an_action("{{ template", &[])]
    fn a_handler_that_is_rendered_in_any_case_is_known(
        #[case] text: &str,
        #[case] expected: &[&str],
    ) {
        let header = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes";
        let text =
            format!("{text}{header}.kata]\n{HANDLER_MARK}\n{header}.a]\nruntime_type = 'x'\n");
        let found = template_handlers(&text, PluginId::CriV1Runtime);
        assert_eq!(found.into_keys().collect::<BTreeSet<_>>(), names(expected));
        assert!(template_handlers(&text, PluginId::GrpcV1Cri).is_empty());
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
        let want = [handler("b c.d"), handler("a")];
        let with = edited(text, &[], &want).unwrap().unwrap();
        assert!(with.starts_with(text), "{with}");
        let reversed = [handler("a"), handler("b c.d")];
        assert_eq!(edited(text, &[], &reversed).unwrap().unwrap(), with);
        let again = edited(&with, &["a", "b c.d"], &want).unwrap().unwrap();
        assert_eq!(again, with);
        let one = edited(&with, &["a", "b c.d"], &want[..1]).unwrap().unwrap();
        assert_eq!(one, edited(text, &[], &want[..1]).unwrap().unwrap());
        let none = edited(&with, &["a", "b c.d"], &[]).unwrap().unwrap();
        assert_eq!(none, text);
    }

    #[test]
    fn a_value_can_not_begin_an_action() {
        let with = edited("", &[], &[handler("a")]).unwrap().unwrap();
        assert!(!is_template(&with), "{with}");
        assert!(edited("", &[], &[handler("{{a}}")]).is_err());
    }

    #[test]
    fn a_template_that_was_not_there_takes_over_the_base_and_goes_again() {
        let plugin = PluginId::GrpcV1Cri;
        let with = edit_template(PATH, None, plugin, &names(&[]), &[handler("a")])
            .unwrap()
            .unwrap();
        assert!(with.contains("\n{{ template \"base\" . }}\n"), "{with}");
        let left = edit_template(PATH, Some(&with), plugin, &names(&["a"]), &[]).unwrap();
        assert_eq!(left, None);
        let filled = format!("{with}[metrics]\n");
        let left = edit_template(PATH, Some(&filled), plugin, &names(&["a"]), &[]).unwrap();
        assert_eq!(left.unwrap(), format!("{}[metrics]\n", created()));
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
    fn an_adopted_stanza_leaves_with_its_keys_and_nothing_else() {
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
    fn what_a_predecessor_appended_leaves_to_the_last_byte(#[case] base: &str) {
        let text = [
            base,
            &rcm("a", "\nx = 1\ny = true"),
            &rcm("b", ""),
            &rcm("c", "\nx = \"z\""),
        ]
        .concat();
        let found = inherited(PATH, &text).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(found["a"].options.len(), 2);
        for order in [["a", "b", "c"], ["c", "b", "a"], ["b", "a", "c"]] {
            let mut left = text.clone();
            for name in order {
                left = edited(&left, &[name], &[]).unwrap().unwrap();
            }
            assert_eq!(left, base, "{order:?}");
        }
        // Beside ours, which come and go.
        let with = edited(&text, &[], &[handler("ours")]).unwrap().unwrap();
        let rest = edited(&with, &["a", "b", "c"], &[]).unwrap().unwrap();
        assert_eq!(inherited(PATH, &rest).unwrap().len(), 0);
        let all = ["ours", "a", "b", "c"];
        assert_eq!(edited(&with, &all, &[]).unwrap().unwrap(), base);
        assert_eq!(edited(&with, &["ours"], &[]).unwrap().unwrap(), text);
    }

    #[test]
    fn a_stanza_with_an_action_in_it_is_no_predecessor_s() {
        let text = format!("{BASE}\n{}", rcm("a", "\nx = {{ .X }}"));
        assert!(inherited(PATH, &text).unwrap().is_empty());
        let text = format!("{BASE}\n{{{{ if .X }}}}{}\n{{{{ end }}}}\n", rcm("a", ""));
        assert_eq!(inherited(PATH, &text).unwrap().len(), 1);
    }

    #[test]
    fn an_adopted_stanza_that_is_as_wanted_stays_where_it_is() {
        let mut want = handler("a");
        want.options.clear();
        let stanza = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.a]\nruntime_type = '/opt/a'\n";
        let text = format!("{stanza}{BASE}\n");
        let both = edited(&text, &["a"], &[want, handler("b")])
            .unwrap()
            .unwrap();
        assert!(both.starts_with(&text), "{both}");
    }

    #[rstest]
    #[case::in_a_value("runtime_type = '{{ .Shim }}'\n")]
    #[case::between("runtime_type = '/x'\n{{ if .X }}\nsnapshotter = 'y'\n{{ end }}\n")]
    fn a_stanza_with_actions_in_it_is_left_alone(#[case] keys: &str) {
        let header = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.a]\n";
        assert!(matches!(
            edited(&format!("{header}{keys}"), &["a"], &[]),
            Err(Error::Unfit { .. })
        ));
    }

    #[test]
    fn half_a_line_end_is_no_end() {
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
