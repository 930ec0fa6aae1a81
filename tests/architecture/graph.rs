//! Reads the imports of a source tree: `use` lines, paths in bodies and paths in the arguments of macros. A file is a module; an edge
//! leads from a file to each file that it names. Code under `#[cfg(test)]` is left out. Holds no rule about any file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, ItemUse, Macro, UseTree};

/// Segments of a path: `["crate", "names", "Label"]`.
type Segments = Vec<String>;

/// One file of the tree, without its tests.
#[derive(Debug)]
pub struct Source {
    /// Path below the root of the tree, such as `installer/host/mod.rs`.
    pub file: String,
    /// Lines in front of the unit tests.
    pub lines: usize,
    /// Every path that the file names and that leads out of the tree, such as `std::fs::File`, with aliases replaced by their paths.
    pub external: BTreeSet<String>,
    /// The files that this file names, with the names.
    pub imports: BTreeMap<String, BTreeSet<String>>,
}

/// The files of a source tree and their imports.
#[derive(Debug)]
pub struct Graph {
    /// By file.
    pub sources: BTreeMap<String, Source>,
}

/// The texts of all Rust files below `root`, by path below it.
pub fn read_tree(root: &Path) -> BTreeMap<String, String> {
    fn collect(root: &Path, directory: &Path, texts: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(root, &path, texts);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path
                    .strip_prefix(root)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                texts.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut texts = BTreeMap::new();
    collect(root, root, &mut texts);
    texts
}

impl Graph {
    /// Parses the files, given by path below the root of the tree. `own_name` is the name of the library as its binary writes it.
    pub fn of(texts: &BTreeMap<String, String>, own_name: &str) -> Self {
        let mut modules: BTreeMap<Segments, String> = texts
            .keys()
            .map(|file| (module_of(file), file.clone()))
            .collect();
        let mut parsed = BTreeMap::new();
        let mut tests = BTreeSet::new();
        for (file, text) in texts {
            let syntax = syn::parse_file(text).unwrap_or_else(|error| panic!("{file}: {error}"));
            let mut reader = Reader::new(module_of(file));
            reader.visit_file(&syntax);
            tests.append(&mut reader.test_modules);
            parsed.insert(file.clone(), reader);
        }
        let is_test =
            |module: &Segments| (1..=module.len()).any(|length| tests.contains(&module[..length]));
        modules.retain(|module, _| !is_test(module));
        let sources = parsed
            .into_iter()
            .filter(|(file, _)| !is_test(&module_of(file)))
            .map(|(file, reader)| {
                let lines = lines_without_tests(&texts[&file]);
                (
                    file.clone(),
                    reader.resolve(file, lines, &modules, own_name),
                )
            })
            .collect();
        Self { sources }
    }

    /// The number of imports.
    pub fn edges(&self) -> usize {
        self.sources
            .values()
            .map(|source| source.imports.len())
            .sum()
    }

    /// Every set of files that name each other in a circle.
    pub fn circles(&self) -> Vec<BTreeSet<String>> {
        let targets = self
            .sources
            .iter()
            .map(|(file, source)| (file.clone(), source.imports.keys().cloned().collect()))
            .collect();
        circles(&targets)
    }

    /// The shortest circle through one of `files`, a line per import with the names that tie it.
    pub fn describe_circle(&self, files: &BTreeSet<String>) -> String {
        let shortest = files
            .iter()
            .filter_map(|file| self.way_back(file, files))
            .min_by_key(Vec::len)
            .unwrap_or_default();
        let mut text = String::new();
        for pair in shortest.windows(2) {
            let names = &self.sources[&pair[0]].imports[&pair[1]];
            let names = names.iter().cloned().collect::<Vec<_>>().join(", ");
            writeln!(text, "  {} names {} in {}", pair[0], names, pair[1]).unwrap();
        }
        text
    }

    /// The shortest path of imports from `start` through files of `among` back to `start`, both ends included.
    fn way_back(&self, start: &str, among: &BTreeSet<String>) -> Option<Vec<String>> {
        let mut ways = std::collections::VecDeque::from([vec![start.to_owned()]]);
        let mut seen = BTreeSet::new();
        while let Some(way) = ways.pop_front() {
            for next in self.sources[way.last()?].imports.keys() {
                if !among.contains(next) {
                    continue;
                }
                let mut longer = way.clone();
                longer.push(next.clone());
                if next == start {
                    return Some(longer);
                }
                if seen.insert(next.clone()) {
                    ways.push_back(longer);
                }
            }
        }
        None
    }

    /// The number of files on the longest path of imports. A circle counts as one file.
    pub fn longest_chain(&self) -> usize {
        let circles = self.circles();
        let group = |file: &String| {
            let circle = circles.iter().find(|circle| circle.contains(file));
            circle
                .and_then(|circle| circle.first())
                .unwrap_or(file)
                .clone()
        };
        let mut below: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (file, source) in &self.sources {
            let targets = source.imports.keys().map(group);
            let of_group = below.entry(group(file)).or_default();
            of_group.extend(targets.filter(|target| *target != group(file)));
        }
        let mut known = BTreeMap::new();
        below
            .keys()
            .map(|file| depth(file, &below, &mut known))
            .max()
            .unwrap_or(0)
    }
}

/// The number of files on the longest path of imports from `file`.
fn depth(
    file: &str,
    below: &BTreeMap<String, BTreeSet<String>>,
    known: &mut BTreeMap<String, usize>,
) -> usize {
    if let Some(depth) = known.get(file) {
        return *depth;
    }
    let targets = below.get(file).into_iter().flatten();
    let deepest = targets.map(|target| depth(target, below, known)).max();
    let depth = 1 + deepest.unwrap_or(0);
    known.insert(file.to_owned(), depth);
    depth
}

/// The sets of nodes that lead to each other, each of more than one node.
pub fn circles(targets: &BTreeMap<String, BTreeSet<String>>) -> Vec<BTreeSet<String>> {
    let reachable = |start: &String| {
        let mut seen = BTreeSet::new();
        let mut open = vec![start];
        while let Some(node) = open.pop() {
            for next in targets.get(node).into_iter().flatten() {
                if seen.insert(next.clone()) {
                    open.push(next);
                }
            }
        }
        seen
    };
    let all: BTreeMap<&String, BTreeSet<String>> =
        targets.keys().map(|node| (node, reachable(node))).collect();
    let mut found: Vec<BTreeSet<String>> = Vec::new();
    for (node, reached) in &all {
        if !reached.contains(*node) || found.iter().any(|circle| circle.contains(*node)) {
            continue;
        }
        let back = |other: &&String| {
            all.get(other)
                .is_some_and(|reached| reached.contains(*node))
        };
        found.push(reached.iter().filter(back).cloned().collect());
    }
    found
}

/// The module of a file: `a/mod.rs` and `a.rs` are `a`, `lib.rs` and `main.rs` are the root.
fn module_of(file: &str) -> Segments {
    let path = file.strip_suffix(".rs").unwrap_or(file);
    let mut segments: Segments = path.split('/').map(str::to_owned).collect();
    if matches!(segments.last().map(String::as_str), Some("mod" | "lib")) {
        segments.pop();
    }
    segments
}

fn lines_without_tests(text: &str) -> usize {
    let tests = text
        .lines()
        .collect::<Vec<_>>()
        .windows(2)
        .position(|pair| pair[0].starts_with("#[cfg(test)]") && pair[1].contains("mod "));
    tests.unwrap_or(text.lines().count())
}

/// Whether an item is compiled for tests alone.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<syn::Ident>()
                .is_ok_and(|condition| condition == "test")
    })
}

