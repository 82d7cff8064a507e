//! Reads the modules of a crate from its root file: which there are, in which order they are declared, and which paths
//! each mentions.
//!
//! The source is parsed, not matched by patterns, so a path in a comment or a string is none, and `use` trees, paths in
//! expressions and those inside macro calls all count. Code that is compiled for tests alone is left out: a test
//! may look down on the whole crate.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, ItemUse, Meta, UseTree};

/// One module: a file, or an inline `mod`.
#[derive(Debug)]
pub(crate) struct Module {
    /// Its path from the crate's root, which is the empty path.
    pub(crate) path: Vec<String>,
    /// The file that it stands in.
    pub(crate) file: PathBuf,
    /// Its child modules in the order of their declaration.
    pub(crate) children: Vec<String>,
    /// What its `use` items bring in, and under which name.
    pub(crate) imports: HashMap<String, Vec<String>>,
    /// The paths it mentions, as written.
    pub(crate) mentions: Vec<Mention>,
    /// The lines at which `unsafe_code` is allowed.
    pub(crate) unsafe_allowed: Vec<usize>,
}

/// A path in the source.
#[derive(Debug, Clone)]
pub(crate) struct Mention {
    /// Its segments as written, `crate`, `self` and `super` included.
    pub(crate) segments: Vec<String>,
    /// The line, from 1.
    pub(crate) line: usize,
}

/// The source could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("{}: {cause}", file.display())]
    Unreadable { file: PathBuf, cause: std::io::Error },
    #[error("{}:{}: {cause}", file.display(), cause.span().start().line)]
    Unparsable { file: PathBuf, cause: syn::Error },
    #[error("{}: module `{module}` has no file beside it", file.display())]
    NoFile { file: PathBuf, module: String },
}

/// All modules of the crate whose root file is `root`, parents before children.
pub(crate) fn modules(root: &Path) -> Result<Vec<Module>, SourceError> {
    let mut found = Vec::new();
    let directory = root.parent().unwrap_or(Path::new(".")).to_owned();
    read_file(root, &directory, &[], &mut found)?;
    Ok(found)
}

fn read_file(
    file: &Path,
    directory: &Path,
    path: &[String],
    found: &mut Vec<Module>,
) -> Result<(), SourceError> {
    let text =
        fs::read_to_string(file).map_err(|cause| SourceError::Unreadable { file: file.to_owned(), cause })?;
    let parsed =
        syn::parse_file(&text).map_err(|cause| SourceError::Unparsable { file: file.to_owned(), cause })?;
    read_items(&parsed.attrs, &parsed.items, file, directory, path, found)
}

/// `directory` is where the files of this module's children lie.
fn read_items(
    attributes: &[Attribute],
    items: &[Item],
    file: &Path,
    directory: &Path,
    path: &[String],
    found: &mut Vec<Module>,
) -> Result<(), SourceError> {
    let mut reader = Reader::default();
    attributes.iter().for_each(|attribute| reader.visit_attribute(attribute));
    let mut below = Vec::new();
    for item in items {
        match item {
            Item::Mod(module) if !only_for_tests(&module.attrs) => below.push(module),
            item => reader.visit_item(item),
        }
    }
    // A `mod` item's own attributes (an allow before it) belong to the child but stand here.
    below.iter().flat_map(|module| &module.attrs).for_each(|attribute| reader.visit_attribute(attribute));
    let mut children: Vec<String> = Vec::new();
    for module in &below {
        let name = module.ident.to_string();
        // The same module twice is one with two bodies, chosen by cfg.
        if !children.contains(&name) {
            children.push(name);
        }
    }
    found.push(Module {
        path: path.to_owned(),
        file: file.to_owned(),
        children,
        imports: reader.imports,
        mentions: reader.mentions,
        unsafe_allowed: reader.unsafe_allowed,
    });
    for module in below {
        let name = module.ident.to_string();
        let child: Vec<String> = path.iter().cloned().chain([name.clone()]).collect();
        match &module.content {
            Some((_, items)) => read_items(&[], items, file, &directory.join(&name), &child, found)?,
            None => {
                let candidates = match path_attribute(module) {
                    Some(named) => vec![file.parent().unwrap_or(Path::new(".")).join(named)],
                    None => vec![directory.join(format!("{name}.rs")), directory.join(&name).join("mod.rs")],
                };
                let Some(child_file) = candidates.into_iter().find(|candidate| candidate.is_file()) else {
                    return Err(SourceError::NoFile { file: file.to_owned(), module: child.join("::") });
                };
                read_file(&child_file, &directory.join(&name), &child, found)?;
            }
        }
    }
    Ok(())
}

