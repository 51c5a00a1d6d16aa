//! The floors of the house: an import only goes down, and the table below is exactly what is imported.
//!
//! A new arrow is a change of the design, so it needs a line here and a reason in ARCHITECTURE.md. An arrow that is
//! gone leaves the table too.

mod sources;

use std::collections::{BTreeMap, BTreeSet};

use sources::{SourceFile, expect_none, files};

/// Rooms from the ground up, each with the rooms that it imports, all of them on lower floors.
const FLOORS: [&[(&str, &[&str])]; 8] = [
    &[("arch", &[]), ("environment", &[]), ("quant", &[])],
    &[("codegen", &["arch"]), ("problem", &["arch", "quant"])],
    &[
        ("check", &["problem", "quant"]),
        ("jit", &["codegen", "environment"]),
        ("kernels", &["arch", "codegen", "problem", "quant"]),
        ("report", &["problem", "quant"]),
        ("store", &["arch", "problem"]),
    ],
    &[("device", &["arch", "jit"])],
    &[("dispatch", &["arch", "codegen", "device", "environment", "jit", "kernels", "problem", "quant", "store"])],
    &[
        ("engine", &["codegen", "device", "dispatch", "jit", "kernels", "problem", "quant", "report"]),
        ("tuner", &["arch", "check", "codegen", "device", "dispatch", "jit", "kernels", "problem", "quant", "store"]),
    ],
    &[("models", &["arch", "codegen", "device", "dispatch", "engine", "kernels", "problem", "quant"])],
    &[(
        "cli",
        &[
            "arch",
            "codegen",
            "device",
            "dispatch",
            "engine",
            "environment",
            "jit",
            "kernels",
            "models",
            "problem",
            "quant",
            "report",
            "store",
            "tuner",
        ],
    )],
];

#[test]
fn every_room_has_its_floor_and_only_looks_down() {
    let mut below: BTreeSet<&str> = BTreeSet::new();
    for floor in FLOORS {
        for (room, imports) in floor {
            let up: Vec<_> = imports.iter().filter(|import| !below.contains(*import)).collect();
            assert!(up.is_empty(), "{room} imports {up:?}, which are not on a lower floor");
        }
        below.extend(floor.iter().map(|(room, _)| room));
    }
    let library = files("src", &["lib.rs"]).remove(0);
    let rooms = library.text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    assert_eq!(rooms.collect::<BTreeSet<_>>(), below, "the table and the modules of lib.rs");
}

#[test]
fn imports_are_those_of_the_table() {
    let house = House::read();
    let mut found: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for (module, file) in &house.modules {
        for path in paths(file, module) {
            if path[0] != module[0] && house.is_module(&path[..1]) {
                found.entry((module[0].clone(), path[0].clone())).or_default().insert(file.path.clone());
            }
        }
    }
    let listed: BTreeSet<(String, String)> = FLOORS
        .iter()
        .copied()
        .flatten()
        .flat_map(|(room, imports)| imports.iter().map(|import| (room.to_string(), import.to_string())))
        .collect();
    let unlisted = found.iter().filter(|(arrow, _)| !listed.contains(arrow));
    let unlisted = unlisted.map(|((from, to), files)| format!("{from} -> {to} in {files:?}, not in the table"));
    let gone = listed.iter().filter(|arrow| !found.contains_key(arrow));
    let gone = gone.map(|(from, to)| format!("{from} -> {to} in the table, imported nowhere"));
    expect_none("the floors of the house", unlisted.chain(gone).collect());
}

#[test]
fn binaries_only_know_the_command_line() {
    for file in files("src/bin", &[".rs"]) {
        let rooms: BTreeSet<String> = trees(&file.text, "tilekiln::").into_iter().map(|path| path[0].clone()).collect();
        assert_eq!(rooms, BTreeSet::from(["cli".to_string()]), "{}", file.path);
    }
}

/// The files of a folder import each other in one direction only. Its `mod.rs` is the front page: it may import its
/// files, and they may import what it defines itself.
#[test]
fn files_of_a_folder_have_no_circles() {
    let house = House::read();
    let mut circles = Vec::new();
    for folder in house.folders() {
        let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (module, file) in house.modules.iter().filter(|(module, _)| module.len() > folder.len()) {
            if !module.starts_with(&folder) {
                continue;
            }
            let targets = paths(file, module).into_iter().filter_map(|path| house.child(&folder, &path));
            arrows.entry(module[folder.len()].clone()).or_default().extend(targets);
        }
        circles.extend(circle(&arrows).map(|circle| format!("{}: {}", folder.join("::"), circle.join(" -> "))));
    }
    expect_none("circles inside a folder", circles);
}

/// Every module of the library with its file.
struct House {
    modules: BTreeMap<Vec<String>, SourceFile>,
}

impl House {
    fn read() -> Self {
        let of = |file: SourceFile| {
            let path = file.path.strip_prefix("src/")?.strip_suffix(".rs")?;
            let path = path.strip_suffix("/mod").unwrap_or(path);
            let module: Vec<String> = path.split('/').map(str::to_string).collect();
            let is_root = path == "lib" || module[0] == "bin";
            (!is_root).then_some((module, file))
        };
        Self { modules: files("src", &[".rs"]).into_iter().filter_map(of).collect() }
    }

    fn is_module(&self, path: &[String]) -> bool {
        self.modules.contains_key(path)
    }

