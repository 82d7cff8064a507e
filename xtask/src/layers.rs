//! Who may import whom, between the crates and between the modules inside each.
//!
//! 1. *Crates.* The table [`MAY_USE`] is the architecture: what is not in it is forbidden, for normal, build and
//!    development dependencies alike. `control` and `hw` never see each other, and `dataplane` sees nothing.
//! 2. *Modules.* A module leans only on those declared above it in its parent, so reading a crate from the top never
//!    meets a word that is explained further down, and no cycle can arise. A path counts from wherever it stands
//!    in the two modules' subtrees, and a re-export counts as the module that it comes from. What stands in the parent
//!    itself is free to its children: an `impl` may be split over files.
//! 3. *Purity.* The data plane, and of the control plane all but its shell and configuration, open no socket, start no
//!    thread, and read no clock and no environment.
//! 4. *Unsafe.* It is allowed in the modules that [`UNSAFE`] lists, and nowhere else.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use cargo_metadata::{Metadata, MetadataCommand, TargetKind};

use crate::shell::{Trouble, Workspace};
use crate::source::{self, Module};

/// Which crates of ours a crate of ours may use.
const MAY_USE: &[(&str, &[&str])] = &[
    ("consort-dataplane", &[]),
    ("consort-control", &["consort-dataplane"]),
    ("consort-hw", &["consort-dataplane"]),
    ("consort", &["consort-dataplane", "consort-control", "consort-hw"]),
    ("consort-cli", &["consort"]),
    ("consort-capi", &["consort"]),
    ("consort-tests", &["consort", "consort-dataplane", "consort-control", "consort-hw"]),
    ("consort-benches", &["consort", "consort-dataplane", "consort-hw"]),
    ("xtask", &[]),
];

/// What touches nothing of the machine: a crate, the modules of it that may all the same, and what of the standard
/// library is therefore closed to the rest.
const PURE: &[(&str, &[&str], &[&str])] = &[
    ("consort-dataplane", &[], &["std::io", "std::net", "std::os"]),
    // Addresses and the kinds of I/O errors are values; sockets are not.
    (
        "consort-control",
        &["shell", "config"],
        &["std::net::TcpListener", "std::net::TcpStream", "std::net::UdpSocket", "std::os"],
    ),
];

/// Closed to all of them.
const MACHINE: &[&str] =
    &["std::env", "std::fs", "std::process", "std::thread", "std::time::Instant", "std::time::SystemTime"];

/// The files in which `unsafe` is allowed (S2); docs/architecture.md says why in each.
const UNSAFE: &[&str] = &[
    "dataplane/src/memory.rs",
    "dataplane/src/ring.rs",
    "dataplane/src/loan.rs",
    "dataplane/src/session/deliver.rs",
    "hw/src/shm/mapping.rs",
    "hw/src/shm/socket.rs",
    "hw/src/shm/life.rs",
    "hw/src/signals.rs",
    "hw/src/disk/direct.rs",
    "hw/src/disk/uring.rs",
    "hw/src/tcp/parts.rs",
    "hw/src/tcp/sys.rs",
    "hw/src/tcp/uring.rs",
    "hw/src/verbs/device.rs",
    "hw/src/verbs/queue.rs",
    "cli/src/bench/floor/memory.rs",
    "capi/src/border.rs",
    "capi/src/lent.rs",
    "capi/src/callback.rs",
    "capi/src/room.rs",
    "capi/src/seat.rs",
];