fn path_attribute(module: &ItemMod) -> Option<String> {
    module.attrs.iter().find_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text.value()),
            _ => None,
        },
        _ => None,
    })
}

/// Whether the item is compiled for tests alone: `#[cfg(test)]`, `#[cfg(all(test, …))]`, `#[test]`.
fn only_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::Path(path) => path.is_ident("test"),
        Meta::List(list) if list.path.is_ident("cfg") => {
            syn::parse2::<Meta>(list.tokens.clone()).is_ok_and(|predicate| demands_test(&predicate))
        }
        _ => false,
    })
}

fn demands_test(predicate: &Meta) -> bool {
    match predicate {
        Meta::Path(path) => path.is_ident("test") || path.is_ident("loom") || path.is_ident("fuzzing"),
        Meta::List(list) => {
            let parser = syn::punctuated::Punctuated::<Meta, syn::Token![,]>::parse_terminated;
            let Ok(parts) = syn::parse::Parser::parse2(parser, list.tokens.clone()) else { return false };
            if list.path.is_ident("all") {
                parts.iter().any(demands_test)
            } else {
                list.path.is_ident("any") && !parts.is_empty() && parts.iter().all(demands_test)
            }
        }
        Meta::NameValue(_) => false,
    }
}

/// Collects what one module says.
#[derive(Default)]
struct Reader {
    imports: HashMap<String, Vec<String>>,
    mentions: Vec<Mention>,
    unsafe_allowed: Vec<usize>,
}

impl Reader {
    fn use_tree(&mut self, tree: &UseTree, before: &[String]) {
        let with = |name: String| before.iter().cloned().chain([name]).collect::<Vec<_>>();
        match tree {
            UseTree::Path(path) => self.use_tree(&path.tree, &with(path.ident.to_string())),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.use_tree(tree, before)),
            UseTree::Name(name) if name.ident == "self" => {
                self.import(before.last().cloned(), before.to_vec(), name.ident.span());
            }
            UseTree::Name(name) => {
                self.import(Some(name.ident.to_string()), with(name.ident.to_string()), name.ident.span());
            }
            UseTree::Rename(rename) => {
                let segments =
                    if rename.ident == "self" { before.to_vec() } else { with(rename.ident.to_string()) };
                self.import(Some(rename.rename.to_string()), segments, rename.ident.span());
            }
            UseTree::Glob(glob) => {
                let star = glob.star_token.spans[0];
                self.mentions.push(Mention { segments: before.to_vec(), line: star.start().line });
            }
        }
    }

    fn import(&mut self, name: Option<String>, segments: Vec<String>, span: proc_macro2::Span) {
        self.mentions.push(Mention { segments: segments.clone(), line: span.start().line });
        if let Some(name) = name.filter(|name| name != "_") {
            self.imports.insert(name, segments);
        }
    }

    /// Paths in the arguments of a macro, which are mere tokens: `crate::a::b`, `super::c`, `std::thread::spawn`.
    fn tokens(&mut self, stream: TokenStream) {
        let mut path: Vec<(String, usize)> = Vec::new();
        let mut colons = 0;
        let mut end = |path: &mut Vec<(String, usize)>| {
            if let [(_, line), _, ..] = path.as_slice() {
                let segments = path.iter().map(|(segment, _)| segment.clone()).collect();
                self.mentions.push(Mention { segments, line: *line });
            }
            path.clear();
        };
        let mut groups = Vec::new();
        for tree in stream {
            match tree {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        end(&mut path);
                    }
                    path.push((ident.to_string(), ident.span().start().line));
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    end(&mut path);
                    colons = 0;
                    groups.push(group.stream());
                }
                _ => {
                    end(&mut path);
                    colons = 0;
                }
            }
        }
        end(&mut path);
        groups.into_iter().for_each(|group| self.tokens(group));
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast Item) {
        if !only_for_tests(attributes_of(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.use_tree(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if let (Some(first), true) = (path.segments.first(), path.segments.len() > 1) {
            let segments = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.mentions.push(Mention { segments, line: first.ident.span().start().line });
        }
        visit::visit_path(self, path);
    }

    fn visit_vis_restricted(&mut self, _: &'ast syn::VisRestricted) {
        // `pub(in crate::a)` says who may look in, not who is leant on.
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        let Meta::List(list) = &attribute.meta else { return };
        if list.path.is_ident("allow") || list.path.is_ident("expect") {
            let names_it =
                |tree: TokenTree| matches!(tree, TokenTree::Ident(ident) if ident == "unsafe_code");
            if list.tokens.clone().into_iter().any(names_it) {
                self.unsafe_allowed.push(list.delimiter.span().open().start().line);
            }
        }
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.tokens(call.tokens.clone());
    }
}

fn attributes_of(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
