//! Files in which the kernel tells of itself: a word, a number, a list.

use std::fs;
use std::path::{Path, PathBuf};

/// Files below a root.
pub(super) struct Files<'a> {
    root: &'a Path,
}

impl<'a> Files<'a> {
    pub(super) fn new(root: &'a Path) -> Self {
        Self { root }
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// A file's text without white space at its ends; `None` if it can't be read or there is none.
    pub(super) fn read(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(path)).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// What follows `key` in its line of a file.
    pub(super) fn field(&self, path: &str, key: &str) -> Option<String> {
        self.read(path)?.lines().find_map(|line| Some(line.split_once(key)?.1.trim().to_owned()))
    }

    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.parse().ok()
    }

    /// The names in a directory, in the order of the numbers at their ends.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(path)) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort_by_cached_key(|name| {
            let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
            (stem.to_owned(), name[stem.len()..].parse::<u64>().unwrap_or(0))
        });
        names
    }

    /// The last part of what a symbolic link refers to.
    pub(super) fn target(&self, path: &str) -> Option<String> {
        let target = fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// The word in brackets: the choice among several.
    pub(super) fn chosen(&self, path: &str) -> Option<String> {
        let text = self.read(path)?;
        let (_, rest) = text.split_once('[')?;
        Some(rest.split_once(']')?.0.to_owned())
    }
}

/// The last number of a list like `0-3,8`.
pub(super) fn last(list: &str) -> Option<usize> {
    list.rsplit([',', '-']).next()?.trim().parse().ok()
}

/// How many numbers a list like `0-3,8` has.
pub(super) fn count(list: &str) -> usize {
    let parts = list.split(',').filter_map(|part| {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        Some((last + 1).saturating_sub(first))
    });
    parts.sum()
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;

    #[test]
    fn lists_are_counted() {
        let counted = ["0", "0-3", "0-3,8", "1,3,5", "", "junk"].map(count);
        assert_eq!(counted, [1, 4, 5, 3, 0, 0]);
        let last = ["0", "0-3", "0-3,8", "8-15", "", "junk"].map(last);
        assert_eq!(last, [Some(0), Some(3), Some(8), Some(15), None, None]);
    }

    #[test]
    fn names_come_in_the_order_of_their_numbers() {
        let root = tree(&[("sys/x10", ""), ("sys/x9", ""), ("sys/x0", ""), ("sys/a", "")]);
        assert_eq!(Files::new(root.path()).names("sys"), ["a", "x0", "x9", "x10"]);
    }

    #[test]
    fn the_choice_stands_in_brackets() {
        let root = tree(&[("enabled", "always [madvise] never"), ("empty", "")]);
        let files = Files::new(root.path());
        assert_eq!(files.chosen("enabled").as_deref(), Some("madvise"));
        assert_eq!((files.chosen("empty"), files.read("empty"), files.read("none")), (None, None, None));
    }
}
