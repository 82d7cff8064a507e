//! What a stranger does: installs the library to a prefix, and builds a program that lies elsewhere against what was installed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::abi::{has_only_the_headers_functions, same};
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

/// The packages, in a directory of their own.
fn packages() -> tempfile::TempDir {
    let made = tempfile::tempdir().unwrap();
    let mut deb = Command::new(env!("CARGO"));
    deb.current_dir(here()).args(["run", "--quiet", "--locked", "--package", "xtask", "--"]);
    builds(deb.args(["deb", "--profile", "dev", "--out"]).arg(made.path()));
    made
}

/// What a package says of itself, by field.
fn field(package: &Path, name: &str) -> String {
    let output = Command::new("dpkg-deb").arg("--field").arg(package).arg(name).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The names in a package, of what is no directory.
fn contents(package: &Path) -> BTreeSet<String> {
    let output = Command::new("dpkg-deb").arg("--contents").arg(package).output().unwrap();
    let listed = String::from_utf8(output.stdout).unwrap();
    let files = listed.lines().filter(|line| !line.starts_with('d'));
    files
        .map(|line| {
            let name = line.split_whitespace().nth(5).unwrap();
            assert!(line.contains(" root/root "), "{line}");
            name.trim_start_matches('.').to_owned()
        })
        .collect()
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
    pkg_config_at(&prefix().join("lib/pkgconfig"), arguments)
}

fn pkg_config_at(directory: &Path, arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    command.args(arguments).arg("consort").env("PKG_CONFIG_PATH", directory);
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
    has_only_the_headers_functions("--extern-only", &prefix().join("lib/libconsort.a"));
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

#[test]
fn an_example_builds_and_runs_with_what_is_in_the_packages() {
    if !has("dpkg-deb", "dpkg") || !has("pkg-config", "pkg-config") {
        return;
    }
    let made = packages();
    let mut files: Vec<_> = std::fs::read_dir(made.path()).unwrap().map(|it| it.unwrap().path()).collect();
    files.sort();
    let [dev, runs] = &files[..] else { panic!("{files:?}") };
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        [field(dev, "Package"), field(dev, "Depends"), field(runs, "Package"), field(runs, "Version")],
        [
            "libconsort-dev".to_owned(),
            format!("libconsort0 (= {version}), libc6-dev"),
            "libconsort0".into(),
            version.into()
        ]
    );
    assert!(field(runs, "Depends").starts_with("libc6 (>= 2."), "{}", field(runs, "Depends"));
    let shared = [
        format!("/usr/lib/libconsort.so.{version}"),
        "/usr/lib/libconsort.so.0".into(),
        "/usr/share/doc/libconsort0/copyright".into(),
    ];
    same(&shared.into(), &contents(runs));
    let to_build = [
        "/usr/include/consort.h",
        "/usr/lib/libconsort.so",
        "/usr/lib/libconsort.a",
        "/usr/lib/pkgconfig/consort.pc",
        "/usr/lib/cmake/Consort/ConsortConfig.cmake",
        "/usr/lib/cmake/Consort/ConsortConfigVersion.cmake",
        "/usr/share/doc/libconsort-dev/copyright",
    ];
    same(&to_build.map(str::to_owned).into(), &contents(dev));

    let root = tempfile::tempdir().unwrap();
    for package in [runs, dev] {
        builds(Command::new("dpkg-deb").arg("--extract").arg(package).arg(root.path()));
    }
    let (there, lib) = (elsewhere(), root.path().join("usr/lib"));
    for (name, statically) in [("hello", false), ("hello-static", true)] {
        let mut compiler = Command::new("gcc");
        compiler.current_dir(there.path()).args(["-D_GNU_SOURCE", "hello.c", "-o", name, "-pthread"]);
        let flags: &[&str] =
            if statically { &["--static", "--cflags", "--libs"] } else { &["--cflags", "--libs"] };
        for flag in pkg_config_at(&lib.join("pkgconfig"), flags) {
            compiler.arg(if statically && flag == "-lconsort" { "-l:libconsort.a".to_owned() } else { flag });
        }
        builds(compiler.arg(format!("-Wl,-rpath,{}", lib.display())));
        goes_on(three(&there.path().join(name)), 3);
    }
}