/// Collects the paths of one file.
struct Reader {
    module: Segments,
    /// Modules in the file around the code that is being read.
    inline: Segments,
    /// Names that `use` brings into the file, with their paths.
    aliases: BTreeMap<String, Segments>,
    /// Every path, with the modules in the file around it.
    paths: Vec<(Segments, Segments)>,
    /// Modules that are compiled for tests alone.
    test_modules: BTreeSet<Segments>,
}

impl Reader {
    fn new(module: Segments) -> Self {
        Self {
            module,
            inline: Vec::new(),
            aliases: BTreeMap::new(),
            paths: Vec::new(),
            test_modules: BTreeSet::new(),
        }
    }

    fn add(&mut self, path: Segments) {
        self.paths.push((self.inline.clone(), path));
    }

    fn add_use(&mut self, tree: &UseTree, prefix: &Segments) {
        let extended = |name: String| {
            let mut path = prefix.clone();
            path.push(name);
            path
        };
        match tree {
            UseTree::Path(path) => self.add_use(&path.tree, &extended(path.ident.to_string())),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_use(tree, prefix);
                }
            }
            UseTree::Glob(_) => self.add(extended("*".to_owned())),
            UseTree::Name(name) if name.ident == "self" => {
                if let Some(last) = prefix.last() {
                    self.aliases.insert(last.clone(), prefix.clone());
                }
                self.add(prefix.clone());
            }
            UseTree::Name(name) => {
                let path = extended(name.ident.to_string());
                self.aliases.insert(name.ident.to_string(), path.clone());
                self.add(path);
            }
            UseTree::Rename(rename) => {
                let name = rename.ident.to_string();
                let path = if name == "self" {
                    prefix.clone()
                } else {
                    extended(name)
                };
                self.aliases.insert(rename.rename.to_string(), path.clone());
                self.add(path);
            }
        }
    }

    /// The arguments of a macro are not parsed: each run of names joined by `::` counts as a path.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path = Segments::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.add_if_path(std::mem::take(&mut path));
                    }
                    path.push(ident.to_string());
                }
                TokenTree::Group(group) => {
                    self.add_if_path(std::mem::take(&mut path));
                    self.add_tokens(group.stream());
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    self.add_if_path(std::mem::take(&mut path));
                }
            }
            colons = 0;
        }
        self.add_if_path(path);
    }

    fn add_if_path(&mut self, path: Segments) {
        if path.len() > 1 {
            self.add(path);
        }
    }

    /// Turns the collected paths into files of the tree and paths that lead out of it.
    fn resolve(
        self,
        file: String,
        lines: usize,
        modules: &BTreeMap<Segments, String>,
        own_name: &str,
    ) -> Source {
        let (mut external, mut imports) = (BTreeSet::new(), BTreeMap::new());
        for (inline, path) in &self.paths {
            let absolute = self.absolute(inline, path, modules, own_name, 0);
            let Some(absolute) = absolute else {
                continue;
            };
            if absolute.first().is_none_or(|first| first != "crate") {
                external.insert(absolute.join("::"));
                continue;
            }
            let inside = &absolute[1..];
            let target = (0..=inside.len()).rev().find_map(|length| {
                let file = modules.get(&inside[..length])?;
                Some((file, inside[length..].first()))
            });
            if let Some((target, name)) = target
                && *target != file
            {
                let name = name.cloned().unwrap_or_else(|| "the module".to_owned());
                imports
                    .entry(target.clone())
                    .or_insert_with(BTreeSet::new)
                    .insert(name);
            }
        }
        Source {
            file,
            lines,
            external,
            imports,
        }
    }

    /// The path from the root of its crate on. `None` for a name that the file itself defines or that the prelude brings.
    fn absolute(
        &self,
        inline: &[String],
        path: &[String],
        modules: &BTreeMap<Segments, String>,
        own_name: &str,
        depth: usize,
    ) -> Option<Segments> {
        let in_crate = |module: &[String], rest: &[String]| {
            let mut absolute = vec!["crate".to_owned()];
            absolute.extend_from_slice(module);
            absolute.extend_from_slice(rest);
            Some(absolute)
        };
        let (first, rest) = path.split_first()?;
        let here: Segments = self.module.iter().chain(inline).cloned().collect();
        match first.as_str() {
            "crate" => in_crate(&[], rest),
            name if name == own_name => in_crate(&[], rest),
            "self" => in_crate(&here, rest),
            "super" => {
                let ups = path
                    .iter()
                    .take_while(|segment| *segment == "super")
                    .count();
                let length = here.len().checked_sub(ups)?;
                in_crate(&here[..length], &path[ups..])
            }
            "Self" => None,
            // An alias may stand for a path that begins with another alias; one that stands for itself names a crate.
            name => match self.aliases.get(name) {
                Some(alias) if alias.first() != path.first() && depth < 8 => {
                    let mut longer = alias.clone();
                    longer.extend_from_slice(rest);
                    self.absolute(&[], &longer, modules, own_name, depth + 1)
                }
                Some(alias) if alias.len() > 1 && depth < 8 => {
                    // `use child::name` names a module below this one, if there is one.
                    let mut longer = self.module.clone();
                    longer.push(name.to_owned());
                    if modules.contains_key(&longer) {
                        in_crate(&self.module, path)
                    } else {
                        Some(path.to_vec())
                    }
                }
                Some(_) | None => {
                    let mut child = self.module.clone();
                    child.push(name.to_owned());
                    if modules.contains_key(&child) {
                        in_crate(&self.module, path)
                    } else {
                        (path.len() > 1).then(|| path.to_vec())
                    }
                }
            },
        }
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes: &[Attribute] = match item {
            Item::Const(item) => &item.attrs,
            Item::Enum(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            Item::Static(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            _ => &[],
        };
        if !is_for_tests(attributes) {
            visit::visit_item(self, item);
        } else if let Item::Mod(module) = item {
            let mut path: Segments = self.module.iter().chain(&self.inline).cloned().collect();
            path.push(module.ident.to_string());
            self.test_modules.insert(path);
        }
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        self.inline.push(module.ident.to_string());
        visit::visit_item_mod(self, module);
        self.inline.pop();
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !is_for_tests(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.add_use(&item.tree, &Vec::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Segments = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        // A single name is a local one, or its `use` line counts already.
        if segments.len() > 1 {
            self.add(segments);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        visit::visit_macro(self, call);
        self.add_tokens(call.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        visit::visit_attribute(self, attribute);
        if let syn::Meta::List(list) = &attribute.meta {
            self.add_tokens(list.tokens.clone());
        }
    }
}
