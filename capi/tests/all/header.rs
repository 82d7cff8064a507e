//! Reads `consort.h`: its functions, structs and constants, as they are written.

use std::collections::BTreeMap;

use crate::kit::here;

/// The header without comments and preprocessor lines.
pub(crate) fn bare() -> String {
    let text = std::fs::read_to_string(here().join("include/consort.h")).unwrap();
    let mut bare = String::new();
    let mut rest = &text[..];
    while let Some((before, after)) = rest.split_once("/*") {
        bare += before;
        rest = after.split_once("*/").unwrap().1;
    }
    bare += rest;
    let kept =
        bare.lines().filter(|line| !line.trim_start().starts_with('#') && !line.starts_with("extern \"C\""));
    kept.collect::<Vec<_>>().join("\n")
}

/// Each function's result and parameters, by name; white space is single.
pub(crate) fn functions() -> BTreeMap<String, (String, Vec<String>)> {
    let mut found = BTreeMap::new();
    let bare = bare();
    let mut depth = 0;
    let mut statement = String::new();
    for character in bare.chars() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ';' if depth == 0 => {
                let text = statement.split_whitespace().collect::<Vec<_>>().join(" ");
                if let (false, Some((head, tail))) = (text.starts_with("typedef"), text.split_once('(')) {
                    let at = head.rfind(['*', ' ']).unwrap() + 1;
                    let parameters = tail.trim_end_matches(')').split(", ").map(str::to_owned).collect();
                    found.insert(head[at..].to_owned(), (head[..at].trim().to_owned(), parameters));
                }
                statement.clear();
                continue;
            }
            _ => {}
        }
        statement.push(character);
    }
    found
}

/// Each struct's fields, by the struct's name.
pub(crate) fn structs() -> BTreeMap<String, Vec<String>> {
    let bare = bare();
    let mut found = BTreeMap::new();
    for part in bare.split("typedef struct ").skip(1) {
        let Some((name, rest)) = part.split_once(" {") else { continue };
        if name.contains(';') {
            continue; // an opaque type
        }
        let body = rest.split_once(&format!("}} {name};")).unwrap().0;
        let field = |line: &str| {
            let line = line.trim().trim_end_matches(';');
            match line.split_once("(*") {
                Some((_, function)) => function.split_once(')').unwrap().0.to_owned(),
                None => line.rsplit([' ', '*']).next().unwrap().split('[').next().unwrap().to_owned(),
            }
        };
        let fields = body.split(';').map(|it| it.split_whitespace().collect::<Vec<_>>().join(" "));
        found.insert(name.to_owned(), fields.filter(|it| !it.is_empty()).map(|it| field(&it)).collect());
    }
    found
}

/// The names of all enumeration constants.
pub(crate) fn constants() -> Vec<String> {
    let bare = bare();
    let words = bare.split(|it: char| !it.is_alphanumeric() && it != '_');
    let mut names: Vec<String> = words.filter(|it| it.starts_with("CONSORT_")).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}
