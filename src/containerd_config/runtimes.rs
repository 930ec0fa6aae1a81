//! Reads and changes the handlers of one file by splicing its text; every byte that isn't ours stays.
//!
//! Our handlers are taken out and the wanted ones are put in at the end, so that the result depends on what is wanted and not on
//! the order of requests; taking all of them out gives the first bytes back.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::braces::fill_braces;
use super::document::{Document, Holder};
use super::notation::{
    BRACES_MARK, CREATED_MARK, HANDLER_MARK, JOINED_MARK, RUNC_MARK, VERSION_MARK, block,
    newline_of,
};
use super::predecessors;
use super::tree::{Tree, without};
use super::{DeclaredHandler, Error, Handler, Placement, PluginId};

/// containerd's own default runtime, which is never ours to give away.
pub(super) const RUNC: &str = "runc";

/// The handlers that the text declares where `placement` says.
///
/// # Errors
/// When the text is no TOML, or something other than a table stands where containerd wants one.
pub fn handlers(
    text: &str,
    placement: &Placement,
) -> Result<BTreeMap<String, DeclaredHandler>, Error> {
    Document::parse(&placement.path, text)?.handlers(placement.plugin)
}

/// The text with exactly `want` among the handlers that are ours.
///
/// `text` is the file's present text, or `None` where it is absent. `ours` names what the state file says that we wrote. `runc`
/// is the default runtime as the daemon showed it before; it is written beside ours where `placement` asks for it, and leaves with
/// the last of them. The answer is `None` where the file should not exist: it is absent and stays so, or we made it and nothing
/// is left in it. A text that already is as wanted comes back unchanged.
///
/// # Errors
/// When the text can't be parsed, a wanted handler is somebody else's or has an unusable name, `runc` is needed and missing, or
/// the file's notation leaves no safe place. Nothing is ever half done: the result was parsed again and means what was meant.
pub fn edit(
    text: Option<&str>,
    placement: &Placement,
    ours: &BTreeSet<String>,
    want: &[Handler],
    runc: Option<&Handler>,
) -> Result<Option<String>, Error> {
    let source = text.unwrap_or_default();
    let document = Document::parse(&placement.path, source)?;
    let declared = document.handlers(placement.plugin)?;
    let wanted = check(placement, &declared, ours, want)?;

    let stale = |name: &String| ours.contains(name) && !wanted.contains_key(name.as_str());
    let settled = wanted.iter().all(|(name, handler)| {
        declared
            .get(*name)
            .is_some_and(|declared| declared.is(handler))
    });
    // Where we wrote the version and the root has another one by now, ours has to follow.
    let follows = document.own_version().is_none() || document.version()? == placement.version;
    let mut dead = false;
    for plugin in PluginId::ALL {
        let handlers = document.handlers(plugin)?;
        dead |= plugin != placement.plugin
            && handlers.iter().any(|(name, handler)| {
                ours.contains(name) && is_ours(&document, plugin, name, handler)
            });
    }
    if settled && follows && !dead && !want.is_empty() && !declared.keys().any(stale) {
        return Ok(text.map(str::to_owned));
    }
    let base = strip(&document, placement, &declared, ours, &wanted)?;
    let created = text.is_none() || base.created;
    if want.is_empty() && created && base.text.trim().is_empty() {
        return Ok(None);
    }
    let edited = if want.is_empty() {
        base.text
    } else {
        fill(&base.text, created, placement, &wanted, runc)?
    };
    verify(&document, &edited, placement, ours, &wanted)?;
    let mark = if document.byte_order_mark {
        "\u{feff}"
    } else {
        ""
    };
    Ok(Some(format!("{mark}{edited}")))
}

/// Whether a handler or an option of it can have this name: it can be written as a TOML key that every release reads alike, and is
/// not the default runtime's.
#[must_use]
pub fn is_usable_name(name: &str) -> bool {
    // go-toml 1.9, which containerd 1.x reads with, doesn't decode escapes in keys: such names would be other names there.
    let unsafe_key = |char: char| char.is_control() || matches!(char, '"' | '\\');
    // Where the file is a template, `{{` begins an action.
    !name.is_empty() && name != RUNC && !name.contains(unsafe_key) && !name.contains("{{")
}