    /// Modules that have modules.
    fn folders(&self) -> BTreeSet<Vec<String>> {
        self.modules
            .keys()
            .filter(|module| module.len() > 1)
            .map(|module| module[..module.len() - 1].to_vec())
            .collect()
    }

    /// The child of `folder` that `path` leads into, by its own name or by a name that the front page passes on.
    fn child(&self, folder: &[String], path: &[String]) -> Option<String> {
        let name = path.strip_prefix(folder)?.first()?;
        let is_child = |name: &String| self.is_module(&[folder, std::slice::from_ref(name)].concat());
        if is_child(name) {
            return Some(name.clone());
        }
        let front_page = without_comments(&self.modules[folder]);
        let passed_on = trees(&front_page, "use ").into_iter().find(|path| path.last() == Some(name));
        passed_on?.into_iter().find(is_child)
    }
}

/// The absolute paths that `file`, the text of `module`, names: every `crate::`, `super::` and `self::`.
fn paths(file: &SourceFile, module: &[String]) -> Vec<Vec<String>> {
    let text = without_comments(file);
    let is_front_page = file.path.ends_with("/mod.rs");
    let mut found = Vec::new();
    for root in ["crate::", "super::", "self::"] {
        for path in trees(&text, root) {
            let hops = path.iter().take_while(|segment| *segment == "super").count();
            // `self` of a file is its module; `super` of a front page is one folder up, as of any module.
            let mut absolute: Vec<String> = match root {
                "crate::" => Vec::new(),
                "self::" => module.to_vec(),
                _ => module[..module.len().saturating_sub(hops + 1)].to_vec(),
            };
            absolute.extend(path.into_iter().skip(hops));
            found.push(absolute);
        }
    }
    // A front page names its files without a prefix; that is no arrow between files.
    found.retain(|path| !(path.is_empty() || is_front_page && path.starts_with(module)));
    found
}

/// The library's part of `file`, without comments.
fn without_comments(file: &SourceFile) -> String {
    let code = file.without_tests().lines().map(|line| line.split("//").next().unwrap_or(""));
    code.collect::<Vec<_>>().join("\n")
}

/// The paths behind each place where `root` stands in `text`, with groups in braces spread out.
fn trees(text: &str, root: &str) -> Vec<Vec<String>> {
    let is_start = |at: usize| !text[..at].ends_with(|c| is_name(c) || c == ':');
    let starts = text.match_indices(root).filter(|(at, _)| is_start(*at));
    let mut found = Vec::new();
    for (at, _) in starts {
        spread(&text[at + root.len()..], &[], &mut found);
    }
    found
}

/// Adds the paths of the use tree at the start of `text` to `found`, each behind `prefix`; gives what follows the tree.
fn spread<'a>(text: &'a str, prefix: &[String], found: &mut Vec<Vec<String>>) -> &'a str {
    let mut rest = text.trim_start();
    let mut path = prefix.to_vec();
    loop {
        if let Some(group) = rest.strip_prefix('{') {
            rest = group;
            loop {
                rest = spread(rest, &path, found).trim_start();
                let Some(more) = rest.strip_prefix(',') else { return rest.strip_prefix('}').unwrap_or(rest) };
                rest = more.trim_start();
                if let Some(behind) = rest.strip_prefix('}') {
                    return behind;
                }
            }
        }
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        if end == 0 {
            // `*`, or generics behind `::`.
            found.push(path);
            return rest.strip_prefix('*').unwrap_or(rest);
        }
        path.push(rest[..end].to_string());
        rest = &rest[end..];
        match rest.strip_prefix("::") {
            Some(more) => rest = more,
            None => {
                found.push(path);
                let renamed = rest.trim_start().strip_prefix("as ");
                return renamed.map_or(rest, |name| name.trim_start_matches(is_name));
            }
        }
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// A circle of arrows, from a name back to itself.
fn circle(arrows: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn walk(arrows: &BTreeMap<String, BTreeSet<String>>, way: &mut Vec<String>, done: &mut BTreeSet<String>) -> bool {
        let at = way[way.len() - 1].clone();
        for to in arrows.get(&at).into_iter().flatten().filter(|to| **to != at) {
            if let Some(begin) = way.iter().position(|name| name == to) {
                way.drain(..begin);
                way.push(to.clone());
                return true;
            }
            if !done.contains(to) {
                way.push(to.clone());
                if walk(arrows, way, done) {
                    return true;
                }
                way.pop();
            }
        }
        done.insert(at);
        false
    }
    let mut done = BTreeSet::new();
    arrows.keys().find_map(|name| {
        let mut way = vec![name.clone()];
        walk(arrows, &mut way, &mut done).then_some(way)
    })
}

#[test]
fn use_trees_are_spread_and_circles_are_found() {
    let text = "use crate::a::{b, c::{D, e as f}, g::*};\nlet x = crate::h::i::<u32>(crate::J);";
    let found: Vec<String> = trees(text, "crate::").iter().map(|path| path.join("::")).collect();
    assert_eq!(found, ["a::b", "a::c::D", "a::c::e", "a::g", "h::i", "J"]);
    let arrows = |list: &[(&str, &str)]| {
        let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        list.iter().for_each(|(from, to)| {
            arrows.entry(from.to_string()).or_default().insert(to.to_string());
        });
        arrows
    };
    assert_eq!(circle(&arrows(&[("a", "b"), ("b", "c"), ("a", "c")])), None);
    let round = circle(&arrows(&[("a", "b"), ("b", "c"), ("c", "b")])).unwrap();
    assert_eq!(round, ["b", "c", "b"]);
}
