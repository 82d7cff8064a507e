//! What a stranger does: installs the library to a prefix, and builds a program that lies elsewhere against what was installed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::abi::same;
use crate::header;
use crate::kit::{Process, goes_on, has, here, member, sockets};

/// The prefix, installed to once.
fn prefix() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join("prefix");
        let _ = std::fs::remove_dir_all(&made);
        let mut install = Command::new(env!("CARGO"));
        install.current_dir(here()).args(["run", "--quiet", "--locked", "--package", "xtask", "--"]);
        install.args(["install", "--profile", "dev", "--prefix"]).arg(&made);
        let output = install.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        made
    })
}

/// A directory outside the repository, with an example in it.
fn elsewhere() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for file in ["hello.c", "arguments.h"] {
        std::fs::copy(here().join("examples").join(file), directory.path().join(file)).unwrap();
    }
    directory
}

fn pkg_config(arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    command.args(arguments).arg("consort").env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().split_whitespace().map(str::to_owned).collect()
}

fn builds(command: &mut Command) {
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{told}");
}

fn three(program: &Path) -> Vec<Process> {
    let sockets = sockets(3);
    (0..3).map(|at| member(program, at, &sockets, &[])).collect()
}

#[test]
fn an_example_builds_with_pkg_config_and_goes_on_when_one_of_three_is_killed() {
    if !has("pkg-config", "pkg-config") {
        return;
    }
    let there = elsewhere();
    let mut compiler = Command::new("gcc");
    compiler.current_dir(there.path()).args(["-D_GNU_SOURCE", "hello.c", "-o", "hello", "-pthread"]);
    compiler
        .args(pkg_config(&["--cflags", "--libs"]))
        .arg(format!("-Wl,-rpath,{}", prefix().join("lib").display()));
    builds(&mut compiler);
    goes_on(three(&there.path().join("hello")), 3);
    assert_eq!(pkg_config(&["--modversion"]), [env!("CARGO_PKG_VERSION")]);
}

#[test]
fn the_static_library_has_no_other_global_symbols_than_the_headers_functions() {
    let output = Command::new("nm")
        .args(["--extern-only", "--defined-only"])
        .arg(prefix().join("lib/libconsort.a"))
        .output()
        .unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let defined = output.lines().filter_map(|line| line.split_whitespace().nth(2)).map(str::to_owned);
    same(&header::functions().into_keys().collect(), &defined.collect());
}

#[test]
fn an_example_builds_statically() {
    if !has("pkg-config", "pkg-config") {
        return;
    }
    let there = elsewhere();
    let mut compiler = Command::new("gcc");
    compiler.current_dir(there.path()).args(["-D_GNU_SOURCE", "hello.c", "-o", "hello", "-pthread"]);
    let flags = pkg_config(&["--static", "--cflags", "--libs"]);
    let flags = flags.iter().map(|flag| if flag == "-lconsort" { "-l:libconsort.a" } else { flag });
    compiler.args(flags);
    builds(&mut compiler);
    goes_on(three(&there.path().join("hello")), 3);
}

#[test]
fn an_example_builds_with_cmake() {
    if !has("cmake", "cmake") {
        return;
    }
    let there = elsewhere();
    let project = "cmake_minimum_required(VERSION 3.13)\nproject(hello C)\nfind_package(Consort 0.1 REQUIRED)\n\
                   find_package(Threads REQUIRED)\nadd_executable(hello hello.c)\n\
                   target_compile_definitions(hello PRIVATE _GNU_SOURCE)\n\
                   target_link_libraries(hello Consort::consort Threads::Threads)\n";
    std::fs::write(there.path().join("CMakeLists.txt"), project).unwrap();
    let mut cmake = Command::new("cmake");
    cmake.current_dir(there.path()).args(["-S", ".", "-B", "build"]);
    cmake.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix().display()));
    builds(&mut cmake);
    builds(Command::new("cmake").current_dir(there.path()).args(["--build", "build"]));
    goes_on(three(&there.path().join("build/hello")), 3);
}