/// What is wanted, by name, once every name is usable and free.
fn check<'a>(
    placement: &Placement,
    declared: &BTreeMap<String, DeclaredHandler>,
    ours: &BTreeSet<String>,
    want: &'a [Handler],
) -> Result<BTreeMap<&'a str, &'a Handler>, Error> {
    let wanted = check_names(want)?;
    let foreign = want.iter().map(|handler| &handler.name).find(|name| {
        !ours.contains(*name)
            && (declared.contains_key(*name) || placement.elsewhere.contains(*name))
    });
    match foreign {
        Some(name) => Err(Error::Foreign {
            handler: name.clone(),
            path: placement.path.clone(),
        }),
        None => Ok(wanted),
    }
}

/// What is wanted, by name, once every name is usable and there once.
pub(super) fn check_names(want: &[Handler]) -> Result<BTreeMap<&str, &Handler>, Error> {
    let mut wanted = BTreeMap::new();
    for handler in want {
        let name = &handler.name;
        if let Some(found) = std::iter::once(name)
            .chain(handler.options.keys())
            .find(|name| !is_usable_name(name))
        {
            return Err(Error::Name {
                found: found.clone(),
            });
        }
        if wanted.insert(name.as_str(), handler).is_some() {
            return Err(Error::Twice {
                handler: name.clone(),
            });
        }
    }
    Ok(wanted)
}

/// A file without what we wrote.
struct Base {
    text: String,
    created: bool,
}

/// Takes out all that bears our comment, and of the rest of ours what isn't wanted as it stands.
fn strip(
    document: &Document<'_>,
    placement: &Placement,
    declared: &BTreeMap<String, DeclaredHandler>,
    ours: &BTreeSet<String>,
    wanted: &BTreeMap<&str, &Handler>,
) -> Result<Base, Error> {
    let path = placement.plugin.runtimes();
    // Between braces no comment tells what we wrote: all that is ours goes, so that the same set always stands in the same order.
    let braces = matches!(
        document.holder(&[path.as_slice(), &[RUNC]].concat()),
        Holder::Braces(_, _)
    );
    let (mut gone, kept): (BTreeSet<&str>, BTreeSet<&str>) =
        declared.keys().map(String::as_str).partition(|name| {
            let handler = &declared[*name];
            let settled = wanted.get(name).is_some_and(|wanted| handler.is(wanted));
            ours.contains(*name) && (handler.marked || braces || !settled)
        });
    // Whoever stays beside it would hide the default runtime, too.
    if kept.iter().eq([&RUNC]) && declared[RUNC].marked {
        gone.insert(RUNC);
    }
    let mut ranges = document.extents(placement.plugin, &gone);
    for plugin in PluginId::ALL {
        if plugin != placement.plugin {
            let handlers = document.handlers(plugin)?;
            let gone = handlers
                .iter()
                .filter(|(name, handler)| {
                    ours.contains(*name) && is_ours(document, plugin, name, handler)
                })
                .map(|(name, _)| name.as_str())
                .collect();
            ranges.extend(document.extents(plugin, &gone));
        }
    }
    ranges.sort_by_key(|range| range.start);
    let mut ranges = predecessors::widen(document.text, ranges);
    if braces && gone.contains(RUNC) {
        ranges.extend(document.braces_mark());
        ranges.sort_by_key(|range| range.start);
    }
    let text = without_ranges(document.text, &ranges);
    let rest = Document::parse(&placement.path, &text)?;
    let Some((version, mark)) = rest.own_version() else {
        return Ok(Base {
            text,
            created: false,
        });
    };
    let created = mark == CREATED_MARK;
    // Since we wrote it, others may have come to rely on it.
    let version = if rest.depends_on_version()? {
        0..0
    } else {
        version
    };
    let text = cut(&text, &[version]);
    Ok(Base { text, created })
}

/// Whether a handler under an id that `placement` doesn't name was written by us, or by a predecessor whose handlers we took over.
fn is_ours(
    document: &Document<'_>,
    plugin: PluginId,
    name: &str,
    handler: &DeclaredHandler,
) -> bool {
    handler.marked || predecessors::of_handler(document, plugin, name, handler).is_some()
}