/// Checks all four rules; prints what breaks them.
pub(crate) fn check(workspace: &Workspace) -> Result<u64, Trouble> {
    let metadata = MetadataCommand::new()
        .manifest_path(workspace.root.join("Cargo.toml"))
        .no_deps()
        .exec()
        .map_err(|cause| Trouble::Found(format!("cargo metadata: {cause}")))?;
    let mut breaches = crates(&metadata);
    let mut seen = 0;
    for package in metadata.workspace_packages() {
        for target in &package.targets {
            let ours = [TargetKind::Lib, TargetKind::Bin, TargetKind::CDyLib, TargetKind::StaticLib];
            if !target.kind.iter().any(|kind| ours.contains(kind)) {
                continue;
            }
            let found = source::modules(target.src_path.as_std_path())
                .map_err(|cause| Trouble::Found(cause.to_string()))?;
            seen += found.len();
            let crate_ = Crate::new(&package.name, found, &workspace.root);
            breaches.extend(crate_.imports());
            breaches.extend(crate_.purity());
            breaches.extend(crate_.unsafe_code());
        }
    }
    for breach in &breaches {
        println!("{breach}\n");
    }
    if breaches.is_empty() {
        println!("    {} crates and {seen} modules keep their layers", metadata.workspace_packages().len());
        return Ok(1);
    }
    Err(Trouble::Found(format!("{} breaches of the layers", breaches.len())))
}

fn crates(metadata: &Metadata) -> Vec<String> {
    let ours: Vec<&str> = metadata.workspace_packages().iter().map(|package| package.name.as_str()).collect();
    let mut breaches = Vec::new();
    for package in metadata.workspace_packages() {
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == package.name.as_str()) else {
            breaches.push(format!(
                "{}: crate {} has no place in the layers\n  remedy: give it a line in MAY_USE (xtask/src/layers.rs) and \
                 a paragraph in docs/architecture.md",
                package.manifest_path, package.name
            ));
            continue;
        };
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            if ours.contains(&name) && !allowed.contains(&name) {
                breaches.push(format!(
                    "{}: {} depends on {name}, which lies above it or beside it\n  remedy: {} may use {}; move what \
                     is needed there, or pass it in as a value or a trait",
                    package.manifest_path,
                    package.name,
                    package.name,
                    if allowed.is_empty() { "no crate of ours".to_owned() } else { allowed.join(", ") },
                ));
            }
        }
    }
    breaches
}

/// A crate's modules, by path.
struct Crate<'a> {
    name: &'a str,
    root: &'a Path,
    modules: Vec<Module>,
    /// Where each path is in `modules`. A module with two bodies has the later one here.
    places: HashMap<Vec<String>, usize>,
}

impl<'a> Crate<'a> {
    fn new(name: &'a str, modules: Vec<Module>, root: &'a Path) -> Self {
        let places = modules.iter().enumerate().map(|(place, module)| (module.path.clone(), place)).collect();
        Self { name, root, modules, places }
    }

    fn module(&self, path: &[String]) -> Option<&Module> {
        self.places.get(path).map(|&place| &self.modules[place])
    }

    fn shown(&self, file: &Path) -> PathBuf {
        file.strip_prefix(self.root).unwrap_or(file).to_owned()
    }

    /// The path from the root that `segments`, written in the module `at`, means; none where it leads out of the
    /// crate.
    fn absolute(at: &[String], segments: &[String]) -> Option<Vec<String>> {
        let (first, mut rest) = segments.split_first()?;
        let mut path = match first.as_str() {
            "crate" => Vec::new(),
            "self" => at.to_vec(),
            "super" => at.split_last()?.1.to_vec(),
            _ => return None,
        };
        while let Some(("super", after)) = rest.split_first().map(|(next, after)| (next.as_str(), after)) {
            path.pop()?;
            rest = after;
        }
        path.extend_from_slice(rest);
        Some(path)
    }

