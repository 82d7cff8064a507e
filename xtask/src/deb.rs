//! Debian packages of libconsort, made of what [`install`] puts to `/usr` of a directory:
//!
//! ```text
//! libconsort0       what programs need that run: the shared library, under its soname
//! libconsort-dev    what it takes to build them: the header, the static library, what pkg-config and CMake ask for
//! ```
//! They are built by dpkg-deb alone. (cargo-deb makes packages of programs: a library's symbolic links, its soname in the package's name, and two
//! packages of one build it doesn't know.) They are for one's own machines: Debian's own would be built from source by its own rules.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::install::{Installed, SONAME, install};
use crate::shell::{Trouble, Workspace, quiet, succeeds};

/// Where the packages put everything.
const PREFIX: &str = "/usr";

/// Builds both packages, and puts them into `out`.
pub(crate) fn deb(workspace: &Workspace, out: &Path, maintainer: &str, profile: &str) -> Result<(), Trouble> {
    let mut version = workspace.command("dpkg-deb");
    version.arg("--version");
    if !succeeds(version) {
        return Err(Trouble::Found(
            "there is no dpkg-deb here: apt-get install dpkg, or brew install dpkg".into(),
        ));
    }
    // Another process may do the same at the same time.
    let stage = workspace.target.join(format!("deb-{}", std::process::id()));
    let made = build(workspace, &stage, out, maintainer, profile);
    let _ = fs::remove_dir_all(&stage); // nobody looks there
    made
}

fn build(
    workspace: &Workspace,
    stage: &Path,
    out: &Path,
    maintainer: &str,
    profile: &str,
) -> Result<(), Trouble> {
    let all = stage.join("all");
    let Installed { version, repository } = install(workspace, Path::new(PREFIX), Some(&all), profile)?;
    let architecture = {
        let mut ask = workspace.command("dpkg");
        ask.arg("--print-architecture");
        quiet(ask)?.trim().to_owned()
    };
    let lib = all.join("usr/lib");
    strip(workspace, "--strip-unneeded", &lib.join(format!("libconsort.so.{version}")));
    strip(workspace, "--strip-debug", &lib.join("libconsort.a"));
    let libc = match glibc(workspace, &lib.join(SONAME)) {
        Some(least) => format!("libc6 (>= {least})"),
        None => "libc6".to_owned(),
    };
    // What Debian takes for a revision is none.
    let version_there = version.replace('-', "~");
    let (runs, builds) =
        (format!("libconsort{}", SONAME.rsplit('.').next().unwrap_or("0")), "libconsort-dev");
    let of = |name: &str, section: &str, depends: &str, what: &str, bytes: u64| {
        format!(
            "Package: {name}\nVersion: {version_there}\nArchitecture: {architecture}\nMaintainer: {maintainer}\nInstalled-Size: {}\n\
             Depends: {depends}\nSection: {section}\nPriority: optional\nHomepage: {repository}\nDescription: atomic multicast with virtual synchrony, {what}\n",
            bytes.div_ceil(1024)
        )
    };
    let package =
        |name: &str, section: &str, depends: &str, what: &str, files: &[&str], more: &[(&str, String)]| {
            let root = stage.join(name);
            let put = || -> io::Result<()> {
                for file in files {
                    let to = root.join("usr").join(file);
                    fs::create_dir_all(to.parent().unwrap_or(&root))?;
                    fs::rename(all.join("usr").join(file), to)?;
                }
                let doc = root.join("usr/share/doc").join(name);
                fs::create_dir_all(&doc)?;
                fs::write(doc.join("copyright"), copyright(&workspace.root, &repository)?)?;
                let bytes = plain(&root)?;
                let control = root.join("DEBIAN");
                fs::create_dir_all(&control)?;
                fs::write(control.join("control"), of(name, section, depends, what, bytes))?;
                for (file, text) in more {
                    fs::write(control.join(file), text)?;
                }
                plain(&root)?;
                fs::create_dir_all(out)
            };
            put()
                .map_err(|cause| Trouble::Found(format!("can't put the package {name} together: {cause}")))?;
            let file = out.join(format!("{name}_{version_there}_{architecture}.deb"));
            let mut build = workspace.command("dpkg-deb");
            build.args(["--root-owner-group", "--build"]).arg(&root).arg(&file);
            quiet(build)?;
            println!("built {}", file.display());
            Ok(())
        };
    let shared = [format!("lib/libconsort.so.{version}"), format!("lib/{SONAME}")];
    let shared: Vec<_> = shared.iter().map(String::as_str).collect();
    let control = [
        // Whoever links against it depends on this package.
        (
            "shlibs",
            format!("libconsort {} {runs} (>= {version_there})\n", runs.trim_start_matches("libconsort")),
        ),
        ("triggers", "activate-noawait ldconfig\n".to_owned()),
    ];
    package(&runs, "libs", &format!("{libc}, libgcc-s1"), "shared library", &shared, &control)?;
    let files = [
        "include/consort.h",
        "lib/libconsort.so",
        "lib/libconsort.a",
        "lib/pkgconfig/consort.pc",
        "lib/cmake/Consort/ConsortConfig.cmake",
        "lib/cmake/Consort/ConsortConfigVersion.cmake",
    ];
    let depends = format!("{runs} (= {version_there}), libc6-dev");
    package(builds, "libdevel", &depends, "files to build programs with", &files, &[])
}

