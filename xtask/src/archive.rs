//! The static library with the C API's functions as its only global symbols.
//!
//! What cargo makes has every symbol of every Rust crate in it, which a program that is linked with it may collide with. So all that the API needs is
//! linked into one relocatable object, in which everything else becomes local. Only the binary utilities can do that; where they
//! don't, the library is taken as it is.
//!
//! Two things of that object would trouble who links it: section groups, by whose names (local by then) a linker would throw out parts of it in
//! favour of another Rust library's; and the bitcode of Rust's standard library, which linkers with a plugin of another LLVM can't read.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// What all symbols of the API begin with.
const PREFIX: &str = "consort_";

/// Makes `to` of the static library `from`, with what the shared one of the same build exports. `beside` is a name for files that are needed
/// meanwhile.
///
/// # Errors
/// What the machine lacks, for people. `to` isn't there then.
pub(crate) fn narrow(shared: &Path, from: &Path, to: &Path, beside: &Path) -> Result<(), String> {
    let (whole, object) = (beside.with_extension("whole.o"), beside.with_extension("o"));
    let made = make(shared, from, to, &whole, &object);
    for file in [&whole, &object] {
        let _ = fs::remove_file(file); // it may not have come to be
    }
    if made.is_err() {
        let _ = fs::remove_file(to);
    }
    made
}

fn make(shared: &Path, from: &Path, to: &Path, whole: &Path, object: &Path) -> Result<(), String> {
    // Of the static one an nm with a plugin for bitcode may see nothing.
    let listed = run(Command::new("nm").args(["--dynamic", "--defined-only"]).arg(shared))?;
    let names: Vec<_> = api(&listed).collect();
    if names.is_empty() {
        return Err(format!("nm finds no {PREFIX}* in {}", shared.display()));
    }
    let mut link = Command::new("ld");
    link.args(["--relocatable", "--force-group-allocation", "--output"]).arg(whole);
    link.args(names.iter().map(|name| format!("--undefined={name}"))).arg(from);
    run(&mut link)?;
    let mut localize = Command::new("objcopy");
    localize.args(["--remove-section=.llvmbc", "--remove-section=.llvmcmd"]);
    localize.args(["--wildcard", &format!("--keep-global-symbol={PREFIX}*")]).arg(whole).arg(object);
    run(&mut localize)?;
    // One that is there would be added to.
    let _ = fs::remove_file(to);
    run(Command::new("ar").arg("rcsD").arg(to).arg(object)).map(drop)
}

/// The API's functions in what nm lists.
fn api(listed: &str) -> impl Iterator<Item = &str> {
    let names = listed.lines().filter_map(|line| line.split_whitespace().nth(2));
    names.filter(|name| name.starts_with(PREFIX))
}

fn run(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|cause| format!("{name} can't be run ({cause}); install binutils"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    let first = told.lines().next().unwrap_or("it doesn't say why");
    Err(format!("{name} ended with {}: {first}", output.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_functions_of_the_api_are_found() {
        let listed = "0000000000000000 T consort_node_new\n0000000000000010 T _ZN4core3fmt\n\
                      0000000000000000 D consort_table\n                 U memcpy\n";
        assert_eq!(api(listed).collect::<Vec<_>>(), ["consort_node_new", "consort_table"]);
    }

    #[test]
    fn what_is_no_library_is_left_alone_and_nothing_is_left_behind() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("from.a"), place.path().join("to.a"));
        fs::write(&from, "no archive").unwrap();
        fs::write(&to, "of before").unwrap();
        assert!(narrow(&from, &from, &to, &place.path().join("beside")).is_err());
        let left: Vec<_> = fs::read_dir(place.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left, ["from.a"]);
    }
}