    /// The module in which the thing at `path` is written, re-exports followed.
    fn home(&self, path: &[String], hops: usize) -> Vec<String> {
        let mut module = Vec::new();
        for (place, segment) in path.iter().enumerate() {
            module.push(segment.clone());
            if self.module(&module).is_some() {
                continue;
            }
            module.pop();
            // Not a module: perhaps a name that this one imports from elsewhere.
            let import = self.module(&module).and_then(|here| here.imports.get(segment));
            if let (Some(import), 1..) = (import, hops) {
                // In an import an unmarked first segment may be a child module.
                let meant = Self::absolute(&module, import).or_else(|| {
                    let child: Vec<String> = module.iter().cloned().chain(import.first().cloned()).collect();
                    self.module(&child).map(|_| module.iter().chain(import).cloned().collect())
                });
                if let Some(mut meant) = meant {
                    meant.extend_from_slice(&path[place + 1..]);
                    return self.home(&meant, hops - 1);
                }
            }
            break;
        }
        module
    }

    /// Rule 2.
    fn imports(&self) -> Vec<String> {
        let mut breaches = Vec::new();
        for parent in &self.modules {
            let leans = self.leans(parent);
            let backwards: Vec<&Lean> = leans.iter().filter(|lean| lean.to > lean.from).collect();
            let name = |child: usize| parent.children[child].as_str();
            let mut cyclic = false;
            for lean in &backwards {
                let mut breach = format!(
                    "{}:{}: `{}` leans on `{}` ({}), which is declared below it in {}",
                    self.shown(lean.file).display(),
                    lean.line,
                    name(lean.from),
                    name(lean.to),
                    lean.written,
                    self.shown(&parent.file).display(),
                );
                if let Some(back) = way(&leans, lean.to, lean.from) {
                    cyclic = true;
                    breach +=
                        &format!("\n  a cycle: `{}` leans back on `{}`:", name(lean.to), name(lean.from));
                    for step in back {
                        let (file, line) = (self.shown(step.file), step.line);
                        breach += &format!("\n    {}:{line}: {}", file.display(), step.written);
                    }
                    breach += "\n  remedy: move what both need into a module above both";
                }
                breaches.push(breach);
            }
            if let (false, Some(last)) = (backwards.is_empty() || cyclic, breaches.last_mut()) {
                let order: Vec<&str> = order(parent.children.len(), &leans).into_iter().map(name).collect();
                *last += &format!(
                    "\n  remedy: no cycle, only an order that misleads; declare them in {} as: {}",
                    self.shown(&parent.file).display(),
                    order.join(", "),
                );
            }
        }
        breaches
    }

    /// Which of `parent`'s children lean on which others of them: once for each pair, where it is first seen.
    fn leans<'s>(&'s self, parent: &Module) -> Vec<Lean<'s>> {
        let mut leans: Vec<Lean<'s>> = Vec::new();
        let depth = parent.path.len();
        let place = |name: &String| parent.children.iter().position(|child| child == name);
        for module in self.modules.iter().filter(|module| module.path.starts_with(&parent.path)) {
            let Some(from) = module.path.get(depth).and_then(place) else { continue };
            for mention in &module.mentions {
                let Some(meant) = Self::absolute(&module.path, &mention.segments) else { continue };
                let home = self.home(&meant, 8);
                if !home.starts_with(&parent.path) {
                    continue;
                }
                let Some(to) = home.get(depth).and_then(place) else { continue };
                if from != to && !leans.iter().any(|lean| (lean.from, lean.to) == (from, to)) {
                    let written = mention.segments.join("::");
                    leans.push(Lean { from, to, file: &module.file, line: mention.line, written });
                }
            }
        }
        leans
    }

    /// Rule 3.
    fn purity(&self) -> Vec<String> {
        let Some((_, open, closed)) = PURE.iter().find(|(name, ..)| *name == self.name) else {
            return Vec::new();
        };
        let pure = |module: &&Module| module.path.first().is_none_or(|top| !open.contains(&top.as_str()));
        let mentions = self
            .modules
            .iter()
            .filter(pure)
            .flat_map(|module| module.mentions.iter().map(move |mention| (module, mention)));
        mentions
            .filter_map(|(module, mention)| {
                let path = mention.segments.join("::").replace("core::", "std::");
                let hit = MACHINE.iter().chain(*closed).find(|closed| {
                    path.strip_prefix(**closed).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
                })?;
                Some(format!(
                    "{}:{}: {} is pure, and `{hit}` is the machine's\n  remedy: take time as an argument and I/O as \
                     events; what must touch the machine belongs to hw/ or to the shell of control/",
                    self.shown(&module.file).display(),
                    mention.line,
                    self.name,
                ))
            })
            .collect()
    }

    /// Rule 4.
    fn unsafe_code(&self) -> Vec<String> {
        let mut breaches = Vec::new();
        for module in &self.modules {
            let file = self.shown(&module.file);
            let listed = UNSAFE.iter().any(|allowed| file == Path::new(allowed));
            for line in module.unsafe_allowed.iter().filter(|_| !listed) {
                breaches.push(format!(
                    "{}:{line}: `unsafe` is allowed in a module that is not one of the few (S2)\n  remedy: build on one \
                     of them; or add the file to UNSAFE in xtask/src/layers.rs and say in docs/architecture.md \
                     which fact makes it sound",
                    file.display(),
                ));
            }
        }
        breaches
    }
}