/// Without what only debuggers read, if binutils are there.
fn strip(workspace: &Workspace, what: &str, file: &Path) {
    let mut strip = workspace.command("objcopy");
    strip.arg(what).arg(file);
    if !succeeds(strip) {
        println!("{} keeps its debug information: objcopy can't be run; install binutils", file.display());
    }
}

/// The least version of glibc with all the symbols that a shared library asks for, as far as that can be found out.
fn glibc(workspace: &Workspace, library: &Path) -> Option<String> {
    let mut ask = workspace.command("objdump");
    ask.arg("--private-headers").arg(library);
    least_glibc(&quiet(ask).ok()?)
}

fn least_glibc(headers: &str) -> Option<String> {
    let asked = headers.split_whitespace().filter_map(|word| word.strip_prefix("GLIBC_"));
    let numbers =
        |version: &str| version.split('.').map(|part| part.parse::<u32>().ok()).collect::<Option<Vec<_>>>();
    let newest = asked.filter_map(|version| Some((numbers(version)?, version))).max();
    newest.map(|(_, version)| version.to_owned())
}

fn copyright(root: &Path, repository: &str) -> io::Result<String> {
    let mit = fs::read_to_string(root.join("LICENSE-MIT"))?;
    Ok(format!(
        "Consort, from {repository}, under the Apache License 2.0 or the MIT license, as you choose.\n\n\
         The first is in /usr/share/common-licenses/Apache-2.0. The second:\n\n{mit}"
    ))
}

/// Gives files and directories the modes that packages have, whatever the umask was. Returns how many bytes there are.
fn plain(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    let mut left: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        fs::set_permissions(&directory, Permissions::from_mode(0o755))?;
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                left.push(entry.path());
            } else if kind.is_file() {
                fs::set_permissions(entry.path(), Permissions::from_mode(0o644))?;
                bytes += entry.metadata()?.size();
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_that_is_asked_for_is_the_least_that_has_all() {
        let headers = "Version References:\n  required from libc.so.6:\n    0x0d696919 0x00 04 GLIBC_2.9\n    0x0 0x00 03 GLIBC_2.34\n  \
                       required from ld-linux:\n    0x0 0x00 02 GLIBC_2.3.4\n    0x0 0x00 GLIBC_PRIVATE\n    0x0 0x00 GCC_9.1\n";
        assert_eq!(least_glibc(headers).as_deref(), Some("2.34"));
        assert_eq!(least_glibc("no versions"), None);
    }
}