/// The text without the ranges, which are sorted and don't overlap, and without the line end that we added before one of them.
pub(super) fn without_ranges(text: &str, ranges: &[Range<usize>]) -> String {
    let mut left = cut(text, ranges);
    let joined = ranges.iter().find(|range| {
        text.get((*range).clone())
            .and_then(|lines| lines.lines().next())
            .is_some_and(|line| line.trim() == JOINED_MARK)
    });
    // Where what stood before it goes, too, the line end has gone with that.
    let joined = joined.filter(|joined| ranges.iter().all(|range| range.end != joined.start));
    if let Some(joined) = joined {
        let before: usize = ranges
            .iter()
            .take_while(|range| range.start < joined.start)
            .map(Range::len)
            .sum();
        // Where something follows, the line end that we added is needed.
        if joined.start - before == left.len() {
            let line = left.strip_suffix('\n').unwrap_or(&left);
            left.truncate(line.strip_suffix('\r').unwrap_or(line).len());
        }
    }
    left
}

/// The text without the ranges, which are sorted and don't overlap.
fn cut(text: &str, ranges: &[Range<usize>]) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut position = 0;
    for range in ranges {
        kept.push_str(text.get(position..range.start).unwrap_or_default());
        position = position.max(range.end);
    }
    kept.push_str(text.get(position..).unwrap_or_default());
    kept
}

/// Puts in what is wanted and not there.
fn fill(
    base: &str,
    created: bool,
    placement: &Placement,
    wanted: &BTreeMap<&str, &Handler>,
    runc: Option<&Handler>,
) -> Result<String, Error> {
    let document = Document::parse(&placement.path, base)?;
    let declared = document.handlers(placement.plugin)?;
    let missing: Vec<&Handler> = wanted
        .values()
        .filter(|handler| !declared.contains_key(&handler.name))
        .copied()
        .collect();
    let runc = match runc {
        _ if !placement.spell_out_runc || !declared.is_empty() => None,
        Some(runc) => Some(runc),
        None => {
            return Err(Error::NoRunc {
                path: placement.path.clone(),
            });
        }
    };
    let newline = newline_of(base);
    let version = match (placement.version, document.version()?) {
        (Some(version), None) => {
            let mark = if created { CREATED_MARK } else { VERSION_MARK };
            format!("{mark}{newline}version = {version}{newline}")
        }
        _ => String::new(),
    };
    let path = placement.plugin.runtimes();
    let filled = match document.holder(&[path.as_slice(), &[RUNC]].concat()) {
        Holder::Braces(braces, depth) => {
            let mark = runc.map(|_| format!("{BRACES_MARK}{newline}"));
            let all: Vec<&Handler> = missing.into_iter().chain(runc).collect();
            mark.unwrap_or_default() + &fill_braces(base, braces, &path[depth..], &all)
        }
        Holder::Headers => {
            let mut text = base.to_owned();
            let mut mark = HANDLER_MARK;
            if !text.is_empty() && !text.ends_with('\n') {
                text.push_str(newline);
                mark = JOINED_MARK;
            }
            for handler in missing {
                text.push_str(&block(mark, newline, &path, handler));
                mark = HANDLER_MARK;
            }
            if let Some(runc) = runc {
                text.push_str(&block(RUNC_MARK, newline, &path, runc));
            }
            text
        }
    };
    Ok(version + &filled)
}