/// One child of a module leans on another; both by their place among the children.
struct Lean<'a> {
    from: usize,
    to: usize,
    file: &'a Path,
    line: usize,
    written: String,
}

/// The shortest way along `leans` from one child to another.
fn way<'l, 's>(leans: &'l [Lean<'s>], from: usize, to: usize) -> Option<Vec<&'l Lean<'s>>> {
    let mut ways: Vec<Vec<&Lean<'_>>> =
        leans.iter().filter(|lean| lean.from == from).map(|lean| vec![lean]).collect();
    let mut seen = vec![from];
    let mut next = 0;
    while next < ways.len() {
        let here = ways[next].last()?.to;
        if here == to {
            return Some(ways.swap_remove(next));
        }
        if !seen.contains(&here) {
            seen.push(here);
            for lean in leans.iter().filter(|lean| lean.from == here) {
                let longer = ways[next].iter().copied().chain([lean]).collect();
                ways.push(longer);
            }
        }
        next += 1;
    }
    None
}

/// The children with every one behind those that it leans on, and otherwise as they are. There must be no cycle.
fn order(children: usize, leans: &[Lean<'_>]) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::new();
    while order.len() < children {
        let ready = |child: &usize| {
            !order.contains(child) && leans.iter().all(|lean| lean.from != *child || order.contains(&lean.to))
        };
        match (0..children).find(ready) {
            Some(child) => order.push(child),
            None => break,
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A crate of these files, its breaches of rules 2 to 4.
    fn breaches(name: &str, files: &[(&str, &str)]) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let file = directory.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let modules = source::modules(&directory.path().join("lib.rs")).unwrap();
        let crate_ = Crate::new(name, modules, directory.path());
        [crate_.imports(), crate_.purity(), crate_.unsafe_code()].concat()
    }

    #[test]
    fn leaning_upwards_is_fine() {
        let files = [
            ("lib.rs", "pub mod names; mod ring; pub use ring::Ring;"),
            ("names.rs", "pub struct Name;"),
            ("ring.rs", "use crate::names::Name; use std::fmt; pub struct Ring(Name);"),
        ];
        assert_eq!(breaches("x", &files), [""; 0]);
    }

    #[test]
    fn leaning_downwards_is_told_with_place_and_remedy() {
        let files = [
            ("lib.rs", "mod names; mod ring;"),
            ("names.rs", "\nuse std::fmt;\nuse crate::{ring::{self as r, Ring}};"),
            ("ring.rs", "pub struct Ring;"),
        ];
        let told = breaches("x", &files);
        assert_eq!(told.len(), 1, "one module is told of once: {told:?}");
        assert!(told[0].starts_with("names.rs:3: `names` leans on `ring`"), "{told:?}");
        assert!(told[0].contains("remedy: "), "{told:?}");
    }

    #[test]
    fn no_way_round_hides_an_import() {
        let ways = [
            "fn f() -> crate::b::B { crate::b::B }",
            "use super::b::B;",
            "use super::B;",
            "use crate::B;",
            "fn f() { assert!(crate::b::yes()); }",
            "use crate::b::*;",
            "pub use crate::b::B as C;",
            "mod inner { use super::super::b::B; }",
            "impl crate::b::T for u8 {}",
            "#[cfg(any(test, unix))] use crate::b::B;",
        ];
        for way in ways {
            let files = [("lib.rs", "mod a; mod b; pub use b::B;"), ("a.rs", way), ("b.rs", "pub struct B;")];
            assert_eq!(breaches("x", &files).len(), 1, "{way}");
        }
    }

    #[test]
    fn tests_comments_and_the_parent_are_free() {
        let ways = [
            "#[cfg(test)] mod tests { use crate::b::B; }",
            "#[cfg(all(test, not(loom)))] use crate::b::B;",
            "// crate::b::B\n/// [`crate::b::B`]\nfn f() -> &'static str { \"crate::b::B\" }",
            "use crate::Own;",
            "pub(in crate::b) fn f() {}",
            "use other::b::B;",
        ];
        for way in ways {
            let files = [("lib.rs", "mod a; mod b; struct Own;"), ("a.rs", way), ("b.rs", "")];
            assert_eq!(breaches("x", &files), [""; 0], "{way}");
        }
    }

    #[test]
    fn the_rule_holds_at_every_depth() {
        let files = [
            ("lib.rs", "mod engine;"),
            ("engine/mod.rs", "mod order; mod deliver; pub struct Engine;"),
            ("engine/order.rs", "use super::Engine; use super::deliver::go;"),
            ("engine/deliver.rs", "use crate::engine::order; pub fn go() {}"),
        ];
        let told = breaches("x", &files);
        assert_eq!(told.len(), 1);
        assert!(told[0].starts_with("engine/order.rs:1: `order` leans on `deliver`"), "{told:?}");
        assert!(
            told[0].contains("engine/deliver.rs:1: crate::engine::order"),
            "the way back is told: {told:?}"
        );
    }

    #[test]
    fn a_better_order_is_proposed() {
        let files = [
            ("lib.rs", "mod top; mod middle; mod aside; mod bottom;"),
            ("top.rs", "use crate::middle::m; use crate::bottom::b;"),
            ("middle.rs", "use crate::bottom::b; pub fn m() {}"),
            ("aside.rs", ""),
            ("bottom.rs", "pub fn b() {}"),
        ];
        let told = breaches("x", &files);
        assert_eq!(told.len(), 3);
        assert!(told[2].ends_with("declare them in lib.rs as: aside, bottom, middle, top"), "{told:?}");
    }

    #[test]
    fn the_data_plane_touches_no_machine() {
        let body = "use std::time::{Duration, Instant}; fn f() { std::thread::yield_now(); }";
        let files = [("lib.rs", body)];
        assert_eq!(breaches("consort-dataplane", &files).len(), 2);
        assert_eq!(breaches("consort-hw", &files).len(), 0);
        let files = [("lib.rs", "mod shell; mod link;"), ("shell.rs", body), ("link.rs", body)];
        assert_eq!(breaches("consort-control", &files).len(), 2, "only the shell may");
    }

    #[test]
    fn unsafe_has_its_places() {
        let files = [("lib.rs", "#![allow(unsafe_code)]"), ("other.rs", "")];
        assert_eq!(breaches("x", &files).len(), 1);
        let files = [("lib.rs", "mod dataplane;"), ("dataplane/mod.rs", "mod src;")];
        let more =
            [("dataplane/src/mod.rs", "mod memory;"), ("dataplane/src/memory.rs", "#![allow(unsafe_code)]")];
        assert_eq!(breaches("x", &[files, more].concat()), [""; 0]);
    }
}