/// Reads the result again: what isn't ours has its old values, and ours are exactly what is wanted.
fn verify(
    document: &Document<'_>,
    edited: &str,
    placement: &Placement,
    ours: &BTreeSet<String>,
    wanted: &BTreeMap<&str, &Handler>,
) -> Result<(), Error> {
    let unfit = |reason| Error::Unfit {
        path: placement.path.clone(),
        reason,
    };
    let result = Document::parse(&placement.path, edited)
        .map_err(|_| unfit("a table for a handler would not be valid beside what stands there"))?;
    let declared = result.handlers(placement.plugin)?;
    let stale = |name: &String| ours.contains(name) && !wanted.contains_key(name.as_str());
    if declared.keys().any(stale)
        || !wanted
            .iter()
            .all(|(name, handler)| declared.get(*name).is_some_and(|found| found.is(handler)))
    {
        return Err(unfit("its runtimes would not be the wanted ones"));
    }
    let managed = |plugin: PluginId, document: &Document<'_>| -> Result<BTreeSet<String>, Error> {
        Ok(document
            .handlers(plugin)?
            .into_iter()
            .filter(|(name, handler)| {
                ours.contains(name)
                    || wanted.contains_key(name.as_str())
                    || (name == RUNC && handler.marked)
            })
            .map(|(name, _)| name)
            .collect())
    };
    let others = |document: &Document<'_>| -> Result<Tree, Error> {
        let mut tree = document.tree();
        for plugin in PluginId::ALL {
            let managed = managed(plugin, document)?;
            without(&mut tree, &plugin.runtimes(), &managed);
        }
        if document.own_version().is_some()
            && let Tree::Table(root) = &mut tree
        {
            root.remove("version");
        }
        Ok(tree)
    };
    if others(document)? != others(&result)? {
        return Err(unfit("settings of others would change"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::Value;
    use super::*;

    /// A file in which `runc` alone is declared.
    const PLAIN: &str = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\nruntime_type = 'r'\n";

    fn placement() -> Placement {
        Placement {
            path: "/etc/containerd/config.toml".to_owned(),
            plugin: PluginId::GrpcV1Cri,
            version: Some(2),
            drop_in: false,
            spell_out_runc: false,
            elsewhere: BTreeSet::from(["other".to_owned()]),
        }
    }

    fn handler(name: &str) -> Handler {
        Handler {
            name: name.to_owned(),
            runtime_type: format!("/opt/{name}"),
            options: BTreeMap::new(),
        }
    }

    fn ours(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn edited(text: &str, mine: &[&str], want: &[Handler]) -> Result<String, Error> {
        edit(Some(text), &placement(), &ours(mine), want, None).map(Option::unwrap_or_default)
    }

    #[rstest]
    #[case::in_the_file("kata")]
    #[case::in_another_file("other")]
    fn a_handler_of_somebody_else_is_refused(#[case] name: &str) {
        let kata = "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.kata]\n";
        assert!(matches!(
            edited(&format!("{PLAIN}{kata}"), &[], &[handler(name)]),
            Err(Error::Foreign { .. })
        ));
    }

    #[rstest]
    #[case("runc")]
    #[case("")]
    #[case("a\nb")]
    #[case("a\"b")]
    #[case("a\\b")]
    fn a_name_that_is_not_safe_to_write_is_refused(#[case] name: &str) {
        assert!(matches!(
            edited(PLAIN, &[], &[handler(name)]),
            Err(Error::Name { .. })
        ));
    }

    #[test]
    fn half_a_line_end_is_no_end() {
        for text in [
            "version = 2\r",
            "version = 2 # x\r",
            "version = 2\n\r",
            "version = 2\n#\r",
        ] {
            let edited = edited(text, &[], &[handler("a")]);
            assert!(matches!(edited, Err(Error::Syntax { .. })), "{text:?}");
        }
    }

    #[test]
    fn a_handler_wanted_twice_is_refused() {
        assert!(matches!(
            edited(PLAIN, &[], &[handler("a"), handler("a")]),
            Err(Error::Twice { .. })
        ));
    }

    #[test]
    fn a_value_can_not_leave_its_string() {
        let mut want = handler("a");
        want.runtime_type = "x\"\n[plugins.evil]\u{7f}\u{85}\t'''\\".to_owned();
        let value = Value::String("\r\n# \"\"\"".to_owned());
        want.options.insert("k".to_owned(), value);
        let text = edited(PLAIN, &[], std::slice::from_ref(&want)).unwrap();
        assert!(handlers(&text, &placement()).unwrap()["a"].is(&want));
        assert!(!text.contains("\n[plugins.evil"));
    }

    #[test]
    fn what_others_append_behind_ours_stays_when_ours_leave() {
        let text = PLAIN.trim_end();
        let with = edited(text, &[], &[handler("a")]).unwrap() + "[metrics]\naddress = ''\n";
        assert_eq!(
            edited(&with, &["a"], &[]).unwrap(),
            format!("{text}\n[metrics]\naddress = ''\n")
        );
    }

    #[test]
    fn a_file_made_by_us_that_others_filled_stays_with_its_version() {
        let made = edit(None, &placement(), &ours(&[]), &[handler("a")], None);
        let filled =
            made.unwrap().unwrap() + "[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'p'\n";
        let left = edited(&filled, &["a"], &[]).unwrap();
        assert!(left.contains("version = 2") && left.ends_with("sandbox_image = 'p'\n"));
        assert!(!left.contains("/opt/a"));
    }

    #[test]
    fn nothing_wanted_makes_no_file() {
        assert_eq!(
            edit(None, &placement(), &ours(&[]), &[], None).unwrap(),
            None
        );
    }

    #[rstest]
    #[case::inline(
        "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes]\nb = {}\na = { runtime_type = '/old' }\n",
        "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes]\nb = {}\n"
    )]
    #[case::dotted(
        "[plugins.'io.containerd.grpc.v1.cri'.containerd]\nruntimes.a.runtime_type = '/old'\nruntimes.a.options.X = 1\nruntimes.b.runtime_type = 'b'\n",
        "[plugins.'io.containerd.grpc.v1.cri'.containerd]\nruntimes.b.runtime_type = 'b'\n"
    )]
    #[case::apart(
        "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.a.options]\nX = 1\n[metrics]\n# theirs\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.a]\nruntime_type = '/old'\n\n# tail\n",
        "[metrics]\n# theirs\n\n# tail\n"
    )]
    fn ours_is_cut_out_of_a_text_that_others_rewrote(#[case] text: &str, #[case] left: &str) {
        assert_eq!(edited(text, &["a"], &[]).unwrap(), left);
    }

    #[test]
    fn an_adopted_handler_stays_where_it_is_until_it_changes() {
        let theirs = "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.a]\nruntime_type = '/opt/a'\n# tail\n";
        let adopted = format!("{PLAIN}{theirs}");
        let both = edited(&adopted, &["a"], &[handler("a"), handler("b")]).unwrap();
        assert!(both.starts_with(&adopted));
        let mut changed = handler("a");
        changed.runtime_type = "/new/a".to_owned();
        let moved = edited(&both, &["a", "b"], &[changed]).unwrap();
        assert!(moved.starts_with(&format!("{PLAIN}# tail\n")));
        assert!(!moved.contains("/opt/"));
    }

    #[test]
    fn a_key_that_somebody_added_to_ours_is_taken_out_again() {
        let with = edited(PLAIN, &[], &[handler("a")]).unwrap();
        let drifted = with.clone() + "runtime_path = '/evil'\n";
        assert_eq!(edited(&drifted, &["a"], &[handler("a")]).unwrap(), with);
    }

    #[test]
    fn the_default_runtime_is_needed_where_it_would_vanish() {
        let placement = Placement {
            spell_out_runc: true,
            ..placement()
        };
        let bare = Some("version = 2\n");
        assert!(matches!(
            edit(bare, &placement, &ours(&[]), &[handler("a")], None),
            Err(Error::NoRunc { .. })
        ));
    }

    #[test]
    fn the_default_runtime_stays_while_a_handler_of_others_stands_beside_it() {
        let placement = Placement {
            spell_out_runc: true,
            ..placement()
        };
        let bare = Some("version = 2\n");
        let runc = handler("runc");
        let with = edit(bare, &placement, &ours(&[]), &[handler("a")], Some(&runc));
        let with = with.unwrap().unwrap()
            + "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.kata]\nruntime_type = 'k'\n";
        let left = edited(&with, &["a"], &[]).unwrap();
        let names: Vec<String> = handlers(&left, &placement).unwrap().into_keys().collect();
        assert_eq!(names, ["kata", "runc"]);
    }

    #[test]
    fn a_byte_order_mark_that_containerd_1_reads_is_kept() {
        let text = format!("\u{feff}{PLAIN}");
        let with = edited(&text, &[], &[handler("a")]).unwrap();
        assert!(with.starts_with('\u{feff}'));
        assert_eq!(edited(&with, &["a"], &[]).unwrap(), text);
    }

    #[test]
    fn our_file_follows_the_version_and_the_table_of_the_root() {
        let want = [handler("a")];
        let old = edit(None, &placement(), &ours(&[]), &want, None).unwrap();
        let placement = Placement {
            plugin: PluginId::CriV1Runtime,
            version: Some(3),
            drop_in: true,
            ..placement()
        };
        let new = edit(old.as_deref(), &placement, &ours(&["a"]), &want, None).unwrap();
        assert_eq!(
            new,
            edit(None, &placement, &ours(&[]), &want, None).unwrap()
        );
    }
}
